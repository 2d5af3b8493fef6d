"""Whether a graph normalizes its vectors is detected from its structure, in every form that exporters write."""

import numpy as np
import onnx
import pytest
from conftest import data_file
from graph_kit import Draft, cut, ends_in_normalize, run
from onnx import TensorProto, helper, numpy_helper

IDS = np.random.default_rng(0).integers(0, 20, (4, 6))


class Vectors(Draft):
    """A graph that averages its tokens: `x` is (B, 8)."""

    def __init__(self, opset=17, seed=0):
        """Start with the mean of the tokens."""
        super().__init__(opset, seed)
        self.tokens = self.embed()
        self.x = self.reduce("ReduceMean", self.tokens, [1], keepdims=0)

    def reduce(self, kind, x, axes, keepdims=1):
        """Append a reduction, in the form that the opset has."""
        first = 13 if kind == "ReduceSum" else 18
        if self.opset >= first:
            return self.op(kind, x, self.constant(np.asarray(axes)), keepdims=keepdims)
        return self.op(kind, x, axes=axes, keepdims=keepdims)

    def number(self, value):
        """Append a Constant node of one float."""
        return self.op("Constant", value=helper.make_tensor("", TensorProto.FLOAT, [], [value]))

    def norm(self, x, axis=-1):
        """Append the Euclidean norm of the last axis."""
        return self.reduce("ReduceL2", x, [axis])

    def squares(self, x):
        """Append the sum of squares of the last axis."""
        return self.reduce("ReduceSum", self.op("Mul", x, x), [-1])

    def unit(self, x):
        """Append the exported form of torch's F.normalize."""
        floor = self.op("Clip", self.norm(x), self.number(1e-12), "")
        return self.op("Div", x, self.op("Expand", floor, self.op("Shape", x)))


def by_row_of_tokens(g):
    """Normalize every token, then take the first."""
    return g.op("Gather", g.unit(g.tokens), g.constant(np.asarray(0)), axis=1)


def by_half(g):
    """Take the norm in half precision of a tensor that is cast twice."""
    half = g.op("Cast", g.x, to=TensorProto.FLOAT16)
    wide = g.op("Cast", half, to=TensorProto.FLOAT)
    size = g.op("Cast", g.norm(wide), to=TensorProto.FLOAT16)
    return g.op("Cast", g.op("Div", half, size), to=TensorProto.FLOAT)


def by_power(g):
    """Multiply by the sum of squares to the power -0.5."""
    total = g.reduce("ReduceSum", g.op("Pow", g.x, g.number(2.0)), [-1])
    return g.op("Mul", g.x, g.op("Pow", g.op("Add", total, g.number(1e-12)), g.number(-0.5)))


def by_root_of_power(g):
    """Divide by (sum |x| ** 2) ** 0.5."""
    total = g.reduce("ReduceSum", g.op("Pow", g.op("Abs", g.x), g.number(2.0)), [1], keepdims=0)
    root = g.op("Pow", total, g.number(0.5))
    return g.op("Div", g.x, g.op("Unsqueeze", root, g.constant(np.asarray([1]))))


def by_reciprocal(g):
    """Multiply by the reciprocal of a root, as TensorFlow's l2_normalize is converted."""
    total = g.op("Max", g.reduce("ReduceSumSquare", g.x, [-1]), g.number(1e-12))
    return g.op("Mul", g.op("Reciprocal", g.op("Sqrt", total)), g.x)


