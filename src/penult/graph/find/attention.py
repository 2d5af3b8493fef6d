"""Find decomposed attention in a graph.

    q --> Transpose --.
    k --> Transpose --+--> MatMul --> scale --> Add(mask) --> Softmax --> MatMul --> Transpose
    v --> Transpose --'

It matches operators and shapes, not names. Scales may come before or after the product. There may be one transpose, several,
or none. Attention whose mask is not zero without padding (a causal mask, a position bias) is a different kind and is not
matched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from penult.graph.find.flow import ACTIVE, ancestors, operator, read_by, subgraphs
from penult.graph.find.graph_index import GraphIndex, kind
from penult.graph.find.skeleton import Type
from penult.graph.model_file import OWN, location_of, with_values

_HEADS_INSIDE, _KEYS_LAST = (0, 2, 1, 3), (0, 2, 3, 1)  # from (B, T, N, H) to the operands of the two products
_SWAPPED = (0, 1, 3, 2)
AS_IT_IS = (0, 1, 2, 3)
_LEAST = 1e-6  # attention does not use a smaller scale, and a mask divided by a smaller one might become infinite or NaN
_TOKENS = 160  # length of the texts a mask is evaluated for: above the local window, 64 to each side in ModernBERT
_TURNED = ("transA", "transBatchA", "transBatchB")

Axes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor whose axes in this order are (B, T, N, H), its N and H, and its source tensor (B, T, N H) if there is one."""

    tensor: str
    order: Axes
    heads: int
    width: int
    flat: str | None


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention operation.

    Attributes:
        query: the queries.
        key: the keys.
        value: the values.
        scale: the factor of the scores.
        mask: the tensor (B, 1 or N, 1 or T, T) that is added to the scores.
        level: the mask is known to be the same for all heads and queries.
        last: the position of the node whose output is the attention output (B, T, N, H).
    """

    query: Operand
    key: Operand
    value: Operand
    scale: float
    mask: str
    level: bool
    last: int


def find_attention(graph: GraphIndex) -> list[Attention]:
    """Return the attention operations of a graph, in graph order."""
    links = graph.links
    if not any(operator(node) == "Softmax" for node in links.nodes) or not links.well_formed:
        return []  # the runtime reports a broken graph in more detail
    search = _Search(graph)
    every = [attention for i in range(len(links.nodes)) if (attention := search.around(i)) is not None]
    idle = {mask for mask in dict.fromkeys(attention.mask for attention in every) if search.is_idle(mask)}
    return [attention for attention in every if attention.mask in idle]


class _Search:
    """Pattern matcher for attention in one graph."""

    def __init__(self, graph: GraphIndex) -> None:
        self._model, self._file = graph.model, graph.file
        self._opset = graph.opset
        self._links = graph.links
        self._nodes = graph.links.nodes
        self._bits = graph.flow.bits
        self._known = graph.types

    def around(self, softmax: int) -> Attention | None:
        """Return the attention operation whose Softmax is the node at `softmax`; None if there is none."""
        node = self._nodes[softmax]
        # Before opset 13, Softmax normalizes over all axes from `axis` on; the default is 1.
        if operator(node) != "Softmax" or _attributes(node).get("axis", -1 if self._opset >= 13 else 1) not in {-1, 3}:
            return None
        mix = self._links.after(softmax)
        if mix is None or operator(self._nodes[mix]) != "MatMul" or self._nodes[mix].input[0] != node.output[0]:
            return None
        add = self._links.before(node.input[0])
        if add is None or operator(self._nodes[add]) != "Add":
            return None
        scores, mask = sorted(self._nodes[add].input, key=self._is_active, reverse=True)
        scale, product = self._links.scaled(scores)
        maker = self._links.before(product)
        attributes = _attributes(self._nodes[maker]) if maker is not None else {}
        if maker is None or kind(self._nodes[maker]) != "MatMul" or any(attributes.get(key) for key in _TURNED):
            return None
        scale *= attributes.get("alpha", 1.0)
        left, right = self._nodes[maker].input
        (a, query), (b, key) = (
            self._operand(left, _HEADS_INSIDE),
            self._operand(right, _KEYS_LAST, turned=attributes.get("transB")),
        )
        one, value = self._operand(self._nodes[mix].input[1], _HEADS_INSIDE)
        scale *= a * b
        if query is None or key is None or value is None or one != 1 or not _LEAST < scale < 1 / _LEAST:
            return None
        if (query.heads, query.width, query.heads) != (key.heads, key.width, value.heads) or not self._is_mask(mask):
            return None
        last = self._links.after(self._reshaped(mix, query))
        if last is None or operator(self._nodes[last]) != "Transpose" or _perm(self._nodes[last]) != _HEADS_INSIDE:
            return None
        level = self._dims(mask)[1:3] == (1, 1)
        return Attention(query, key, value, scale, mask, level, last)

    def _reshaped(self, mix: int, query: Operand) -> int:
        """Return the last node of the output (B, N, T, H): `mix`, or a Reshape after it that does not change the shape.

        Comparing three of the four sizes is enough, because a Reshape keeps their product.
        """
        mixed = self._nodes[mix].output[0]
        shaped = next((i for i in self._links.readers.get(mixed, ()) if i >= 0 and operator(self._nodes[i]) == "Reshape"), None)
        if shaped is None:
            return mix
        before, after = self._dims(mixed), self._dims(self._nodes[shaped].output[0])
        tokens = self._dims(query.tensor)[query.order[1]]
        same = len(before) == len(after) == 4 and before[::3] == after[::3] and after[2] == tokens
        return shaped if same and None not in after and self._feeds_alone(mix, shaped) else mix

    def _feeds_alone(self, node: int, target: int) -> bool:
        """Return whether a node's output feeds only the node `target`, directly or through computed sizes."""
        waiting, seen = [node], {target}
        while waiting:
            readers = {i for name in self._nodes[waiting.pop()].output for i in self._links.readers.get(name, ())} - seen
            if any(i < 0 or self._is_active(self._nodes[i].output[0]) for i in readers):
                return False
            seen |= readers
            waiting.extend(readers)
        return True

    def _operand(self, tensor: str, expected: Axes, *, turned: object = False) -> tuple[float, Operand | None]:
        """Return an operand's scale and the tensor with axes (B, T, N, H) behind its scales and transposes."""
        perm: Axes = _SWAPPED if turned else AS_IT_IS
        scale = 1.0
        while _order(perm, expected) != AS_IT_IS:
            factor, below = self._links.scaled(tensor)
            turn = self._turn(below)
            if turn is None:
                break
            scale, (tensor, own) = scale * factor, turn
            perm = tuple(own[axis] for axis in perm)
        order = _order(perm, expected)
        kind, dims = self._known.get(tensor, (0, None))
        if kind != TensorProto.FLOAT or dims is None or len(dims) != 4 or not self._is_active(tensor):
            return 0.0, None
        *first, heads, width = (dims[axis] for axis in order)
        flat = self._unsplit(tensor, first) if order == AS_IT_IS else None
        hidden = self._dims(flat)[-1] if flat else None
        if not isinstance(heads, int) and isinstance(hidden, int) and isinstance(width, int):
            heads = hidden // width
        if not isinstance(heads, int) or not isinstance(width, int):
            return 0.0, None
        return scale, Operand(tensor, order, heads, width, flat)

    def _turn(self, tensor: str) -> tuple[str, Axes] | None:
        """Return the source and permutation of a transposed 4-D tensor; some exporters swap the last two axes in 3-D."""
        node = self._links.maker(tensor)
        if operator(node) == "Transpose":
            return (node.input[0], _perm(node)) if len(_perm(node)) == 4 else None
        flat = self._links.maker(node.input[0]) if operator(node) == "Reshape" else NodeProto()
        merge = self._links.maker(flat.input[0]) if operator(flat) == "Transpose" and _perm(flat) == (0, 2, 1) else NodeProto()
        if operator(merge) != "Reshape":
            return None
        before, merged, swapped, after = map(self._dims, (merge.input[0], flat.input[0], flat.output[0], tensor))
        same = len(before) == len(after) == 4 and None not in before and before[:2] == after[:2]
        return (merge.input[0], _SWAPPED) if same and merged[1:] == before[2:] and swapped[1:] == after[2:] else None

    def _dims(self, tensor: str) -> tuple[int | str | None, ...]:
        """Return the known shape of a tensor; () if it is unknown."""
        return self._known.get(tensor, (0, None))[1] or ()

    def _unsplit(self, tensor: str, first: Sequence[int | str | None]) -> str | None:
        """Return the tensor (B, T, N H) that was reshaped to (B, T, N, H), if B and T are known to be equal in both."""
        node = self._links.maker(tensor)
        dims = self._dims(node.input[0]) if operator(node) == "Reshape" else ()
        return node.input[0] if len(dims) == 3 and None not in first and list(dims[:2]) == first else None

    def _is_mask(self, tensor: str) -> bool:
        """Return whether a tensor has the shape (B, N or 1, T or 1, T) and carries no token data."""
        kind, dims = self._known.get(tensor, (0, None))
        if kind != TensorProto.FLOAT or dims is None or len(dims) != 4 or self._is_active(tensor):
            return False
        return dims[3] != 1 and (dims[2] != 1 or dims[1] == 1)

    def is_idle(self, mask: str) -> bool:
        """Return whether a mask is all zero without padding, by evaluating it for two texts."""
        beside = [node for node in self._nodes if not any(map(self._is_active, node.output))]
        part = ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        part.functions.extend(self._model.functions)
        part.graph.input.extend(self._model.graph.input)
        part.graph.sparse_initializer.extend(self._model.graph.sparse_initializer)
        part.graph.node.extend(beside[i] for i in ancestors(beside, [mask]))
        part.graph.output.append(helper.make_tensor_value_info(mask, TensorProto.FLOAT, None))
        if any(any(subgraphs(node)) for node in part.graph.node):
            return False  # a loop may not terminate
        used = {mask, *(name for node in part.graph.node for name in read_by(node))}
        weights = [tensor for tensor in self._model.graph.initializer if tensor.name in used]
        if self._file is not None:
            weights = [with_values(tensor, self._file) if location_of(tensor) == OWN else tensor for tensor in weights]
        # Weights that are not loaded: a mask needs only their shape; a position bias needs their values and must not look zero.
        stubs = [tensor for tensor in weights if tensor.data_location == TensorProto.EXTERNAL]
        part.graph.initializer.extend(tensor for tensor in weights if tensor.data_location != TensorProto.EXTERNAL)
        defined = {tensor.name for tensor in part.graph.initializer} | {
            name for node in part.graph.node for name in node.output
        }
        used = {name for node in part.graph.node for name in read_by(node)} - defined
        inputs = {name: self._known.get(name, (0, None)) for name in used}
        inputs |= {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in stubs}
        try:
            values = ReferenceEvaluator(part).run([mask], {name: _ones(kind) for name, kind in inputs.items()})[0]
        except Exception:  # noqa: BLE001 - an operator that it lacks, a shape of its own: each with errors of its own
            return False
        return not np.any(values)

    def _is_active(self, tensor: str) -> bool:
        """Return whether a tensor carries token data."""
        return bool(self._bits.get(tensor, 0) & ACTIVE)


def _attributes(node: NodeProto) -> dict[str, float]:
    """Return a node's scalar attributes; attributes of other types are ignored."""
    numbers = {AttributeProto.INT: "i", AttributeProto.FLOAT: "f"}
    return {a.name: getattr(a, numbers[a.type]) for a in node.attribute if a.type in numbers}


def _perm(node: NodeProto) -> Axes:
    return tuple(next((a.ints for a in node.attribute if a.name == "perm"), ()))


def _order(perm: Axes, target: Axes) -> Axes:
    """Return the order of axes after which the transposition `wanted` equals the transposition `perm`."""
    return tuple(perm[target.index(axis)] for axis in range(len(perm)))


def _ones(kind: Type) -> NDArray[Any]:
    """Return ones of a type, with 2 and then `_TOKENS` for unknown sizes, as a broadcast view that needs almost no memory."""
    sizes = iter((2, _TOKENS, _TOKENS, _TOKENS))
    one = np.ones((), dtype=helper.tensor_dtype_to_np_dtype(kind[0]))
    return np.broadcast_to(one, tuple(size if isinstance(size, int) else next(sizes) for size in kind[1] or ()))
