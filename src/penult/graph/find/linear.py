"""Find the linear layers of a graph: token data times a constant matrix, plus the bias that follows.

It matches the operators of ONNX and ONNX Runtime that multiply by a constant matrix, independent of names and of the rest of
the graph. Layers whose weight is computed, batched, or not float32 are skipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from penult.graph.find.flow import ancestors
from penult.graph.find.graph_index import GraphIndex

Floats = NDArray[np.float32]

# A matrix with fewer rows or columns costs too little to be worth the extra operators.
_SMALLEST = 8


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W + b.

    Attributes:
        input: the tensor x, (..., K).
        output: the tensor y, (..., N).
        weight: (K, N).
        bias: (N,), or None.
        nodes: positions of the nodes that compute it, in order.
    """

    input: str
    output: str
    weight: Floats
    bias: Floats | None
    nodes: tuple[int, ...]


def find_linears(graph: GraphIndex, before: str) -> list[Linear]:
    """Return the linear layers that `before` depends on, in graph order.

    Args:
        graph: index of a model that is loaded with its weights.
        before: a tensor; a layer after it (a dense layer on the pooled vector) is left out.
    """
    links, fixed = graph.links, graph.links.constants
    considered = set(ancestors(links.nodes, [before]))
    linears = []
    for i, node in enumerate(links.nodes):
        if i not in considered or not node.input or node.input[0] in fixed:
            continue
        matrix = _matrix(node, fixed)
        if matrix is None or min(matrix[0].shape) < _SMALLEST:
            continue
        weight, bias = matrix
        add = links.after(i) if bias is None else None
        if add is not None and (more := _bias(links.nodes[add], node.output[0], fixed, weight.shape[1])) is not None:
            linears.append(Linear(node.input[0], links.nodes[add].output[0], weight, more, (i, add)))
        else:
            linears.append(Linear(node.input[0], node.output[0], weight, bias, (i,)))
    return linears


def _matrix(node: NodeProto, fixed: Mapping[str, TensorProto]) -> tuple[Floats, Floats | None] | None:
    """Return the weight (K, N) and bias of a node that multiplies by a constant matrix; None for any other node."""
    kind = (node.domain.replace("ai.onnx", ""), node.op_type)
    if kind not in {("", "MatMul"), ("", "Gemm"), ("com.microsoft", "FusedMatMul")}:
        return None
    tensor = fixed.get(node.input[1])
    if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("transA") or attributes.get("transBatchA") or attributes.get("transBatchB"):
        return None
    weight = _floats(tensor)
    weight = np.ascontiguousarray(weight.T if attributes.get("transB") else weight) * np.float32(attributes.get("alpha", 1.0))
    if node.op_type != "Gemm" or len(node.input) < 3 or not node.input[2]:
        return weight, None
    bias = _channels(fixed.get(node.input[2]), weight.shape[1])
    return None if bias is None else (weight, bias * np.float32(attributes.get("beta", 1.0)))


def _bias(node: NodeProto, product: str, fixed: Mapping[str, TensorProto], width: int) -> Floats | None:
    """Return the bias (N,) that an Add adds to `product`; None for any other node."""
    if node.op_type != "Add" or node.domain not in {"", "ai.onnx"}:
        return None
    return _channels(fixed.get(node.input[1] if node.input[0] == product else node.input[0]), width)


def _channels(tensor: TensorProto | None, width: int) -> Floats | None:
    """Return the values of a constant with one value per channel, along its last axis; None for any other."""
    if tensor is None or tensor.dims[-1:] != [width] or prod(tensor.dims) != width:
        return None
    return _floats(tensor).reshape(-1)


def _floats(tensor: TensorProto) -> Floats:
    return np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)
