"""A skeleton has a model's nodes without its weights, which can be restored."""

import numpy as np
import onnx
import pytest
from graph_kit import Draft, cut, outlined, run, session, shapes
from onnx import TensorProto, helper, numpy_helper

from penult.graph.find.skeleton import restore, skeleton

IDS = {"input_ids": np.array([[3, 1, 4], [9, 2, 6]])}
FLOATS = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)


def bulk(name=""):
    """Return a tensor of 40 kB."""
    return numpy_helper.from_array(np.full((100, 100), 2, np.float32), name)


def branching(*, decided_by="constant"):
    """Return a graph with large tensors in an initializer, in a constant, and in the branches of an If inside a branch."""
    d = Draft()
    d.weights.append(bulk("weight"))
    d.nodes.append(helper.make_node("Constant", [], ["constant"], value=bulk()))
    x = d.op("MatMul", d.op("Add", "weight", "constant"), d.constant(np.ones((100, 8), np.float32)))
    d.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    held = d.constant(np.array(True)) if decided_by == "constant" else d.op("Not", "flag")
    inner = [helper.make_node("Constant", [], ["c"], value=bulk()), helper.make_node("ReduceMax", ["c"], ["y"], keepdims=0)]
    inner = helper.make_graph(inner, "inner", [], [FLOATS])
    nodes = [
        helper.make_node("If", [held], ["chosen"], then_branch=inner, else_branch=inner),
        helper.make_node("ReduceMax", ["more"], ["most"], keepdims=0),
        helper.make_node("Mul", ["chosen", "most"], ["y"]),
    ]
    outer = helper.make_graph(nodes, "outer", [], [FLOATS], [bulk("more")])
    d.nodes.append(helper.make_node("If", [held], ["four"], then_branch=outer, else_branch=outer))
    return d.model(d.op("Mul", d.op("Add", d.embed(), d.op("ReduceMax", x)), "four"))


def test_large_tensors_are_left_out_and_restored():
    """Initializers, constants and nested branches: the skeleton has a hundredth of the size, and the restored model is equal."""
    model = branching()
    before = model.SerializeToString()
    bare = skeleton(model)
    assert model.SerializeToString() == before
    assert model.ByteSize() > 100_000
    assert bare.ByteSize() < 10_000
    assert [list(node.output) for node in bare.graph.node] == [list(node.output) for node in model.graph.node]
    stub = next(tensor for tensor in bare.graph.initializer if tensor.name == "weight")
    assert (list(stub.dims), stub.data_type) == ([100, 100], TensorProto.FLOAT)
    assert (bare.ir_version, bare.opset_import) == (model.ir_version, model.opset_import)
    assert (bare.graph.input, bare.graph.output) == (model.graph.input, model.graph.output)
    assert restore(bare.graph.node, model) == list(model.graph.node)
    given = IDS | {"flag": np.array(True)}
    assert np.array_equal(run(cut(model, model.graph.output[0].name), given), run(model, given))


def test_small_constants_stay():
    """Shapes, axes and scalars are needed for shape inference."""
    d = Draft()
    end = d.op("Reshape", d.embed(), d.constant(np.array([0, 0, 2, 4])))
    bare = skeleton(d.model(end))
    assert shapes(bare)[end] == (TensorProto.FLOAT, ("batch", "sequence", 2, 4))
    assert restore(bare.graph.node, d.model(end)) == d.nodes


def test_weights_of_functions_are_restored():
    """A function's nodes replace its call, with the values of constants and branches."""
    model = branching()
    packed = outlined(model, size=4)
    given = IDS | {"flag": np.array(True)}
    assert skeleton(packed).functions == []
    end = model.graph.output[0].name
    assert np.array_equal(run(cut(packed, end), given), run(model, given))


