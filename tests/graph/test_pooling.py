"""The appended reducer equals NumPy, whatever the opset, the rows chosen, and what stands in the rows that are not."""

import numpy as np
import onnx
import pytest
import reference
from onnx import TensorProto, helper

from penult import Engine
from penult.graph.pooling import OUTPUT, Dense, Reducer, append_reducer

IDS = np.array([[7, 5, 6, 2, 0], [7, 9, 2, 0, 0], [7, 2, 0, 0, 0]])
MASK = (IDS > 0).astype(np.int64)
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(3, 5, 6)).astype(np.float32) - 2  # so that a maximum is seldom positive


def graph(opset=17, shape=("batch", "sequence", 6), kind=TensorProto.FLOAT, inputs=("attention_mask",), mask=TensorProto.INT64):
    """Build a graph that hands `states` through as `hidden`."""
    given = [helper.make_tensor_value_info("states", kind, shape)]
    given += [helper.make_tensor_value_info(name, mask, ["batch", "sequence"]) for name in inputs]
    node = helper.make_node("Identity", ["states"], ["hidden"])
    out = helper.make_tensor_value_info("hidden", kind, shape)
    return helper.make_model(
        helper.make_graph([node], "g", given, [out]), opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )


def reduced(reducer, states=STATES, model=None, **feeds):
    """Append a reducer, check the graph, and give what it makes of some states."""
    made = append_reducer(model or graph(), "hidden", reducer)
    onnx.checker.check_model(made, full_check=True)
    given = {"states": states, "attention_mask": MASK, "input_ids": IDS} | feeds
    with Engine(made.SerializeToString(), threads=1) as engine:
        assert engine.output_names == ["hidden", OUTPUT]
        return engine.mapped_run({name: given[name] for name in engine.input_names})[OUTPUT]


def expected(pooling, chosen=MASK, states=STATES):
    """The oracle's vectors: (B, H) of the rows that are chosen, zeros where none is."""
    rows = [states[b][chosen[b] > 0].astype(np.float64) for b in range(len(states))]
    return np.stack([reference.pool(r, pooling) if len(r) else np.zeros(states.shape[2]) for r in rows])


POOLINGS = ["mean", "max", "cls", "last"]


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 20])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_opset(pooling, opset):
    """Squeeze and the reductions changed their form over the years; the vectors do not, and the model stays as it was."""
    model = graph(opset)
    before = model.SerializeToString()
    found = reduced(Reducer(pooling, ("normalize",)), model=model)
    wanted = np.stack([reference.normalize(row) for row in expected(pooling)])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e30, -1e30])
