"""Every input that follows from ids and mask is built with the dtype and shape of the graph."""

import numpy as np
import pytest

from penult.core.model_inputs import Meaning, Padded, Tensor, feed

MASK = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
LEFT = Padded(ids=MASK * 7, mask=MASK, types=np.zeros_like(MASK))
RIGHT = Padded(ids=MASK[:, ::-1] * 7, mask=MASK[:, ::-1], types=np.zeros_like(MASK))
IDS = Tensor("input_ids", np.dtype(np.int64), ("batch", "sequence"))


def fed(name, dtype, *shape, batch=LEFT, ids=IDS, others=(), **meaning):
    tensor = Tensor(name, np.dtype(dtype), shape)
    value = feed([ids, tensor, *others], batch, meaning=Meaning(**meaning))[name]
    assert value.dtype == dtype
    assert value.flags.c_contiguous
    assert value.ndim == len(shape)
    return value


def refused(name, dtype, *shape, match=r"cannot be computed from token ids\. Export only the text encoder", **given):
    with pytest.raises(ValueError, match=rf"needs '{name}' .*{match}"):
        fed(name, dtype, *shape, **given)


def test_positions_count_tokens_and_not_padding():
    """Padding before or after a text shifts no position and has position 0; int32 and float inputs are supported."""
    assert fed("position_ids", np.int32, "batch", "sequence").tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert fed("position_ids", np.int64, "batch", "sequence", batch=RIGHT).tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]
    assert fed("attention_mask", np.float32, "batch", "sequence").tolist() == MASK.tolist()
    assert fed("cache_position", np.int64, "sequence").tolist() == [0, 1, 2, 3]


def test_positions_begin_at_the_offset():
    """RoBERTa's first token has position 2 and its padding position 1."""
    assert fed("position_ids", np.int64, "b", "s", batch=RIGHT, position_offset=2).tolist() == [[2, 3, 1, 1], [2, 3, 4, 5]]
    assert fed("position_ids", np.int64, "b", "s", position_offset=1).tolist() == [[0, 0, 1, 2], [1, 2, 3, 4]]


def test_positions_of_other_ranks():
    """One row of positions serves all texts padded on the right; equal axes of positions repeat them."""
    assert fed("position_ids", np.int64, "s", batch=RIGHT, position_offset=2).tolist() == [2, 3, 4, 5]
    assert fed("position_ids", np.int64, 1, "s", batch=RIGHT).tolist() == [[0, 1, 2, 3]]
    three = fed("position_ids", np.int64, 3, "b", "s")
    assert (three.shape, three[2].tolist()) == ((3, 2, 4), [[0, 0, 0, 1], [0, 1, 2, 3]])
    for shape in (("s",), (1, "s")):
        with pytest.raises(ValueError, match="cannot express padding on the left"):
            fed("position_ids", np.int64, *shape)
    one = Padded(MASK[:1], MASK[:1], MASK[:1])
    assert fed("position_ids", np.int64, 1, "s", batch=one).tolist() == [[0, 0, 0, 1]]
    refused("position_ids", np.int64, "n", "b", "s")
    refused("position_ids", np.int64)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("past_key_values.0.key", ("batch", 2, "past", 8), (2, 2, 0, 8)),
        ("cache.k.1", ("batch", 2, 8, None), (2, 2, 8, 0)),
        ("keys_0", ("batch", 2, "past", 8), (2, 2, 0, 8)),
        ("keys_0", (None, 2, None, 8), (2, 2, 0, 8)),
        ("past_0", (2, "batch", 4, "past", 8), (2, 2, 4, 0, 8)),
        ("past_key_values.0", ("batch", "past", 16), (2, 0, 16)),
        ("past_key_values.0", ("b2", "past", 16), (2, 0, 16)),
        ("past_conv.0", ("batch", 16, 3), (2, 16, 3)),
        ("cache_params.ssm_states.0", ("batch", 4, 8, 16), (2, 4, 8, 16)),
    ],
)
def test_a_kv_cache_is_empty(name, shape, expected):
    """A KV cache has no tokens, whatever its name and layout; a recurrent state starts at zero."""
    value = fed(name, np.float16, *shape)
    assert value.shape == expected
    assert not value.any()


@pytest.mark.parametrize("name", ["past_key_values.0.key", "cache_k"])
def test_a_kv_cache_of_fixed_size(name):
    """A KV cache with a fixed number of positions is rejected: they would be attended to as tokens."""
    refused(name, np.float32, "batch", 2, 128, 8)
    refused(name, np.float32, 2, 3, 4, 5, 6)


def test_a_switch_for_the_cache_is_off():
    """A bool input with one value turns the KV cache off."""
    assert fed("use_cache_branch", np.bool_, 1).tolist() == [False]
    assert not fed("use_cache_branch", np.bool_)


@pytest.mark.parametrize("name", ["task_id", "task", "task_ids", "task_type_id", "adapter_mask"])
def test_a_task_is_one_value_or_one_per_row(name):
    """The index of the task comes from the caller."""
    assert fed(name, np.int64, task=3) == 3
    assert fed(name, np.int32, 1, task=3).tolist() == [3]
    assert fed(name, np.int64, "batch", task=0).tolist() == [0, 0]
    assert fed(name, np.int64, 2, task=1).tolist() == [1, 1]


