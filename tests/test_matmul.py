"""FLOPs of a model's matrix products, and the product that benchmarks compare with."""

import numpy as np
import onnx
import pytest
from graph_kit import Draft, session
from onnx import helper

from penult.bench.matmul import flops, write_int8_matmul


def test_an_8_bit_product_is_right(tmp_path):
    """The graph multiplies uint8 by 8-bit weights whose sums do not overflow on any processor, and adds up in int32."""
    write_int8_matmul(tmp_path / "product.onnx", 48)
    model = onnx.load(tmp_path / "product.onnx")
    onnx.checker.check_model(model, full_check=True)
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.int32)
    assert (weights.min(), weights.max()) == (-64, 63)
    a = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    (found,) = session(model).run(["product"], {"a": a})
    assert np.array_equal(found, a.astype(np.int32) @ weights)


def test_operations_equal_a_manual_count():
    """Two per weight of a MatMul or Gemm, and 4 S H per layer; no tables, vectors, token products or other operators."""
    d = Draft()
    wide = d.dense(d.embed(), 12)
    d.nodes.append(helper.make_node("Gemm", [wide, d.weight(12, 3), d.weight(3)], ["narrow"]))
    d.nodes.append(helper.make_node("MatMul", ["narrow", wide], ["mixed"]))
    d.nodes.append(helper.make_node("MatMul", ["mixed", d.weight(3)], ["vector"]))
    d.nodes.append(helper.make_node("MatMul", [wide], ["broken"]))
    d.nodes.append(helper.make_node("Mul", ["mixed", d.weight(5, 5)], ["other"]))
    assert flops(d.model("other"), [3, 5], layers=2, hidden=8) == pytest.approx(2 * (8 * 12 + 12 * 3) + 4 * 8 * 2 * 34 / 8)