def test_a_branch_that_calls_a_function():
    """The function is inlined in the branch, after a cut too."""
    d = Draft()
    x = d.embed()
    nodes = [helper.make_node("twice", [x], ["y"], domain="local")]
    branch = helper.make_graph(nodes, "branch", [], [FLOATS])
    d.nodes.append(helper.make_node("If", [d.constant(np.array(True))], ["end"], then_branch=branch, else_branch=branch))
    model = d.model("end")
    body, opset = [helper.make_node("Add", ["a", "a"], ["b"])], helper.make_opsetid("", 17)
    model.functions.append(helper.make_function("local", "twice", ["a"], ["b"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    assert np.array_equal(run(cut(model, "end"), IDS), run(model, IDS))


def test_a_body_keeps_its_branches():
    """An input of a loop's body is not an input of the graph: an If on it stays."""
    names = ("step", "go on", "x")
    kinds = (TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT)
    given = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)]
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "branch", [], [FLOATS])
    nodes = [helper.make_node("If", ["go on"], ["out"], then_branch=branch, else_branch=branch)]
    body = helper.make_graph(nodes, "body", given, [given[1], helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])
    d = Draft()
    d.nodes.append(helper.make_node("Loop", [d.constant(np.array(1)), "", d.embed()], ["end"], body=body))
    (attribute,) = skeleton(d.model("end")).graph.node[-1].attribute
    assert [node.op_type for node in attribute.g.node] == ["If"]


def test_shapes_are_inferred_from_values():
    """A reshape to a computed shape has a shape; a dimension is a number, a symbol or unknown, and so may the whole shape be."""
    d = Draft()
    x = d.embed()
    turned = d.op("Reshape", x, d.op("Concat", d.op("Shape", "input_ids"), d.constant(np.array([4, 2])), axis=0))
    strange = d.op("Strange", x, domain="strange")
    some = d.op(
        "Compress", x, d.op("Cast", d.op("Slice", "input_ids", *map(d.constant, ([0], [1]))), to=TensorProto.BOOL), axis=1
    )
    found = shapes(skeleton(d.model(strange)))
    assert found["input_ids"] == (TensorProto.INT64, ("batch", "sequence"))
    assert found[turned] == (TensorProto.FLOAT, ("batch", "sequence", 4, 2))
    assert found.get(strange, (0, None))[1] is None
    assert len(found[some][1]) == 3
    assert found[some][1][1] not in ("sequence", 0)


def contradicting():
    """Return a graph that declares a wrong size, and the tensor of that size."""
    d = Draft()
    end = d.op("Neg", d.embed())
    model = d.model(end)
    model.graph.value_info.append(helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["batch", "sequence", 9]))
    return model, end


def test_annotations_that_contradict():
    """The shapes are those that the graph declares; in strict mode there are none."""
    model, end = contradicting()
    found = shapes(skeleton(model))
    assert found["x0"] == (TensorProto.FLOAT, ("batch", "sequence", 9))
    assert end in found
    assert shapes(skeleton(model), strict=True) == {}


@pytest.mark.parametrize("strict", [True, False])
def test_a_consistent_graph_has_its_shapes_in_both_modes(strict):
    """Nothing is lost if nothing contradicts."""
    d = Draft()
    end = d.dense(d.embed(), 5)
    assert shapes(skeleton(d.model(end)), strict=strict)[end] == (TensorProto.FLOAT, ("batch", "sequence", 5))


def scan(*, body=True, over=1, inputs=("x0",), others=None):
    """Return a graph with a Scan, and the inferred shape of another tensor."""
    d = Draft()
    d.embed()
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("step", "out")]
    inside = helper.make_graph([helper.make_node("Neg", ["step"], ["out"])], "body", given[:1], given[1:])
    held = ({"body": inside} if body else {}) | ({} if over is None else {"num_scan_inputs": over}) | (others or {})
    d.nodes.append(helper.make_node("Scan", list(inputs), ["scanned"], **held))
    return d


