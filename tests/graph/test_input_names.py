"""Inputs get the names that the runner uses, by their own name or by their function in the graph."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import data_file
from graph_kit import GRAPHS, Draft, name_inputs, outlined, stored
from models import Size, bert_graph, bert_weights
from onnx import TensorProto, helper, numpy_helper

from penult.graph.rewrite.validate import check_whole

IDS = np.array([[2, 5, 6, 3], [2, 7, 3, 0]])
GIVEN = {"input_ids": IDS, "attention_mask": (IDS > 0).astype(np.int64), "token_type_ids": np.array([[0, 0, 1, 1]] * 2)}
KNOWN = list(GIVEN)


def bert():
    """Return a small BERT."""
    size = Size(hidden=16, layers=1, positions=16)
    return bert_graph(bert_weights(size), size.heads)


def renamed(model, *names):
    """Rename the inputs of a graph whose nodes are in the main graph, in order."""
    new = dict(zip([value.name for value in model.graph.input], names, strict=False))
    for value in model.graph.input:
        value.name = new.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
    return model


def named(model):
    """Return the names of the inputs after naming them."""
    name_inputs(model)
    check_whole(model, "model.onnx", {})
    return [value.name for value in model.graph.input]


def run(model, given):
    """Run a graph unchanged."""
    return ort.InferenceSession(model.SerializeToString()).run(None, given)[0]


class Small(Draft):
    """A draft that adds inputs and closes around one attention, whose scores a bias is added to."""

    def input(self, name, *shape, kind=TensorProto.INT64):
        """Add an input with two free axes, or with a shape."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape or ["batch", "sequence"]))
        return name

    def attended(self, bias):
        """Return a model whose attention scores (B, T, T) get a bias (B, T)."""
        x = self.embed(self.inputs[0].name)
        bias = self.op("Unsqueeze", bias, self.constant(np.array([1])))
        scores = self.op("Add", self.op("MatMul", x, self.op("Transpose", x, perm=[0, 2, 1])), bias)
        return self.model(self.op("MatMul", self.op("Softmax", scores), x))

    def chosen(self, mask, *, hidden_where):
        """Return a model that replaces scores with a large negative number by a mask."""
        x = self.embed(self.inputs[0].name)
        where = self.op("Unsqueeze", self.op("Cast", mask, to=TensorProto.BOOL), self.constant(np.array([1])))
        scores, low = self.op("MatMul", x, self.op("Transpose", x, perm=[0, 2, 1])), self.constant(np.float32(-1e9))
        both = (low, scores) if hidden_where else (scores, low)
        return self.model(self.op("MatMul", self.op("Softmax", self.op("Where", where, *both)), x))


@pytest.mark.parametrize(
    "names",
    [
        ("input_ids:0", "attention_mask:0", "token_type_ids:0"),
        ("input_word_ids", "input_mask", "segment_ids"),
        ("serving_default_input_word_ids:0", "serving_default_input_mask:0", "serving_default_input_type_ids:0"),
        ("ids", "mask", "type_ids"),
        ("tokens", "padding_mask", "segments"),
        ("inputIds", "attentionMask", "tokenTypeIds"),
        ("input_ids.1", "attention_mask.1", "token_type_ids.1"),
        ("model/text", "attn_mask", "token_type"),
        ("input.1", "input.3", "input.5"),
        ("onnx::Gather_0", "onnx::Unsqueeze_1", "args_2"),
        ("x", "attention_mask", "args_2"),
        ("anything", "attention_mask", "token_type_ids"),
    ],
)
def test_a_role_under_any_name(names):
    """The graph gives the same values with the standard names."""
    expected = run(bert(), GIVEN)
    model = renamed(bert(), *names)
    assert named(model) == KNOWN
    np.testing.assert_array_equal(run(model, GIVEN), expected)


