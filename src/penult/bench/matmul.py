"""Baselines for benchmarks: FLOPs of a model's matrix products, and a graph of a single 8-bit matmul."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_int8_matmul(target: Path, cube: int) -> None:
    """Write a graph of `product = a x weights`, (cube, cube) uint8 by int8, accumulated in int32."""
    weights = np.random.default_rng(1).integers(-64, 64, (cube, cube), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "weights"], ["product"])],
        "matmul",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [cube, cube])],
        [helper.make_tensor_value_info("product", TensorProto.INT32, [cube, cube])],
        [numpy_helper.from_array(weights, "weights")],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), target)


def flops(model: onnx.ModelProto, lengths: Sequence[int], layers: int, hidden: int) -> float:
    """Return the FLOPs of the matrix products per token, averaged over texts of these lengths.

    Two per weight of a MatMul or Gemm, and 4 S H per layer for attention scores and their product with the values, for a
    text of S tokens.
    """
    matrices = {tensor.name: prod(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) == 2}
    products = [node.input[1] for node in model.graph.node if node.op_type in {"MatMul", "Gemm"} and len(node.input) > 1]
    weights = sum(matrices.get(name, 0) for name in products)
    tokens = sum(lengths)
    return float(2.0 * weights + 4.0 * hidden * layers * sum(length * length for length in lengths) / tokens)