UNIT = {
    "F.normalize": lambda g: g.unit(g.x),
    "F.normalize on axis 1": lambda g: g.op("Div", g.x, g.op("Clip", g.norm(g.x, 1), g.number(1e-12))),
    "x / norm": lambda g: g.op("Div", g.x, g.norm(g.x)),
    "x / max(norm, 1e-9)": lambda g: g.op("Div", g.x, g.op("Max", g.number(1e-9), g.norm(g.x))),
    "x / (norm + 1e-8)": lambda g: g.op("Div", g.x, g.op("Add", g.norm(g.x), g.number(1e-8))),
    "x / sqrt(sum(x x))": lambda g: g.op("Div", g.x, g.op("Sqrt", g.squares(g.x))),
    "x * (1 / sqrt(sum(x x)))": lambda g: g.op("Mul", g.x, g.op("Div", g.number(1.0), g.op("Sqrt", g.squares(g.x)))),
    "LpNormalization": lambda g: g.op("LpNormalization", g.x),
    "LpNormalization on axis 1": lambda g: g.op("LpNormalization", g.x, axis=1, p=2),
    "row of tokens": by_row_of_tokens,
    "half precision": by_half,
    "power -0.5": by_power,
    "root of power": by_root_of_power,
    "reciprocal of root": by_reciprocal,
    "reshaped after": lambda g: g.op("Reshape", g.unit(g.x), g.constant(np.asarray([-1, 8]))),
    "squeezed after": lambda g: g.op("Squeeze", g.unit(g.op("Unsqueeze", g.x, g.constant(np.asarray([1])))), g.constant(np.asarray([1]))),
    "rows sliced after": lambda g: g.op("Slice", g.unit(g.x), *(g.constant(np.asarray([n])) for n in (0, 2**40, 0))),
}  # fmt: skip
OTHER = {
    "nothing": lambda g: g.op("Identity", g.x),
    "dense after": lambda g: g.dense(g.unit(g.x)),
    "dense without bias after": lambda g: g.dense(g.unit(g.x), bias=False),
    "scaled after": lambda g: g.op("Mul", g.unit(g.x), g.number(8**0.5)),
    "divided after": lambda g: g.op("Div", g.unit(g.x), g.number(2.0)),
    "weighed after": lambda g: g.op("Mul", g.unit(g.x), g.weight(8)),
    "added after": lambda g: g.op("Add", g.unit(g.x), g.x),
    "cut after": lambda g: g.op("Slice", g.unit(g.x), *(g.constant(np.asarray([n])) for n in (0, 4, 1))),
    "cut by a negative axis": lambda g: g.op("Slice", g.unit(g.x), *(g.constant(np.asarray([n])) for n in (0, 4, -1))),
    "columns chosen after": lambda g: g.op("Gather", g.unit(g.x), g.constant(np.asarray([0, 3])), axis=1),
    "halves joined after": lambda g: g.op("Reshape", g.unit(g.op("Reshape", g.x, g.constant(np.asarray([-1, 4])))), g.constant(np.asarray([-1, 8]))),
    "tokens averaged after": lambda g: g.reduce("ReduceMean", g.unit(g.tokens), [1], keepdims=0),
    "norm of the other axis": lambda g: g.op("Div", g.x, g.norm(g.x, 0)),
    "norm of another tensor": lambda g: g.op("Div", g.x, g.norm(g.dense(g.x))),
    "norm of both axes": lambda g: g.op("Div", g.x, g.reduce("ReduceL2", g.x, [0, 1])),
    "sum of absolute values": lambda g: g.op("Div", g.x, g.reduce("ReduceL1", g.x, [-1])),
    "root mean square": lambda g: g.op("Div", g.x, g.op("Sqrt", g.reduce("ReduceMean", g.op("Mul", g.x, g.x), [-1]))),
    "product with another tensor": lambda g: g.op("Div", g.x, g.op("Sqrt", g.reduce("ReduceSum", g.op("Mul", g.x, g.op("Abs", g.x)), [-1]))),
    "sum of cubes": lambda g: g.op("Div", g.x, g.op("Sqrt", g.reduce("ReduceSum", g.op("Pow", g.op("Abs", g.x), g.number(3.0)), [-1]))),
    "square, not its root": lambda g: g.op("Div", g.x, g.squares(g.x)),
    "inverse square": lambda g: g.op("Mul", g.x, g.op("Reciprocal", g.squares(g.x))),
    "power -1": lambda g: g.op("Mul", g.x, g.op("Pow", g.squares(g.x), g.number(-1.0))),
    "norm, divided by norm": lambda g: g.op("Div", g.op("Expand", g.norm(g.x), g.op("Shape", g.x)), g.x),
    "two over norm": lambda g: g.op("Mul", g.x, g.op("Div", g.number(2.0), g.norm(g.x))),
    "norm times x": lambda g: g.op("Mul", g.x, g.norm(g.x)),
    "large epsilon": lambda g: g.op("Div", g.x, g.op("Add", g.norm(g.x), g.number(1.0))),
    "large floor": lambda g: g.op("Div", g.x, g.op("Clip", g.norm(g.x), g.number(5.0), "")),
    "large floor by Max": lambda g: g.op("Div", g.x, g.op("Max", g.norm(g.x), g.number(5.0))),
    "norm from above": lambda g: g.op("Div", g.x, g.op("Clip", g.norm(g.x), g.number(1e-12), g.number(0.1))),
    "LpNormalization with p 1": lambda g: g.op("LpNormalization", g.x, p=1),
    "LpNormalization on axis 0": lambda g: g.op("LpNormalization", g.x, axis=0),
    "softmax": lambda g: g.op("Softmax", g.x, axis=-1),
    "whole numbers": lambda g: g.op("Cast", g.op("Cast", g.unit(g.x), to=TensorProto.INT32), to=TensorProto.FLOAT),
}  # fmt: skip


def of_unit_length(model):
    """Run a graph and return whether all its vectors have length 1."""
    return bool(np.allclose(np.linalg.norm(run(model, {"input_ids": IDS}).astype(np.float64), axis=-1), 1, atol=2e-3))


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize("form", UNIT)
def test_vectors_of_unit_length(form, opset):
    """Every form is recognized, the values agree, and cutting the graph there changes nothing."""
    draft = Vectors(opset)
    output = UNIT[form](draft)
    model = draft.model(output)
    assert of_unit_length(model)
    assert ends_in_normalize(model, output)
    assert ends_in_normalize(cut(model, output), "token_embeddings")


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("form", OTHER)
def test_vectors_of_other_lengths(form, opset):
    """Similar patterns, and normalization with later changes, are not recognized; the values agree."""
    draft = Vectors(opset)
    output = OTHER[form](draft)
    model = draft.model(output)
    assert not of_unit_length(model)
    assert not ends_in_normalize(model, output)


