"""The appended reducer equals NumPy, for every opset and choice of rows, and whatever values the other rows have."""

import dataclasses

import numpy as np
import onnx
import pytest
import reference
from graph_kit import append_reducer
from onnx import TensorProto, helper

from penult import Engine
from penult.graph.activations import ACTIVATIONS
from penult.graph.output_names import VECTORS
from penult.graph.rewrite.pooling import Dense, LayerNorm, Reducer
from penult.graph.rewrite.steps import BUILT

IDS = np.array([[7, 5, 6, 2, 0], [7, 9, 2, 0, 0], [7, 2, 0, 0, 0]])
MASK = (IDS > 0).astype(np.int64)
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(3, 5, 6)).astype(np.float32) - 2  # so that a maximum is seldom positive


def graph(opset=17, shape=("batch", "sequence", 6), kind=TensorProto.FLOAT, inputs=("attention_mask",), mask=TensorProto.INT64):
    """Build a graph that passes `states` through as `hidden`."""
    given = [helper.make_tensor_value_info("states", kind, shape)]
    given += [helper.make_tensor_value_info(name, mask, ["batch", "sequence"]) for name in inputs]
    node = helper.make_node("Identity", ["states"], ["hidden"])
    out = helper.make_tensor_value_info("hidden", kind, shape)
    return helper.make_model(
        helper.make_graph([node], "g", given, [out]), opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )


def reduced(reducer, states=STATES, model=None, *, output=VECTORS, **feeds):
    """Append a reducer, check the graph, and return its result for some states."""
    made = append_reducer(model or graph(), "hidden", reducer)
    onnx.checker.check_model(made, full_check=True)
    given = {"states": states, "attention_mask": MASK, "input_ids": IDS} | feeds
    with Engine(made.SerializeToString(), threads=1) as engine:
        assert engine.output_names == ["hidden", VECTORS]
        return engine.mapped_run({name: given[name] for name in engine.input_names})[output]


def expected(pooling, chosen=MASK, states=STATES, mask=None):
    """The oracle's vectors: (B, H) of the rows that are chosen, zeros where none is.

    Positions, for weightedmean, begin at the first token of `mask`, which is what is chosen where it is not given.
    """
    vectors = []
    for row, real, tokens in zip(chosen, chosen if mask is None else mask, states, strict=True):
        positions = np.arange(len(row)) - np.argmax(real > 0) + 1
        some = row > 0
        vectors.append(
            reference.pool(tokens[some].astype(np.float64), pooling, positions[some])
            if some.any()
            else np.zeros(len(tokens[0]))
        )
    return np.stack(vectors)


POOLINGS = ["mean", "max", "cls", "last", "weightedmean", "mean_sqrt_len_tokens"]


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 20])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_opset(pooling, opset):
    """Squeeze and the reductions differ between opsets; the vectors are the same, and the model is unchanged."""
    model = graph(opset)
    before = model.SerializeToString()
    found = reduced(Reducer(pooling, ("normalize",)), model=model)
    wanted = np.stack([reference.normalize(row) for row in expected(pooling)])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e30, -1e30])
