"""The end of the last layer of a residual stream, where the head begins.

The layers of a model have the same structure: a norm or a scale that follows the last residual block of the other layers also
follows that of the last layer. What comes after it, starting with a matrix, is the head.
"""

from collections import Counter

from penult.graph.find.flow import Flow, is_matrix, is_vector
from penult.graph.find.residual_stream import Stream, one_norm, trims


def finish(flow: Flow, stream: Stream) -> tuple[int, str]:
    """Return the position in a stream at which its last layer ends, and the reason."""
    joins = [i + 1 for i, s in enumerate(stream.segments) if s.residual]
    starts = stream.starts
    end = _blocks(flow, stream, joins)[-1]
    why = "output of the last residual block"
    if len(starts) > 1:
        before = max(j for j in joins if j <= starts[-1])
        tail = range(before, starts[-1])
        if all(_alike(flow, stream, i, end + i - before) for i in tail):
            end += len(tail)
            if any(stream.segments[i].norm for i in tail) or all(one_norm(flow, stream.nodes[i]) for i in (before, end)):
                return end, f"{why} and its norm; the head follows"
    if _halved(flow, stream, end):
        end += 1
    normed = _normed(flow, stream, end)
    if normed is not None:
        return normed, f"{why} and the final norm; the head follows"
    return end, f"{why}; the head follows"


def _blocks(flow: Flow, stream: Stream, joins: list[int]) -> list[int]:
    """Return the ends of the residual blocks of the last layer, without those of a head after it.

    1. A layer has at most as many blocks as the earlier layers whose first block has the same operators.
    2. If there is no such layer, it ends with one feed-forward block, or before a selection or mean of tokens
       or a matrix without a skip connection.
    """
    *earlier, last = starts = stream.starts
    first = _operators(flow, stream, last)
    like = [(i, after) for i, after in zip(earlier, starts[1:], strict=True) if _operators(flow, stream, i) == first]
    ends = [j for j in joins if j > last]
    if like:
        return ends[: max(sum(i < j <= after for j in joins) for i, after in like)]
    for position in range(last + 1, len(stream.segments)):
        segment = stream.segments[position]
        if segment.residual and not (segment.mixing or segment.local):
            return [j for j in ends if j <= position + 1]
        if not (segment.residual or segment.norm or segment.plain or trims(flow, stream.nodes[position + 1])):
            return [j for j in ends if j <= position]
    return ends


def _halved(flow: Flow, stream: Stream, position: int) -> bool:
    """Return whether a Concat with data that bypasses the position follows, as for the halves of a reversible model."""
    if position + 1 >= len(stream.nodes) or flow.op[node := stream.nodes[position + 1]] != "Concat":
        return False
    shared = flow.common_dominator(flow.feeders[node])
    return shared is not None and shared < stream.nodes[position]


def _operators(flow: Flow, stream: Stream, position: int) -> Counter[str]:
    return Counter(flow.nodes[n].op_type for n in flow.between(stream.nodes[position], stream.nodes[position + 1]))


def _alike(flow: Flow, stream: Stream, one: int, other: int) -> bool:
    """Return whether the segments at two positions are of the same kind, with the same operator and matrix shapes."""
    return max(one, other) < len(stream.segments) and _kind(flow, stream, one) == _kind(flow, stream, other)


def _kind(flow: Flow, stream: Stream, position: int) -> tuple[bool, bool, str, str, list[tuple[int, ...]]]:
    """Return the kind of the segment at a position, and the operator and matrix shapes at its end."""
    segment, end = stream.segments[position], stream.nodes[position + 1]
    node, matrices = flow.nodes[end], [d for d in flow.constants(end) if is_matrix(d)]
    return segment.norm, segment.plain, node.op_type, node.domain, matrices


def _normed(flow: Flow, stream: Stream, position: int) -> int | None:
    """Return the end of the one norm that follows, with only element-wise operators and padding removal between.

    None if there is no such norm.
    """
    if one_norm(flow, stream.nodes[position]):
        return position
    for segment in stream.segments[position:]:
        node = stream.nodes[position + 1]
        if not segment.norm and not segment.plain and not trims(flow, node):
            return None
        position += 1
        if segment.norm and flow.op[node] != "Sub":  # a Sub only centers: the norm's division follows
            return position if one_norm(flow, node) else _scaled(flow, stream, position)
    return None


def _scaled(flow: Flow, stream: Stream, position: int) -> int:
    """Return the end of a norm's scale and shift: at most one Mul and one Add with a parameter vector.

    Without such a vector, the scale may be a scalar.
    """
    end, left, scaled = position, ["Mul", "Add"], position
    for later in range(position + 1, len(stream.nodes)):
        node = stream.nodes[later]
        constants = flow.constants(node)
        if len(flow.feeders[node]) != 1 or any(map(is_matrix, constants)):
            break
        vector = any(map(is_vector, constants))
        if vector and flow.op[node] in left:
            left.remove(flow.op[node])
            end = later
        elif vector or flow.op[node] not in {"Cast", "CastLike", "Identity", "Mul", "Div"}:
            break
        elif flow.op[node] == "Mul" and scaled == position:
            scaled = later
    return end if end > position else scaled
