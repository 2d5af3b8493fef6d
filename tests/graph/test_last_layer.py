"""Where the last layer ends and the head begins, and the words that say so."""

import numpy as np
import pytest
from graph_kit import Draft, hidden_states
from onnx import helper

BLOCK, NORM, FINAL = (
    f"output of the last residual block{norm}; the head follows" for norm in ("", " and its norm", " and the final norm")
)


def last(d, *outputs):
    """Give the last hidden state of a graph, and why it is that."""
    state = hidden_states(d.model(*outputs))[-1]
    return state.tensor, state.why


def residual(d, x, y):
    return d.op("Add", y, x)


def divided(d, x):
    """Divide x by the root of the mean of its squares, as RMSNorm does before its scale."""
    square = d.op("ReduceMean", d.op("Mul", x, x), axes=[-1])
    return d.op("Div", x, d.op("Sqrt", d.op("Add", square, d.constant(np.float32(1e-6)))))


def taken_apart(d, x):
    """Centre, divide, scale and shift."""
    return d.op("Add", d.op("Mul", divided(d, d.op("Sub", x, d.op("ReduceMean", x, axes=[-1]))), d.weight(8)), d.weight(8))


def convolution(d, x):
    turned = d.op("Transpose", x, perm=[0, 2, 1])
    return d.op("Transpose", d.op("Conv", turned, d.weight(8, 8, 3), pads=[1, 1]), perm=[0, 2, 1])


def layers(count, norm=Draft.norm):
    """Start a graph with post-norm layers."""
    d = Draft()
    x = norm(d, d.embed())
    for _ in range(count):
        x = norm(d, residual(d, x, d.attention(x)))
        x = norm(d, residual(d, x, d.feed_forward(x)))
    return d, x


def pre_norm(count):
    """Start a graph with pre-norm layers."""
    d = Draft()
    x = d.embed()
    for _ in range(count):
        x = d.pre_norm_layer(x)
    return d, x


# ---- the last norm


@pytest.mark.parametrize("norm", [Draft.norm, taken_apart])
@pytest.mark.parametrize("count", [2, 3])
def test_each_layer_ends_in_a_norm(norm, count):
    """The last one too, and a norm that follows is the head's, whether norms are one operator or several."""
    d, x = layers(count, norm)
    assert last(d, d.dense(norm(d, x))) == (x, NORM)
    assert last(d, x) == (x, NORM)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_final_norm_of_a_stack(count):
    """Of layers that begin with a norm, the one norm that follows the last; where none follows, the sum."""
    d, x = pre_norm(count)
    assert last(d, d.dense(x)) == (x, BLOCK)
    assert last(d, x) == (x, BLOCK)
    final = d.norm(x)
    assert last(d, d.dense(d.norm(final))) == (final, FINAL)
    assert last(d, final) == (final, FINAL)


@pytest.mark.parametrize("count", [1, 2])
def test_sums_fused_with_their_norms(count):
    """Where the sum and the norm of a post-norm layer are one operator, the last of them is the state."""
    d = Draft()
    x = d.norm(d.embed())
    for _ in range(count):
        for block in (d.attention, d.feed_forward):
            x = d.op("SkipLayerNormalization", block(x), x, d.weight(8), d.weight(8), domain="com.microsoft")
    assert last(d, d.dense(d.norm(x))) == (x, NORM if count > 1 else FINAL)


@pytest.mark.parametrize("between", ["Tanh", "Cast", "Slice", "Softmax", "Transpose"])
def test_what_may_stand_before_the_final_norm(between):
    """Element-wise operators and those that retype or reorder; a range of tokens or another statistic is the head's."""
    d, x = pre_norm(2)
    said = {"Cast": {"to": 1}, "Transpose": {"perm": [1, 0, 2]}, "Softmax": {"axis": -1}}.get(between, {})
    bounds = [d.constant(np.array(v)) for v in ([0], [1], [1])] if between == "Slice" else []
    final = d.norm(d.op(between, x, *bounds, **said))
    assert last(d, d.dense(final))[1] == (BLOCK if between in {"Slice", "Softmax"} else FINAL)


def scaled(*steps):
    """Give the last state of pre-norm layers whose final norm, taken apart, is followed by steps, and the steps' tensors."""
    d, x = pre_norm(2)
    found = [divided(d, x)]
    for kind, operand in steps:
        found.append(d.op(kind, found[-1], *([] if operand is None else [d.constant(np.asarray(operand, dtype=np.float32))])))
    tensor, _ = last(d, d.dense(found[-1]))
    return found.index(tensor)


VECTOR = np.ones(8)


@pytest.mark.parametrize(
    ("steps", "taken"),
    [
        ([], 0),
        ([("Mul", VECTOR)], 1),
        ([("Add", VECTOR)], 1),
        ([("Mul", VECTOR), ("Add", VECTOR)], 2),
        ([("Mul", VECTOR), ("Add", VECTOR), ("Mul", VECTOR)], 2),
        ([("Mul", VECTOR), ("Mul", VECTOR)], 1),
        ([("Add", VECTOR), ("Add", VECTOR)], 1),
        ([("Mul", 2), ("Mul", VECTOR)], 2),
        ([("Mul", VECTOR), ("Div", 2), ("Add", VECTOR)], 3),
        ([("Mul", VECTOR), ("Mul", 2)], 1),
        ([("Mul", 2)], 1),
        ([("Mul", 2), ("Mul", 3)], 1),
        ([("Div", 2)], 0),
        ([("Identity", None), ("Mul", VECTOR)], 2),
        ([("Tanh", None), ("Mul", VECTOR)], 0),
        ([("Sub", VECTOR), ("Mul", VECTOR)], 0),
        ([("Mul", VECTOR), ("Mul", np.ones((3, 8)))], 1),
        ([("Mul", np.ones((3, 8))), ("Mul", VECTOR)], 0),
    ],
)
def test_the_scale_and_shift_of_a_norm(steps, taken):
    """At most one vector to multiply and one to add, numbers between; without a vector one number; all else is the head's."""
    assert scaled(*steps) == taken


