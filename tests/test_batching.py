"""Properties of plan(): it covers each text once, within the token budget and with little padding."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penult.core.batching import plan

lengths = st.lists(st.integers(0, 600), max_size=200)
budgets = st.integers(1, 2048)


@given(lengths, budgets)
def test_each_index_once_within_the_budget(texts, budget):
    """Each index occurs once; rows x length stays within the budget, or the text runs alone."""
    batches = plan(texts, budget)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(texts)))
    for batch in batches:
        assert len(batch.indices) * batch.length <= budget or len(batch.indices) == 1
        assert batch.length == max(1, *(texts[i] for i in batch.indices), 1)


@given(lengths, budgets)
def test_padding_of_a_row_is_bounded(texts, budget):
    """A row is padded by at most an eighth of its padded length, or by 4 tokens."""
    for batch in plan(texts, budget):
        assert all(batch.length - max(texts[i], 1) <= max(4, batch.length / 8) for i in batch.indices)


@given(lengths, budgets, st.randoms())
def test_the_order_does_not_matter(texts, budget, random):
    """The same lengths give the same batches; another order gives batches of the same shapes."""
    assert plan(texts, budget) == plan(list(texts), budget)
    shuffled = random.sample(texts, len(texts))
    shapes = [[(len(batch.indices), batch.length) for batch in plan(order, budget)] for order in (texts, shuffled)]
    assert shapes[0] == shapes[1]


@given(lengths, st.integers(600, 4000))
def test_full_batches_are_not_split_needlessly(texts, budget):
    """Two adjacent batches could not be one: together they would exceed the budget or the padding limit."""
    batches = plan(texts, budget)
    for big, small in pairwise(batches):
        joins = max(max(texts[i], 1) for i in small.indices)
        over_budget = (len(big.indices) + 1) * big.length > budget
        assert over_budget or big.length - joins > max(4, big.length / 8)


def test_the_longest_runs_first():
    """The largest batch runs first, so that a batch that does not fit into memory fails at once."""
    assert [batch.length for batch in plan([3, 50, 400, 9], 512)] == [400, 50, 9, 3]


@given(st.lists(st.integers(0, 128), max_size=60), budgets)
def test_buckets_are_the_only_lengths(texts, budget):
    """With buckets, a batch has the length of the smallest bucket that holds its texts."""
    for batch in plan(texts, budget, buckets=[128, 16, 64]):
        assert batch.length in {16, 64, 128}
        for i in batch.indices:
            assert texts[i] <= batch.length
            assert batch.length == min(bucket for bucket in (16, 64, 128) if bucket >= texts[i])


def test_wrong_arguments():
    """A budget below one and a text longer than the largest bucket are errors."""
    with pytest.raises(ValueError, match="max_batch_tokens is 0"):
        plan([1], 0)
    with pytest.raises(ValueError, match=r"20 tokens, more than the longest of the buckets \[8, 16\]"):
        plan([20], 64, buckets=[16, 8])


@given(lengths, budgets, st.integers(1, 600))
def test_lengths_are_even_up_to_a_limit(texts, budget, limit):
    """With even_to, a batch has an even length, or one at or above the limit; no text is truncated and the budget holds."""
    batches = plan(texts, budget, even_to=limit)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(texts)))
    for batch in batches:
        longest = max(1, *(texts[i] for i in batch.indices), 1)
        assert batch.length == (longest + longest % 2 if longest < limit else longest)
        assert len(batch.indices) * batch.length <= budget or len(batch.indices) == 1


def test_where_a_batch_ends():
    """The budget counts the longest row, and padding is allowed up to four tokens or an eighth of the row."""
    shapes = {
        (10, 9, 9): [(2, 10), (1, 9)],  # 3 x 10 > 29
        (9, 9, 9): [(3, 9)],
        (10, 6): [(2, 10)],
        (10, 5): [(1, 10), (1, 5)],
    }
    assert {texts: [(len(b.indices), b.length) for b in plan(texts, 29)] for texts in shapes} == shapes
    assert [len(b.indices) for b in plan([80, 70], 999)] == [2]
    assert [len(b.indices) for b in plan([80, 69], 999)] == [1, 1]
    assert [b.indices for b in plan([7, 7, 8], 999)] == [(1, 0, 2)]