def test_forms_of_older_opsets():
    """Clip's limits and the axes of Squeeze were attributes before opsets 11 and 13."""
    for opset, limits, wanted in ((9, {"min": 1e-12}, True), (9, {"min": 1.0}, False), (9, {"min": 0.0, "max": 1.0}, False)):
        draft = Vectors(opset)
        output = draft.op("Div", draft.x, draft.op("Clip", draft.norm(draft.x), **limits))
        assert ends_in_normalize(draft.model(output), output) is wanted


def test_constants_that_are_kept_elsewhere():
    """An exponent may be an initializer, a literal of a Constant, or a cast one; external data is unknown."""
    for make in (
        lambda g: g.constant(np.asarray(2, np.float32)),
        lambda g: g.op("Constant", value_float=2.0),
        lambda g: g.op("Constant", value_int=2),
        lambda g: g.op("Cast", g.constant(np.asarray([2])), to=TensorProto.FLOAT),
        lambda g: g.op("CastLike", g.constant(np.asarray(2)), g.x),
    ):
        draft = Vectors()
        square = draft.op("Pow", draft.x, make(draft))
        output = draft.op("Div", draft.x, draft.op("Sqrt", draft.reduce("ReduceSum", square, [-1])))
        model = draft.model(output)
        assert ends_in_normalize(model, output)
    known = next(tensor for tensor in model.graph.initializer if numpy_helper.to_array(tensor).tolist() == 2)
    known.data_location = TensorProto.EXTERNAL
    assert not ends_in_normalize(model, output)


def test_graphs_that_are_broken():
    """A missing tensor, nodes without inputs and constants without values count as not normalized, without an error."""
    draft = Vectors()
    output = UNIT["F.normalize"](draft)
    model = draft.model(output)
    assert not ends_in_normalize(model, "missing")
    assert not ends_in_normalize(model, "input_ids")
    for broken in range(len(model.graph.node)):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        del copy.graph.node[broken].input[:]
        ends_in_normalize(copy, output)
        del copy.graph.node[broken].attribute[:]
        ends_in_normalize(copy, output)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    ends_in_normalize(model, output)
    for kind in ("Div", "Mul", "LpNormalization", "Gather", "Cast", "Sqrt"):
        empty = helper.make_graph([helper.make_node(kind, [], ["y"])], "g", [], [helper.make_tensor_value_info("y", 1, [2, 2])])
        assert not ends_in_normalize(helper.make_model(empty), "y")


def test_functions_and_cycles():
    """Local functions are inlined; a cycle of nodes ends the search."""
    draft = Vectors()
    model = draft.model(draft.unit(draft.x))
    inner = [node for node in model.graph.node if node.op_type in {"ReduceL2", "Div"}]
    takes, gives = [inner[0].input[0]], [inner[-1].output[0]]
    nodes = [helper.make_node("ReduceL2", ["a"], ["n"], axes=[-1]), helper.make_node("Div", ["a", "n"], ["b"])]
    model.functions.append(helper.make_function("local", "unit", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)]))
    kept = [node for node in model.graph.node if node.op_type in {"Gather", "ReduceMean"}]
    del model.graph.node[:]
    model.graph.node.extend([*kept, helper.make_node("unit", takes, gives, domain="local")])
    model.opset_import.append(helper.make_opsetid("local", 1))
    assert of_unit_length(model)
    assert ends_in_normalize(model, gives[0])
    circle = [helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Identity", ["b"], ["a"])]
    graph = helper.make_graph(circle, "g", [], [helper.make_tensor_value_info("a", 1, [2, 2])])
    assert not ends_in_normalize(helper.make_model(graph), "a")


@pytest.mark.parametrize(("file", "output", "wanted"), [
    ("optimum-cli-st/model.onnx", "sentence_embedding", True),
    ("fused-only/onnx/model.onnx", "sentence_embedding", True),
    ("arctic-l-v2/onnx/model.onnx", "sentence_embedding", True),
    ("clip-text/0_CLIPModel/onnx/text_model.onnx", "text_embeds", False),
    ("potion/onnx/model.onnx", "embeddings_out", False),
    ("reranker-minilm/onnx/model.onnx", "logits", False),
    ("embeddinggemma2/onnx/model.onnx", "last_hidden_state", False),
])  # fmt: skip
def test_exports_of_popular_models(file, output, wanted):
    """Graphs that pool internally normalize or do not, as their values show."""
    path = data_file(f"gallery/{file}")
    model = onnx.load(path)
    assert ends_in_normalize(model, output) is wanted
    if len(model.graph.input) < 4 and "offsets" not in {value.name for value in model.graph.input}:
        ids = np.random.default_rng(0).integers(5, 200, (3, 9))
        vectors = run(model, {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}, output)
        assert bool(np.allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)) is wanted