def test_padding_does_not_matter(pooling, fill):
    """Whatever stands in padded rows: NaN, infinity or a value that would win a maximum."""
    states = np.where(MASK[..., None] > 0, STATES, np.float32(fill))
    np.testing.assert_allclose(reduced(Reducer(pooling), states), expected(pooling), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_on_the_left_and_in_the_middle(pooling):
    """The first and the last row are those of the mask, wherever they stand; a row without any gives zeros."""
    mask = np.array([[0, 0, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]])
    found = reduced(Reducer(pooling), attention_mask=mask)
    np.testing.assert_allclose(found, expected(pooling, mask), rtol=1e-5, atol=1e-6)
    assert not found[2].any()


@pytest.mark.parametrize("mask", [TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.BOOL])
def test_masks_of_any_type(mask):
    """What is not zero is chosen, once: 7 counts as 1."""
    kind = helper.tensor_dtype_to_np_dtype(mask)
    found = reduced(Reducer("mean"), model=graph(mask=mask), attention_mask=(MASK * 7).astype(kind))
    np.testing.assert_allclose(found, expected("mean"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_rows_by_their_ids(pooling):
    """All but some ids, or only one, with or without `input_ids` in the graph already."""
    for inputs in ((), ("input_ids",)):
        found = reduced(Reducer(pooling, exclude_ids=(0, 7, 2)), model=graph(inputs=inputs))
        np.testing.assert_allclose(found, expected(pooling, (IDS == 5) | (IDS == 6) | (IDS == 9)), rtol=1e-5, atol=1e-6)
        found = reduced(Reducer(pooling, only_id=2), model=graph(inputs=inputs))
        np.testing.assert_allclose(found, expected(pooling, IDS == 2), rtol=1e-5, atol=1e-6)
    found = reduced(Reducer(pooling, only_id=0), model=graph(inputs=()))
    np.testing.assert_allclose(found, expected(pooling, IDS == 0), rtol=1e-5, atol=1e-6)


def test_rows_by_another_input():
    """The input is added where the graph has none of its name, and not twice where it has."""
    other = np.array([[0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]])
    for inputs in ((), ("rows",)):
        made = append_reducer(graph(inputs=inputs), "hidden", Reducer("mean", rows_input="rows"))
        assert [i.name for i in made.graph.input] == ["states", "rows"]
        assert made.graph.input[1].type.tensor_type.elem_type == TensorProto.INT64
        dims = made.graph.input[1].type.tensor_type.shape.dim
        assert [dim.dim_param for dim in dims] == ["batch", "sequence"]
        found = reduced(Reducer("mean", rows_input="rows"), model=graph(inputs=inputs), rows=other)
        np.testing.assert_allclose(found, expected("mean", other), rtol=1e-5, atol=1e-6)


def test_half_precision_is_widened_first():
    """The sum of 5 x 30000 is beyond half precision, the vector is not."""
    states = np.full((3, 5, 6), 30000, np.float16)
    found = reduced(Reducer("mean"), states, graph(kind=TensorProto.FLOAT16))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.full((3, 6), 30000, np.float32))


W, B = RNG.normal(size=(6, 4)).astype(np.float32), RNG.normal(size=4).astype(np.float32)
ACTIVATIONS = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "GELU": reference.gelu,
}


@pytest.mark.parametrize("bias", [None, B])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_layers(activation, bias):
    """They give activation(x W + b), on pooled rows and on vectors that are pooled already."""
    wanted = ACTIVATIONS[activation](expected("mean") @ W.astype(np.float64) + (0 if bias is None else bias))
    steps = (Dense(W, bias, activation),)
    np.testing.assert_allclose(reduced(Reducer("mean", steps)), wanted, rtol=1e-5, atol=1e-5)
    flat = graph(shape=("batch", 6), inputs=())
    vectors = expected("mean").astype(np.float32)
    np.testing.assert_allclose(reduced(Reducer(None, steps), vectors, flat), wanted, rtol=1e-5, atol=1e-5)


def test_an_activation_that_is_none():
    """It is named, with those that there are."""
    with pytest.raises(ValueError, match=r"'Swish' is none of Identity, Tanh, ReLU, Sigmoid, GELU, SiLU\."):
        append_reducer(graph(), "hidden", Reducer("mean", (Dense(W, B, "Swish"),)))


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("steps", [(), ("normalize",), ("normalize", Dense(W, B, "Tanh"))])
def test_leading_values(steps, opset):
    """The first values are kept, and normalised again only where normalising was the last step."""
    whole = reduced(Reducer("mean", steps))
    found = reduced(Reducer("mean", steps, dimensions=3), model=graph(opset))
    wanted = np.stack([reference.normalize(row[:3]) for row in whole]) if steps[-1:] == ("normalize",) else whole[:, :3]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_what_is_too_short_to_normalise():
    """Zeros stay zeros, and a vector shorter than 1e-12 is divided by that, as torch does it."""
    zeros = np.zeros((3, 5, 6), np.float32)
    assert not reduced(Reducer("mean", ("normalize",)), zeros).any()
    found = reduced(Reducer("cls", ("normalize",)), zeros + np.float32(1e-13))
    np.testing.assert_allclose(found, np.full((3, 6), 0.1), rtol=1e-4)


def test_the_output_is_declared():
    """As float32 (B, D), D a number where it is known; names that an exporter wrote cannot clash."""
    for reducer, wanted in ((Reducer("mean"), "D"), (Reducer("mean", dimensions=3), 3)):
        made = append_reducer(graph(), "hidden", reducer)
        output = made.graph.output[-1]
        dims = [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
        assert (output.name, output.type.tensor_type.elem_type, dims) == (OUTPUT, TensorProto.FLOAT, ["batch", wanted])
        names = [node.name for node in made.graph.node if node.name]
        assert len(names) == len(set(names))
        assert all(name.startswith("penult/") for name in names)
