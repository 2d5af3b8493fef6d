"""Find the weights inside an ONNX file by its protobuf wire format, without parsing it and without onnx.

For an unusual or broken file, `layout` returns None, and the caller parses the file with protobuf.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

LARGE = 2**16
"""Minimum size of a large weight in bytes."""

MOST_BYTES = 2**31 - 1
"""Maximum bytes of a protobuf message, and so of a graph file; larger models use external data."""

LARGE_FILE = 2**32
"""Size of external data, in bytes, up to which reading takes only seconds."""

_MOST_FIELDS = 1_000_000  # fields per file, read in about a second; real files have about 10,000
# Numbers of fields in onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _EIGHT_BYTES, _SIZED, _FOUR_BYTES = 0, 1, 2, 5  # wire types


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message.

    Attributes:
        number: field number.
        wire: wire type.
        start: offset of its tag in the file.
        value: offset of its value.
        end: offset of the next field.
    """

    number: int
    wire: int
    start: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class Weight:
    """An initializer and the field that holds its data."""

    tensor: Field
    data: Field


@dataclass(frozen=True, slots=True)
class Layout:
    """The graph of an ONNX file and its large weights, in the order of the file."""

    graph: Field
    weights: tuple[Weight, ...]


def layout(data: mmap.mmap) -> Layout | None:
    """Return the offsets of the weights in an ONNX file.

    None for a file that is not valid protobuf, has its graph in several parts, or has more than `_MOST_FIELDS` fields.
    """
    budget = iter(range(_MOST_FIELDS))
    try:
        graphs = [field for field in _fields(data, 0, len(data), budget) if field.number == _GRAPH and field.wire == _SIZED]
        if len(graphs) != 1:
            return None
        return Layout(graphs[0], tuple(_weights(data, graphs[0], budget)))
    except _UnusualError:
        return None


def sized_field(number: int, value: bytes) -> bytes:
    """Return the bytes of a field whose value is a message; `number` is below 16."""
    size, written = len(value), bytearray([number << 3 | _SIZED])
    while size > 0x7F:
        written.append(size & 0x7F | 0x80)
        size >>= 7
    written.append(size)
    return bytes(written) + value


class _UnusualError(ValueError):
    pass


def _weights(data: mmap.mmap, graph: Field, budget: Iterator[int]) -> Iterator[Weight]:
    for tensor in _fields(data, graph.value, graph.end, budget):
        if tensor.number == _INITIALIZER and tensor.wire == _SIZED and tensor.end - tensor.value >= LARGE:
            fields = _fields(data, tensor.value, tensor.end, budget)
            raw = [field for field in fields if field.number == _RAW_DATA and field.wire == _SIZED]
            if len(raw) == 1 and raw[0].end - raw[0].value >= LARGE:
                yield Weight(tensor, raw[0])


def _fields(data: mmap.mmap, start: int, end: int, budget: Iterator[int]) -> Iterator[Field]:
    """Yield the fields of a message, until the file's budget of fields is used up."""
    for _ in budget:
        if start == end:
            return
        tag, value = _varint(data, start, end)
        wire = tag & 7
        if wire == _SIZED:
            size, value = _varint(data, value, end)
            last = value + size
        elif wire == _VARINT:
            last = _varint(data, value, end)[1]
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            last = value + (8 if wire == _EIGHT_BYTES else 4)
        else:
            raise _UnusualError
        if last > end:
            raise _UnusualError
        yield Field(tag >> 3, wire, start, value, last)
        start = last
    raise _UnusualError


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """Return a varint (seven bits per byte, the lowest first) and the offset after it."""
    number = 0
    for place in range(start, min(end, start + 10)):
        byte = data[place]
        number |= (byte & 0x7F) << 7 * (place - start)
        if byte < 0x80:
            return number, place + 1
    raise _UnusualError
