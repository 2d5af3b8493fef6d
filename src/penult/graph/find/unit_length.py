"""Detect from its structure whether a graph normalizes the vectors that it outputs.

The files of a model that pools inside its graph do not state whether it normalizes. If it does, vectors must be normalized
again after they are truncated to fewer dimensions. The module recognizes the forms in which exporters write "divide by the
Euclidean norm"; anything else counts as not normalized. It reads small constants (axes, exponents, epsilons), no weights.

    x --> ReduceL2 | Sqrt(ReduceSum(x * x)) --> Clip | Max | Add epsilon --> Expand --.
     `--------------------------------------------------------------------------- Div --> Cast | Gather | ... --> vectors
"""

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from penult.graph.find.flow import FLOATS, operator
from penult.graph.find.graph_index import GraphIndex, Links

_SMALL = 1e-3  # an epsilon; a larger floor under the norm would change ordinary vectors
_SAME = frozenset(("Identity", "Cast", "CastLike", "Dropout"))  # the same values
_SHAPED = _SAME | {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"}  # the same values, reshaped or repeated
_CHOSEN = frozenset(("Gather", "Slice"))  # some of the rows
_LITERALS = frozenset(("value_int", "value_ints", "value_float", "value_floats"))
_MOST_STEPS = 64  # nodes between the division and the output, or inside the norm; real graphs have fewer than 10


def ends_in_normalize(index: GraphIndex, tensor: str) -> bool:
    """Return whether a tensor (B, D) was divided by its Euclidean norm and not changed afterwards.

    1. Walk back over nodes that keep the values of a row (casts, reshapes that keep the last axis, selections of rows).
    2. Match LpNormalization with p = 2, x / norm(x), x * (1 / norm(x)) or x * sum(x * x) ** -0.5, over the last axis.
    3. norm(x) is ReduceL2 or the root of the sum of squares, with an epsilon added or as the minimum.

    Args:
        index: index of the model.
        tensor: name of an output or any other tensor; a tensor that does not exist is not normalized.
    """
    graph = _Graph(index)
    for _ in range(_MOST_STEPS):
        node = graph.maker(tensor)
        kind = operator(node)
        if kind == "LpNormalization":
            return _int(node, "p", 2) == 2 and bool(node.input) and graph.is_last(_int(node, "axis", -1), node.input[0])
        if kind in {"Div", "Mul"}:
            return _is_quotient(graph, node)
        if not graph.keeps_rows(node):
            return False
        tensor = node.input[0]
    return False


def _is_quotient(graph: "_Graph", node: NodeProto) -> bool:
    """Return whether a Div or a Mul divides a tensor by its own norm."""
    if len(node.input) < 2:
        return False
    left, right = node.input[0], node.input[1]
    if operator(node) == "Div":
        return _is_norm(graph, right, of=left)
    return _is_inverse(graph, right, of=left) or _is_inverse(graph, left, of=right)


def _is_inverse(graph: "_Graph", tensor: str, *, of: str) -> bool:
    """Return whether a tensor is 1 / norm of `of`."""
    node = graph.maker(graph.back(tensor, _SHAPED))
    kind = operator(node)
    if kind == "Reciprocal" and node.input:
        return _is_norm(graph, node.input[0], of=of)
    if kind == "Div" and len(node.input) == 2 and graph.number(node.input[0]) == 1:
        return _is_norm(graph, node.input[1], of=of)
    return (
        kind == "Pow" and len(node.input) == 2 and graph.number(node.input[1]) == -0.5 and _is_square(graph, node.input[0], of)
    )


def _is_norm(graph: "_Graph", tensor: str, *, of: str) -> bool:
    """Return whether a tensor is the Euclidean norm of `of`, over its last axis."""
    tensor = _without_epsilon(graph, tensor)
    node = graph.maker(tensor)
    kind = operator(node)
    if kind == "ReduceL2":
        return graph.reduces_last(node) and graph.same(node.input[0], of)
    root = kind == "Sqrt" or (kind == "Pow" and len(node.input) == 2 and graph.number(node.input[1]) == 0.5)
    return root and _is_square(graph, node.input[0], of)


def _is_square(graph: "_Graph", tensor: str, of: str) -> bool:
    """Return whether a tensor is the sum of the squares of `of`, over its last axis."""
    total = graph.maker(_without_epsilon(graph, tensor))
    kind = operator(total)
    if kind not in {"ReduceSum", "ReduceSumSquare"} or not graph.reduces_last(total):
        return False
    if kind == "ReduceSumSquare":
        return graph.same(total.input[0], of)
    square = graph.maker(graph.back(total.input[0], _SAME))
    if len(square.input) != 2 or not graph.same(graph.back(square.input[0], _SAME | {"Abs"}), of):
        return False
    if operator(square) == "Mul":
        return graph.same(square.input[0], square.input[1])
    return operator(square) == "Pow" and graph.number(square.input[1]) == 2


def _without_epsilon(graph: "_Graph", tensor: str) -> str:
    """Return the tensor before casts, reshapes and an epsilon that is added or used as the minimum."""
    for _ in range(_MOST_STEPS):
        tensor = graph.back(tensor, _SHAPED)
        node = graph.maker(tensor)
        kind = operator(node)
        if kind == "Clip" and graph.is_floor(node):
            tensor = node.input[0]
        elif kind in {"Add", "Max"} and len(node.input) == 2:
            small = [abs(value) <= _SMALL if (value := graph.number(name)) is not None else False for name in node.input]
            if sum(small) != 1:
                return tensor
            tensor = node.input[small.index(False)]
        else:
            return tensor
    return tensor


class _Graph:
    """Access to the nodes, constants and shapes of a graph with inlined functions."""

    def __init__(self, index: GraphIndex) -> None:
        links = Links(index.bare.graph)
        self.maker = links.maker
        self._constants = links.constants
        self._shapes = index.types

    def back(self, tensor: str, kinds: frozenset[str]) -> str:
        """Return the tensor before a chain of nodes with operators in `kinds`."""
        for _ in range(_MOST_STEPS):
            node = self.maker(tensor)
            if operator(node) not in kinds or not node.input:
                break
            tensor = node.input[0]
        return tensor

    def same(self, left: str, right: str) -> bool:
        """Return whether two tensors have the same values, except for their type."""
        return self.back(left, _SAME) == self.back(right, _SAME)

    def keeps_rows(self, node: NodeProto) -> bool:
        """Return whether each output row of a node, along the last axis, is a row of its input."""
        kind = operator(node)
        if not node.input or kind not in _SHAPED | _CHOSEN:
            return False
        if kind == "Cast":
            return _int(node, "to", TensorProto.FLOAT) in FLOATS
        if kind in _CHOSEN:
            axes = self._axes(node, 3) if kind == "Slice" else [_int(node, "axis", 0)]
            return bool(axes) and all(self._is_before_last(axis, node.input[0]) for axis in axes)
        before, after = (self._last_size(name) for name in (node.input[0], node.output[0]))
        return before is None or after is None or before == after

    def reduces_last(self, node: NodeProto) -> bool:
        """Return whether a reduction is over the last axis alone."""
        axes = self._axes(node, 1)
        return bool(node.input) and len(axes) == 1 and self.is_last(axes[0], node.input[0])

    def is_last(self, axis: int, tensor: str) -> bool:
        """Return whether an axis is a tensor's last one; an unknown rank counts as 2."""
        return axis in (-1, (self._rank(tensor) or 2) - 1)

    def is_floor(self, node: NodeProto) -> bool:
        """Return whether a Clip has a small minimum and no maximum."""
        if len(node.input) > 1:
            least = self.number(node.input[1])
            return least is not None and least <= _SMALL and not any(node.input[2:])
        limits = {a.name: a.f for a in node.attribute}  # attributes before opset 11
        return set(limits) == {"min"} and limits["min"] <= _SMALL

    def number(self, name: str) -> float | None:
        """Return the value of a scalar constant; None for any other tensor."""
        value = self._constant(name)
        return float(value.reshape(())) if value is not None and value.size == 1 and value.dtype.kind in "fiu" else None

    def _axes(self, node: NodeProto, place: int) -> list[int]:
        """Return the axes of a node, an attribute in older opsets; empty if unknown."""
        if len(node.input) > place:
            value = self._constant(node.input[place])
            return [] if value is None or value.dtype.kind not in "iu" else [int(axis) for axis in value.reshape(-1)]
        return [axis for a in node.attribute if a.name == "axes" for axis in a.ints]

    def _constant(self, name: str) -> NDArray[np.generic] | None:
        name = self.back(name, _SHAPED)
        node = self.maker(name)
        if operator(node) == "Constant" and node.attribute[:1] and node.attribute[0].name in _LITERALS:
            return np.asarray(helper.get_attribute_value(node.attribute[0]))
        tensor = self._constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        with suppress(ValueError, TypeError):  # no values: a weight, or a broken file
            return np.asarray(numpy_helper.to_array(tensor))
        return None

    def _is_before_last(self, axis: int, tensor: str) -> bool:
        rank = self._rank(tensor)
        return axis < -1 if rank is None or axis < 0 else axis < rank - 1

    def _rank(self, tensor: str) -> int | None:
        _, dims = self._shapes.get(tensor, (0, None))
        return None if dims is None else len(dims)

    def _last_size(self, tensor: str) -> int | None:
        _, dims = self._shapes.get(tensor, (0, None))
        return dims[-1] if dims and isinstance(dims[-1], int) else None


def _int(node: NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)
