"""Find the learned position embedding table of an encoder, and the row of a text's first token.

    positions ---> Gather(table, .) ---> + ---> first layer
    ids -----> Gather(vocabulary, .) ----^

Positions vary with a token's place and not with its id: a range, a cumulative sum of a mask, a slice of a stored range, the
input `position_ids`. The search follows them by data flow and uses no names except those of the graph inputs. Tables that are
not added to the tokens are not matched: those of rotary positions, and of relative positions, which enter attention scores.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from penult.graph.find.flow import FLOATS, MOVEMENT, SHAPE, TRANSPARENT, is_vector, subgraphs
from penult.graph.find.graph_index import GraphIndex

Read = Callable[[TensorProto], NDArray[np.generic] | None]

_ASKED, _COUNTED = "position_ids", "cache_position"
_NO_IDS = frozenset(("attention_mask", "pooling_mask"))
_TESTS = frozenset(
    ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf", "Sign")
)
_PRODUCTS = frozenset(("MatMul", "Gemm", "Einsum", "MatMulInteger", "Conv", "ConvInteger"))
_SAME_START = TRANSPARENT | MOVEMENT | {"Where", "Clip", "Min", "Max", "Abs", "Relu"}
# Substrings of the names of runtime-specific operators that do not mix tokens.
_BY_TOKEN = ("Norm", "Gelu", "Silu", "Quantize", "QLinear")
_FEWEST = 4  # rows; token type tables have fewer
_MOST_READ = 1 << 20  # maximum number of elements of a stored range to read
_EXTRA = 4  # most rows before the first token in known position tables
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError)  # what onnx raises for an inconsistent tensor


@dataclass(frozen=True, slots=True)
class PositionTable:
    """A position embedding table that is added to the token embeddings.

    Attributes:
        tensor: name of the constant.
        rows: number of positions.
        first: the row of a text's first token; None if the graph does not show it.
        asked: the graph takes positions as an input, and `first` is the offset that it adds to them.
    """

    tensor: str
    rows: int
    first: int | None
    asked: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """Position integers: the first value, whether they come from an input, and the length of a stored range."""

    first: int | None = 0
    asked: bool = False
    span: int | None = None


def position_table(graph: GraphIndex) -> PositionTable | None:
    """Return the position table, the shortest if there are several; None if there is none.

    Args:
        graph: index of a graph whose inputs were renamed by `name_inputs`.
    """
    return _Search(graph).table()


def position_offset(
    graph: GraphIndex,
    pad_id: int | None,
    *,
    stated_rows: int | None = None,
    stated_length: int | None = None,
    read: Read | None = None,
) -> int:
    """Return the position of a text's first token for a graph that takes positions as an input.

    It is 0, or p + 1 for padding row p: `nn.Embedding(padding_idx=p)` keeps row p at zero, and models with such a row count
    from p + 1. Without a zero row, the table's length decides: a power of two or the stated length, or p + 1 rows more.

    Args:
        graph: as in `position_table`.
        pad_id: the token id of padding, which is also the padding row of such tables.
        stated_rows: number of positions in the model's configuration.
        stated_length: maximum number of tokens of a text, from the model's files.
        read: returns the values of a tensor with external data, or None.

    Raises:
        ValueError: the position cannot be determined, or the evidence is contradictory.
    """
    search = _Search(graph)
    table = search.table()
    if table is None or not table.asked or table.first:
        return 0
    values = search.values(table, read)
    zero = [] if values is None else _zero_rows(values)
    lengths = _Lengths(table.rows, stated_rows, stated_length)
    start = _start(lengths, zero, pad_id, seen=values is not None) if table.first is not None else None
    if start is None:
        rows = f"its zero rows are {', '.join(map(str, zero[:4]))}" if zero else "no row is zero"
        raise ValueError(
            f"The graph has the input position_ids, and the position of the first token is unknown: the table has {table.rows} "
            f"positions (configuration: {stated_rows or 'none'}, maximum tokens: {stated_length or 'none'}), the padding id is "
            f"{pad_id}, and {rows if values is not None else 'its rows cannot be read'}. Export the graph without position_ids."
        )
    return start


@dataclass(frozen=True, slots=True)
class _Lengths:
    """The number of rows of a table, and the numbers that the files state."""

    rows: int
    stated_rows: int | None
    stated_length: int | None

    def fit(self, start: int) -> bool:
        """Return whether the number of rows from `start` on is a stated number or a power of two."""
        left = self.rows - start
        stated = {self.stated_length} if start == 0 else {self.stated_length, self.stated_rows}
        return left in stated or (left >= 16 and left & (left - 1) == 0)


def _start(lengths: _Lengths, zero: list[int], pad_id: int | None, *, seen: bool) -> int | None:
    """Return the first position; None if it cannot be determined.

    1. All rows are zero: 0, because any position works.
    2. The row of the padding id is zero and the next row is not: the next row.
    3. One other row is zero, and the length fits from the next row on: the next row.
    4. No row is zero, and the length fits either from 0 or from the row after the padding id, not both: that row.
    5. No row is zero, and the length fits from no possible first row: 0, unless the padding id could be a row.
    """
    padded = None if pad_id is None or not 0 <= pad_id < lengths.rows - 1 else pad_id + 1
    if len(zero) == lengths.rows:
        return 0
    if padded is not None and padded - 1 in zero and padded not in zero:
        return padded
    if zero:
        return zero[0] + 1 if len(zero) == 1 and lengths.fit(zero[0] + 1) else None
    whole, behind = lengths.fit(0), padded is not None and lengths.fit(padded)
    if whole != behind:
        return padded if behind else 0
    unusual = seen and not whole and not any(lengths.fit(start) for start in range(1, _EXTRA + 1))
    return 0 if unusual and padded in (None, 1) else None


def _zero_rows(values: NDArray[np.generic]) -> list[int]:
    """Return the rows that are zero; for integers, which have a zero point, the rows with a single value."""
    same = (values == values[:, :1]).all(axis=1) if values.dtype.kind in "iu" else (values == 0).all(axis=1)
    return [int(row) for row in np.flatnonzero(same)]


class _Search:
    """Forward propagation of what each tensor carries: ids, token data, positions, or rows of a position table."""

    def __init__(self, index: GraphIndex) -> None:
        bare, model = index.bare.graph, index.model
        self._flow = index.flow
        self._tensors = {node.output[0]: node.attribute[0].t for node in bare.node if _is_constant(node)}
        self._tensors.update((tensor.name, tensor) for tensor in model.graph.initializer)
        self._tensors.update((node.output[0], node.attribute[0].t) for node in model.graph.node if _is_constant(node))
        self._scalars = {name: value for name, tensor in self._tensors.items() if (value := _whole(tensor)) is not None}
        self._ids: set[str] = set()
        self._data: set[str] = set()  # depends on token ids, each token separately
        self._met: set[str] = set()  # tokens were mixed
        self._places: dict[str, _Place] = {}
        self._rows: dict[str, frozenset[PositionTable]] = {}
        self._found: set[PositionTable] = set()
        for value in bare.input:
            if value.name in self._flow.dims or value.name in _NO_IDS:
                continue
            if value.name in {_ASKED, _COUNTED}:
                self._places[value.name] = _Place(asked=value.name == _ASKED)
            else:
                (self._data if value.type.tensor_type.elem_type in FLOATS else self._ids).add(value.name)

    def table(self) -> PositionTable | None:
        """Return the shortest position table that is added to the tokens."""
        for number in range(len(self._flow.nodes)):
            self._step(number)
        return min(self._found, key=lambda table: (table.rows, table.tensor), default=None)

    def values(self, table: PositionTable, read: Read | None) -> NDArray[np.generic] | None:
        """Return the values of a table, (rows, size); None if they cannot be read."""
        name = table.tensor
        while name not in self._tensors and (made := self._flow.producer.get(name)) is not None and self._flow.reads[made]:
            name = self._flow.reads[made][0]  # back over casts
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        external = tensor.data_location == TensorProto.EXTERNAL
        try:
            values = (read(tensor) if read else None) if external else numpy_helper.to_array(tensor)
        except _UNREADABLE:
            return None
        if values is None or values.size == 0 or values.size % table.rows:
            return None
        return values.reshape(table.rows, -1)

    def _step(self, number: int) -> None:
        """Set what the outputs of a node carry."""
        node, op, reads = self._flow.nodes[number], self._flow.op[number], self._flow.reads[number]
        made = [output for output in node.output if output]
        tables = frozenset[PositionTable]().union(*(self._rows[name] for name in reads if name in self._rows))
        if op in {"Shape", "Size"}:
            return
        if not self._met.isdisjoint(reads):
            self._met.update(made)
        elif "EmbedLayerNorm" in node.op_type:
            self._embed(node)
            self._data.update(made)
        elif not self._data.isdisjoint(reads):
            if op in {"Add", "Sum"} or ("Skip" in node.op_type and "Norm" in node.op_type):
                self._found |= tables
            sources = {self._flow.producer.get(name, name) for name in reads if name in self._data}
            (self._met if _meet(node, op, len(sources)) else self._data).update(made)
        elif not self._ids.isdisjoint(reads):
            if op not in _TESTS:
                looked_up = op in _PRODUCTS or not op or "Gather" in node.op_type or any(subgraphs(node))
                (self._data if looked_up else self._ids).update(made)
        elif tables:
            self._rows.update(dict.fromkeys(made, tables))
        else:
            self._follow(node, op, reads, made)

    def _embed(self, node: NodeProto) -> None:
        """Record the position table of EmbedLayerNormalization, which looks up and adds ids, segments and positions."""
        if len(node.input) > 3 and (dims := self._flow.dims.get(node.input[3])) and dims[0] >= _FEWEST:
            given = node.input[8] if len(node.input) > 8 and node.op_type.startswith("Embed") else ""  # positions, if passed
            place = self._places.get(given, _Place(None)) if given else _Place()
            self._found.add(PositionTable(node.input[3], dims[0], place.first, place.asked))

    def _follow(self, node: NodeProto, op: str, reads: tuple[str, ...], made: list[str]) -> None:
        """Set what the outputs carry, for a node that reads neither ids nor token data."""
        if not any(self._flow.bits.get(name) for name in made):
            self._note(node, op, reads, made)
            return
        place = None
        if "Gather" in node.op_type or op == "Slice":
            if not reads or reads[0] not in self._flow.dims:
                place = self._moved(op, reads)
            elif is_vector(self._flow.dims[reads[0]]):
                place = self._stored(op, reads)
            elif table := self._looked_up(node, op, reads):
                self._rows.update(dict.fromkeys(made, frozenset((table,))))
        elif op == "Range":
            place = _Place(self._scalars.get(reads[0])) if reads else None
        elif op == "NonZero" and self._flow.bits.get(reads[0] if reads else "") == SHAPE:
            place = _Place()  # NonZero of ones: an older form of Range
        elif op == "CumSum":
            place = _Place(0 if any(a.name == "exclusive" and a.i for a in node.attribute) else 1)
        else:
            place = self._moved(op, reads)
        if place is not None:
            self._places.update(dict.fromkeys(made, place))

    def _moved(self, op: str, reads: Iterable[str]) -> _Place | None:
        """Return the positions after an operator; None if its output is not positions."""
        reads = tuple(reads)
        places = [self._places[name] for name in reads if name in self._places]
        if not places or op in _TESTS or op in _PRODUCTS or not op:
            return None
        if len(places) > 1:
            spans = [place.span for place in places if place.span is not None]
            return _Place(None, any(place.asked for place in places), max(spans, default=None))
        place, others = places[0], [self._scalars.get(name) for name in reads if name not in self._places]
        if op in _SAME_START:
            return place
        other = others[0] if len(others) == 1 else None
        fixed = all(name in self._flow.dims for name in reads if name not in self._places)
        if op == "Mul" and not fixed:
            return place  # multiplication by a mask
        if (
            place.first is None
            or other is None
            or op not in {"Add", "Sub", "Mul"}
            or (op == "Sub" and reads[0] not in self._places)
        ):
            return replace(place, first=None)
        return replace(place, first={"Add": place.first + other, "Sub": place.first - other, "Mul": place.first * other}[op])

    def _stored(self, op: str, reads: tuple[str, ...]) -> _Place | None:
        """Return the positions read from a stored range; None if the constant is not a range."""
        span = max(self._flow.dims[reads[0]])
        tensor = self._tensors.get(reads[0])
        values = None
        if tensor is not None and tensor.data_location != TensorProto.EXTERNAL and prod(tensor.dims) <= _MOST_READ:
            try:
                values = numpy_helper.to_array(tensor).reshape(-1)
            except _UNREADABLE:
                values = None
        if values is None:
            return _Place(None, span=span)
        if values.size < 2 or values.dtype.kind not in "iu" or (values == values[0]).all():
            return None
        at = self._scalars.get(reads[1], None) if op == "Slice" and len(reads) > 1 else 0
        first = int(values[at]) if at is not None and 0 <= at < values.size else None
        return _Place(first, span=span)

    def _looked_up(self, node: NodeProto, op: str, reads: tuple[str, ...]) -> PositionTable | None:
        """Return the position table that a node indexes or slices; None if it is not a position table."""
        dims = self._flow.dims[reads[0]]
        if len(dims) not in {2, 3} or dims[-1] < 2 or (len(dims) == 3 and 1 not in dims[:2]):
            return None
        rows = max(dims[:-1])
        if op == "Slice":
            start = self._scalars.get(reads[1]) if len(reads) > 1 else None
            place = _Place(start)
        else:
            index = self._places.get(reads[1]) if len(reads) > 1 else None
            axis = next((a.i for a in node.attribute if a.name in {"axis", "gather_axis"}), 0)
            if index is None or axis % len(dims) == len(dims) - 1 or rows < (index.span or 0):
                return None
            place = index
        return PositionTable(reads[0], rows, place.first, place.asked) if rows >= _FEWEST else None

    def _note(self, node: NodeProto, op: str, reads: tuple[str, ...], made: list[str]) -> None:
        """Record a constant integer scalar."""
        attribute = node.attribute[0] if op == "Constant" and node.attribute else None
        if attribute is not None and attribute.name == "value_int":
            self._scalars.update(dict.fromkeys(made, attribute.i))
        elif op in TRANSPARENT and reads and reads[0] in self._scalars:
            self._scalars.update(dict.fromkeys(made, self._scalars[reads[0]]))


def _is_constant(node: NodeProto) -> bool:
    return node.op_type == "Constant" and len(node.output) == 1 and any(a.name == "value" for a in node.attribute[:1])


def _whole(tensor: TensorProto) -> int | None:
    """Return the value of an integer tensor with one element; None for any other."""
    if any(size != 1 for size in tensor.dims) or tensor.data_location == TensorProto.EXTERNAL:
        return None
    try:
        values = numpy_helper.to_array(tensor).reshape(-1)
    except _UNREADABLE:
        return None
    return int(values[0]) if values.size == 1 and values.dtype.kind in "iu" else None


def _meet(node: NodeProto, op: str, sources: int) -> bool:
    """Return whether a node that reads the token data of `sources` nodes mixes tokens: a product, or a whole block."""
    if op in _PRODUCTS or "MatMul" in node.op_type:
        return sources > 1
    if not op:
        return not any(part in node.op_type for part in _BY_TOKEN)
    return op in {"Attention", "LSTM", "GRU", "RNN", "DFT"} or any(subgraphs(node))
