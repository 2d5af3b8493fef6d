"""Frozen axes are freed if the nodes accept any size, and kept otherwise."""

import numpy as np
import onnx
import pytest
from graph_kit import Draft, free_axes, session
from models import bert_graph, bert_weights
from onnx import TensorProto, helper, numpy_helper

from penult import Engine

IDS = np.array([[2, 5, 6, 3], [2, 7, 3, 0]])
INPUTS = [IDS, (IDS > 0).astype(np.int64), np.zeros_like(IDS)]


def frozen(sizes, **built_in):
    """BERT with fixed sizes of inputs and output; `built_in` replaces constants of its reshapes."""
    model = bert_graph(bert_weights(), 4)
    for node in (*model.graph.input, *model.graph.output):
        for dim, size in zip(node.type.tensor_type.shape.dim, sizes, strict=False):
            if size:
                dim.dim_value = size
    for tensor in model.graph.initializer:
        if tensor.name in built_in:
            tensor.CopyFrom(numpy_helper.from_array(np.array(built_in[tensor.name]), tensor.name))
    return model


def run(model):
    with Engine(model.SerializeToString(), num_cores=1) as engine:
        return engine(INPUTS)[0]


@pytest.mark.parametrize("sizes", [(1, 16), (1, 0), (0, 16)])
def test_declared_sizes_are_freed(sizes):
    """If only inputs, outputs and annotations declare sizes, the graph runs with any number of rows and tokens again."""
    model = onnx.shape_inference.infer_shapes(frozen(sizes))
    assert len(model.graph.value_info) > 0
    before = model.SerializeToString()
    freed = free_axes(model, "last_hidden_state")
    assert np.array_equal(run(freed), run(bert_graph(bert_weights(), 4)))
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    "built_in", [{"split": [1, 16, 4, 8]}, {"merge": [1, 16, 32]}, {"split": [0, 16, 4, 8]}, {"merge": [1, -1, 32]}]
)
def test_sizes_in_the_nodes_stay(built_in):
    """If a node requires a size, the graph is unchanged: it would fail with another."""
    model = frozen((1, 16), **built_in)
    assert free_axes(model, "last_hidden_state") is model


def test_a_model_with_free_axes_is_returned():
    """A model without frozen axes is returned itself."""
    model = bert_graph(bert_weights(), 4)
    assert free_axes(model, "last_hidden_state") is model


def test_an_unknown_tensor_keeps_the_model():
    """If shape inference does not know a tensor, its axes are not freed."""
    model = frozen((1, 16))
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Mystery", "nobody"
    assert free_axes(model, "last_hidden_state") is model


def small(*sizes):
    """Start a graph with ids of a frozen shape."""
    d = Draft()
    d.inputs[0] = helper.make_tensor_value_info("input_ids", TensorProto.INT64, sizes)
    return d, d.embed()


def is_freed(d, tensor, *axes):
    """Return whether the axes of a graph, cut at a tensor, are freed; if so, it runs with other ids."""
    model = onnx.shape_inference.infer_shapes(d.model(tensor))
    freed = free_axes(model, tensor, *axes)
    if freed is model:
        return False
    session(freed).run([tensor], {"input_ids": IDS})
    return True


def test_an_input_of_other_axes_keeps_them():
    """Only ids and masks are freed: inputs with one or three axes are unchanged."""
    model = frozen((1, 16))
    for name, shape in (("vector", [3]), ("cube", [1, 16, 2])):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    freed = free_axes(model, "last_hidden_state")
    found = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in freed.graph.input]
    assert found == [["batch", "sequence"]] * 3 + [[3], [1, 16, 2]]


def test_a_contradiction_before_the_tensor_keeps_the_model():
    """A position table with as many rows as the export had tokens, even if the tensor's shape is computed from the ids."""
    d, x = small(1, 16)
    shape = d.op("Concat", d.op("Shape", "input_ids"), d.constant(np.array([8])), axis=0)
    assert is_freed(d, d.op("Reshape", x, shape))
    assert not is_freed(d, d.op("Reshape", d.op("Add", x, d.weight(1, 16, 8)), shape))


def test_tensors_of_every_order_of_axes():
    """Rows and tokens are found if they are transposed, flattened to one axis, or pooled to rows."""
    d, x = small(1, 4)
    assert is_freed(d, d.op("Transpose", x, perm=[1, 0, 2]), "TBH")
    assert is_freed(d, d.op("Transpose", x, perm=[0, 2, 1]), "BHT")
    assert is_freed(d, d.op("Reshape", x, d.constant(np.array([-1, 8]))), "NH")
    assert is_freed(d, d.op("ReduceMax", x, axes=[1], keepdims=0))
    for shape in ([1, -1], [4, 8, -1], [-1, 8, 4]):
        assert not is_freed(d, d.op("Reshape", x, d.constant(np.array(shape))))
