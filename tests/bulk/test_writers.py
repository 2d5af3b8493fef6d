"""Rows as lines of JSON: what a vector's values look like, and that they read back to the bit."""

import json

import numpy as np
import pyarrow as pa
import pytest

from penult.bulk import tables, writers


@pytest.mark.parametrize("together", [3, 1024])
def test_vectors_read_back_to_the_bit(monkeypatch, together):
    """Any finite float32 does, a -0 and the smallest and largest too, however many rows are written together."""
    monkeypatch.setattr(writers, "_LINES", together)
    special = [0.0, -0.0, 1, -1, 0.1, 1e-5, 1e-45, 16_777_216, 1e15, 3.4028235e38, -1e-7, 1e21]
    bits = np.random.default_rng(0).integers(0, 2**32, 4_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([np.array(special, np.float32), bits[np.isfinite(bits)]])
    vectors = values[: len(values) // 4 * 4].reshape(-1, 4)
    table = tables.with_vectors(pa.table({"é": range(len(vectors))}), "v", vectors, {})
    rows = [json.loads(line) for line in writers._lines(table, "v")]
    assert [row["é"] for row in rows] == list(range(len(vectors)))
    assert np.array([row["v"] for row in rows], np.float32).tobytes() == vectors.tobytes()


def test_a_line_of_json():
    """Values in the fewest digits, after the other columns where there are any; without a vector, those alone."""
    vectors = np.array([[0.1, -0.0, 1]], np.float32)
    table = tables.with_vectors(pa.table({"text": ["日本"]}), "v", vectors, {})
    assert list(writers._lines(table, "v")) == ['{"text": "日本", "v": [0.1, -0.0, 1]}\n'.encode()]
    assert list(writers._lines(table.drop_columns(["text"]), "v")) == [b'{"v": [0.1, -0.0, 1]}\n']
    assert list(writers._lines(table.drop_columns(["v"]))) == ['{"text": "日本"}\n'.encode()]
    assert list(writers._lines(table.slice(0, 0), "v")) == []
