"""Read an ONNX file and leave its weights in it.

A ModelProto that holds its weights costs twice its file: the bytes and the parsed copy. Here the protobuf wire format is walked
first; the data of each large initializer are replaced by a reference to their place in the file itself, in the form of external
data, which ONNX Runtime maps. What is unusual or broken is left to protobuf, so that a file parses, or fails to, as ever.
"""

import mmap
import os
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

OWN = "."
"""The location of data that lie in the file of the graph itself; no other file can have this name."""

_LARGE = 2**16  # bytes of a tensor that stays in the file
# Types of weights. Integers and booleans of other types are shapes, positions and masks, which passes read.
_WEIGHTS = frozenset(
    (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8)
)
_MOST_FIELDS = 1_000_000  # of one message; protobuf itself is faster on more
# Numbers of fields in onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _EIGHT_BYTES, _SIZED, _FOUR_BYTES = 0, 1, 2, 5  # wire types
_Field = tuple[int, int, int, int]  # number, where its tag and its value begin, where it ends; 0 for one without a size


class _UnusualError(ValueError):
    """Bytes that are not plain messages, or a graph in parts."""


def read_model(path: Path) -> onnx.ModelProto:
    """Read a graph; the data of its external and of its own large initializers stay in their files.

    The location of the latter is `OWN`.

    Raises:
        google.protobuf.message.DecodeError: not an ONNX file.
    """
    try:
        os.fspath(path.resolve()).encode()  # a location is text
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            skeleton = _without_weights(data)
    except (UnicodeEncodeError, ValueError):  # an empty file cannot be mapped
        return onnx.load(path, load_external_data=False)
    return onnx.ModelProto.FromString(skeleton)


def location_of(tensor: TensorProto) -> str:
    """Return the location of a tensor's external data; empty where they are in the tensor."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return ""
    return next((str(entry.value) for entry in tensor.external_data if entry.key == "location"), "")


def read_values(tensor: TensorProto, file: Path) -> NDArray[np.generic]:
    """Map the values of a tensor whose data are in `file`."""
    info = ExternalDataInfo(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(file, dtype=dtype, mode="r", offset=info.offset or 0, shape=tuple(tensor.dims))


def with_values(tensor: TensorProto, file: Path) -> TensorProto:
    """Return a copy of a tensor that holds its data, which are in `file`."""
    return numpy_helper.from_array(np.array(read_values(tensor, file)), tensor.name)


def _without_weights(data: mmap.mmap) -> bytes:
    """Return a ModelProto without the data of its large initializers."""
    parts, graphs = [], 0
    for number, start, value, end in _fields(data, 0, len(data)):
        if number == _GRAPH and value:
            graphs += 1
            parts.append(_sized(_GRAPH, b"".join(_graph_parts(data, value, end))))
        else:
            parts.append(data[start:end])
    if graphs != 1:
        raise _UnusualError
    return b"".join(parts)


def _graph_parts(data: mmap.mmap, start: int, end: int) -> Iterator[bytes]:
    for number, first, value, last in _fields(data, start, end):
        if number == _INITIALIZER and value and last - value >= _LARGE:
            tensor = _reference(data, value, last)
            yield data[first:last] if tensor is None else _sized(_INITIALIZER, tensor.SerializeToString())
        else:
            yield data[first:last]


def _reference(data: mmap.mmap, start: int, end: int) -> TensorProto | None:
    """Return a tensor that points to its own data; None where it has to hold them."""
    parts, places = [], []
    for number, first, value, last in _fields(data, start, end):
        if number == _RAW_DATA and value:
            places.append((value, last - value))
        else:
            parts.append(data[first:last])
    tensor = TensorProto.FromString(b"".join(parts))
    if len(places) != 1 or tensor.data_type not in _WEIGHTS or tensor.data_location or tensor.external_data:
        return None
    (offset, length), *_ = places
    if length < _LARGE or length != prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize:
        return None
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", OWN), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of a message."""
    for _ in range(_MOST_FIELDS):
        if start == end:
            return
        tag, value = _varint(data, start, end)
        sized = tag & 7 == _SIZED
        if sized:
            size, value = _varint(data, value, end)
            last = value + size
        elif tag & 7 == _VARINT:
            last = _varint(data, value, end)[1]
        elif tag & 7 in (_EIGHT_BYTES, _FOUR_BYTES):
            last = value + (8 if tag & 7 == _EIGHT_BYTES else 4)
        else:
            raise _UnusualError
        if last > end:
            raise _UnusualError
        yield tag >> 3, start, value if sized else 0, last
        start = last
    raise _UnusualError


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """Read a number as protobuf writes it, seven bits a byte, the lowest first; return it and where it ends."""
    number = 0
    for place in range(start, min(end, start + 10)):
        byte = data[place]
        number |= (byte & 0x7F) << 7 * (place - start)
        if byte < 0x80:
            return number, place + 1
    raise _UnusualError


def _sized(number: int, value: bytes) -> bytes:
    """Write a field whose value is a message."""
    size, written = len(value), bytearray([number << 3 | _SIZED])
    while size > 0x7F:
        written.append(size & 0x7F | 0x80)
        size >>= 7
    written.append(size)
    return bytes(written) + value
