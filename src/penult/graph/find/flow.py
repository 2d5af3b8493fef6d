"""The data flow of one graph: what each tensor depends on, and which nodes are between two others.

Standard ONNX operators are classified where it matters (element-wise, data movement). Every other operator is opaque: it
only reads and writes tensors. The result does not depend on names of nodes, tensors or models, and layers are not
modeled: graphs that differ only in names have equal data flow.

A *lookup* is the first node that combines integer input with a parameter table: the token embedding, in any operator.
Tensors that depend on a lookup's output are *active*: they carry token data. Everything else (masks, positions, weights,
shapes) is a side input.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from math import prod

import onnx

# What a tensor depends on, as bits: sizes, integer input, float input, token data. Constants have none of these.
SHAPE, VALUE, NUMBER, ACTIVE = 1, 2, 4, 8

# fmt: off
# Element-wise, with or without broadcasting: the standard arithmetic, logic and activations.
ELEMENTWISE = frozenset((
    "Abs", "Add", "And", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "BitShift", "Ceil", "Celu", "Clip",
    "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod",
    "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
))
# The same values in another type, shape or order of axes.
TRANSPARENT = frozenset((
    "Identity", "Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose", "Squeeze",
    "Unsqueeze", "Flatten", "Dropout",
))
# Data is moved, selected or repeated, never computed.
MOVEMENT = frozenset((
    "Concat", "Expand", "Gather", "GatherElements", "GatherND", "Pad", "ScatterElements", "ScatterND", "Slice",
    "Split", "Tile", "TopK", "Compress",
))
# fmt: on
FLOATS = frozenset((onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16))
_SAME = ELEMENTWISE | TRANSPARENT | MOVEMENT
_GATHERS = frozenset(("Gather", "GatherElements", "GatherND"))


@dataclass(frozen=True, slots=True)
class Flow:
    """Data flow of one graph; nodes are numbered in topological order.

    Attributes:
        nodes: the graph's nodes, sorted; float inputs of rank 3 come first, as nodes without inputs.
        op: per node, the standard name of its operator, empty for an opaque one.
        reads: per node, every tensor whose values it reads, including those that its subgraphs capture.
        producer: tensor -> the node that writes it.
        bits: tensor -> SHAPE | VALUE | NUMBER | ACTIVE; an absent tensor is a constant.
        dims: constant tensor -> its shape; a computed constant has the shape of its largest ancestor.
        sources: the nodes at which token data enters.
        feeders: per node, the distinct nodes whose active tensors it reads, in topological order.
        before: per node, the set of nodes it depends on, as a bit set (bit i = node i), over active tensors only.
        dominators: per source, the immediate dominator of every node; computed on first use.
    """

    nodes: Sequence[onnx.NodeProto]
    op: Sequence[str]
    reads: Sequence[tuple[str, ...]]
    producer: dict[str, int]
    bits: dict[str, int]
    dims: dict[str, tuple[int, ...]]
    sources: tuple[int, ...]
    feeders: list[list[int]] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    dominators: dict[int, dict[int, int]] = field(default_factory=dict)

    def active_reads(self, node: int) -> list[tuple[str, int]]:
        """Return (tensor, producing node) for every active tensor that the node reads."""
        return [(t, self.producer[t]) for t in self.reads[node] if self.bits.get(t, 0) & ACTIVE]

    def beside(self, tensor: str) -> bool:
        """Return whether a tensor depends on the input but carries no token data: a mask, lengths, positions."""
        return self.bits.get(tensor, ACTIVE) < ACTIVE  # a constant has no bits

    def depends(self, node: int, other: int) -> bool:
        """Return whether active data flows from `other` to `node`; a node depends on itself."""
        return node == other or bool(self.before[node] >> other & 1)

    def between(self, start: int, end: int) -> Iterator[int]:
        """Yield the nodes on a path from `start` to `end`, last first, with `end` and without `start`."""
        stack, seen = [end], {end}
        while stack:
            node = stack.pop()
            yield node
            for p in self.feeders[node]:
                if p != start and p not in seen and self.depends(p, start):
                    seen.add(p)
                    stack.append(p)

    def constants(self, node: int) -> list[tuple[int, ...]]:
        """Return the shapes of the constants that the node reads."""
        return [self.dims[t] for t in self.reads[node] if t in self.dims]

    def common_dominator(self, nodes: Sequence[int]) -> int | None:
        """Return the last node on every path from a source to each of `nodes`, for the source with the latest such node."""
        best = None
        for root in self.sources:
            if all(self.depends(n, root) for n in nodes):
                dominator = _meet(self._dominators(root), nodes)
                best = dominator if best is None else max(best, dominator)
        return best

    def _dominators(self, root: int) -> dict[int, int]:
        """Map each node that depends on `root` to the last node on every path between them."""
        if root not in self.dominators:
            known = self.dominators[root] = {root: root}
            for node in range(root + 1, len(self.nodes)):
                if feeders := [p for p in self.feeders[node] if p in known]:
                    known[node] = _meet(known, feeders)
        return self.dominators[root]


def operator(node: onnx.NodeProto) -> str:
    """Return the standard name of an operator, the float operator's for a quantized one; empty for an opaque one."""
    if node.op_type.startswith("QLinear"):
        return str(node.op_type.removeprefix("QLinear"))
    return str(node.op_type) if node.domain in {"", "ai.onnx"} else ""


