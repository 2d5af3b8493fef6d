"""NaN guards of attention are removed where the mask can be made finite, and the values stay the same."""

import numpy as np
import pytest
from attention_kit import LOWEST, MASKS, attention, ids, operators
from graph_kit import drop_guards, find_attention, session
from onnx import TensorProto, helper, numpy_helper


def node_of(model, kind):
    return next(node for node in model.graph.node if node.op_type == kind)


def insert(model, before, *nodes):
    """Insert nodes before another."""
    place = list(model.graph.node).index(before)
    for node in reversed(nodes):
        model.graph.node.insert(place, node)


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("form", [
    {"low": -np.inf, "mask": "square"}, {"low": -np.inf, "mask": "causal"}, {"low": LOWEST, "mask": "row"}, {"low": -2.0},
    {"low": -np.inf, "mask": "causal", "scale": "fused"}, {"low": -np.inf, "mask": "causal", "scale": "both"},
    {"low": -np.inf, "mask": "causal", "scale": "heads"},
], ids=str)  # fmt: skip
def test_the_values_stay_the_same(form, padding):
    """Every query that sees a key has the same attention output to the last bit; a query that sees none gets finite values."""
    model = attention(guard="by zeros", **form)
    given = {"input_ids": ids(2, 9), "attention_mask": np.array(MASKS[padding])}
    there = session(model).run(None, given)[0]
    free = drop_guards(model)
    assert ("IsNaN" in operators(free)) == (form.get("scale") == "heads")
    now = session(free).run(None, given)[0]
    blind = (there == 0).all(axis=(2, 3))
    np.testing.assert_array_equal(now[~blind], there[~blind])
    assert np.isfinite(now).all()


def test_a_query_without_keys_gets_the_mean():
    """Its output is the mean of all values, where the guard gave zeros: the softmax of equal scores."""
    model = drop_guards(attention(guard="by zeros", low=-np.inf, mask="square"))
    model.graph.output.append(helper.make_tensor_value_info(node_of(model, "Softmax").output[0], TensorProto.FLOAT, None))
    given = {"input_ids": ids(2, 9), "attention_mask": np.array(MASKS["nothing"])}
    np.testing.assert_allclose(session(model).run(None, given)[1][1], 1 / 9, rtol=1e-6)


def test_attention_is_found_without_its_guard():
    """With a guard, attention is not found; without it, it is."""
    model = attention(guard="by zeros", low=-np.inf, mask="square")
    assert find_attention(model) == []
    assert len(find_attention(drop_guards(model))) == 1


def test_layers_share_a_mask():
    """A shared mask is clamped once, before its first reader, in any order of the guards."""
    model = attention(guard="by zeros", low=-np.inf, mask="causal")
    graph = model.graph
    add, product = node_of(model, "Add"), node_of(model, "MatMul")
    scores = helper.make_node("MatMul", list(product.input), ["scores 2"])
    insert(model, add, scores, helper.make_node("Add", [add.input[0], "scores 2"], ["masked 2"]))
    graph.node.extend([
        helper.make_node("Softmax", ["masked 2"], ["shares 2"], axis=-1),
        helper.make_node("IsNaN", ["shares 2"], ["asked 2"]),
        helper.make_node("Where", ["asked 2", "zero", "shares 2"], ["guarded 2"]),
    ])  # fmt: skip
    graph.output.append(helper.make_tensor_value_info("guarded 2", TensorProto.FLOAT, None))
    free = drop_guards(model)
    kinds = operators(free)
    assert "IsNaN" not in kinds
    assert kinds.count("Max") == 1
    assert kinds.index("Max") < kinds.index("Add")
    given = {"input_ids": ids(2, 9), "attention_mask": np.array(MASKS["right"])}
    for a, b in zip(session(model).run(None, given), session(free).run(None, given), strict=True):
        np.testing.assert_array_equal(b, a)


def test_a_graph_without_guards_is_not_changed():
    """The model itself is returned."""
    model = attention()
    assert drop_guards(model) is model


def test_unused_tensors_are_removed():
    """The zero of the guard, and annotations of removed tensors, are removed too."""
    model = attention(guard="by zeros", low=-2.0)
    model.graph.value_info.append(helper.make_tensor_value_info(node_of(model, "IsNaN").output[0], TensorProto.BOOL, None))
    graph = drop_guards(model).graph
    read = {name for node in graph.node for name in node.input}
    assert len(graph.value_info) == 0
    assert {tensor.name for tensor in graph.initializer} <= read


def test_the_model_is_not_changed():
    """Only a copy is changed."""
    model = attention(guard="by zeros")
    there = model.SerializeToString()
    assert drop_guards(model) is not model
    assert model.SerializeToString() == there


@pytest.mark.parametrize("change", [
    "of scores", "turned over", "by ones", "shares read", "question read", "question given out", "shares given out",
    "masked before", "scores read", "no sum", "another guard last", "two products", "zero of many",
])  # fmt: skip
def test_similar_patterns_are_not_changed(change):
    """Guards of another tensor or with other numbers, attention weights with a second reader, and scores masked in two steps."""
    model = attention(
        guard=change if change in {"of scores", "turned over", "by ones"} else "by zeros", low=-np.inf, mask="square"
    )
    graph = model.graph
    softmax, add, asks = (node_of(model, kind) for kind in ("Softmax", "Add", "IsNaN"))
    guard = next(node for node in graph.node if node.op_type == "Where" and node.input[0] == asks.output[0])
    if change == "shares read":
        graph.node.append(helper.make_node("Neg", [softmax.output[0]], ["negative"]))
    elif change == "question read":
        graph.node.append(helper.make_node("Not", [asks.output[0]], ["is a number"]))
    elif change in {"question given out", "shares given out"}:
        tensor, kind = (asks, TensorProto.BOOL) if change.startswith("question") else (softmax, TensorProto.FLOAT)
        graph.output.append(helper.make_tensor_value_info(tensor.output[0], kind, None))
    elif change == "masked before":
        insert(model, add, helper.make_node("Add", list(add.input), ["masked"]))
        add.input[1] = "masked"
    elif change == "scores read":
        graph.node.append(helper.make_node("Neg", [add.input[1]], ["negative"]))
    elif change == "no sum":
        add.op_type = "Sub"
        add.input[:] = reversed(add.input)
    elif change == "another guard last":  # and attention weights that are graph outputs: the last node does not read them
        graph.output.append(helper.make_tensor_value_info(softmax.output[0], TensorProto.FLOAT, None))
        guard.input[2] = add.input[0]
        graph.node.remove(product := graph.node[-2])
        graph.node.remove(graph.node[-1])
        graph.node.remove(guard)
        graph.node.append(guard)
        graph.output[0].name = guard.output[0]
        assert product.op_type == "MatMul"
    elif change == "two products":
        insert(model, add, helper.make_node("MatMul", list(node_of(model, "MatMul").input), ["more scores"]))
        add.input[0] = "more scores"
    elif change == "zero of many":
        graph.initializer.append(numpy_helper.from_array(np.zeros(9, np.float32), "zeros of keys"))
        guard.input[1] = "zeros of keys"
    assert drop_guards(model) is model


@pytest.mark.parametrize("kind", ["Softmax", "MatMul", "Mul", "Add", "Transpose", "Reshape", "Where"])
@pytest.mark.parametrize("field", ["input", "output"])
def test_a_broken_graph_is_not_changed(kind, field):
    """ONNX Runtime rejects a node with a missing input or output."""
    model = attention(guard="by zeros")
    for node in model.graph.node:
        if node.op_type == kind:
            del getattr(node, field)[-1]
    assert drop_guards(model) is model
