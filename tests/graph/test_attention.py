"""Fused attention: the same values with every mask, and only for attention with a padding mask."""

from itertools import product
from math import prod

import numpy as np
import pytest
from attention_kit import MASKS, WINDOW, attention, ids, operators
from graph_kit import GRAPHS, ZOO, drop_guards, find_attention, fuse_attention, load, session, stored
from hypothesis import given, settings
from hypothesis import strategies as st
from models import bert_graph, bert_weights
from onnx import TensorProto, helper, numpy_helper


def both(model, given, fused=None):
    """Run a graph unchanged and fused."""
    fused = fused or fuse_attention(model)
    assert fused is not model
    return session(model).run(None, given)[0], session(fused).run(None, given)[0]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", [
    {}, {"scale": "divided"}, {"scale": "both"}, {"scale": "fused"}, {"scale": "none"}, {"scale": "before"},
    {"turn": "gated"}, {"turn": "twice"}, {"turn": "rotary"},
    {"turn": "rotary", "scale": "fused"}, {"turn": "twice", "scale": "both"}, {"width": 7, "value_width": 5}, {"heads": 1},
    {"low": -1e4}, {"low": -2.0},
    {"low": -2.0, "scale": "divided"},  {"mask": "square"}, {"mask": "window"},
    {"low": -2.0, "mask": "heads and queries", "heads": 3}, {"mask": "shared row"},
    {"turn": "flat"}, {"end": "reshaped"}, {"scale": "both", "turn": "flat", "end": "reshaped"},
], ids=str)  # fmt: skip
def test_every_form_of_attention_keeps_its_values(form, mask):
    """However an exporter writes scale, transposes and mask, the values are the same with and without padding."""
    model = attention(**form)
    given = {"input_ids": ids(2, 9), "attention_mask": np.array(MASKS[mask])}
    there, fused = both(model, given)
    # A text of padding alone has no mix worth the name: 1e4 hides its digits, and of infinity nothing is left.
    rows = np.array(MASKS[mask]).any(axis=1) if form.get("low") in {-1e4, -np.inf} else slice(None)
    np.testing.assert_allclose(fused[rows], there[rows], atol=2e-6)


@pytest.mark.parametrize("length", [1, 3, WINDOW, WINDOW + 1, 2 * WINDOW])
def test_a_local_window_is_followed_in_long_texts_only(length):
    """A mask that differs between queries only in long texts is applied there."""
    mask = np.ones((2, length), dtype=np.int64)
    mask[1, 1:3] = 0
    there, fused = both(attention(mask="window"), {"input_ids": ids(2, length), "attention_mask": mask})
    np.testing.assert_allclose(fused, there, atol=2e-6)


def test_minus_infinity_masks_too():
    """A mask of minus infinity leaves no NaN for a masked key."""
    given = {"input_ids": ids(2, 9), "attention_mask": np.array(MASKS["right"])}
    there, fused = both(attention(mask="square", low=-np.inf), given)
    np.testing.assert_allclose(fused, there, atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 70), st.integers(1, 4), st.integers(2, 9), st.integers(2, 9))
def test_any_size_and_any_padding(data, rows, length, heads, width, value_width):
    """Rows, tokens, heads and channels may have any size, and any tokens may be padding."""
    bits = data.draw(st.lists(st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=rows, max_size=rows))
    given = {"input_ids": ids(rows, length), "attention_mask": np.array(bits)}
    there, fused = both(attention(heads=heads, width=width, value_width=value_width), given)
    np.testing.assert_allclose(fused, there, atol=5e-6)


def test_no_decomposed_attention_remains():
    """All decomposed operators are replaced, and the mask is computed once for all layers."""
    model = bert_graph(bert_weights(), heads=2)
    fused = fuse_attention(model)
    assert "Softmax" in operators(model)
    assert "Softmax" not in operators(fused)
    assert operators(fused).count("ReduceL1") == 1
    assert "Equal" not in operators(fused)  # a row for each text is the same for all queries without a look
    assert [opset.domain for opset in fused.opset_import] == ["", "com.microsoft"]
    assert operators(fused).count("If") == operators(model).count("Softmax") + 1  # one for what the mask adds to all keys


