"""The stream of a graph: the nodes every token's vector passes through, and what lies between two of them.

Walking back from an output, at every join of branches to the operand the other branches start from, gives the stream. It
knows four facts about the segment between two neighbours of the stream, found by data flow alone:

    residual  the stream goes around a learned matrix:      x ---> ... W ... ---> + --->
                                                              `-------------------^
    mixing    inside it token data meets token data twice, (q k) v, or once in one fused operator
    local     inside it a convolution or a recurrence lets tokens meet their neighbours
    norm      no matrix, but a statistic of the channels:   x ---> mean, rsqrt ---> * --->

It does not know what a layer or a head is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import onnx

from penult.graph.find.flow import ELEMENTWISE, MOVEMENT, TRANSPARENT, Flow, is_matrix, is_vector, subgraphs

CONTRACTIONS = frozenset(("MatMul", "Gemm", "Einsum", "MatMulInteger", "Conv", "ConvInteger"))


@dataclass(frozen=True, slots=True)
class Segment:
    """What lies between two neighbours of the stream.

    Attributes:
        around: the nodes from the first neighbour's reader to the second that carry data past all learned matrices, in
            order, the second included, where the second is a sum; None if there is no such way.
        tensor: the output of the first neighbour that goes on, around if there is a way around.
        learned: a matrix of parameters, or attention fused into one operator, is inside.
        mixing: tokens attend to each other inside.
        local: tokens meet their neighbours inside, in a convolution or a recurrence.
        norm: it divides by a statistic of the channels and has no learned matrix.
        plain: it is element-wise, or only retypes and reshapes.
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
        """Say whether data goes around a learned matrix."""
        return self.learned and self.around is not None


@dataclass(frozen=True, slots=True)
class Stream:
    """Nodes of the graph, first to last, and the segment after each but the last."""

    nodes: list[int]
    segments: list[Segment]

    @property
    def starts(self) -> list[int]:
        """Positions in `nodes` after which a residual block with attention follows.

        In a hybrid a convolution or a recurrence may stand in for attention; it does not count where it directly follows
        one, with no feed-forward block between, nor in a graph without attention.
        """
        found, mixed = [], False
        for i, segment in enumerate(self.segments):
            if segment.residual and (segment.mixing or (segment.local and not mixed)):
                found.append(i)
            if segment.residual:
                mixed = segment.mixing or segment.local
        return found if any(self.segments[i].mixing for i in found) else []

    @property
    def layers(self) -> list[int]:
        """Positions in `nodes` at which layers begin: `starts`, before the blocks that precede the attention in each layer.

        These show where blocks before the first attention and after the last make up what lies between two, as in
        f a f | f a f, whose feed-forward blocks stand on both sides.
        """
        joins = [i for i, segment in enumerate(self.segments) if segment.residual]
        where = [joins.index(start) for start in self.starts]
        if not where or {b - a - 1 for a, b in pairwise(where)} != {where[0] + len(joins) - 1 - where[-1]}:
            return self.starts
        return [joins[at - where[0]] for at in where]


