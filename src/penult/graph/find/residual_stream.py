"""The residual stream of a graph: the nodes that every token's vector passes through, and the segments between them.

`follow` walks back from an output. At every join it takes the operand from which the other branches start. Each segment
between two adjacent nodes of the stream is classified by data flow alone:

    residual  a skip connection around a learned matrix:    x ---> ... W ... ---> + --->
                                                              `-------------------^
    mixing    token data is multiplied with token data twice, (q k) v, or once in a fused attention operator
    local     a convolution or a recurrence mixes adjacent tokens
    norm      a statistic of the channels and no matrix:    x ---> mean, rsqrt ---> * --->

This module does not define layers or heads.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import onnx

from penult.graph.find.flow import ELEMENTWISE, MOVEMENT, TRANSPARENT, Flow, is_matrix, is_vector, subgraphs

CONTRACTIONS = frozenset(("MatMul", "Gemm", "Einsum", "MatMulInteger", "Conv", "ConvInteger"))


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of the graph between two adjacent nodes of the residual stream.

    Attributes:
        around: the skip connection: the nodes in order, from the first node's reader to the second node (included), that
            carry data past all learned matrices. None if there is none or the second node is not a sum.
        tensor: the output of the first node that the segment reads, on the skip connection if there is one.
        learned: the segment contains a parameter matrix or a fused attention operator.
        mixing: the segment contains attention.
        local: a convolution or a recurrence mixes adjacent tokens.
        norm: the segment divides by a statistic of the channels and has no learned matrix.
        plain: the segment is element-wise, or only casts and reshapes.
    """

    around: tuple[int, ...] | None
    tensor: str
    learned: bool
    mixing: bool
    local: bool
    norm: bool
    plain: bool

    @property
    def residual(self) -> bool:
        """True if a skip connection bypasses a learned matrix."""
        return self.learned and self.around is not None


@dataclass(frozen=True, slots=True)
class Stream:
    """The residual stream: its nodes in order, and the segment after each node except the last."""

    nodes: list[int]
    segments: list[Segment]

    @property
    def starts(self) -> list[int]:
        """Positions in `nodes` after which a residual block with attention follows.

        In a hybrid model a convolution or a recurrence may replace attention. It does not count if it directly follows
        such a block with no feed-forward block between, or if the graph has no attention.
        """
        layers, mixed = [], False
        for i, segment in enumerate(self.segments):
            if segment.residual and (segment.mixing or (segment.local and not mixed)):
                layers.append(i)
            if segment.residual:
                mixed = segment.mixing or segment.local
        return layers if any(self.segments[i].mixing for i in layers) else []

    @property
    def layers(self) -> list[int]:
        """Positions in `nodes` at which layers begin: `starts`, moved before the blocks that precede attention in a layer.

        They are moved only if the blocks before the first and after the last attention add up to those between two, as
        in f a f | f a f, with feed-forward blocks on both sides of attention.
        """
        joins = [i for i, segment in enumerate(self.segments) if segment.residual]
        where = [joins.index(start) for start in self.starts]
        if not where or {b - a - 1 for a, b in pairwise(where)} != {where[0] + len(joins) - 1 - where[-1]}:
            return self.starts
        return [joins[at - where[0]] for at in where]


def follow(flow: Flow, ends: list[int], known: dict[tuple[int, int, int], Segment]) -> Stream:
    """Return the residual stream from the input of token data to `ends` (one node, or all nodes that one reader reads).

    `known` caches segments between calls, because the streams to different outputs of a graph share most segments.
    """
    nodes: list[int] = []
    step = _upstream(flow, ends)
    while step is not None:
        nodes.append(step)
        step = _upstream(flow, flow.feeders[step])
    nodes.reverse()
    segments = []
    for start, end in pairwise(nodes):
        place = nodes[0], start, end
        if place not in known:
            known[place] = _segment(flow, *place)
        segments.append(known[place])
    return Stream(nodes, segments)


def feeding(flow: Flow, stream: Stream) -> list[int]:
    """Return the nodes outside the stream that depend on attention of their own and that the stream or its branches read.

    There an encoder's output enters a decoder.
    """
    origin, sink = stream.nodes[0], stream.nodes[-1]
    inside = [n for n in range(len(flow.nodes)) if flow.depends(sink, n)]
    outside = {n for n in inside if not flow.depends(n, origin)}
    meeting = [n for n in outside if _meets(flow, n, flow.feeders[n]) or _fused(flow, n, flow.feeders[n])]
    if not meeting:
        return []
    read_outside = {f for n in inside if n not in outside for f in flow.feeders[n] if f in outside}
    return sorted(f for f in read_outside if any(flow.depends(f, m) for m in meeting))


def learned(flow: Flow, node: int) -> bool:
    """Return whether a node combines token data with a parameter matrix."""
    if flow.op[node] in ELEMENTWISE | TRANSPARENT | MOVEMENT:
        return False
    return any(is_matrix(d) for d in flow.constants(node))


def trims(flow: Flow, node: int) -> bool:
    """Return whether a node slices tokens to a length computed from the input, as after padding to whole blocks.

    A slice with fixed bounds selects certain tokens instead.
    """
    return flow.op[node] == "Slice" and any(flow.beside(t) for t in flow.reads[node][:3])


def one_norm(flow: Flow, node: int) -> bool:
    """Return whether one operator is a norm: a standard normalization, or an opaque operator with a parameter vector."""
    proto, op = flow.nodes[node], flow.op[node]
    if "Normalization" in proto.op_type:
        return True
    return not onnx.defs.has(op) and not learned(flow, node) and any(is_vector(d) for d in flow.constants(node))


