"""Repeated ids are found in any order and number, in bounded memory."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penult.bulk.repeated_ids import HashRuns, find_repeated

SAME_HASH = 2**61 - 1  # Python gives it the hash of 0


def batches(ids, size=7):
    return lambda: (ids[start : start + size] for start in range(0, len(ids), size))


@given(st.lists(st.one_of(st.integers(0, 30), st.text("ab", max_size=3), st.binary(max_size=1), st.floats(0, 2)), max_size=80))
def test_the_count_is_exact(ids):
    """It equals a naive count of rows that repeat an id, and each example is two rows with equal values."""
    # JSON decides: the id 1 is not the id 1.0, and bytes are their base64.
    import base64

    keys = [base64.b64encode(id_).decode() if isinstance(id_, bytes) else id_ for id_ in ids]
    counts = Counter((isinstance(key, float), key) for key in keys)
    found = find_repeated(batches(ids))
    if len(counts) == len(ids):
        assert found is None
        return
    assert found.examples
    for value, first, second in found.examples:
        assert first < second
        assert value == ids[second - 1]
        assert keys[first - 1] == keys[second - 1]


@pytest.mark.parametrize("run", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_runs_of_any_length(run, seed):
    """The number of hashes in memory does not affect the result."""
    hashes = np.random.default_rng(seed).integers(0, 1 << 64, 300, np.uint64)[np.random.default_rng(seed).integers(0, 300, 500)]
    runs = HashRuns(run)
    for part in np.array_split(hashes, 13):
        runs.add(part)
    repeats, candidates = runs.repeated()
    runs.close()
    assert repeats == 500 - len(np.unique(hashes))
    assert set(candidates.tolist()) == {hash_ for hash_, count in Counter(hashes.tolist()).items() if count > 1}


def test_equal_hashes_of_other_ids():
    """Different ids with equal hashes are distinguished by their values."""
    assert hash(SAME_HASH) == hash(0)
    assert find_repeated(batches([0, 1, SAME_HASH, 2])) is None
    found = find_repeated(batches([0, 1, SAME_HASH, 2, SAME_HASH]))
    assert str(found) == f"{SAME_HASH} in rows 3 and 5"


def test_a_long_id_is_shortened_in_the_message():
    """The message shows its first 57 characters."""
    assert str(find_repeated(batches(["x" * 5000, "x" * 5000]))) == f"'{'x' * 56}... in rows 1 and 2"


def test_memory_is_bounded():
    """With a hundred times as many rows as fit in memory at once, memory stays within a few times that size."""
    runs = HashRuns(1 << 12)
    hashes = np.random.default_rng(0).integers(0, 1 << 64, 100 << 12, np.uint64)
    tracemalloc.start()
    runs.add(hashes)
    assert runs.repeated()[0] == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    runs.close()
    bins = 100 * 1025 * 8  # where the bins of a run begin
    assert peak - bins < 6 * 8 << 12