def test_padding_does_not_matter(pooling, fill):
    """Padded rows may contain NaN, infinity or a value above every maximum."""
    states = np.where(MASK[..., None] > 0, STATES, np.float32(fill))
    np.testing.assert_allclose(reduced(Reducer(pooling), states), expected(pooling), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_on_the_left_and_in_the_middle(pooling):
    """The first and the last row are those of the mask, at any position; a text without rows gives zeros."""
    mask = np.array([[0, 0, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]])
    found = reduced(Reducer(pooling), attention_mask=mask)
    np.testing.assert_allclose(found, expected(pooling, mask), rtol=1e-5, atol=1e-6)
    assert not found[2].any()


@pytest.mark.parametrize("mask", [TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.BOOL])
def test_masks_of_any_type(mask):
    """Every nonzero value selects a row once: 7 counts as 1."""
    kind = helper.tensor_dtype_to_np_dtype(mask)
    found = reduced(Reducer("mean"), model=graph(mask=mask), attention_mask=(MASK * 7).astype(kind))
    np.testing.assert_allclose(found, expected("mean"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_rows_by_their_ids(pooling):
    """All but some ids, or only one, with or without `input_ids` in the graph already."""
    for inputs in ((), ("input_ids",)):
        found = reduced(Reducer(pooling, exclude_ids=(0, 7, 2)), model=graph(inputs=inputs))
        wanted = expected(pooling, (IDS == 5) | (IDS == 6) | (IDS == 9), mask=MASK)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        found = reduced(Reducer(pooling, only_id=2), model=graph(inputs=inputs))
        np.testing.assert_allclose(found, expected(pooling, IDS == 2, mask=MASK), rtol=1e-5, atol=1e-6)
    found = reduced(Reducer(pooling, only_id=0), model=graph(inputs=()))
    np.testing.assert_allclose(found, expected(pooling, IDS == 0, mask=MASK), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_prompt_can_be_excluded(pooling, side):
    """Its tokens are not pooled, and still count for the positions of weightedmean."""
    mask = MASK if side == "right" else MASK[:, ::-1]
    rows = mask.copy()
    for b in range(len(rows)):
        rows[b, np.argmax(mask[b])] = 0  # a prompt of one token
    for inputs in ((), ("attention_mask",)):
        reducer = Reducer(pooling, rows_input="pooling_mask")
        found = reduced(reducer, model=graph(inputs=inputs), attention_mask=mask, pooling_mask=rows)
        np.testing.assert_allclose(found, expected(pooling, rows, mask=mask), rtol=1e-5, atol=1e-6)


def test_weighted_mean_as_sentence_transformers_gives_it():
    """Values of its Pooling module, version 6.2: with left padding, and with a prompt of one token excluded."""
    states = np.arange(2 * 4 * 2, dtype=np.float32).reshape(2, 4, 2) ** 2 / 10
    mask, rows = np.array([[0, 1, 1, 1], [1, 1, 1, 0]]), np.array([[0, 0, 1, 1], [0, 1, 1, 0]])
    model = graph(shape=("batch", "sequence", 2))
    found = reduced(Reducer("weightedmean"), states, model, attention_mask=mask)
    np.testing.assert_allclose(found, [[2.4, 3.4333334], [11.6, 13.8333333]], rtol=1e-6)
    found = reduced(Reducer("weightedmean", rows_input="pooling_mask"), states, model, attention_mask=mask, pooling_mask=rows)
    np.testing.assert_allclose(found, [[2.8, 3.94], [12.64, 14.98]], rtol=1e-6)


@pytest.mark.parametrize("opset", [11, 17, 20])
def test_several_poolings_are_concatenated(opset):
    """In the given order, each as it is alone."""
    names = ("weightedmean", "max", "cls", "mean", "last", "mean_sqrt_len_tokens")
    found = reduced(Reducer(names), model=graph(opset))
    for place, name in enumerate(names):
        np.testing.assert_array_equal(found[:, place * 6 : place * 6 + 6], reduced(Reducer(name), model=graph(opset)))
    np.testing.assert_array_equal(reduced(Reducer(("mean",))), reduced(Reducer("mean")))


@pytest.mark.parametrize("pooling", ["median", (), ("mean", "median")])
def test_an_unknown_pooling_is_an_error(pooling):
    """The message lists the known ones."""
    with pytest.raises(ValueError, match=r"must be one of mean, max, cls, last, weightedmean, mean_sqrt_len_tokens\."):
        append_reducer(graph(), "hidden", Reducer(pooling))


def test_rows_by_another_input():
    """The input is added if the graph lacks it, and not added twice."""
    other = np.array([[0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]])
    for inputs in ((), ("rows",)):
        made = append_reducer(graph(inputs=inputs), "hidden", Reducer("mean", rows_input="rows"))
        assert [i.name for i in made.graph.input] == ["states", "rows"]
        assert made.graph.input[1].type.tensor_type.elem_type == TensorProto.INT64
        dims = made.graph.input[1].type.tensor_type.shape.dim
        assert [dim.dim_param for dim in dims] == ["batch", "sequence"]
        found = reduced(Reducer("mean", rows_input="rows"), model=graph(inputs=inputs), rows=other)
        np.testing.assert_allclose(found, expected("mean", other), rtol=1e-5, atol=1e-6)


def test_half_precision_is_converted_first():
    """The sum of 5 x 30000 exceeds half precision, the vector does not."""
    states = np.full((3, 5, 6), 30000, np.float16)
    found = reduced(Reducer("mean"), states, graph(kind=TensorProto.FLOAT16))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.full((3, 6), 30000, np.float32))


W, B = RNG.normal(size=(6, 4)).astype(np.float32), RNG.normal(size=4).astype(np.float32)
R = RNG.normal(size=(6, 4)).astype(np.float32)
SCALE, SHIFT = RNG.normal(size=6).astype(np.float32), RNG.normal(size=6).astype(np.float32)


@pytest.mark.parametrize("bias", [None, B])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_layers(activation, bias):
    """They compute activation(x W + b), on pooled rows and on vectors that are already pooled."""
    wanted = reference.ACTIVATIONS[activation](expected("mean") @ W.astype(np.float64) + (0 if bias is None else bias))
    layers = (Dense(W, bias, activation),)
    np.testing.assert_allclose(reduced(Reducer("mean", layers)), wanted, rtol=1e-5, atol=1e-5)
    flat = graph(shape=("batch", 6), inputs=())
    vectors = expected("mean").astype(np.float32)
    np.testing.assert_allclose(reduced(Reducer(None, layers), vectors, flat), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [11, 17, 20])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_everywhere(activation, opset):
    """Both sides of every kink, and values at which exponentials overflow or vanish."""
    points = np.array([[-200, -25, -6, -3, -1, -0.5, -0.49, -0.01, 0, 0.01, 0.5, 0.51, 1, 3, 6, 20.5, 200]], np.float32)
    width = points.shape[1]
    model = graph(opset, shape=("batch", width), inputs=())
    found = reduced(Reducer(None, (Dense(np.eye(width, dtype=np.float32), None, activation),)), points, model)
    np.testing.assert_allclose(found, reference.ACTIVATIONS[activation](points.astype(np.float64)), rtol=1e-6, atol=1e-6)


# torch 2.13, torch.nn's classes without arguments, in evaluation mode and double precision.
TORCH = {
    "Identity": [-4.0, -0.75, 0.4, 2.5],
    "Tanh": [-0.9993292997, -0.6351489524, 0.3799489623, 0.9866142982],
    "ReLU": [0.0, 0.0, 0.4, 2.5],
    "GELU": [-0.000126685, -0.1699705143, 0.2621686966, 2.4844758367],
    "Sigmoid": [0.01798621, 0.3208213008, 0.5986876601, 0.92414182],
    "SiLU": [-0.0719448398, -0.2406159756, 0.239475064, 2.3103545499],
    "LeakyReLU": [-0.04, -0.0075, 0.4, 2.5],
    "RReLU": [-0.9166666667, -0.171875, 0.4, 2.5],
    "ELU": [-0.9816843611, -0.5276334473, 0.4, 2.5],
    "SELU": [-1.7258986282, -0.9276320158, 0.4202803949, 2.6267524684],
    "CELU": [-0.9816843611, -0.5276334473, 0.4, 2.5],
    "Softplus": [0.0181499279, 0.3868710061, 0.9130152524, 2.5788897343],
    "Softsign": [-0.8, -0.4285714286, 0.2857142857, 0.7142857143],
    "Mish": [-0.0725917408, -0.2764947145, 0.2890305341, 2.4713923046],
    "Hardtanh": [-1.0, -0.75, 0.4, 1.0],
    "ReLU6": [0.0, 0.0, 0.4, 2.5],
    "Hardswish": [-0.0, -0.28125, 0.2266666667, 2.2916666667],
    "Hardsigmoid": [0.0, 0.375, 0.5666666667, 0.9166666667],
    "LogSigmoid": [-4.0181499279, -1.1368710061, -0.5130152524, -0.0788897343],
    "Tanhshrink": [-3.0006707003, -0.1148510476, 0.0200510377, 1.5133857018],
    "Softshrink": [-3.5, -0.25, 0.0, 2.0],
    "Hardshrink": [-4.0, -0.75, 0.0, 2.5],
}


def test_activations_of_torch():
    """The values of torch 2.13 at -4, -0.75, 0.4 and 2.5: the oracle agrees with it."""
    assert list(TORCH) == list(reference.ACTIVATIONS)
    for name, values in TORCH.items():
        np.testing.assert_allclose(reference.ACTIVATIONS[name](np.array([-4, -0.75, 0.4, 2.5])), values, atol=1e-9)


def test_the_names_of_activations():
    """The list that needs no onnx contains exactly the implemented activations."""
    assert sorted(ACTIVATIONS) == sorted(BUILT)


def test_an_unknown_activation_is_an_error():
    """The message lists the known ones."""
    with pytest.raises(ValueError, match=r"'Swish'; it must be one of Identity, Tanh, ReLU, .*, Hardshrink\."):
        append_reducer(graph(), "hidden", Reducer("mean", (Dense(W, B, "Swish"),)))


def test_residual_connections():
    """The input is added if the widths are equal, otherwise a projection of x; after the activation."""
    vectors = expected("mean")
    square, shift = RNG.normal(size=(6, 6)).astype(np.float32), SHIFT
    found = reduced(Reducer("mean", (Dense(square, shift, "Tanh", "same"),)))
    np.testing.assert_allclose(found, vectors + np.tanh(vectors @ square + shift), rtol=1e-5, atol=1e-5)
    found = reduced(Reducer("mean", (Dense(W, B, "ReLU", R),)))
    np.testing.assert_allclose(found, vectors @ R + np.maximum(vectors @ W + B, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [11, 17, 18, 20])
def test_layer_norm(opset):
    """Equal to torch's, also if the mean is far from zero and if all values are equal."""
    norm = LayerNorm(SCALE, SHIFT)
    for states in (STATES, STATES + np.float32(100), np.ones_like(STATES)):
        found = reduced(Reducer("mean", (norm,)), states, graph(opset))
        wanted = reference.layer_norm(expected("mean", states=states), SCALE, SHIFT)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)
    found = reduced(Reducer("cls", (LayerNorm(SCALE, SHIFT, epsilon=0.5),)), model=graph(opset))
    np.testing.assert_allclose(found, reference.layer_norm(STATES[:, 0], SCALE, SHIFT, eps=0.5), rtol=1e-5, atol=1e-5)


def test_an_unknown_step_is_an_error():
    """The message lists the known ones."""
    with pytest.raises(ValueError, match=r"The step is 'center'; it must be a Dense, a LayerNorm or 'normalize'\."):
        append_reducer(graph(), "hidden", Reducer("mean", ("center",)))


TOKEN_STEPS = {
    "normalize": (("normalize",), lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)),
    "layer norm": ((LayerNorm(SCALE, SHIFT),), lambda x: reference.layer_norm(x, SCALE, SHIFT)),
    "dense": ((Dense(W, B, "GELU", R),), lambda x: x @ R + reference.gelu(x @ W + B)),
    "two": ((Dense(W, None, "Tanh"), "normalize"), lambda x: (y := np.tanh(x @ W)) / np.linalg.norm(y, axis=-1, keepdims=True)),
}  # fmt: skip


@pytest.mark.parametrize("opset", [11, 17, 18])
@pytest.mark.parametrize("name", TOKEN_STEPS)
def test_steps_on_tokens(name, opset):
    """They change every token before the pooling, and the token output has the changed values; padding may be NaN."""
    token_steps, oracle = TOKEN_STEPS[name]
    states = np.where(MASK[..., None] > 0, STATES, np.float32(np.nan))
    wanted = oracle(STATES.astype(np.float64))
    for pooling in ("mean", "max", "last"):
        reducer = Reducer(pooling, ("normalize",), token_steps=token_steps)
        vectors = np.stack([reference.normalize(v) for v in expected(pooling, states=wanted)])
        np.testing.assert_allclose(reduced(reducer, states, graph(opset)), vectors, rtol=1e-5, atol=1e-5)
        tokens = reduced(reducer, states, graph(opset), output="hidden")
        np.testing.assert_allclose(tokens[MASK > 0], wanted[MASK > 0], rtol=1e-5, atol=1e-5)


def test_the_output_of_tokens_after_steps():
    """It keeps its name and position, is float32, and declares the new width; embedded weights keep theirs."""
    model = graph(kind=TensorProto.FLOAT16)
    made = append_reducer(model, "hidden", Reducer("mean", token_steps=(Dense(W, B, "Tanh"),)))
    assert [output.name for output in made.graph.output] == ["hidden", VECTORS]
    kind = made.graph.output[0].type.tensor_type
    assert kind.elem_type == TensorProto.FLOAT
    assert [dim.dim_param or dim.dim_value for dim in kind.shape.dim] == ["batch", "sequence", 4]
    assert [o.name for o in model.graph.output] == ["hidden"]
    found = reduced(Reducer("mean", token_steps=(Dense(W, B, "Tanh"),)), STATES.astype(np.float16), model, output="hidden")
    assert found.dtype == np.float32


def test_the_output_of_tokens_that_others_read():
    """Nodes and subgraphs that read the tokens still read the unchanged ones."""
    model = graph()
    branch = helper.make_graph(
        [helper.make_node("Neg", ["hidden"], ["negated"])], "b", [], [helper.make_tensor_value_info("negated", 1, None)]
    )
    true = helper.make_node("Constant", [], ["true"], value=helper.make_tensor("true", TensorProto.BOOL, [], [True]))
    model.graph.node.extend([
        true,
        helper.make_node("If", ["true"], ["twin"], then_branch=branch, else_branch=branch),
        helper.make_node("Abs", ["hidden"], ["size"]),
    ])  # fmt: skip
    model.graph.value_info.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "sequence", 6]))
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("twin", "size"))
    made = append_reducer(model, "hidden", Reducer("mean", token_steps=(Dense(W, B, "Tanh"),)))
    with Engine(made.SerializeToString(), threads=1) as engine:
        found = engine.mapped_run({"states": STATES, "attention_mask": MASK})
    np.testing.assert_array_equal(found["twin"], -STATES)
    np.testing.assert_array_equal(found["size"], np.abs(STATES))
    np.testing.assert_allclose(found["hidden"], np.tanh(STATES @ W + B), rtol=1e-5, atol=1e-5)