def test_a_fused_graph_stays_as_it_is():
    """A second pass changes nothing and returns the model itself."""
    fused = fuse_attention(bert_graph(bert_weights(), heads=2))
    assert fuse_attention(fused) is fused


def test_names_do_not_matter():
    """The same graph with other names is changed in the same way."""
    model = bert_graph(bert_weights(), heads=2)
    for node in model.graph.node:
        node.name = "Softmax"
    assert operators(fuse_attention(model)) == operators(fuse_attention(bert_graph(bert_weights(), heads=2)))


@pytest.mark.parametrize("form", [
    {"mask": "causal"}, {"mask": "heads"}, {"mask": "shared"}, {"mask": "column"}, {"mask": "near"}, {"scale": "heads"},
    {"end": "apart"}, {"end": "regrouped"}, {"end": "read"}, {"turn": "regrouped"}, {"guard": "by zeros"},
], ids=str)  # fmt: skip
def test_similar_patterns_are_not_changed(form):
    """Not changed: masks other than padding, a scale per head, values or keys with other axes, values with a second reader, a guard."""
    model = attention(**form)
    assert fuse_attention(model) is model


@pytest.mark.parametrize("change", ["axis", "opset", "scores", "weights", "half"])
def test_other_forms_are_not_changed(change):
    """Not changed: softmax over another axis, an old opset, scores or attention weights with a second reader, half precision."""
    model = attention(low=-1e4)
    graph = model.graph
    softmax = next(node for node in graph.node if node.op_type == "Softmax")
    if change == "axis":
        softmax.attribute[0].i = 2
    elif change == "opset":
        model.opset_import[0].version = 10
    elif change == "half":
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "to":
                    attribute.i = TensorProto.FLOAT16
    else:
        name = softmax.input[0] if change == "scores" else softmax.output[0]
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    assert fuse_attention(model) is model


@pytest.mark.parametrize(("opset", "axis", "found"), [
    (13, None, 1), (12, None, 0), (12, -1, 1), (12, 3, 1), (17, 3, 1), (17, 1, 0), (17, 2, 0), (11, -1, 1), (10, -1, 0),
])  # fmt: skip
def test_the_axis_of_softmax(opset, axis, found):
    """Attention weights are along the last axis, which older opsets must state."""
    model = attention()
    model.opset_import[0].version = opset
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    del softmax.attribute[:]
    if axis is not None:
        softmax.attribute.append(helper.make_attribute("axis", axis))
    for node in model.graph.node:
        if node.op_type == "Unsqueeze" and opset < 13:
            del node.input[1:]
            node.attribute.append(helper.make_attribute("axes", [1, 2]))
    assert (fuse_attention(model) is not model) == found


def test_attention_that_is_a_graph_output_is_not_changed():
    """An output per head is not changed; a transpose of another tensor is not the transpose of the attention output."""
    model = attention()
    mix, turn = model.graph.node[-2].output[0], model.graph.node[-1]
    assert turn.input[0] == mix
    turn.input[0] = next(node for node in model.graph.node if node.op_type == "Transpose").output[0]
    model.graph.output.append(helper.make_tensor_value_info(mix, TensorProto.FLOAT, None))
    assert find_attention(model) == []


@pytest.mark.parametrize("kind", ["Neg", "Shape"])
def test_attention_with_a_second_reader_is_not_changed(kind):
    """The values before the transpose, or their shape, may have another reader."""
    model = attention(end="reshaped")
    [mix] = (
        node.input[0]
        for node in model.graph.node
        if node.op_type == "Reshape" and node.output[0] == model.graph.node[-1].input[0]
    )
    model.graph.node.append(helper.make_node(kind, [mix], ["more"]))
    if kind == "Shape":
        model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.INT64, [4]))
    assert find_attention(model) == []
    del model.graph.node[-1], model.graph.output[1:]
    assert len(find_attention(model)) == 1


def test_a_mask_from_a_loop_is_not_computed():
    """A mask from a subgraph is not executed for analysis: a loop may not terminate."""
    model = attention()
    add = next(node for node in model.graph.node if node.op_type == "Add")
    branch = helper.make_graph(
        [helper.make_node("Identity", [add.input[0]], ["inner"])], "branch", [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["batch", 1, 1, "sequence"])],
    )  # fmt: skip
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    place = list(model.graph.node).index(add)
    model.graph.node.insert(place, helper.make_node("If", ["yes"], ["decided"], then_branch=branch, else_branch=branch))
    model.graph.node[place + 1].input[0] = "decided"
    assert find_attention(model) == []


