"""Constant nodes with external data become initializers, with the same checks and the same values."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graph_kit import Draft
from models import Size, bert_graph, bert_weights
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from penult.graph.rewrite.constants import hoist_constants
from penult.graph.rewrite.validate import check_inner, check_whole


def external(name, dims=(3,), location="data"):
    """Return a float tensor whose data are in another file."""
    tensor = TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT, raw_data=b"")
    set_external_data(tensor, location, offset=0, length=4 * int(np.prod(dims)))
    tensor.ClearField("raw_data")
    return tensor


def constant(output, tensor=None):
    """Return a Constant node with external data."""
    return helper.make_node("Constant", [], [output], value=tensor or external("any"))


def graph_of(*nodes, outputs=("y",), initializers=()):
    """Return a model with the input x and float outputs."""
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", given, made, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inlined(model):
    """Return a BERT whose weights are Constant nodes, as some exporters write them."""
    nodes = [helper.make_node("Constant", [], [weight.name], value=weight) for weight in model.graph.initializer]
    model.graph.node.extend(nodes)
    ordered = nodes + list(model.graph.node)[: -len(nodes)]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(ordered)
    return model


def test_a_model_saved_with_its_constants_outside_gives_the_same_values(tmp_path):
    """Every weight of a BERT is a Constant in a data file: all become initializers, and the output is the same."""
    size = Size(layers=1)
    path, ids = tmp_path / "model.onnx", np.array([[2, 5, 6, 3]])
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    model = inlined(bert_graph(bert_weights(size), size.heads))
    expected = ort.InferenceSession(model.SerializeToString()).run(None, given)[0]
    onnx.save(model, path, save_as_external_data=True, convert_attribute=True, size_threshold=100)
    loaded = onnx.load(path, load_external_data=False)
    outside = {
        node.output[0]
        for node in loaded.graph.node
        if node.op_type == "Constant" and node.attribute[0].t.data_location == TensorProto.EXTERNAL
    }
    assert len(outside) > 10
    with pytest.raises(ValueError, match="Save the graph with external data for its initializers only"):
        check_inner(loaded, path)
    hoist_constants(loaded)
    check_inner(loaded, path)
    locations = {entry.value for i in loaded.graph.initializer for entry in i.external_data if entry.key == "location"}
    check_whole(loaded, path, {name: tmp_path / name for name in locations})
    assert {tensor.name for tensor in loaded.graph.initializer} == outside
    onnx.save(loaded, tmp_path / "hoisted.onnx")
    np.testing.assert_array_equal(ort.InferenceSession(tmp_path / "hoisted.onnx").run(None, given)[0], expected)


def test_truncated_data_is_reported(tmp_path):
    """A hoisted Constant passes the checks of any weight: its data must reach to the last byte."""
    (tmp_path / "data").write_bytes(bytes(11))
    model = graph_of(constant("c"), helper.make_node("Add", ["x", "c"], ["y"]))
    check_whole(model, tmp_path / "m.onnx", {})
    hoist_constants(model)
    with pytest.raises(ValueError, match=r"it has 11 bytes, and the weights 'c' of .* end at byte"):
        check_whole(model, tmp_path / "m.onnx", {"data": tmp_path / "data"})


def test_a_constant_that_is_an_output_keeps_its_name():
    """The graph's output keeps its name and is produced by a node; the initializer gets a free name."""
    model = graph_of(
        constant("y"), helper.make_node("Add", ["x", "y"], ["z"]), outputs=("y", "z"), initializers=[external("y_")]
    )
    hoist_constants(model)
    assert [(node.op_type, list(node.input), list(node.output)) for node in model.graph.node] == [
        ("Identity", ["y__"], ["y"]),
        ("Add", ["x", "y"], ["z"]),
    ]
    assert [tensor.name for tensor in model.graph.initializer] == ["y_", "y__"]
    assert not model.graph.node[0].attribute


@pytest.mark.parametrize("taken", ["input", "initializer", "node"])
def test_two_tensors_of_one_name_are_left_for_the_check(taken):
    """Hoisting must not hide a duplicate name, because the check would no longer find it."""
    name = "x" if taken == "input" else "c"
    nodes = [constant(name), helper.make_node("Neg", ["x"], ["c" if taken == "node" else "n"])]
    model = graph_of(*nodes, initializers=[external("c")] if taken == "initializer" else [], outputs=("n",))
    hoist_constants(model)
    assert [node.op_type for node in model.graph.node] == ["Constant", "Neg"]
    with pytest.raises(ValueError, match=f"has several nodes that output the tensor '{name}'"):
        check_whole(model, "m.onnx", {})


def test_constants_of_subgraphs_and_functions_stay():
    """They are not initializers of the main graph; the check of subgraphs rejects them as before."""
    inner = helper.make_graph([constant("c")], "then", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)])
    branch = helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=inner)
    model = graph_of(branch)
    body = helper.make_function("local", "F", ["a"], ["o"], [constant("c"), helper.make_node("Add", ["a", "c"], ["o"])],
                                [helper.make_opsetid("", 17)])  # fmt: skip
    model.functions.append(body)
    before = model.SerializeToString()
    hoist_constants(model)
    assert model.SerializeToString() == before
    with pytest.raises(ValueError, match="a constant or a tensor of a subgraph"):
        check_inner(model, "m.onnx")


@pytest.mark.parametrize("broken", ["no output", "no name", "two attributes", "other domain", "inside"])
def test_other_nodes_stay(broken):
    """A node other than a Constant with one external tensor is not changed."""
    node = constant("c")
    if broken == "no output":
        del node.output[:]
    elif broken == "no name":
        node.output[0] = ""
    elif broken == "two attributes":
        node.attribute.append(helper.make_attribute("value_int", 1))
    elif broken == "other domain":
        node.domain = "strange"
    else:
        node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32)))
    model = graph_of(node, helper.make_node("Neg", ["x"], ["y"]))
    before = model.SerializeToString()
    hoist_constants(model)
    assert model.SerializeToString() == before


def test_a_function_reads_a_hoisted_constant(tmp_path):
    """A local function reads the tensor by its name, whether a node or an initializer provides it."""
    np.arange(3, dtype=np.float32).tofile(tmp_path / "data")
    body = helper.make_function("local", "F", ["a", "b"], ["o"], [helper.make_node("Add", ["a", "b"], ["o"])],
                                [helper.make_opsetid("", 17)])  # fmt: skip
    model = graph_of(constant("c"), helper.make_node("F", ["x", "c"], ["y"], domain="local"))
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("local", 1))
    hoist_constants(model)
    onnx.save(model, tmp_path / "m.onnx")
    (y,) = ort.InferenceSession(tmp_path / "m.onnx").run(None, {"x": np.ones(3, np.float32)})
    assert y.tolist() == [1, 2, 3]


def test_a_model_without_external_data_stays():
    """It is unchanged, byte for byte."""
    d = Draft()
    model = d.model(d.op("Neg", d.embed()))
    before = model.SerializeToString()
    hoist_constants(model)
    assert model.SerializeToString() == before
