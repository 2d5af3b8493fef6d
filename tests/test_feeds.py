"""Every input that follows from ids and mask is fed, in the dtype and shape its graph asks for."""

import numpy as np
import pytest

from penult.feeds import Padded, Tensor, feed

MASK = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
BATCH = Padded(ids=MASK * 7, mask=MASK, types=np.zeros_like(MASK))
IDS = Tensor("input_ids", np.dtype(np.int64), ("batch", "sequence"))


def fed(name, dtype, *shape):
    return feed([IDS, Tensor(name, np.dtype(dtype), shape)], BATCH)[name]


def test_positions_count_tokens_and_not_padding():
    """Padding before a text shifts no position; int32 and float inputs get theirs."""
    positions = fed("position_ids", np.int32, "batch", "sequence")
    assert positions.dtype == np.int32
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert fed("attention_mask", np.float32, "batch", "sequence").dtype == np.float32
    assert fed("cache_position", np.int64, "sequence").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("past_key_values.0.key", ("batch", 2, "past", 8), (2, 2, 0, 8)),
        ("cache.k.1", ("batch", 2, 8, None), (2, 2, 8, 0)),
        ("past_0", (2, "batch", 4, "past", 8), (2, 2, 4, 0, 8)),
        ("past_key_values.0", ("batch", "past", 16), (2, 0, 16)),
    ],
)
def test_a_cache_is_fed_empty(name, shape, expected):
    """A cache holds no tokens, whatever the exporter called it and in whatever layout."""
    value = fed(name, np.float16, *shape)
    assert (value.shape, value.dtype) == (expected, np.float16)


def test_a_switch_for_the_cache_is_off():
    """A bool of one value says that there is no cache."""
    assert fed("use_cache_branch", np.bool_, 1).tolist() == [False]


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("bbox", np.int64, ("batch", "sequence", 4)),
        ("inputs_embeds", np.float32, ("batch", "sequence", 16)),
        ("encoder_hidden_states", np.float32, ("batch", "source", 16)),
    ],
)
def test_what_does_not_follow_from_ids_is_refused(name, dtype, shape):
    """Nothing is made up: the sentence names the input and what to do."""
    with pytest.raises(ValueError, match=rf"asks for an input '{name}' .* Export the model without it\."):
        fed(name, dtype, *shape)