@pytest.mark.parametrize("kind", ["Softmax", "MatMul", "Mul", "Add", "Transpose", "Reshape"])
@pytest.mark.parametrize("field", ["input", "output"])
def test_a_broken_graph_is_not_changed(kind, field):
    """ONNX Runtime rejects a node with a missing input or output."""
    model = attention()
    for node in model.graph.node:
        if node.op_type == kind:
            del getattr(node, field)[-1]
    assert fuse_attention(model) is model


@pytest.mark.parametrize(
    ("scale", "found"),
    [
        (np.float32(0.3), True), (np.full((1, 1, 1, 1), 0.3, np.float32), True), (np.full(1, 0.3, np.float32), True),
        (np.full((1,) * 5, 0.3, np.float32), False), (np.full(9, 0.3, np.float32), False),
        (np.float32(5e5), True), (np.float32(1.5e6), False), (np.float32(2e-6), True), (np.float32(5e-7), False),
        (np.float32(-0.3), False), (np.float32(0), False),
    ],
)  # fmt: skip
def test_valid_scales(scale, found):
    """A scale is one number with at most four axes, above 0, and not so large or small that a mask divided by it overflows."""
    model = attention()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "s")
    tensor.CopyFrom(numpy_helper.from_array(scale, "s"))
    assert bool(find_attention(model)) == found


@pytest.mark.parametrize("which", ["Q", "K", "V"])
@pytest.mark.parametrize("change", ["not of the tokens", "unknown heads", "unknown channels", "doubles"])
def test_other_operands_are_not_changed(which, change):
    """Learned queries, keys or values, an unknown number of heads or channels, and other precisions."""
    model = attention()
    gather = next(node for node in model.graph.node if node.input[0] == which)
    reshape = next(node for node in model.graph.node if node.input[0] == gather.output[0])
    if change == "not of the tokens":
        gather.input[1] = "fixed"
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 9), np.int64), "fixed"))
    elif change == "doubles":
        table = next(tensor for tensor in model.graph.initializer if tensor.name == which)
        table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table).astype(np.float64), which))
    else:
        model.opset_import.append(helper.make_opsetid("nobody", 1))
        reshape.input[:] = ["strange", "shape"]
        shape = [2, None] if change.startswith("channels") else [None, 8]
        place = list(model.graph.node).index(reshape)
        model.graph.node.insert(place, helper.make_node("Strange", [gather.output[0]], ["strange"], domain="nobody"))
        for name, last in (("strange", [None]), (reshape.output[0], shape)):
            said = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "sequence", *last])
            model.graph.value_info.append(said)
        numbers = np.array([0, 0, *(size or -1 for size in shape)])
        model.graph.initializer.append(numpy_helper.from_array(numbers, "shape"))
    assert find_attention(model) == []


def test_an_axis_of_another_type_is_ignored():
    """An attribute of another type, found by a fuzzer, is not read; ONNX Runtime rejects the node if it stays."""
    model = attention()
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    del softmax.attribute[:]
    softmax.attribute.append(helper.make_attribute("axis", [0, 1, 2]))
    assert len(find_attention(model)) == 1
    softmax.attribute.append(helper.make_attribute("axis", 2))
    assert find_attention(model) == []


def test_a_scale_without_data_is_not_a_scale():
    """A constant with the shape of a scalar and without data, found by a fuzzer, is not a scale."""
    model = attention()
    next(tensor for tensor in model.graph.initializer if tensor.name == "s").ClearField("raw_data")
    assert fuse_attention(model) is model


def test_external_weights_are_not_read():
    """A position bias with external data is not a padding mask; an external word embedding table does not prevent fusion."""
    model = attention()
    for tensor in model.graph.initializer:
        if tensor.name in {"Q", "K", "V"}:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
    assert len(find_attention(model)) == 1
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 1, 9), dtype=np.float32), "bias"))
    add = next(node for node in model.graph.node if node.op_type == "Add")
    model.graph.node.insert(list(model.graph.node).index(add), helper.make_node("Add", [add.input[0], "bias"], ["biased"]))
    add.input[0] = "biased"
    model.graph.initializer[-1].data_location = TensorProto.EXTERNAL
    assert find_attention(model) == []


