"""What a graph's 8-bit arithmetic, and this processor's, is like.

A graph may come as an 8-bit one. If its scales are constants, a text's vector is its own; if they are measured on each run
over the whole batch, every vector depends on its batch mates.
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
    """Say how a graph's activations become 8 bits wide: not at all, by constants, or by each batch's own range.

    1. An operator that measures its input's range is dynamic, and so is a QuantizeLinear whose scale is computed.
    2. An integer matrix product, or a QuantizeLinear with a constant scale, is static.
    3. Weights alone in 8 bits are none of both.
    """
    fixed = {tensor.name for tensor in model.graph.initializer}
    fixed.update(o for node in model.graph.node if node.op_type == "Constant" for o in node.output)
    found: Scales = "none"
    for node in model.graph.node:
        if node.op_type in _DYNAMIC or (node.op_type == "QuantizeLinear" and node.input[1] not in fixed):
            return "dynamic"
        if node.op_type in _STATIC or (node.op_type == "QuantizeLinear" and node.input[0] not in fixed):
            found = "static"
    return found


def weight_limit(run: Callable[[bytes, dict[str, NDArray[Any]]], list[NDArray[Any]]]) -> int:
    """Find the largest 8-bit weight whose products this processor sums up right.

    Processors without an instruction for 8-bit dot products add two products in 16 bits, where 2 x 255 x 127 does not fit;
    2 x 255 x 64 does. It is tried, for one row and for many, whose kernels differ.

    Args:
        run: runs a model on inputs.

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
