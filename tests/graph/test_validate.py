"""An invalid ONNX graph is rejected with a message that names the cause."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_kit import Draft
from onnx import TensorProto, helper, numpy_helper

from penult.graph.rewrite import validate
from penult.graph.rewrite.validate import check_inner, check_whole


def small():
    """Return a graph of two nodes."""
    d = Draft()
    return d.model(d.op("Neg", d.embed()))


def check(model, path="model.onnx", real=()):
    check_whole(model, path, dict(real))


def rejected(model, said, **real):
    with pytest.raises(ValueError, match=f"^model.onnx .*{said}"):
        check(model, real=real.items())


def test_a_valid_graph_passes():
    """Valid forms pass: operators of other domains, omitted optional inputs and outputs, float inputs."""
    model = small()
    check(model)
    del model.opset_import[1:]
    model.opset_import[0].domain = "ai.onnx"
    model.graph.node.extend(helper.make_node("Dropout", [x, "", ""], [f"{x} kept", ""]) for x in ("x0", "x1"))
    model.graph.input.append(helper.make_tensor_value_info("floats", TensorProto.FLOAT, ["batch"]))
    check(model)


@pytest.mark.parametrize("field", ["node", "output"])
def test_an_empty_graph(field):
    """A graph needs nodes and outputs."""
    model = small()
    del getattr(model.graph, field)[:]
    rejected(model, "has no graph")


def test_a_graph_without_an_opset_version():
    """Versions of other domains do not count."""
    model = small()
    del model.opset_import[0]
    rejected(model, "has no ONNX opset version")


def test_a_string_input():
    """The message names it, whichever input it is."""
    model = small()
    model.graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"]))
    rejected(model, "contains a tokenizer: its input 'text' takes strings")


def with_name():
    """Return a graph with the name wherever a file can have one."""
    d = Draft()
    ends = {
        kind: helper.make_tensor_value_info(kind, TensorProto.FLOAT, [kind + " axis"]) for kind in ("input", "output", "info")
    }
    branch = helper.make_graph(
        [helper.make_node("Neg", ["inner reads"], ["inner"], name="inner node")], "g", [], [ends["output"]]
    )
    body = [helper.make_node("Neg", ["takes"], ["gives"], name="node of a function")]
    d.nodes.append(helper.make_node("kind", ["reads"], ["output"], name="node", domain="of a node", attribute=1))
    d.nodes.append(helper.make_node("If", ["reads"], ["other"], then_branch=branch, else_branch=branch))
    model = d.model("output")
    del model.graph.output[:]
    model.graph.output.append(ends["output"])
    model.graph.input.append(ends["input"])
    model.graph.value_info.append(ends["info"])
    weight = model.graph.initializer.add(name="weight", data_type=1, dims=[1], raw_data=bytes(4))
    weight.external_data.add(key="key", value="value")
    model.functions.append(
        helper.make_function("of a function", "function", ["takes"], ["gives"], body, [helper.make_opsetid("", 17)])
    )
    return model


@pytest.mark.parametrize(
    "name",
    ["input", "output", "info", "input axis", "output axis", "info axis", "weight", "key", "value", "strange", "function",
     "of a function", "takes", "gives", "node of a function", "node", "kind", "of a node", "reads", "attribute", "then_branch",
     "inner", "inner reads", "inner node"],
)  # fmt: skip
def test_a_name_that_is_not_utf8(name):
    """It is reported wherever it occurs."""
    data = with_name().SerializeToString()
    check_whole(onnx.load_model_from_string(data), "model.onnx", {})
    length = bytes([len(name)])
    broken = data.replace(length + name.encode(), length + b"\xff" * len(name))
    assert broken != data
    rejected(onnx.load_model_from_string(broken), "has a name that is not valid UTF-8")


def function(name, *kinds, domain="f"):
    """Return a local function that calls others, or operators, one after the other."""
    names = ["x", *(f"t{i}" for i in range(len(kinds) - 1)), "y"]
    nodes = [helper.make_node(kind, [names[i]], [names[i + 1]], domain=domain) for i, kind in enumerate(kinds)]
    return helper.make_function("f", name, ["x"], ["y"], nodes, [helper.make_opsetid("f", 1)])


def test_nodes_are_counted_after_inlining(monkeypatch):
    """A call counts as the nodes of its function, in a branch too; an unused function does not count; the limit is 50,000."""
    model = small()
    model.functions.extend(
        [function("one", "two", "two", "Neg"), function("two", "Neg", "Neg", "Abs"), function("none", "Neg")]
    )
    given = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("two", ["x0"], ["b"], domain="f")], "g", [], [given])
    model.graph.node.append(helper.make_node("one", ["x1"], ["called"], domain="f"))
    model.graph.node.append(helper.make_node("two", ["x1"], ["ours"], domain="of others"))
    model.graph.node.append(helper.make_node("If", ["x1"], ["chosen"], then_branch=inner, else_branch=inner))
    count = 2 + 7 + 1 + 1 + 3 + 3
    monkeypatch.setattr(validate, "_MOST_NODES", count)
    check(model)
    monkeypatch.setattr(validate, "_MOST_NODES", count - 1)
    rejected(model, f"has {count} nodes; at most {count - 1} are allowed")


def test_a_function_that_calls_itself():
    """Indirectly, or in its own branch."""
    model = small()
    model.functions.extend([function("one", "two"), function("two", "one")])
    rejected(model, "has a local function that calls itself")


def test_the_maximum_number_of_nodes():
    """The largest exports have about 16 thousand nodes; 50 thousand are accepted, more are not."""
    model = small()
    node = helper.make_node("Neg", ["x0"], [""])
    model.graph.node.extend([node] * 49_998)
    check(model)
    model.graph.node.append(node)
    rejected(model, "has 50,001 nodes; at most 50,000 are allowed")


@pytest.mark.parametrize("by", ["input", "weight", "node"])
def test_a_tensor_with_two_sources(by):
    """Two nodes, or an input or a weight and a node."""
    model = small()
    if by == "input":
        model.graph.input.append(helper.make_tensor_value_info("x0", TensorProto.FLOAT, None))
    elif by == "weight":
        model.graph.initializer.append(numpy_helper.from_array(np.ones(1), "x0"))
    else:
        model.graph.node.append(helper.make_node("Neg", ["x1"], ["x0"]))
    rejected(model, "has several nodes that output the tensor 'x0'")


def test_nodes_in_a_cycle():
    """The message names one of them; unsorted nodes are not a cycle."""
    model = small()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])
    check(model)
    model.graph.node[0].name = model.graph.node[1].name = "round"
    model.graph.node[1].input[1] = model.graph.node[0].output[0]
    rejected(model, r"has a cycle: the (Neg|Gather) node 'round' depends on its own output")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"location": "data"}, None),
        ({"location": "data", "offset": "4", "length": "6"}, None),
        ({"location": "data", "offset": "10"}, None),
        (
            {"location": "data", "offset": "4", "length": "7"},
            "is incomplete: it has 10 bytes, and the weights 'w0' of .* end at byte 11",
        ),
        ({"location": "data", "offset": "11"}, "is incomplete: it has 10 bytes, and the weights 'w0' of .* end at byte"),
        ({"location": "data", "offset": "-1", "length": "4"}, "has no location for the external weights 'w0'"),
        ({"location": "data", "offset": "1", "length": "four"}, "has no location for the external weights 'w0'"),
        ({"location": "other"}, "has no location for the external weights 'w0'"),
        ({"offset": "1"}, "has no location for the external weights 'w0'"),
    ],
)
def test_external_data_is_complete(tmp_path, entries, said):
    """A missing location, an invalid offset, or data after the end of the file."""
    place = tmp_path / "data"
    place.write_bytes(bytes(10))
    model = small()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        model.graph.initializer[0].external_data.add(key=key, value=value)
    if said is None:
        check(model, real={"data": place}.items())
    else:
        with pytest.raises(ValueError, match=said):
            check(model, real={"data": place}.items())


def far(name="far"):
    return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)


def sparse(*, values):
    near = TensorProto(name="near")
    return onnx.SparseTensorProto(values=far() if values else near, indices=near if values else far())


def with_graph(graph, many):
    return onnx.AttributeProto(name="a", **({"graphs": [graph]} if many else {"g": graph}))


ATTRIBUTES = {
    "a constant": lambda: onnx.AttributeProto(name="a", t=far()),
    "several constants": lambda: onnx.AttributeProto(name="a", tensors=[TensorProto(), far()]),
    "sparse values": lambda: onnx.AttributeProto(name="a", sparse_tensor=sparse(values=True)),
    "sparse indices": lambda: onnx.AttributeProto(name="a", sparse_tensor=sparse(values=False)),
    "several sparse": lambda: onnx.AttributeProto(name="a", sparse_tensors=[sparse(values=False)]),
    "a branch": lambda: with_graph(onnx.GraphProto(initializer=[far()]), many=False),
    "several branches": lambda: with_graph(onnx.GraphProto(sparse_initializer=[sparse(values=True)]), many=True),
    "a constant of a branch": lambda: with_graph(
        onnx.GraphProto(node=[onnx.NodeProto(attribute=[ATTRIBUTES["a constant"]()])]), many=True
    ),
}


@pytest.mark.parametrize("attribute", ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_external_data_inside_a_node(attribute):
    """The location would not be checked: the data is rejected wherever it is, and the message names the tensor."""
    model = small()
    model.graph.node[1].attribute.append(attribute())
    with pytest.raises(ValueError, match=r"^model.onnx has external data for 'far', a constant or a tensor of a subgraph"):
        check_inner(model, Path("model.onnx"))


@pytest.mark.parametrize("values", [True, False])
def test_external_data_of_sparse_weights(values):
    """A graph's own sparse weights too; its own dense weights are checked elsewhere and pass."""
    model = small()
    model.graph.initializer.append(far())
    check_inner(model, Path("model.onnx"))
    model.graph.sparse_initializer.append(sparse(values=values))
    with pytest.raises(ValueError, match="'far'"):
        check_inner(model, Path("model.onnx"))