def follow(flow: Flow, ends: list[int], known: dict[tuple[int, int, int], Segment]) -> Stream:
    """Follow token data back from `ends` (one node, or all that one reader reads) to where it enters.

    `known` remembers segments between calls: streams to different outputs of a graph share most of theirs.
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
    """List the nodes off the stream, with attention of their own behind them, that nodes on or beside it read.

    They are where an encoder's output enters a decoder.
    """
    origin, sink = stream.nodes[0], stream.nodes[-1]
    inside = [n for n in range(len(flow.nodes)) if flow.depends(sink, n)]
    outside = {n for n in inside if not flow.depends(n, origin)}
    meeting = [n for n in outside if _meets(flow, n, flow.feeders[n]) or _fused(flow, n, flow.feeders[n])]
    if not meeting:
        return []
    read = {f for n in inside if n not in outside for f in flow.feeders[n] if f in outside}
    return sorted(f for f in read if any(flow.depends(f, m) for m in meeting))


def learned(flow: Flow, node: int) -> bool:
    """Say whether token data meets a matrix of parameters here."""
    if flow.op[node] in ELEMENTWISE | TRANSPARENT | MOVEMENT:
        return False
    return any(is_matrix(d) for d in flow.constants(node))


def trims(flow: Flow, node: int) -> bool:
    """Say whether a node keeps a range of tokens whose length follows from the input, as after padding to whole blocks.

    A range with fixed bounds is the choice of some token instead.
    """
    return flow.op[node] == "Slice" and any(flow.beside(t) for t in flow.reads[node][:3])


def one_norm(flow: Flow, node: int) -> bool:
    """Say whether one operator is a norm: so called by the standard, or a black box with a vector of parameters."""
    proto, op = flow.nodes[node], flow.op[node]
    if "Normalization" in proto.op_type:
        return True
    return not onnx.defs.has(op) and not learned(flow, node) and any(is_vector(d) for d in flow.constants(node))


def _upstream(flow: Flow, feeders: list[int]) -> int | None:
    """Choose where the stream comes from, of the nodes that feed a node.

    1. The only one.
    2. The one all others depend on: the residual of a block.
    3. The last node all of them pass through.
    4. The one with most behind it: the rest are positions, token types, masks.
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
    """Say whether token data is multiplied with token data here, as matrices."""
    op = flow.op[node]
    return len(feeders) >= 2 and (op in CONTRACTIONS or (not op and "MatMul" in flow.nodes[node].op_type))


def _fused(flow: Flow, node: int, feeders: list[int]) -> bool:
    """Say whether an operator that is a black box here lets tokens meet.

    It does if it divides the channels into heads, reads three or more kinds of token data (q, k, v), or reads token data
    beside a mask, lengths or positions. Of the standard's own operators, the Fourier transform does too.
    """
    proto, op = flow.nodes[node], flow.op[node]
    if any("heads" in a.name for a in proto.attribute) or op == "DFT":
        return True
    if onnx.defs.has(op) and op != "Attention":
        return any(_attention_within(g) for g in subgraphs(proto))
    side = bool(feeders) and any(map(flow.beside, flow.reads[node]))
    return "MatMul" not in proto.op_type and (len(feeders) >= 3 or side)


def _local(flow: Flow, node: int) -> bool:
    """Say whether an operator slides over its last axes or carries a state along one."""
    if flow.op[node] in {"Conv", "ConvInteger"}:
        return any(size > 1 for d in flow.constants(node) for size in d[2:])
    return flow.op[node] in {"LSTM", "GRU", "RNN", "Loop", "Scan"} and learned(flow, node)


def _attention_within(graph: onnx.GraphProto) -> bool:
    fixed = {i.name for i in graph.initializer} | {o for n in graph.node if n.op_type == "Constant" for o in n.output}
    meeting = [n for n in graph.node if n.op_type in CONTRACTIONS and not fixed.intersection(n.input[:2])]
    return len(meeting) >= 2 and any(n.op_type == "Softmax" for n in graph.node)


def _attends(flow: Flow, meetings: set[int], passable: set[int]) -> bool:
    """Say whether one meeting of token data feeds another, over any nodes of the segment: scores, then values."""
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
    """Say whether a node may add two branches: a sum, or a black box that is no product with a matrix."""
    black_box = not flow.op[node] and "MatMul" not in flow.nodes[node].op_type
    return not learned(flow, node) and (black_box or flow.op[node] in {"Add", "Sum", "Sub"})


def _divides(flow: Flow, start: int, end: int) -> bool:
    """Say whether a node combines the data of `start`, each value in its place, with a statistic of them."""
    way = _around(flow, start, end, ()) if flow.op[end] in {"Mul", "Div", "Sub", "Add"} else None
    return way is not None and not MOVEMENT.intersection(flow.op[n] for n in way[1])


def _around(flow: Flow, start: int, end: int, blocked: Iterable[int]) -> tuple[str, tuple[int, ...]] | None:
    """Find the tensor of `start` that reaches `end` past the blocked nodes as data, not as a statistic of it."""
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
