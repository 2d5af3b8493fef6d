"""Reject a graph that might not terminate: the iterations of every loop and the depth of subgraphs must be bounded.

A loop with a constant trip count is counted with it. A loop over an axis of the graph's inputs is bounded by the text length.
All other loops are rejected.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, numpy_helper

from penult.graph.find.flow import subgraphs

MOST_RUNS = 2_000_000
"""Maximum number of node runs, subgraphs included: a few seconds of overhead besides the work of the nodes."""

_MOST_DEPTH = 4  # nested subgraphs; exports have one or two levels
_TURNS = 10_000  # assumed for a loop over an axis of the inputs
_MOST_COPIES = 64  # factor by which an axis may be longer than the inputs
# Operators that pass the value of a trip count from their first input to the output.
_SAME_NUMBER = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape")
# Cast types that preserve a valid trip count; others wrap around, so that -1 becomes 4,294,967,295.
_WIDE = (TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.DOUBLE)
# Operators that select from the lengths of axes.
_CHOOSING = (*_SAME_NUMBER, "Gather", "Slice")
# Operators whose longest output axis is at most the sum of the axis lengths of their inputs.
_NOT_LONGER = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Concat", "Shape", "Constant")
Key = tuple[str, str]


class EndlessError(ValueError):
    """Error for a loop that may not terminate or too deeply nested subgraphs; the message continues a file name."""


@dataclass(frozen=True, slots=True)
class Work:
    """Work of a list of nodes: the number of node runs and the nesting depth of subgraphs."""

    runs: int = 1
    depth: int = 0


@dataclass(frozen=True, slots=True)
class _Scope:
    """Name resolution in one graph or function."""

    made_by: Mapping[str, NodeProto]
    weights: Mapping[str, TensorProto]
    inputs: frozenset[str]

    @classmethod
    def of(cls, body: GraphProto | FunctionProto) -> "_Scope":
        made_by = {output: node for node in body.node for output in node.output}
        if isinstance(body, FunctionProto):
            return cls(made_by, {}, frozenset())
        weights = {tensor.name: tensor for tensor in body.initializer}
        return cls(made_by, weights, frozenset(value.name for value in body.input))


def work_of(body: GraphProto | FunctionProto, functions: Mapping[Key, Work]) -> Work:
    """Return the work of a graph or a function.

    Args:
        body: the graph or function.
        functions: the work of each local function that it calls.

    Raises:
        EndlessError: a loop may not terminate, or subgraphs are nested too deeply.
    """
    return _work(body.node, [_Scope.of(body)], functions)


def _work(nodes: Iterable[NodeProto], scopes: Sequence[_Scope], functions: Mapping[Key, Work]) -> Work:
    runs = depth = 0
    for node in nodes:
        work = functions.get((node.domain, node.op_type), Work())
        inner = [_work(graph.node, [_Scope.of(graph), *scopes], functions) for graph in subgraphs(node)]
        turns = _turns(node, scopes) if inner else 0
        runs += work.runs + turns * sum(graph.runs for graph in inner)
        depth = max([depth, work.depth, *(1 + graph.depth for graph in inner)])
    if depth > _MOST_DEPTH:
        raise EndlessError(f"has subgraphs nested more than {_MOST_DEPTH} levels deep. Export the model without them")
    return Work(runs, depth)


def _turns(node: NodeProto, scopes: Sequence[_Scope]) -> int:
    """Return the maximum number of times that a node runs its subgraphs."""
    if node.op_type == "If":
        return 1
    if node.op_type == "Loop" and node.input:
        number = _constant(node.input[0], scopes)
        if number is not None:
            return max(0, number)
        if _is_length(node.input[0], scopes):
            return _TURNS
    count = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
    if node.op_type == "Scan" and any(_is_short(name, scopes) for name in node.input[len(node.input) - count :]):
        return _TURNS
    raise EndlessError(
        f"has a {node.op_type} node, {node.name!r}, whose number of iterations is neither a constant nor the length of an "
        "input, so it might not terminate. Export the model without it"
    )


def _maker(name: str, scopes: Sequence[_Scope]) -> tuple[NodeProto | TensorProto | None, Sequence[_Scope]]:
    """Return the producer of a tensor (None for an input), and the scopes from that of the producer outwards."""
    for i, scope in enumerate(scopes):
        if name in scope.made_by or name in scope.weights or name in scope.inputs:
            return scope.made_by.get(name, scope.weights.get(name)), scopes[i:]
    return None, ()


def _constant(name: str, scopes: Sequence[_Scope]) -> int | None:
    """Return the value of a constant integer scalar; None for any other tensor."""
    for _ in range(len(_SAME_NUMBER)):
        maker, scopes = _maker(name, scopes)
        if isinstance(maker, NodeProto) and maker.op_type in _SAME_NUMBER and maker.input and _keeps_numbers(maker):
            name = maker.input[0]
            continue
        if isinstance(maker, NodeProto):
            maker = _value(maker)
        if maker is None or maker.data_location == TensorProto.EXTERNAL or prod(maker.dims) != 1:
            return None
        try:
            number = int(numpy_helper.to_array(maker).item())
        except (TypeError, ValueError, OverflowError):  # a broken tensor, or infinity
            return None
        return number if number >= -(2**31) else None  # a Cast to 32 bits turns lower values into large ones
    return None


def _keeps_numbers(node: NodeProto) -> bool:
    """Return whether a node preserves trip counts: any node except a Cast to a type outside `_WIDE`."""
    return node.op_type != "Cast" or any(attribute.name == "to" and attribute.i in _WIDE for attribute in node.attribute)


def _value(node: NodeProto) -> TensorProto | None:
    """Return the tensor of a Constant; None if the caller of a function sets it."""
    for attribute in node.attribute if node.op_type == "Constant" else ():
        if attribute.ref_attr_name:
            return None
        if attribute.type == AttributeProto.TENSOR:
            return attribute.t
        if attribute.name == "value_int":
            return TensorProto(data_type=TensorProto.INT64, int64_data=[attribute.i])
    return None


def _is_length(name: str, scopes: Sequence[_Scope]) -> bool:
    """Return whether a tensor is the length of an axis that is not much longer than the graph's inputs."""
    for _ in range(16):
        maker, scopes = _maker(name, scopes)
        if not isinstance(maker, NodeProto) or not maker.input:
            return False
        name = maker.input[0]
        if maker.op_type == "Shape":
            return _is_short(name, scopes)
        if maker.op_type not in _CHOOSING or not _keeps_numbers(maker):
            return False
    return False