@pytest.mark.parametrize(
    "broken",
    [
        {"body": False},
        {"over": None},
        {"over": 0},
        {"over": -1},
        {"over": 2},
        {"inputs": ()},
        {"over": None, "others": {"scan": 1}},
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_broken_scan_is_not_inferred(broken, inside):
    """Older versions of onnx crash the process: such a graph has only its declared shapes, a valid one all."""
    for kind, inferred in ((broken, False), ({}, True)):
        d = scan(**kind)
        if inside:
            branch = helper.make_graph([d.nodes.pop()], "branch", [], [helper.make_tensor_value_info("scanned", 1, None)])
            d.nodes.append(helper.make_node("If", [d.constant(np.array(True))], ["y"], then_branch=branch, else_branch=branch))
        found = shapes(skeleton(d.model(d.op("Neg", "x0"))))
        assert ("x0" in found) == inferred


def merged(**weights):
    """Return a graph of an If on an input whose branches compute the same with a weight each; the second has one more input."""
    more = helper.make_tensor_value_info("more", TensorProto.FLOAT, [1])
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    branches = {}
    for name, (weight, reads) in weights.items():
        table = numpy_helper.from_array(np.full((20, 40), len(name), np.float32), weight)
        made = [helper.make_node("Gather", [weight, "input_ids"], [f"{name} rows"])]
        made.append(helper.make_node("Constant", [], [f"{name} held"], value=bulk()))
        made.append(helper.make_node("ReduceMax", [f"{name} held"], [f"{name} most"], keepdims=0))
        made += [helper.make_node("Add", [f"{name} rows", "more" if reads else f"{name} most"], [f"{name} end"])]
        end = helper.make_tensor_value_info(f"{name} end", TensorProto.FLOAT, None)
        branches[name] = helper.make_graph(made, name, [], [end], [table], value_info=[end])
    d = helper.make_node("If", ["flag"], ["chosen"], **branches)
    graph = helper.make_graph(
        [d], "merged", [ids, more, flag], [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("cached", ["then_branch", "else_branch"])
def test_a_branch_on_an_input_is_inlined(cached):
    """The branch with fewer inputs replaces the If, with its weights and the output names of the If."""
    fresh = {"then_branch": "else_branch", "else_branch": "then_branch"}[cached]
    model = merged(**{name: (f"{name} table", name == cached) for name in (cached, fresh)})
    bare = skeleton(model)
    assert [node.op_type for node in bare.graph.node] == ["Gather", "Constant", "ReduceMax", "Add", "Identity"]
    assert bare.ByteSize() < 2000
    assert [tensor.name for tensor in bare.graph.initializer] == [f"{fresh} table"]
    assert shapes(bare)["chosen"] == (TensorProto.FLOAT, ("batch", "sequence", 40))
    alone = cut(model, "chosen")
    assert [value.name for value in alone.graph.input] == ["input_ids"]
    (found,) = session(alone).run(None, IDS)
    assert np.array_equal(found, np.full((2, 3, 40), len(fresh) + 2))
    assert [info.name for info in alone.graph.value_info] == [f"{fresh} end"]


@pytest.mark.parametrize("taken", ["flag", "chosen", "table"])
def test_a_branch_with_an_outer_name_is_not_inlined(taken):
    """Its nodes could form a cycle: the name of an input, a node or a weight."""
    model = merged(else_branch=(taken, False), then_branch=("other", True))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 2), np.float32), "table"))
    assert [node.op_type for node in skeleton(model).graph.node] == ["If"]


def test_branches_that_share_names():
    """Of two branches with the same inner names, as exporters write, the first is inlined."""
    model = merged(then_branch=("t", False), else_branch=("u", True))
    model.graph.node.append(model.graph.node[0])
    model.graph.node[1].output[0] = "again"
    bare = skeleton(model)
    assert [node.op_type for node in bare.graph.node] == ["Gather", "Constant", "ReduceMax", "Add", "Identity", "If"]


@pytest.mark.parametrize("attributes", [{}, {"then_branch": 1}])
def test_an_if_without_branches_stays(attributes):
    """ONNX Runtime rejects it."""
    d = Draft()
    d.nodes.append(helper.make_node("If", ["input_ids"], ["y"], **attributes))
    assert [node.op_type for node in skeleton(d.model("y")).graph.node] == ["If"]


def test_an_if_with_fewer_outputs_than_its_branch():
    """Another broken one: its outputs are the first ones of the branch."""
    model = merged(then_branch=("t", False), else_branch=("u", True))
    branch = model.graph.node[0].attribute[1].g
    branch.output.append(branch.output[0])
    assert skeleton(model).graph.node[-1] == onnx.NodeProto(op_type="Identity", input=["then_branch end"], output=["chosen"])


def test_an_if_on_a_computed_value_stays():
    """Only inputs are known before a run."""
    bare = skeleton(branching(decided_by="node"))
    assert sum(node.op_type == "If" for node in bare.graph.node) == 1


def test_sparse_weights_stay():
    """They are small, and a cut needs them."""
    d = Draft()
    values = numpy_helper.from_array(np.ones(3, np.float32), "sparse")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 1, 90])), [20, 8])
    model = d.model(d.op("Gather", "sparse", "input_ids"))
    model.graph.sparse_initializer.append(sparse)
    assert list(skeleton(model).graph.sparse_initializer) == [sparse]
    assert onnx.numpy_helper.to_array(cut(model, "x0").graph.sparse_initializer[0].indices).tolist() == [0, 1, 90]