def test_a_missing_task():
    """A wrong task gives another vector, so none is guessed."""
    with pytest.raises(ValueError, match=r"^The graph needs `task_id`, but no file states a task\. Pass task=\.\.\.$"):
        fed("task_id", np.int64)
    refused("task_id", np.int64, 5, task=1)
    refused("adapter_mask", np.float32, "batch", task=1)
    refused("task_id", np.int64, "batch", 1, task=1)


def test_counts_of_tokens_and_of_kept_logits():
    """Length inputs have the tokens of each text; only the last logits are requested."""
    assert fed("input_lengths", np.int32, "batch", batch=RIGHT).tolist() == [2, 4]
    assert fed("num_logits_to_keep", np.int64) == 0
    assert fed("logits_to_keep", np.int64, 1).tolist() == [0]
    refused("logits_to_keep", np.int64, "kept")
    refused("lengths", np.int64)
    with pytest.raises(ValueError, match=r"'lengths' .* cannot express padding on the left\. Pad on the right\."):
        fed("lengths", np.int64, "batch")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("batch", 1, 1, "sequence"), (2, 1, 1, 4)),
        (("batch", 1, "sequence", "sequence"), (2, 1, 4, 4)),
        (("batch", None, None, "sequence"), (2, 1, 4, 4)),
        (("batch", 12, 1, "sequence"), (2, 12, 1, 4)),
        (("batch", 1, "sequence"), (2, 1, 4)),
        (("batch", "sequence", "sequence"), (2, 4, 4)),
    ],
)
def test_masks_of_more_axes_are_broadcast(shape, expected):
    """Every query attends to every token, and to no padding."""
    for dtype in (np.int64, np.bool_):
        value = fed("attention_mask", dtype, *shape)
        assert value.shape == expected
        assert (value.reshape(2, -1, 4) == MASK[:, None, :]).all()


def test_unknown_masks():
    """A float mask adds unknown values to the scores; a square mask beside a KV cache is causal in an unknown way."""
    refused("attention_mask", np.float32, "batch", 1, 1, "sequence", match="Export the graph with an attention mask")
    cache = Tensor("past.0", np.dtype(np.float32), ("batch", 2, "past", 8))
    refused("attention_mask", np.bool_, "batch", 1, "s", "s", others=[cache], match="Export the graph with an attention mask")
    assert fed("attention_mask", np.bool_, "batch", 1, 1, "s", others=[cache]).shape == (2, 1, 1, 4)
    refused("attention_mask", np.int64, "batch")
    refused("token_type_ids", np.int64, "batch")
    refused("input_ids", np.int64, "tokens")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("image_features", ("images", 512), (0, 512)),
        ("extra", ("n", 512), (0, 512)),
        ("pixel_values", ("num_images", 3, "height", "width"), (0, 3, 0, 0)),
        ("pixel_values", ("image_batch", 3, 224, 224), (0, 3, 224, 224)),
        ("image_embeds", ("images", 64, 16), (0, 64, 16)),
    ],
)
def test_image_inputs_are_empty(name, shape, expected):
    """A text has none of the items that an axis of their own counts."""
    assert fed(name, np.float32, *shape).shape == expected


def test_inputs_that_describe_images_are_empty():
    """Integers that describe the images, with the same axis or a similar name, are empty as well."""
    pixels = Tensor("values", np.dtype(np.float32), ("n", 3, 8, 8))
    assert fed("sizes", np.int64, "n", 2, others=[pixels]).shape == (0, 2)
    assert fed("pixel_mask", np.bool_, "m", 8, 8).shape == (0, 8, 8)
    refused("sizes", np.int64, "n", 2)


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("bbox", np.int64, ("batch", "sequence", 4)),
        ("inputs_embeds", np.float32, ("batch", "sequence", 16)),
        ("inputs_embeds", np.float32, ("other", "sequence", 16)),
        ("inputs_embeds", np.float32, ("other", "another", 16)),
        ("encoder_hidden_states", np.float32, ("batch", "source", 16)),
        ("features", np.float32, ("other_batch", "source", 16)),
        ("features", np.float32, (None, 16)),
        ("features", np.float32, (4, 16)),
        ("pixel_values", np.float32, ("batch", 3, 224, 224)),
        ("pixel_values", np.float32, ("batch", 3, "height", "width")),
        ("pixel_values", np.float32, (None, 3, None, None)),
        ("scale", np.float32, ()),
        ("scale", np.float32, ("batch",)),
        ("flags", np.bool_, ("batch",)),
        ("count", np.int64, ()),
        ("offset", np.int64, ("batch",)),
        ("decoder_input_ids", np.int64, ("batch", "target")),
    ],
)
def test_inputs_that_do_not_follow_from_ids(name, dtype, shape):
    """No input is guessed: the error names the input and what to do."""
    refused(name, dtype, *shape)


def test_concatenated_ids_with_offsets():
    """A static embedding gets the ids of all texts in one row; a text without ids starts where the next one does."""
    mask = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    batch = Padded(np.array([[5, 0, 9], [9, 9, 9], [7, 9, 9], [9, 9, 9]]), mask, mask)
    ids, offsets = Tensor("input_ids", np.dtype(np.int32), ("n",)), Tensor("offsets", np.dtype(np.int64), ("b",))
    actual = feed([ids, offsets], batch)
    assert (actual["input_ids"].dtype, actual["input_ids"].tolist()) == (np.int32, [5, 0, 7])
    assert (actual["offsets"].dtype, actual["offsets"].tolist()) == (np.int64, [0, 2, 2, 3])
    refused("offsets", np.int64, "b", "n")
