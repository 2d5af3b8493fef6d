"""The position at which the last layer ends and the head begins, and its description."""

import numpy as np
import pytest
from graph_kit import Draft, hidden_states
from onnx import helper

BLOCK, NORM, FINAL = (
    f"output of the last residual block{norm}; the head follows" for norm in ("", " and its norm", " and the final norm")
)


def last(d, *outputs):
    """Return the last hidden state of a graph, and the reason for it."""
    state = hidden_states(d.model(*outputs))[-1]
    return state.tensor, state.why


def residual(d, x, y):
    return d.op("Add", y, x)


def divided(d, x):
    """Divide x by the root of its mean square, as RMSNorm does before its scale."""
    square = d.op("ReduceMean", d.op("Mul", x, x), axes=[-1])
    return d.op("Div", x, d.op("Sqrt", d.op("Add", square, d.constant(np.float32(1e-6)))))


def decomposed_norm(d, x):
    """Center, divide, scale and shift."""
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


@pytest.mark.parametrize("norm", [Draft.norm, decomposed_norm])
@pytest.mark.parametrize("count", [2, 3])
def test_each_layer_ends_in_a_norm(norm, count):
    """Post-norm: the last layer too; a further norm belongs to the head, for fused and decomposed norms."""
    d, x = layers(count, norm)
    assert last(d, d.dense(norm(d, x))) == (x, NORM)
    assert last(d, x) == (x, NORM)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_final_norm_of_a_stack(count):
    """Pre-norm: the one norm after the last layer counts; without one, the layer ends at the sum."""
    d, x = pre_norm(count)
    assert last(d, d.dense(x)) == (x, BLOCK)
    assert last(d, x) == (x, BLOCK)
    final = d.norm(x)
    assert last(d, d.dense(d.norm(final))) == (final, FINAL)
    assert last(d, final) == (final, FINAL)


@pytest.mark.parametrize("count", [1, 2])
def test_sums_fused_with_their_norms(count):
    """If the sum and the norm of a post-norm layer are one operator, the last of them is the state."""
    d = Draft()
    x = d.norm(d.embed())
    for _ in range(count):
        for block in (d.attention, d.feed_forward):
            x = d.op("SkipLayerNormalization", block(x), x, d.weight(8), d.weight(8), domain="com.microsoft")
    assert last(d, d.dense(d.norm(x))) == (x, NORM if count > 1 else FINAL)


@pytest.mark.parametrize("between", ["Tanh", "Cast", "Slice", "Softmax", "Transpose"])
def test_operators_before_the_final_norm(between):
    """Element-wise operators, casts and reorderings may precede it; a slice of tokens or another statistic belongs to the head."""
    d, x = pre_norm(2)
    said = {"Cast": {"to": 1}, "Transpose": {"perm": [1, 0, 2]}, "Softmax": {"axis": -1}}.get(between, {})
    bounds = [d.constant(np.array(v)) for v in ([0], [1], [1])] if between == "Slice" else []
    final = d.norm(d.op(between, x, *bounds, **said))
    assert last(d, d.dense(final))[1] == (BLOCK if between in {"Slice", "Softmax"} else FINAL)


def scaled(*steps):
    """Return the last state of pre-norm layers with a decomposed final norm and further steps, and the tensors of the steps."""
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
    """At most one vector to multiply and one to add, with scalars between; without a vector, one scalar; all else is the head."""
    assert scaled(*steps) == taken


def test_a_gate_is_not_a_scale():
    """A norm's output times a function of itself belongs to the head."""
    d, x = pre_norm(2)
    final = divided(d, x)
    assert last(d, d.op("Mul", d.op("Mul", final, d.op("Sigmoid", final)), d.weight(8)))[0] == final


# ---- the last block


@pytest.mark.parametrize("count", [1, 2])
def test_a_feed_forward_block_of_the_head_is_not_part_of_a_layer(count):
    """One more feed-forward block after the last layer, with or without its norm."""
    d, x = pre_norm(count)
    assert last(d, d.dense(residual(d, x, d.feed_forward(x))))[0] == x
    d, x = layers(count)
    assert last(d, d.dense(d.norm(residual(d, x, d.feed_forward(x)))))[0] == x


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_layer_has_as_many_blocks_as_the_others(blocks):
    """If the first block is the same, whatever operators the others use; an additional block belongs to the head."""
    d = Draft()
    x = d.embed()
    for kind in ("Tanh", "Sigmoid"):
        x = residual(d, x, d.attention(d.norm(x)))
        for _ in range(blocks):
            x = residual(d, x, d.dense(d.op(kind, d.dense(d.norm(x)))))
    assert last(d, d.dense(residual(d, x, d.feed_forward(x))))[0] == x


def test_the_longest_layer_counts():
    """Among earlier layers of one kind, the longest determines how many blocks the last may have."""
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
    """A convolution between attention and feed-forward is part of the layer, a second feed-forward block is not."""
    d = Draft()
    x = d.embed()
    x = residual(d, x, d.attention(d.norm(x)))
    x = residual(d, x, convolution(d, d.norm(x)))
    x = residual(d, x, d.feed_forward(d.norm(x)))
    assert last(d, d.dense(residual(d, x, d.feed_forward(d.norm(x)))))[0] == x


@pytest.mark.parametrize("between", ["a token", "a mean", "a matrix", "nothing", "the end of padding"])
def test_a_single_layer_without_a_feed_forward_block(between):
    """It ends before a selection or mean of tokens or a matrix, even if a residual block follows."""
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
    """A layer without any other block, if the graph ends with it or its norm."""
    d = Draft()
    x = d.embed()
    x = residual(d, x, d.attention(x))
    assert last(d, x) == (x, BLOCK)
    assert last(d, d.op("Neg", d.norm(x)))[1] == FINAL


# ---- halves


def reversible(count):
    """Build layers y = x + f(z), z = z + g(y), whose state is the concatenation of both halves."""
    d = Draft()
    y = z = d.embed()
    for _ in range(count):
        y = residual(d, y, d.attention(d.norm(z)))
        z = residual(d, z, d.feed_forward(d.norm(y)))
    return d, d.op("Concat", y, z, axis=-1)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_halves_of_a_reversible_model_are_its_state(count):
    """Both halves concatenated, and their norm if there is one."""
    d, both = reversible(count)
    assert last(d, both) == (both, BLOCK)
    assert last(d, d.op("MatMul", both, d.weight(16, 20))) == (both, BLOCK)
    d.nodes.append(helper.make_node("LayerNormalization", [both, d.weight(16)], ["final"]))
    assert last(d, "final") == ("final", FINAL)


@pytest.mark.parametrize("beside", ["what it made", "another lookup", "an earlier state"])
def test_a_head_that_concatenates_other_data(beside):
    """A function of the state, or other data, is not a half of the state."""
    d, x = pre_norm(2)
    other = {
        "what it made": lambda: d.op("Tanh", x),
        "another lookup": d.embed,
        "an earlier state": lambda: d.nodes[0].output[0],
    }
    joined = d.op("Concat", x, other[beside](), axis=-1)
    assert last(d, d.op("MatMul", joined, d.weight(16, 20)))[0] == x
