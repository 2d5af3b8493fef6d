"""Find a transformer's hidden states in its graph by data flow, independent of names.

1. A layer starts at every segment of the residual stream that is residual and mixing (`Stream.starts`), or a block or two
   before it (`Stream.layers`). The stream's tensor there is the layer's input; the first one is the embedding output.
2. The last layer ends as the earlier ones do: after the last residual segment (its feed-forward block, or the
   attention itself) and the segments that follow it in the previous layer. If these contain no norm, a norm that follows
   directly is the model's final norm and counts too. What comes after, starting with a matrix, is the head (`last_layer`).
3. A stream fed by layers outside it is a decoder; then the encoder's stream, which feeds it, is searched instead.

See `residual_stream` for the terms, and `flow` for the dependencies of each tensor.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from penult.graph.find.flow import TRANSPARENT, VALUE, Flow, is_vector
from penult.graph.find.graph_index import GraphIndex
from penult.graph.find.last_layer import finish
from penult.graph.find.residual_stream import Segment, Stream, feeding, follow, learned
from penult.graph.find.skeleton import Type


class NotATransformerError(ValueError):
    """Error for a graph without a transformer layer; the message lists what was found instead."""


@dataclass(frozen=True, slots=True)
class HiddenState:
    """A tensor that carries one vector per token between two layers.

    Attributes:
        index: 0 for the embedding output, n for the output of layer n (the last after the final norm), as in transformers.
        tensor: its name in the graph with local functions inlined.
        hidden_size: H, None if the graph does not state it.
        why: the reason, as one clause for messages.
        axes: the order of its axes, "BTH" in most graphs; "TBH" or "BHT" if the model transposes internally, "NH" if the
            rows of all texts are concatenated (N = B T). `cut` converts each to (B, T, H).
    """

    index: int
    tensor: str
    hidden_size: int | None
    why: str
    axes: str = "BTH"


def hidden_states(graph: GraphIndex) -> list[HiddenState]:
    """Return the hidden states of a transformer in order, the embedding output first.

    Raises:
        NotATransformerError: the graph has no token ids or no attention.
    """
    bare, flow = graph.bare, graph.flow
    stream = _find(flow, bare.graph)
    types = graph.types
    axes = _axes(flow, stream, types)
    *starts, last = [*stream.layers, len(stream.nodes) - 1]
    end, why = finish(flow, stream)
    places = [(_made(flow, stream, s), s) for s in starts] + [(_made(flow, stream, end), _carried(flow, stream, end))]
    taken = [next((p for p in range(first, final + 1) if axes[p] == "BTH"), first) for first, final in places]
    tensors = [stream.segments[p].tensor if p < last else _output(flow, stream, bare.graph) for p in taken]
    widths = [_width(flow, types, stream.nodes[p], t, axes[p]) for p, t in zip(taken, tensors, strict=True)]
    usual = next(iter({w for w in widths if w}), None)  # blocks add to the stream, so its width rarely changes
    reasons = [f"input of attention block {i + 1} and of its residual connection" for i in range(len(starts))] + [why]
    return [
        HiddenState(i, tensor, width or usual, reason, axes[place])
        for i, (place, tensor, width, reason) in enumerate(zip(taken, tensors, widths, reasons, strict=True))
    ]


def select(states: Sequence[HiddenState], layer: int | str) -> HiddenState:
    """Return a hidden state: 0 for the embedding output, n for the output of layer n, -1 for the last, or by tensor name.

    Raises:
        ValueError: there is no such hidden state; the message lists the existing ones.
    """
    listed = ", ".join(f"{s.index} {s.tensor!r}" for s in states)
    if isinstance(layer, str):
        for state in states:
            if state.tensor == layer:
                return state
        raise ValueError(f"Tensor {layer!r} is not a hidden state of this model. Its hidden states: {listed}.")
    if isinstance(layer, bool) or not -len(states) <= layer < len(states):
        raise ValueError(
            f"layer={layer!r} does not exist. Pass 0 (embedding output) to {len(states) - 1}, -1 (last) to {-len(states)}, or "
            f"the name of a tensor. The hidden states of this model: {listed}."
        )
    return states[layer]


def _find(flow: Flow, graph: onnx.GraphProto) -> Stream:
    """Walk back from every output; return the stream with most layers, or that of its encoder if it has one."""
    makers = dict.fromkeys(flow.producer[o.name] for o in graph.output if o.name in flow.producer)
    sinks = [s for s in makers if flow.feeders[s] or s in flow.sources]
    if not sinks:
        raise NotATransformerError(_no_tokens(graph))
    known: dict[tuple[int, int, int], Segment] = {}
    streams = [_deepest(flow, follow(flow, [s], known), known) for s in sinks]
    best = max(streams, key=lambda s: (len(s.starts), flow.before[s.nodes[-1]].bit_count()))
    while feeders := feeding(flow, best):
        outside = follow(flow, feeders, known)
        if not outside.starts:
            break
        best = outside
    if not best.starts:
        raise NotATransformerError(_no_attention(flow, sinks))
    return best


def _deepest(flow: Flow, stream: Stream, known: dict[tuple[int, int, int], Segment]) -> Stream:
    """Return the stream to the last hidden state if a head adds or concatenates several of them.

    h1 ---> layer ---> h2 ---> + --->    looks like one more residual block around a layer, but is not
      `------------------------^
    """
    while True:
        first = max(stream.starts, default=0)
        ends = [i + 1 for i, s in enumerate(stream.segments) if i >= first and s.mixing]
        for end in ends:
            inner = [follow(flow, [f], known) for f in flow.feeders[stream.nodes[end]]]
            deepest = max(inner, key=_depth)
            if _depth(deepest) > _depth(Stream(stream.nodes[: end + 1], stream.segments[:end])):
                stream = deepest
                break
        else:
            return stream


def _depth(stream: Stream) -> tuple[int, int]:
    return len(stream.starts), sum(s.residual for s in stream.segments)


def _made(flow: Flow, stream: Stream, position: int) -> int:
    """Return the position of the node that computes the values: back over renames, casts, reshapes and quantization."""
    while position > 0 and flow.op[node := stream.nodes[position]] in TRANSPARENT:
        if flow.op[node] == "DequantizeLinear" and flow.op[stream.nodes[position - 1]] != "QuantizeLinear":
            break  # its input is integers
        position -= 1
    return position


def _carried(flow: Flow, stream: Stream, position: int) -> int:
    """Return the position of the last of the following nodes that only rename, cast or reorder."""
    while position + 1 < len(stream.nodes) and flow.op[stream.nodes[position + 1]] in TRANSPARENT:
        position += 1
    return position


def _axes(flow: Flow, stream: Stream, types: dict[str, Type]) -> list[str]:
    """Return the order of axes at each position of the stream, tracked from the lookup on through Transpose and Reshape."""
    axes = "TBH" if _transposed_ids(flow, stream.nodes[0]) else "BTH"
    whole, orders = axes, []
    ways = [(stream.nodes[0],), *(s.around or (n,) for s, n in zip(stream.segments, stream.nodes[1:], strict=True))]
    for way in ways:
        for node in way:
            dims = _dims(types, flow.nodes[node].output[0])
            perm = next((a.ints for a in flow.nodes[node].attribute if a.name == "perm"), ())
            if flow.op[node] == "Transpose" and len(perm) == 3 == len(axes):
                axes = whole = "".join(axes[p] for p in perm)
            elif flow.op[node] in {"Conv", "ConvInteger"}:
                axes = whole = "BHT"  # the operator requires this order
            elif dims is not None and len(dims) == 2:
                axes = "NH"
            elif dims is not None and len(dims) == 3:
                axes = whole
        orders.append(axes)
    return orders


def _transposed_ids(flow: Flow, lookup: int) -> bool:
    """Return whether the ids are transposed from (B, T) to (T, B) before the lookup."""
    turned, node = False, lookup
    while True:
        match [flow.producer.get(t) for t in flow.reads[node] if flow.bits.get(t) == VALUE]:
            case [int(node)]:
                turned ^= flow.op[node] == "Transpose"
            case _:  # an input of the graph, or several tensors
                return turned


def _output(flow: Flow, stream: Stream, graph: onnx.GraphProto) -> str:
    """Return the output of the stream's last node: a graph output if there is one, otherwise the first."""
    outputs = [str(o) for o in flow.nodes[stream.nodes[-1]].output if o]
    graph_outputs = {o.name for o in graph.output}
    return next((o for o in outputs if o in graph_outputs), outputs[0])


def _width(flow: Flow, types: dict[str, Type], node: int, tensor: str, axes: str) -> int | None:
    """Return H from the tensor's shape, or from the parameter vector applied last."""
    dims = _dims(types, tensor)
    if dims and len(dims) == len(axes) and isinstance(size := dims[axes.index("H")], int):
        return size
    return next((max(d) for d in flow.constants(node) if is_vector(d)), None)


def _dims(types: dict[str, Type], tensor: str) -> tuple[int | str | None, ...] | None:
    return types[tensor][1] if tensor in types else None


def _no_tokens(graph: onnx.GraphProto) -> str:
    inputs = ", ".join(_described(i) for i in graph.input) or "none"
    return (
        "not a transformer over tokens: no integer input selects rows of an embedding table, and no input is a float tensor "
        f"(B, T, H). Its inputs: {inputs}"
    )


def _described(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    dims = ", ".join(str(d.dim_param or d.dim_value) for d in kind.shape.dim)
    return f"{value.name} {onnx.TensorProto.DataType.Name(kind.elem_type).lower()} ({dims})"


def _no_attention(flow: Flow, sinks: list[int]) -> str:
    seen = Counter(
        flow.nodes[n].op_type
        for n in range(len(flow.nodes))
        if n not in flow.sources and learned(flow, n) and flow.feeders[n] and any(flow.depends(s, n) for s in sinks)
    )
    learned_ops = ", ".join(f"{count} {op}" for op, count in seen.most_common()) or "none"
    return f"not a transformer: it has no residual block with attention. Its operators with parameters: {learned_ops}"