def is_matrix(dims: tuple[int, ...]) -> bool:
    """Return whether a constant of this shape is a matrix (two or more axes longer than 1)."""
    return sum(d != 1 for d in dims) >= 2


def is_vector(dims: tuple[int, ...]) -> bool:
    """Return whether a constant of this shape has one value per channel."""
    return sum(d != 1 for d in dims) == 1


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the subgraphs of a node (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def every_node(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes, each followed by the nodes of its subgraphs, at any depth."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from every_node(graph.node)


def read_by(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the tensors that a node reads, including those that its subgraphs capture."""
    names = dict.fromkeys(filter(None, node.input))
    for graph in subgraphs(node):
        local = {i.name for i in graph.input} | {i.name for i in graph.initializer}
        local.update(i.values.name for i in graph.sparse_initializer)
        local.update(o for inner in graph.node for o in inner.output)
        captured = [n for inner in graph.node for n in read_by(inner)] + [o.name for o in graph.output]
        names.update(dict.fromkeys(n for n in captured if n not in local))
    return tuple(names)


def ancestors(nodes: Sequence[onnx.NodeProto], tensors: Iterable[str]) -> list[int]:
    """Return the positions, in order, of the nodes that any of `tensors` depends on."""
    producer = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    stack, needed = list(tensors), set[int]()
    while stack:
        node = producer.get(stack.pop())
        if node is not None and node not in needed:
            needed.add(node)
            stack.extend(read_by(nodes[node]))
    return sorted(needed)


def trace(graph: onnx.GraphProto) -> Flow:
    """Compute the data flow of a graph; it needs the shapes of initializers, not their values."""
    dims = {i.name: tuple(i.dims) for i in graph.initializer}
    dims.update((i.values.name, tuple(i.dims)) for i in graph.sparse_initializer)
    bits: dict[str, int] = {}
    nodes: list[onnx.NodeProto] = []
    for value in graph.input:
        if value.name in dims:
            continue
        bits[value.name] = NUMBER if value.type.tensor_type.elem_type in FLOATS else VALUE
        if _rank(value) == 3 and bits[value.name] == NUMBER:
            bits[value.name] |= ACTIVE
            nodes.append(onnx.NodeProto(op_type="Identity", output=[value.name]))
    entries = len(nodes)
    nodes += _sorted(graph.node)
    reads = [read_by(n)[:1] if operator(n) == "CastLike" else read_by(n) for n in nodes]  # the second input only sets the type
    producer = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    lookups = [i for i in range(entries, len(nodes)) if _spread(nodes[i], reads[i], bits, dims)]
    flow = Flow(nodes, [operator(n) for n in nodes], reads, producer, bits, dims, (*range(entries), *lookups))
    for i in range(len(nodes)):
        flow.feeders.append(sorted({p for _, p in flow.active_reads(i)}))
        mask = 0
        for p in flow.feeders[i]:
            mask |= flow.before[p] | 1 << p
        flow.before.append(mask)
    return flow


def _spread(node: onnx.NodeProto, reads: tuple[str, ...], bits: dict[str, int], dims: dict[str, tuple[int, ...]]) -> bool:
    """Set what the node's outputs depend on; return whether it is a lookup."""
    standard = operator(node)
    had = 0
    for name in reads:
        had |= bits.get(name, 0)
    if standard in {"Shape", "Size"}:
        had = SHAPE if had else 0
    # Parameters selected by token data, as a router selects its experts' weights, are not token data.
    chosen = standard in _GATHERS and bool(had & ACTIVE) and not bits.get(node.input[0], 0) & ACTIVE
    if chosen:
        had &= ~ACTIVE
    lookup = bool(
        not chosen
        and not had & ACTIVE
        and (had & (VALUE | NUMBER) if standard in _GATHERS else had & VALUE and standard not in _SAME)
        and any(is_matrix(dims[name]) for name in reads if name in dims)
    )
    if had:
        bits.update(dict.fromkeys(node.output, had | ACTIVE if lookup else had))
    else:
        largest = max((dims[n] for n in reads if n in dims), key=prod, default=_literal(node))
        dims.update(dict.fromkeys(node.output, largest))
    return lookup


def _literal(node: onnx.NodeProto) -> tuple[int, ...]:
    for attribute in node.attribute:
        if attribute.name == "value":
            return tuple(attribute.t.dims)
        if attribute.name in {"value_ints", "value_floats", "value_strings"}:
            return (max(len(attribute.ints), len(attribute.floats), len(attribute.strings)),)
    return ()


def _rank(value: onnx.ValueInfoProto) -> int | None:
    kind = value.type.tensor_type
    return len(kind.shape.dim) if kind.HasField("shape") else None


def _sorted(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the nodes in topological order, unchanged if they are sorted already."""
    nodes = list(nodes)
    made_by = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    needs = {i: [made_by[r] for r in read_by(n) if r in made_by] for i, n in enumerate(nodes)}
    if all(p < i for i, before in needs.items() for p in before):
        return nodes
    return [nodes[i] for i in TopologicalSorter(needs).static_order()]


def _meet(dominators: dict[int, int], nodes: Sequence[int]) -> int:
    """Return the last node that dominates each of `nodes`, by climbing from the latest one until all agree."""
    climbers = set(nodes)
    while len(climbers) > 1:
        climbers.add(dominators[latest := max(climbers)])
        climbers.discard(latest)
    return climbers.pop()
