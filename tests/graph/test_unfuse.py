"""Fused operators are decomposed with the same values; unknown forms are not changed."""

import itertools

import numpy as np
import onnx
import pytest
from graph_kit import find_linears, model_of, session, unfuse
from onnx import TensorProto, helper

RNG = np.random.default_rng(0)
MICROSOFT = {"domain": "com.microsoft"}


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def decomposed(nodes, inputs, outputs, weights, opset=17):
    """Decompose a graph and check its values; return the operators, in order."""
    model = model_of(nodes, inputs, outputs, weights, opset)
    before = model.SerializeToString()
    plain = unfuse(model)
    assert model.SerializeToString() == before
    for ours, theirs in zip(session(plain).run(None, inputs), session(model).run(None, inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
    return [node.op_type for node in plain.graph.node]


@pytest.mark.parametrize(("shift", "bias", "total"), list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("epsilon", [None, 0.5])
def test_a_norm_of_a_sum_is_decomposed(shift, bias, total, epsilon):
    """With and without its shift, its bias and the sum as an output; the default epsilon is nearly zero."""
    said = {} if epsilon is None else {"epsilon": epsilon}
    reads = ["x", "s", "g", "h" if shift else "", "b" if bias else ""]
    node = helper.make_node("SkipLayerNormalization", reads, ["n", "", "", "t"] if total else ["n"], **MICROSOFT, **said)
    inputs = {"x": floats(2, 3, 32), "s": floats(2, 3, 32)}
    inputs["x"][0] /= 1e3
    inputs["s"][0] /= 1e3
    weights = {"g": floats(32)} | ({"h": floats(32)} if shift else {}) | ({"b": floats(32) / 1e3} if bias else {})
    found = decomposed([node], inputs, ["n", "t"] if total else ["n"], weights)
    assert found == ["Add"] * (1 + bias) + ["LayerNormalization"]


@pytest.mark.parametrize("place", [1, 2])
def test_a_norm_whose_statistics_are_read_stays(place):
    """The standard operator returns them in another form."""
    outputs = ["n", "", "", "t"]
    outputs[place] = "statistic"
    node = helper.make_node("SkipLayerNormalization", ["x", "x", "g"], outputs, **MICROSOFT)
    model = model_of([node], {"x": floats(2, 3, 32)}, ["n"], {"g": floats(32)})
    assert list(unfuse(model).graph.node) == [node]


def test_each_operator_is_decomposed_in_place():
    """Several of a kind and others between: each gets its own tensors, and only the chosen kinds are changed."""
    nodes = [
        helper.make_node("SkipLayerNormalization", ["x", "x", "g"], ["a"], **MICROSOFT),
        helper.make_node("BiasGelu", ["a", "b"], ["c"], **MICROSOFT),
        helper.make_node("Neg", ["c"], ["d"]),
        helper.make_node("SkipLayerNormalization", ["d", "x", "g", "b", "b"], ["e"], **MICROSOFT),
        helper.make_node("BiasGelu", ["e", "b"], ["y"], **MICROSOFT),
    ]
    weights, inputs = {name: floats(32) for name in "gb"}, {"x": floats(2, 3, 32)}
    norm = "LayerNormalization"
    assert decomposed(nodes, inputs, ["y"], weights) == ["Add", norm, "Add", "Gelu", "Neg", "Add", "Add", norm, "Add", "Gelu"]
    model = model_of(nodes, inputs, ["y"], weights)
    norms = unfuse(model, only=frozenset({"SkipLayerNormalization"}))
    assert [node.op_type for node in norms.graph.node] == ["Add", norm, "BiasGelu", "Neg", "Add", "Add", norm, "BiasGelu"]
    assert unfuse(norms, only=frozenset({"SkipLayerNormalization"})) is norms
    assert unfuse(model, only=frozenset({"Attention"})) is model


def test_operators_of_other_domains_stay():
    """A name has its meaning only in its own domain."""
    nodes = [
        helper.make_node("BiasGelu", ["x", "x"], ["a"], **MICROSOFT),
        helper.make_node("BiasGelu", ["a", "a"], ["b"], domain="others"),
        helper.make_node("Attention", ["b", "b", "b"], ["y"]),
    ]
    model = model_of(nodes, {"x": floats(2)}, ["y"], {})
    assert [node.op_type for node in unfuse(model).graph.node] == ["Add", "Gelu", "BiasGelu", "Attention"]
    del model.graph.node[0]
    assert unfuse(model) is model


X = {"x": floats(2, 5, 32)}
MASK = {"mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=np.int32)}
SCORES = {"scores": floats(2, 4, 5, 5)}


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
@pytest.mark.parametrize(
    ("inputs", "said", "width"),
    [
        ({}, {}, 96),
        (MASK, {}, 96),
        (SCORES, {}, 96),
        (MASK | SCORES, {"scale": 0.3}, 96),
        (MASK, {"mask_filter_value": -3.0}, 96),
        ({}, {"unidirectional": 1}, 96),
        (MASK, {"qkv_hidden_sizes": [32, 32, 64]}, 128),
    ],
)
def test_the_matrix_of_fused_attention_is_separated(inputs, said, width, opset):
    """Its matrix becomes a separate product, and the values stay: mask, score bias, scale and sizes included."""
    reads = ["x", "w", "b", *("mask" if "mask" in inputs else "", "", "scores" if "scores" in inputs else "")]
    while not reads[-1]:
        reads.pop()
    node = helper.make_node("Attention", reads, ["y"], **MICROSOFT, num_heads=4, **said)
    weights = {"w": floats(32, width), "b": floats(width)}
    assert decomposed([node], X | inputs, ["y"], weights, opset) == ["MatMul", "Add", "Split", "MultiHeadAttention"]
    plain = unfuse(model_of([node], X | inputs, ["y"], weights, opset))
    assert [(layer.weight.shape, layer.bias.shape) for layer in find_linears(plain, "y")] == [((32, width), (width,))]


def test_attention_without_a_bias():
    """Only its matrix is separated."""
    node = helper.make_node("Attention", ["x", "w", "", "mask"], ["y"], **MICROSOFT, num_heads=4)
    plain = unfuse(model_of([node], X | MASK, ["y"], {"w": floats(32, 96)}))
    assert [node.op_type for node in plain.graph.node] == ["MatMul", "Split", "MultiHeadAttention"]
    assert plain.graph.node[1].input[0] == plain.graph.node[0].output[0]


def test_two_attentions_are_decomposed():
    """Each with its own sizes."""
    nodes = [helper.make_node("Attention", [f"{x}", "w", "b"], [y], **MICROSOFT, num_heads=4) for x, y in ("xm", "my")]
    found = decomposed(nodes, X, ["y"], {"w": floats(32, 96), "b": floats(96)})
    assert found == ["MatMul", "Add", "Split", "MultiHeadAttention"] * 2


@pytest.mark.parametrize(
    ("reads", "gives", "said"),
    [
        (["x", "w", "b", "", "past"], ["y"], {}),
        (["x", "w", "b", "", "", "", "past"], ["y"], {}),
        (["x", "w", "b"], ["y", "present"], {}),
        (["x", "w", "b"], ["y"], {"do_rotary": 1}),
        (["x", "x", "b"], ["y"], {}),
    ],
    ids=["a cache", "its length", "a cache to come", "an attribute", "a computed matrix"],
)
def test_attention_of_another_form_stays(reads, gives, said):
    """Attention with a cache or with an unknown attribute is not changed."""
    node = helper.make_node("Attention", reads, gives, **MICROSOFT, num_heads=4, **said)
    model = model_of([node], X | {"past": floats(1)}, ["y"], {"w": floats(32, 96), "b": floats(96)})
    assert list(unfuse(model).graph.node) == [node]


def test_weights_need_not_be_loaded():
    """Only the shape of the matrix is needed."""
    node = helper.make_node("Attention", ["x", "w", "b"], ["y", ""], **MICROSOFT, num_heads=4)
    model = model_of([node], X, ["y"], {"b": floats(96)})
    model.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[32, 96], data_location=TensorProto.EXTERNAL))
    plain = unfuse(model)
    assert onnx.numpy_helper.to_array(plain.graph.initializer[-1]).tolist() == [32, 32, 32]