def test_the_shape_of_external_weights_is_known():
    """A mask may use the shape of a weight with external data."""
    model = attention()
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "K")
    table.ClearField("raw_data")
    table.data_location = TensorProto.EXTERNAL
    add = next(node for node in model.graph.node if node.op_type == "Add")
    place = list(model.graph.node).index(add)
    for node in (
        helper.make_node("Mul", [add.input[0], "width"], ["wide"]),
        helper.make_node("Cast", ["size"], ["width"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["sizes", "ax"], ["size"]),
        helper.make_node("Shape", ["K"], ["sizes"]),
    ):
        model.graph.node.insert(place, node)
    add.input[0] = "wide"
    assert len(find_attention(model)) == 1


@pytest.mark.parametrize("name", GRAPHS)
def test_stored_graphs(name):
    """A graph of another architecture is changed where it has such attention, and its values stay the same."""
    model, reference = stored(name)
    found = {"megatron-bert-splade": 2, "mobilebert-mlm": 2, "bart-seq2seq": 4}.get(name, 0)
    assert len(find_attention(model)) == found
    if found:
        names = {node.name for node in model.graph.input}
        given = {key: value for key, value in reference.items() if key in names}
        there, fused = (session(m).run(None, given) for m in (model, fuse_attention(model)))
        for a, b in zip(there, fused, strict=True):
            np.testing.assert_allclose(b, a, atol=1e-5 * max(1, np.abs(a).max()))


BERTS = ["albert-mlm", "bert-base", "distilbert-mlm", "electra-discriminator", "roberta-mlm"]


@pytest.mark.parametrize("folder", [name for name in BERTS if (ZOO / name).is_dir()])
@pytest.mark.parametrize("file", ["model", "model_dynamo"])
def test_attention_of_both_exporters_is_found(folder, file):
    """Each layer's attention is found in the graphs of both torch exporters."""
    model = drop_guards(load(ZOO / folder / f"{file}.onnx"))
    assert len(find_attention(model)) == operators(model).count("Softmax") > 0


@pytest.mark.parametrize("turn", ["direct", "twice", "flat"])
def test_transposes_of_keys_are_followed_to_the_split_into_heads(turn):
    """However keys are transposed, their source is used, so that no transpose remains."""
    [found] = find_attention(attention(turn=turn))
    for operand in (found.query, found.key, found.value):
        assert operand.order == (0, 1, 2, 3)
        assert operand.flat is not None
    left = operators(fuse_attention(attention(turn=turn)))
    assert left.count("Transpose") == 0


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.sampled_from([2, 4]))
def test_other_transposes_with_three_axes(data, rows, length, heads, width):
    """Keys that are reshaped to three axes, transposed and reshaped to four again keep their values."""
    model = attention(turn="flat", heads=heads, width=width)
    for tensor in model.graph.input:
        tensor.type.tensor_type.shape.CopyFrom(
            helper.make_tensor_type_proto(TensorProto.INT64, [rows, length]).tensor_type.shape
        )
    turn = next(node for node in model.graph.node if node.op_type == "Transpose" and len(node.attribute[0].ints) == 3)
    turn.attribute[0].ints[:] = data.draw(st.permutations(range(3)) | st.just((0, 2, 1)))
    whole = rows * length * heads * width
    sizes = [2**i for i in range(8)]
    two = st.sampled_from([pair for pair in product(sizes, sizes) if whole % prod(pair) == 0]) | st.just((length, width))
    for name, shape in (("three axes", [-1, *data.draw(two)]), ("four axes", [rows, heads, width, length])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape), name))
        near = turn.input[0] if name == "three axes" else turn.output[0]
        reshape = next(
            node for node in model.graph.node if node.op_type == "Reshape" and near in {node.input[0], node.output[0]}
        )
        reshape.input[1] = name
    given = {"input_ids": ids(rows, length), "attention_mask": np.ones((rows, length), np.int64)}
    there, fused = (session(m).run(None, given)[0] for m in (model, fuse_attention(model)))
    np.testing.assert_allclose(fused, there, atol=5e-6)