def test_a_gate_is_no_scale():
    """A norm's data times a function of themselves is the head's."""
    d, x = pre_norm(2)
    final = divided(d, x)
    assert last(d, d.op("Mul", d.op("Mul", final, d.op("Sigmoid", final)), d.weight(8)))[0] == final


# ---- the last block


@pytest.mark.parametrize("count", [1, 2])
def test_a_block_of_the_head_is_none_of_the_layers(count):
    """One more feed-forward block after the last layer, with or without its norm."""
    d, x = pre_norm(count)
    assert last(d, d.dense(residual(d, x, d.feed_forward(x))))[0] == x
    d, x = layers(count)
    assert last(d, d.dense(d.norm(residual(d, x, d.feed_forward(x)))))[0] == x


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_layer_has_as_many_blocks_as_the_others(blocks):
    """Where the first block is the same, whatever operators the others are made of; a block more is the head's."""
    d = Draft()
    x = d.embed()
    for kind in ("Tanh", "Sigmoid"):
        x = residual(d, x, d.attention(d.norm(x)))
        for _ in range(blocks):
            x = residual(d, x, d.dense(d.op(kind, d.dense(d.norm(x)))))
    assert last(d, d.dense(residual(d, x, d.feed_forward(x))))[0] == x


def test_the_longest_layer_counts():
    """Of several earlier layers of one kind, the one with most blocks says how many the last may have."""
    for counts, own in (((1, 2), 2), ((2, 1), 2), ((1, 1), 1)):
        d = Draft()
        x = d.embed()
        for count in (*counts, 2):
            x = residual(d, x, d.attention(d.norm(x)))
            ends = []
            for _ in range(count):
                x = residual(d, x, d.feed_forward(d.norm(x)))
                ends.append(x)
        assert last(d, d.dense(x))[0] == ends[own - 1]


def test_a_single_layer_ends_with_its_feed_forward_block():
    """A convolution between attention and feed-forward belongs to it, a second feed-forward block does not."""
    d = Draft()
    x = d.embed()
    x = residual(d, x, d.attention(d.norm(x)))
    x = residual(d, x, convolution(d, d.norm(x)))
    x = residual(d, x, d.feed_forward(d.norm(x)))
    assert last(d, d.dense(residual(d, x, d.feed_forward(d.norm(x)))))[0] == x


@pytest.mark.parametrize("between", ["a token", "a mean", "a matrix", "nothing", "the end of padding"])
def test_a_single_layer_without_a_feed_forward_block(between):
    """It ends before a choice or a mean of tokens or a matrix, though a residual block follows; not before less than that."""
    d = Draft()
    x = d.embed()
    x = residual(d, x, d.attention(d.norm(x)))
    zero, one = d.constant(np.array([0])), d.constant(np.array([1]))
    length = d.op("Slice", d.op("Shape", "input_ids"), one, d.constant(np.array([2])))
    y = {
        "a token": lambda: d.op("Slice", x, zero, one, one),
        "a mean": lambda: d.op("ReduceMean", x, axes=[1]),
        "a matrix": lambda: d.dense(x),
        "nothing": lambda: x,
        "the end of padding": lambda: d.op("Slice", x, zero, length, one),
    }[between]()
    z = residual(d, y, d.feed_forward(y))
    assert last(d, d.dense(z))[0] == (z if between in {"nothing", "the end of padding"} else x)


def test_attention_alone_is_a_layer():
    """A layer without any other block, where the graph ends with it or its norm."""
    d = Draft()
    x = d.embed()
    x = residual(d, x, d.attention(x))
    assert last(d, x) == (x, BLOCK)
    assert last(d, d.op("Neg", d.norm(x)))[1] == FINAL


# ---- halves


def reversible(count):
    """Build layers y = x + f(z), z = z + g(y), whose state is both halves side by side."""
    d = Draft()
    y = z = d.embed()
    for _ in range(count):
        y = residual(d, y, d.attention(d.norm(z)))
        z = residual(d, z, d.feed_forward(d.norm(y)))
    return d, d.op("Concat", y, z, axis=-1)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_halves_of_a_reversible_model_are_its_state(count):
    """Both, side by side, and their norm where one follows."""
    d, both = reversible(count)
    assert last(d, both) == (both, BLOCK)
    assert last(d, d.op("MatMul", both, d.weight(16, 20))) == (both, BLOCK)
    d.nodes.append(helper.make_node("LayerNormalization", [both, d.weight(16)], ["final"]))
    assert last(d, "final") == ("final", FINAL)


@pytest.mark.parametrize("beside", ["what it made", "another lookup", "an earlier state"])
def test_a_head_that_puts_something_beside_the_state(beside):
    """A function of the state, or something that does not come from it, is no half of it."""
    d, x = pre_norm(2)
    other = {
        "what it made": lambda: d.op("Tanh", x),
        "another lookup": d.embed,
        "an earlier state": lambda: d.nodes[0].output[0],
    }
    joined = d.op("Concat", x, other[beside](), axis=-1)
    assert last(d, d.op("MatMul", joined, d.weight(16, 20)))[0] == x