@pytest.mark.parametrize("name", GRAPHS)
def test_known_names_stay(name):
    """A graph with the standard names is unchanged, byte for byte."""
    model = stored(name)[0]
    before = model.SerializeToString()
    name_inputs(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("ids", "tokens", "segment_ids"), ["ids", "tokens", "token_type_ids"]),
        (("input_ids", "mask", "input_mask"), ["input_ids", "mask", "input_mask"]),
        (("input_ids", "input_ids:0", "segment_ids"), ["input_ids", "input_ids:0", "token_type_ids"]),
        (("input_ids", "attention_mask", "type_ids"), KNOWN),
        (("input_ids", "input_mask", "something"), ["input_ids", "attention_mask", "something"]),
        (("input_ids", "special_tokens_mask", "segment_ids"), ["input_ids", "special_tokens_mask", "token_type_ids"]),
        (("first", "input_mask", "second"), ["first", "attention_mask", "second"]),
        (("query", "document", "args_0"), ["query", "document", "token_type_ids"]),
        (("task_id:0", "other:0", "other"), ["task_id", "other:0", "other"]),
    ],
)
def test_nothing_is_guessed(names, expected):
    """Two inputs that could have the same role keep their names, and so does an input with a different meaning by its name."""
    assert named(renamed(bert(), *names)) == expected


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [("ids", TensorProto.FLOAT, ("b", "s")), ("ids", TensorProto.INT64, ("b",)), ("segment_ids", TensorProto.INT64, ("b", "s", 4)),
     ("mask", TensorProto.INT64, ("b",)), ("offset", TensorProto.INT64, ("b", "s"))],
)  # fmt: skip
def test_a_role_needs_its_type_and_axes(name, kind, shape):
    """A name alone is not sufficient."""
    d = Draft()
    model = d.model(d.op("Neg", d.embed()))
    model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    assert named(model) == ["input_ids", name]


def test_ids_and_offsets_of_a_static_embedding():
    """Both have one axis."""
    d = Small()
    d.inputs = []
    ids, starts = d.input("tokens", "n"), d.input("offset", "b")
    both = d.op("Add", d.op("ReduceSum", d.op("Gather", d.weight(20, 8), ids), keepdims=0), d.op("Cast", starts, to=1))
    assert named(d.model(both)) == ["input_ids", "offsets"]


def test_an_input_with_a_default_is_not_renamed():
    """Older graphs list their weights among the inputs."""
    model = renamed(bert(), "ids")
    weight = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    assert named(model) == [*KNOWN, weight.name]


def test_an_inner_tensor_that_has_the_name():
    """It gets a free name wherever it is read; the graph computes the same values."""
    model = renamed(bert(), "ids", "mask", "segment_ids")
    inner = model.graph.node[0].output[0]
    for node in model.graph.node:
        node.output[:] = ["attention_mask" if name == inner else name for name in node.output]
        node.input[:] = ["attention_mask" if name == inner else name for name in node.input]
    weight = model.graph.initializer[0].name
    for node in model.graph.node:
        node.input[:] = ["input_ids" if name == weight else name for name in node.input]
    model.graph.initializer[0].name = "input_ids"
    model.graph.value_info.append(helper.make_tensor_value_info("attention_mask", TensorProto.FLOAT, None))
    assert named(model) == KNOWN
    assert [value.name for value in model.graph.value_info] == ["attention_mask/inner"]
    np.testing.assert_array_equal(run(model, GIVEN), run(bert(), GIVEN))


def test_a_free_name_is_really_free():
    """Two existing names are both avoided."""
    d = Small()
    d.inputs = []
    x = d.op("Neg", d.op("Gather", d.weight(20, 8), d.input("ids")))
    for i, name in enumerate(("input_ids", "input_ids/inner")):
        d.nodes.append(helper.make_node("Neg", [x if i == 0 else "input_ids"], [name]))
    model = d.model("input_ids/inner")
    model.graph.quantization_annotation.add().tensor_name = "ids"
    model.graph.quantization_annotation.add().tensor_name = "other"
    assert named(model) == ["input_ids"]
    assert [list(node.output) for node in model.graph.node[-2:]] == [["input_ids/inner_"], ["input_ids/inner"]]
    assert [noted.tensor_name for noted in model.graph.quantization_annotation] == ["input_ids", "other"]


