"""Frozen axes are freed where the nodes take any size, and left alone where they do not."""

import numpy as np
import onnx
import pytest
from models import bert_graph, bert_weights
from onnx import numpy_helper

from penult import Engine
from penult.graph.axes import free_axes

IDS = np.array([[2, 5, 6, 3], [2, 7, 3, 0]])
INPUTS = [IDS, (IDS > 0).astype(np.int64), np.zeros_like(IDS)]


def frozen(sizes, **built_in):
    """BERT whose inputs and output state sizes; `built_in` replaces constants of its reshapes."""
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
def test_stated_sizes_are_forgotten(sizes):
    """Where only the inputs, outputs and annotations state sizes, any number of rows and tokens runs again."""
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
    """A size that a node insists on keeps the graph as it is: it would fail at another."""
    model = frozen((1, 16), **built_in)
    assert free_axes(model, "last_hidden_state") is model


def test_free_axes_cost_nothing():
    """A model without frozen axes is given back itself."""
    model = bert_graph(bert_weights(), 4)
    assert free_axes(model, "last_hidden_state") is model


def test_an_unknown_tensor_keeps_the_model():
    """What shape inference cannot see is not freed on a guess."""
    model = frozen((1, 16))
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Mystery", "nobody"
    assert free_axes(model, "last_hidden_state") is model