def test_steps_on_tokens_need_tokens():
    """A graph that returns vectors has no tokens to change."""
    with pytest.raises(ValueError, match="Token steps need token embeddings"):
        append_reducer(graph(shape=("batch", 6)), "hidden", Reducer(None, token_steps=("normalize",)))


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("after", [(), ("normalize",), ("normalize", Dense(W, B, "Tanh"))])
def test_leading_values(after, opset):
    """The first values are kept, and normalized again if normalization was the last step or is requested."""
    whole = reduced(Reducer("mean", after))
    for renormalize in (None, False, True):
        found = reduced(Reducer("mean", after, dimensions=3, renormalize=renormalize), model=graph(opset))
        unit = after[-1:] == ("normalize",) if renormalize is None else renormalize
        wanted = np.stack([reference.normalize(row[:3]) for row in whole]) if unit else whole[:, :3]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_normalizing_again_is_for_leading_values_alone():
    """Without `dimensions`, no normalization is added."""
    np.testing.assert_array_equal(reduced(Reducer("mean", renormalize=True)), reduced(Reducer("mean")))


@pytest.mark.parametrize(("reducer", "width"), [
    (Reducer("mean"), 6), (Reducer(("mean", "max")), 12), (Reducer("mean", (Dense(W, B, "Tanh"), "normalize")), 4),
    (Reducer("mean", token_steps=(Dense(W, B, "Tanh"),)), 4),
])  # fmt: skip
def test_more_dimensions_than_there_are(reducer, width):
    """All values are kept, and the output does not declare more."""
    asked = dataclasses.replace(reducer, dimensions=100)
    made = append_reducer(graph(), "hidden", asked)
    assert made.graph.output[-1].type.tensor_type.shape.dim[1].dim_value == width
    np.testing.assert_array_equal(reduced(asked)[:, :width], reduced(reducer))


def test_short_vectors_are_normalized_as_in_torch():
    """Zeros stay zeros, and a vector shorter than 1e-12 is divided by 1e-12."""
    zeros = np.zeros((3, 5, 6), np.float32)
    assert not reduced(Reducer("mean", ("normalize",)), zeros).any()
    found = reduced(Reducer("cls", ("normalize",)), zeros + np.float32(1e-13))
    np.testing.assert_allclose(found, np.full((3, 6), 0.1), rtol=1e-4)


def test_the_output_is_declared():
    """As float32 (B, D), with D if it is known; names from an exporter cannot clash."""
    for reducer, wanted in ((Reducer("mean"), "D"), (Reducer("mean", dimensions=3), 3)):
        made = append_reducer(graph(), "hidden", reducer)
        output = made.graph.output[-1]
        dims = [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
        assert (output.name, output.type.tensor_type.elem_type, dims) == (VECTORS, TensorProto.FLOAT, ["batch", wanted])
        names = [node.name for node in made.graph.node if node.name]
        assert len(names) == len(set(names))
        assert all(name.startswith("penult/") for name in names)
