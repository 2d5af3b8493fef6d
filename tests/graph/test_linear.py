"""Linear layers of a graph: every form of matrix and bias, and similar patterns that do not count."""

import numpy as np
import pytest
from graph_kit import find_linears, model_of
from onnx import helper, numpy_helper

from penult.graph.find.graph_index import Links

RNG = np.random.default_rng(0)
X = {"x": [16, 16]}


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def layers_of(nodes, outputs=("out",), before="out", **weights):
    """Return (input, output, shape of the weight, whether it has a bias, nodes) of each layer of a graph."""
    linears = find_linears(model_of(nodes, X, outputs, weights), before)
    return [(one.input, one.output, one.weight.shape, one.bias is not None, one.nodes) for one in linears]


def test_linears_are_found_in_every_form():
    """MatMul and Add in either order, Gemm with a transposed weight, FusedMatMul with a factor; nothing else."""
    w, wide, bias = floats(16, 16), floats(16, 16), floats(16)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["b", "a"], ["a2"]),
        helper.make_node("Gemm", ["a2", "w", "b"], ["c"], transB=1, alpha=2.0),
        helper.make_node("FusedMatMul", ["c", "w"], ["d"], domain="com.microsoft", alpha=0.5),
        helper.make_node("Add", ["d", "c"], ["e"]),  # a residual, no bias
        helper.make_node("MatMul", ["e", "e"], ["f"]),  # tokens with tokens
        helper.make_node("MatMul", ["w", "f"], ["g"]),  # the matrix on the other side
        helper.make_node("MatMul", ["g", "v"], ["out"]),
    ]
    model = model_of(nodes, X, ["out"], {"w": w, "b": bias, "v": wide})
    layers_of = find_linears(model, "out")
    assert [(linear.input, linear.output) for linear in layers_of] == [("x", "a2"), ("a2", "c"), ("c", "d"), ("g", "out")]
    np.testing.assert_array_equal(layers_of[0].bias, bias)
    np.testing.assert_array_equal(layers_of[1].weight, 2 * w.T)
    np.testing.assert_array_equal(layers_of[2].weight, 0.5 * w)
    assert [linear.output for linear in find_linears(model, "c")] == ["a2", "c"]  # not what comes behind


def test_similar_patterns_are_not_linear_layers():
    """A transposed or batched factor, a bias of the wrong length or one per token: not a layer, or a layer without a bias."""
    w, bias = floats(16, 16), floats(16)
    held = helper.make_node("Constant", [], ["h"], value=numpy_helper.from_array(w))
    nodes = [
        held,
        helper.make_node("MatMul", ["x", "h"], ["a"]),  # the only layer: its matrix is a Constant node
        helper.make_node("FusedMatMul", ["a", "w"], ["b"], domain="com.microsoft", transA=1),
        helper.make_node("Gemm", ["b", "w", "one"], ["c"]),  # a bias that is spread over the channels
        helper.make_node("MatMul", ["c", "w"], ["d"]),
        helper.make_node("Add", ["d", "rows"], ["e"]),  # a value for each token
        helper.make_node("MatMul", ["e", "w"], ["f"]),
        helper.make_node("Mul", ["f", "bias"], ["out"]),
    ]
    weights = {"w": w, "one": floats(1), "rows": floats(16, 1), "bias": bias}
    layers_of = find_linears(model_of(nodes, X, ["out"], weights), "out")
    assert [(linear.input, linear.output, linear.bias) for linear in layers_of] == [
        ("x", "a", None),
        ("c", "d", None),
        ("e", "f", None),
    ]
    np.testing.assert_array_equal(layers_of[0].weight, w)