def _upstream(flow: Flow, feeders: list[int]) -> int | None:
    """Return the node of `feeders` from which the stream comes.

    1. The only one.
    2. The one that all others depend on: the residual of a block.
    3. Otherwise the last node that all of them pass through.
    4. Otherwise the one with the most ancestors: the rest are positions, token types, masks.
    """
    if not feeders:
        return None
    for feeder in feeders:
        if all(flow.depends(other, feeder) for other in feeders):
            return feeder
    common = flow.common_dominator(feeders)
    return common if common is not None else max(feeders, key=lambda f: flow.before[f].bit_count())


def _segment(flow: Flow, origin: int, start: int, end: int) -> Segment:
    region = list(flow.between(start, end))
    inner = [n for n in region if n != end]
    own = {n: [f for f in flow.feeders[n] if flow.depends(f, origin)] for n in inner}
    weights = {n for n in region if learned(flow, n)}
    meetings = {n for n in inner if _meets(flow, n, own[n])}
    fused = {n for n in inner if _fused(flow, n, own[n])}
    blocked = weights | meetings | fused
    around = _around(flow, start, end, blocked) if _adds(flow, end) else None
    reads = [t for n in (end, *inner) for t, p in flow.active_reads(n) if p == start]
    reduces = any(flow.op[n].startswith("Reduce") for n in inner)
    return Segment(
        around=around[1] if around else None,
        tensor=around[0] if around else reads[0],
        learned=bool(weights - {end} or fused),
        mixing=bool(fused) or _attends(flow, meetings, set(inner)),
        local=any(_local(flow, n) for n in inner),
        norm=not blocked and (reduces and _divides(flow, start, end) if inner else one_norm(flow, end)),
        plain=all(flow.op[n] in ELEMENTWISE | TRANSPARENT or (n != end and flow.op[n].startswith("Reduce")) for n in region),
    )


def _meets(flow: Flow, node: int, feeders: list[int]) -> bool:
    """Return whether a node is a matrix product of token data with token data."""
    op = flow.op[node]
    return len(feeders) >= 2 and (op in CONTRACTIONS or (not op and "MatMul" in flow.nodes[node].op_type))


def _fused(flow: Flow, node: int, feeders: list[int]) -> bool:
    """Return whether an opaque operator mixes tokens (fused attention).

    It does if it has an attribute for heads, reads three or more token tensors (q, k, v), or reads token data
    together with a mask, lengths or positions. Of the standard operators, the Fourier transform also mixes tokens.
    """
    proto, op = flow.nodes[node], flow.op[node]
    if any("heads" in a.name for a in proto.attribute) or op == "DFT":
        return True
    if onnx.defs.has(op) and op != "Attention":
        return any(_attention_within(g) for g in subgraphs(proto))
    side = bool(feeders) and any(map(flow.beside, flow.reads[node]))
    return "MatMul" not in proto.op_type and (len(feeders) >= 3 or side)


def _local(flow: Flow, node: int) -> bool:
    """Return whether an operator is a convolution wider than 1 or a recurrence, with parameters."""
    if flow.op[node] in {"Conv", "ConvInteger"}:
        return any(size > 1 for d in flow.constants(node) for size in d[2:])
    return flow.op[node] in {"LSTM", "GRU", "RNN", "Loop", "Scan"} and learned(flow, node)


def _attention_within(graph: onnx.GraphProto) -> bool:
    fixed = {i.name for i in graph.initializer} | {o for n in graph.node if n.op_type == "Constant" for o in n.output}
    meeting = [n for n in graph.node if n.op_type in CONTRACTIONS and not fixed.intersection(n.input[:2])]
    return len(meeting) >= 2 and any(n.op_type == "Softmax" for n in graph.node)


def _attends(flow: Flow, meetings: set[int], passable: set[int]) -> bool:
    """Return whether one product of token data feeds another inside the segment: scores, then values."""
    for last in meetings:
        stack, seen = [last], set[int]()
        while stack:
            for p in flow.feeders[stack.pop()]:
                if p in meetings:
                    return True
                if p in passable and p not in seen:
                    seen.add(p)
                    stack.append(p)
    return False


def _adds(flow: Flow, node: int) -> bool:
    """Return whether a node may add two branches: a sum, or an opaque operator that is not a matrix product."""
    black_box = not flow.op[node] and "MatMul" not in flow.nodes[node].op_type
    return not learned(flow, node) and (black_box or flow.op[node] in {"Add", "Sum", "Sub"})


def _divides(flow: Flow, start: int, end: int) -> bool:
    """Return whether a node combines the values of `start`, element by element, with a statistic of them."""
    way = _around(flow, start, end, ()) if flow.op[end] in {"Mul", "Div", "Sub", "Add"} else None
    return way is not None and not MOVEMENT.intersection(flow.op[n] for n in way[1])


def _around(flow: Flow, start: int, end: int, blocked: Iterable[int]) -> tuple[str, tuple[int, ...]] | None:
    """Return the tensor of `start` that reaches `end` as data, not as a statistic, past the blocked nodes, and the path."""
    stack: list[tuple[int, ...]] = [(end,)]
    seen = {end, *blocked}
    while stack:
        way = stack.pop()
        for tensor, p in flow.active_reads(way[0]):
            if flow.op[p] == "DynamicQuantizeLinear" and tensor != flow.nodes[p].output[0]:
                continue  # its scale and zero point
            if p == start:
                return tensor, way
            if p not in seen and flow.depends(p, start) and not flow.op[p].startswith("Reduce"):
                seen.add(p)
                stack.append((p, *way))
    return None