def _is_short(name: str, scopes: Sequence[_Scope]) -> bool:
    """Return whether no axis of a tensor is much longer than the graph's inputs."""
    copies, seen, open_names = 1, set(), [(name, scopes)]
    while open_names:
        name, scopes = open_names.pop()
        maker, scopes = _maker(name, scopes)
        if maker is None:
            if len(scopes) != 1:  # an input of a subgraph or function, of unknown size
                return False
        elif isinstance(maker, TensorProto):
            if max(maker.dims, default=1) > _TURNS:
                return False
        elif maker.op_type not in _NOT_LONGER or _is_long(maker):
            return False
        elif id(maker) not in seen:
            seen.add(id(maker))
            if maker.op_type == "Concat":
                copies *= max(1, len(maker.input))
            open_names += [(inner, scopes) for inner in maker.input if inner]
            if copies > _MOST_COPIES:
                return False
    return True


def _is_long(node: NodeProto) -> bool:
    """Return whether a node is a Constant with an axis that is too long for a loop, or of unknown length."""
    lengths = (
        max([*a.t.dims, *a.sparse_tensor.dims, len(a.ints), len(a.floats), len(a.strings), _TURNS + bool(a.ref_attr_name)])
        for a in node.attribute
    )
    return node.op_type == "Constant" and max(lengths, default=0) > _TURNS