@pytest.mark.parametrize(("rows", "columns", "there"), [(8, 8, True), (7, 8, False), (8, 7, False), (40, 9, True)])
def test_a_small_matrix_is_not_quantized(rows, columns, there):
    """A matrix with fewer than eight rows or columns costs little in any arithmetic."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["out"])]
    assert bool(layers_of(nodes, w=floats(rows, columns))) == there


@pytest.mark.parametrize(
    "weight", [floats(2, 16, 16), floats(16), floats(16, 16).astype(np.float64), floats(16, 16).astype(np.float16)]
)
def test_a_weight_of_another_form_does_not_count(weight):
    """A batched weight, a vector, and types other than float32."""
    assert layers_of([helper.make_node("MatMul", ["x", "w"], ["out"])], w=weight) == []


@pytest.mark.parametrize("said", [{"transA": 1}, {"transBatchA": 1}, {"transBatchB": 1}])
def test_a_product_over_another_axis_does_not_count(said):
    """The matrix must multiply rows of tokens."""
    assert (
        layers_of([helper.make_node("FusedMatMul", ["x", "w"], ["out"], domain="com.microsoft", **said)], w=floats(16, 16))
        == []
    )


@pytest.mark.parametrize(("kind", "domain", "there"), [
    ("MatMul", "", True), ("MatMul", "ai.onnx", True), ("MatMul", "others", False), ("Gemm", "com.microsoft", False),
    ("FusedMatMul", "", False), ("Mul", "", False),
])  # fmt: skip
def test_operators_of_other_domains_do_not_count(kind, domain, there):
    """A name has its meaning only in its own domain."""
    assert bool(layers_of([helper.make_node(kind, ["x", "w"], ["out"], domain=domain)], w=floats(16, 16))) == there


@pytest.mark.parametrize(
    ("bias", "there"),
    [(floats(24), True), (floats(1, 1, 24), True), (floats(1), False), (floats(3, 24), False), (floats(24, 1), False),
     (np.float32(3), False), (floats(16), False), (None, False)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["Gemm", "Add"])
def test_valid_biases(kind, bias, there):
    """A bias has one value per channel, along the last axis; an Add of anything else is not merged, nor is a Gemm with it."""
    weights = {"w": floats(16, 24)} | ({} if bias is None else {"b": bias})
    if kind == "Gemm":
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["out"])]
        assert layers_of(nodes, **weights) == ([("x", "out", (16, 24), True, (0,))] if there else [])
    for order in (["p", "b"], ["b", "p"]):
        nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", order, ["out"])]
        assert layers_of(nodes, **weights) == [
            ("x", "out", (16, 24), True, (0, 1)) if there else ("x", "p", (16, 24), False, (0,))
        ]


@pytest.mark.parametrize("last", [[], [""]])
def test_a_gemm_without_a_bias_merges_the_next_add(last):
    """Its third input may be missing or empty."""
    nodes = [helper.make_node("Gemm", ["x", "w", *last], ["p"]), helper.make_node("Add", ["p", "b"], ["out"])]
    assert layers_of(nodes, w=floats(16, 24), b=floats(24)) == [("x", "out", (16, 24), True, (0, 1))]


def test_a_gemm_with_factors():
    """Alpha is part of the matrix and beta of the bias; the default is 1."""
    w, b = floats(16, 16), floats(16)
    for said, alpha, beta in (({}, 1, 1), ({"alpha": 3.0, "beta": 0.25}, 3, 0.25)):
        model = model_of([helper.make_node("Gemm", ["x", "w", "b"], ["out"], **said)], X, ["out"], {"w": w, "b": b})
        (linear,) = find_linears(model, "out")
        np.testing.assert_array_equal(linear.weight, w * np.float32(alpha))
        np.testing.assert_array_equal(linear.bias, b * np.float32(beta))


@pytest.mark.parametrize("other", [
    ("Sub", ""), ("Add", "others"),
])  # fmt: skip
def test_only_an_add_adds_a_bias(other):
    """Another operator after the product is not part of the layer."""
    kind, domain = other
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node(kind, ["p", "b"], ["out"], domain=domain)]
    assert layers_of(nodes, w=floats(16, 16), b=floats(16)) == [("x", "p", (16, 16), False, (0,))]


def test_a_product_with_other_readers_keeps_its_bias_separate():
    """If a second node or the graph's output reads the product, it must remain a tensor."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["out"])]
    alone, apart = ("x", "out", (16, 16), True, (0, 1)), ("x", "p", (16, 16), False, (0,))
    weights = {"w": floats(16, 16), "b": floats(16)}
    assert layers_of(nodes, **weights) == [alone]
    assert layers_of(nodes, outputs=("out", "p"), **weights) == [apart]
    assert layers_of([*nodes, helper.make_node("Neg", ["p"], ["q"])], **weights) == [apart]
    assert layers_of(nodes[:1], outputs=("p",), before="p", **weights) == [apart]
    others = [nodes[0], helper.make_node("Neg", ["x"], ["q"]), helper.make_node("Add", ["b", "q"], ["out"])]
    assert layers_of(others, outputs=("out", "p"), before="p", **weights) == [apart]
    assert Links(model_of(nodes, X, ("out", "p"), weights).graph).readers["p"] == [1, -1]


def test_other_nodes_are_not_layers():
    """Constants of numbers or lists, nodes without inputs or attributes, and a product of two constants are not layers."""
    nodes = [
        helper.make_node("Constant", [], ["number"], value_float=1.0),
        helper.make_node("Constant", [], ["nothing"]),
        helper.make_node("RandomNormal", [], ["r"], shape=[16, 16]),
        helper.make_node("MatMul", ["x", "r"], ["a"]),
        helper.make_node("ConstantOfShape", ["size"], ["filled"], value=numpy_helper.from_array(floats(1))),
        helper.make_node("MatMul", ["a", "filled"], ["c"]),
        helper.make_node("MatMul", ["w", "w"], ["d"]),
        helper.make_node("Sum", ["c", "d", "number"], ["out"]),
    ]
    assert layers_of(nodes, w=floats(16, 16), size=np.array([16, 16])) == []