def test_outputs_keep_their_names():
    """An output with the standard name keeps it, and the input is not renamed; an output that is the input itself stays."""
    d = Small()
    d.inputs = []
    d.nodes.append(helper.make_node("Cast", [d.input("mask")], ["attention_mask"], to=1))
    assert named(d.model("attention_mask")) == ["mask"]
    d = Small()
    d.inputs = []
    ids = d.input("ids")
    model = d.model(d.op("Gather", d.weight(20, 8), ids))
    model.graph.output.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"]))
    assert named(model) == ["input_ids"]
    assert [value.name for value in model.graph.output] == ["x0", "ids"]
    session = ort.InferenceSession(model.SerializeToString())
    assert session.run(["ids"], {"input_ids": IDS})[0].tolist() == IDS.tolist()


def test_subgraphs_read_the_new_name():
    """A tensor that a branch captures is renamed there; a tensor that the branch defines under that name gets another one."""
    d = Small()
    d.inputs = []
    ids = d.input("ids")
    flag = d.input("flag", 1, kind=TensorProto.BOOL)
    table = d.weight(20, 8)

    def branch(name, *nodes, output):
        made = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph(
            list(nodes), name, [], [made], [numpy_helper.from_array(np.array([1.5], np.float32), f"w_{name}")]
        )

    then = branch("then", helper.make_node("Gather", [table, ids], ["input_ids"]), output="input_ids")
    other = branch("else", helper.make_node("Gather", [table, ids], ["e"]), helper.make_node("Mul", ["e", "w_else"], ["f"]),
                   output="f")  # fmt: skip
    d.nodes.append(helper.make_node("If", [flag], ["y"], then_branch=then, else_branch=other))
    model = d.model("y")
    before = [run(model, {"ids": IDS, "flag": np.array([on])}) for on in (True, False)]
    assert named(model) == ["input_ids", "flag"]
    for on, expected in zip((True, False), before, strict=True):
        np.testing.assert_array_equal(run(model, {"input_ids": IDS, "flag": np.array([on])}), expected)


def test_local_functions_have_names_of_their_own():
    """A function's inner names are unchanged, and it still gets the input."""
    model = outlined(renamed(bert(), "ids", "mask", "segment_ids"))
    for name in ("ids", "mask", "segment_ids"):
        assert any(name in function.input for function in model.functions)
    assert named(model) == KNOWN
    np.testing.assert_allclose(run(model, GIVEN), run(bert(), GIVEN), atol=1e-6)


@pytest.mark.parametrize("name", ["key_padding_mask", "mask", "args_1"])
def test_a_padding_mask_is_not_an_attention_mask(name):
    """An input that hides tokens where it is 1 keeps its name; one that keeps tokens where it is 1 becomes the attention mask."""
    for hidden_where in (True, False):
        d = Small()
        model = d.chosen(d.input(name), hidden_where=hidden_where)
        assert named(model) == ["input_ids", name if hidden_where else "attention_mask"]


@pytest.mark.parametrize("kind", ["int", "bool", "float", "hidden", "infinite", "equal"])
def test_a_mask_is_found_by_its_use(kind):
    """An input that hides tokens from attention where it is 0 is the mask, in any arithmetic."""
    d = Small()
    types = {"bool": TensorProto.BOOL, "float": TensorProto.FLOAT}
    mask = d.input("x", kind=types.get(kind, TensorProto.INT64))
    one, low = d.constant(np.float32(1)), d.constant(np.float32(-np.inf if kind == "infinite" else -1e4))
    if kind in {"infinite", "bool"}:
        low = d.op("Expand", low, d.op("Shape", mask))
        zero = d.op("ConstantOfShape", d.op("Shape", mask))
        bias = d.op("Where", d.op("Cast", mask, to=TensorProto.BOOL), zero, low)
    elif kind == "equal":
        hidden = d.op("Equal", mask, d.constant(np.int64(0)))
        bias = d.op("Where", hidden, low, d.op("Constant", value_float=0.5))
    elif kind == "hidden":
        both = d.op("And", d.op("Cast", mask, to=TensorProto.BOOL), d.op("Greater", "input_ids", d.constant(np.int64(-1))))
        bias = d.op("Mul", d.op("Cast", d.op("Not", both), to=1), low)
    else:
        bias = d.op("Mul", d.op("Sub", one, d.op("Cast", mask, to=1)), low)
    assert named(d.attended(bias)) == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("kind", ["unused", "hidden", "small", "product", "choice", "both", "several", "constant"])
