"""Half precision is converted to float32 everywhere in a graph, and the values stay the same."""

import numpy as np
import onnx
import pytest
from graph_kit import session, widen
from onnx import TensorProto, helper, numpy_helper

from penult.graph.int8.fp16 import has_half

HALF, FULL, INT = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64
WEIGHT = np.array([0.1, -65504, np.inf], np.float16)
X = np.array([1.5, 2.0, -3.0], np.float32)


def graph(nodes, initializers=(), inputs=(), functions=()):
    """Build a graph from `x` (3,), float32, to `y`, of any type."""
    given = [helper.make_tensor_value_info("x", FULL, [3]), *inputs]
    made = helper.make_graph(nodes, "g", given, [helper.make_tensor_value_info("y", HALF, [3])], list(initializers))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_model(made, opset_imports=opsets, functions=list(functions), ir_version=8)


def add_half():
    """Add x and a half-precision weight in half precision, as `y`."""
    return [helper.make_node("Cast", ["x"], ["h"], to=HALF), helper.make_node("Add", ["h", "w"], ["y"])]


def weight():
    return numpy_helper.from_array(WEIGHT, "w")


def in_a_constant():
    return graph([helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT)), *add_half()])


def in_a_branch():
    value = helper.make_tensor_value_info("y", HALF, [3])
    branches = {f"{name}_branch": helper.make_graph(add_half(), name, [], [value], [weight()]) for name in ("then", "else")}
    # what makes the graph say that it is half precision is a cast outside the branches
    nodes = [helper.make_node("If", ["yes"], ["y"], **branches), helper.make_node("Cast", ["x"], ["unused"], to=HALF)]
    return graph(nodes, [helper.make_tensor("yes", TensorProto.BOOL, [], [True])])


def in_a_function():
    body = [helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT)), *add_half()]
    function = helper.make_function("f", "half", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("half", ["x"], ["y"], domain="f"), helper.make_node("Cast", ["x"], ["unused"], to=HALF)]
    return graph(nodes, functions=[function])


@pytest.mark.parametrize("make", [lambda: graph(add_half(), [weight()]), in_a_constant, in_a_branch, in_a_function])
def test_no_half_precision_remains(make):
    """Initializers, constants, branches and functions become single precision, and nothing else changes."""
    model = make()
    before = model.SerializeToString()
    assert has_half(model.graph)
    wide = widen(model)
    assert model.SerializeToString() == before
    assert [node.op_type for node in wide.graph.node] == [node.op_type for node in model.graph.node]
    onnx.checker.check_model(wide, full_check=True)
    assert not has_half(wide.graph)
    (found,) = session(wide).run(None, {"x": X})
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, X + WEIGHT.astype(np.float32))


def test_a_graph_without_half_precision_is_returned():
    """No copy is made if nothing has to change."""
    model = graph([helper.make_node("Identity", ["x"], ["y"])])
    model.graph.output[0].type.tensor_type.elem_type = FULL
    assert widen(model) is model


@pytest.mark.parametrize("name", ["dtype", "to"])
def test_attributes_that_name_a_type(name):
    """Type attributes of half precision become single precision for every operator; other attributes with the value 10 are unchanged."""
    op = {"dtype": "RandomNormalLike", "to": "Cast"}[name]
    other = helper.make_node("Concat", ["x"], ["z"], axis=0, to_keep=10)
    model = graph([helper.make_node(op, ["x"], ["y"], **{name: HALF}), other])
    wide = widen(model)
    assert helper.get_node_attr_value(wide.graph.node[0], name) == FULL
    assert helper.get_node_attr_value(wide.graph.node[1], "to_keep") == 10
    assert wide.graph.output[0].type.tensor_type.elem_type == FULL
