"""Detect how a graph quantizes activations, and which 8-bit weights this processor supports.

A graph may already be quantized. With constant scales (static), vectors are batch-invariant. With scales computed over the
whole batch in each run (dynamic), every vector depends on the other texts in the batch.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Scales = Literal["none", "static", "dynamic"]

_DYNAMIC = frozenset(("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"))
_STATIC = frozenset(
    ("MatMulInteger", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "QAttention", "ConvInteger", "QLinearConv")
)


def scales_of(model: onnx.ModelProto) -> Scales:
    """Return how a graph quantizes its activations: not at all, statically, or dynamically per batch.

    1. An operator that computes its input's range is dynamic, as is a QuantizeLinear with a computed scale.
    2. An integer matrix product, or a QuantizeLinear with a constant scale, is static.
    3. A graph with only its weights in 8 bits is "none".
    """
    fixed = {tensor.name for tensor in model.graph.initializer}
    fixed.update(o for node in model.graph.node if node.op_type == "Constant" for o in node.output)
    kind: Scales = "none"
    for node in model.graph.node:
        if node.op_type in _DYNAMIC or (node.op_type == "QuantizeLinear" and node.input[1] not in fixed):
            return "dynamic"
        if node.op_type in _STATIC or (node.op_type == "QuantizeLinear" and node.input[0] not in fixed):
            kind = "static"
    return kind


def weight_limit(run: Callable[[bytes, dict[str, NDArray[Any]]], list[NDArray[Any]]]) -> int:
    """Return the largest 8-bit weight whose products this processor sums without overflow.

    Processors without an 8-bit dot product instruction add two products in 16 bits: 2 x 255 x 127 overflows, 2 x 255 x 64
    does not. This runs a test graph with one row and with many rows, because their kernels differ.

    Args:
        run: runs a serialized model on inputs and returns its outputs.

    Returns:
        127 or 64.
    """
    depth = 64
    weight = np.full((depth, 32), 127, dtype=np.int8)
    names = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.uint8(0), "z")]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w", "z"], ["y"])],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["rows", depth])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", 32])],
        names,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    for rows in (1, 37):
        (sums,) = run(model, {"x": np.full((rows, depth), 255, dtype=np.uint8)})
        if (sums != depth * 255 * 127).any():
            return 64
    return 127