def test_other_inputs_keep_their_names(kind):
    """An input that does not provably keep tokens where it is 1 has no role."""
    d = Small()
    x = d.input("x")
    floats = d.op("Cast", x, to=1)
    if kind == "unused":
        bias = d.op("Mul", d.constant(np.float32(0)), d.op("CumSum", floats, d.constant(np.int64(1))))
    elif kind == "hidden":
        bias = d.op("Mul", floats, d.constant(np.float32(-1e4)))
    elif kind == "product":
        bias = d.op("Mul", floats, d.op("Div", d.constant(np.float32(0)), d.constant(np.float32(0))))
    elif kind == "both":
        bias = d.op("Where", d.op("Cast", x, to=TensorProto.BOOL), d.constant(np.float32(-1e4)), d.constant(np.float32(-2e4)))
        bias = d.op("Where", bias, d.constant(np.float32(-1e4)), d.constant(np.zeros((1, 4), np.float32) - 1e4))
    elif kind == "constant":
        bias = d.op("Mul", floats, d.constant(np.float32(0)))
    elif kind == "several":
        bias = d.op("Mul", floats, d.op("Constant", value_floats=[-1e4, -1e4]))
    elif kind == "choice":
        bias = d.op("Where", d.op("Cast", x, to=TensorProto.BOOL), floats, d.op("CumSum", floats, d.constant(np.int64(1))))
    else:
        bias = floats
    assert named(d.attended(bias)) == ["input_ids", "x"]


def test_a_mask_in_fused_attention():
    """ONNX Runtime's operators take 1 for visible tokens, or the number of tokens."""
    d = Small()
    lengths = d.op("ReduceSum", d.op("Cast", d.input("x"), to=TensorProto.INT32), d.constant(np.array([1])), keepdims=0)
    x = d.embed()
    model = d.model(d.op("Attention", x, d.weight(8, 24), d.weight(24), lengths, domain="com.microsoft", num_heads=2))
    assert named(model) == ["input_ids", "attention_mask"]
    d = Small()
    d.inputs = []
    parts = d.weight(20, 8), d.weight(16, 8), "", d.weight(8), d.weight(8)
    embedded = d.op("EmbedLayerNormalization", d.input("input.1"), "", *parts, d.input("input.2"), domain="com.microsoft")
    assert named(d.model(embedded)) == ["input_ids", "input.2"]
    d = Small()
    d.inputs = []
    names = [d.input(name) for name in ("input.1", "input.2", "input.3")]
    parts = d.weight(20, 8), d.weight(16, 8), d.weight(2, 8), d.weight(8), d.weight(8)
    d.nodes.append(
        helper.make_node("EmbedLayerNormalization", [*names[:2], *parts, names[2]], ["e", "m"], domain="com.microsoft")
    )
    model = d.model(d.op("Attention", "e", d.weight(8, 24), d.weight(24), "m", domain="com.microsoft", num_heads=2))
    assert named(model) == ["input_ids", "token_type_ids", "attention_mask"]


def test_broken_constants_are_ignored():
    """A constant with data that do not match its type is ignored, without an error."""
    d = Small()
    one = d.constant(np.float32(1))
    bias = d.op("Mul", d.op("Sub", one, d.op("Cast", d.input("x"), to=1)), d.constant(np.float32(-1e4)))
    model = d.attended(bias)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == one)
    weight.data_type = 77
    name_inputs(model)
    assert [value.name for value in model.graph.input] == ["input_ids", "x"]
    d = Small()
    model = d.attended(d.op("Sub", d.op("Cast", d.input("x"), to=1)))  # one operand too few
    name_inputs(model)
    assert [value.name for value in model.graph.input] == ["input_ids", "x"]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("M17-input-mask-segment-ids", KNOWN),
        ("M17b-int32-colon-zero-names", KNOWN),
        ("P03b-mask-inside-named-text", ["input_ids"]),
        ("M16-task-id-lora", ["input_ids", "attention_mask", "task_id"]),
        ("M27-model2vec-static", ["input_ids", "offsets"]),
    ],
)
def test_reports_of_names(case, expected):
    """bugcases/29."""
    assert named(onnx.load(data_file(f"bugcases/29-graph-inputs/case-{case}/model/onnx/model.onnx"))) == expected
