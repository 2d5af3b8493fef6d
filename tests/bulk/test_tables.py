"""A column of texts: rows that cannot be embedded are named, the others get their own vectors."""

import numpy as np
import pyarrow as pa
import pytest

from penult.bulk.tables import texts_of, vectors_of, with_vectors
from penult.bulk.texts import embed_texts
from penult.core.tokenized import Tokenized
from penult.types import TextError


def test_bytes_that_are_not_text(embedder):
    """A string column with invalid UTF-8 loses only those rows, with a reason."""
    good, bad = b"the cat", b"caf\xe9"
    binary = pa.array([good, bad, None, good], pa.binary())
    column = pa.chunked_array([pa.Array.from_buffers(pa.string(), 4, binary.buffers())])
    outcome = embed_texts(embedder, texts_of(column), "document")
    assert outcome.good == [0, 3]
    assert "lone surrogate" in outcome.bad[1]
    assert "NoneType" in outcome.bad[2]
    assert np.array_equal(outcome.vectors, embedder.embed(["the cat", "the cat"]))


class Shaky:
    """An embedder whose vectors are text lengths; "inf" overflows, as in half precision, alone or among others."""

    def __init__(self, *, alone=True):
        self.alone = alone

    def embed(self, texts, role="document"):
        return self.run(self.tokenize(texts, role))

    def tokenize(self, texts, role):
        rows = {row: "is a int, not a str" for row, text in enumerate(texts) if not isinstance(text, str)}
        if rows:
            raise TextError(rows, len(texts))
        ids = [list(text.encode()) for text in texts]
        return Tokenized.of(ids, None, [max(len(row) - 5, 0) for row in ids], 0)

    def run(self, tokenized, done=None):
        if list(b"inf") in tokenized.ids and (self.alone or len(tokenized) > 1):
            raise ArithmeticError("The model gave NaN")
        return tokenized.counts[:, None].astype(np.float32)


def test_rows_that_overflow():
    """Texts with non-finite vectors are rejected one by one, together with values of a wrong type; counts are of the rest."""
    outcome = embed_texts(Shaky(), ["four", "inf", 7, "six--six", "inf"], "document")
    assert outcome.good == [0, 3]
    assert outcome.vectors.tolist() == [[4], [8]]
    assert outcome.bad[1] == outcome.bad[4] == "produces NaN or infinite values in the model"
    assert outcome.bad[2] == "is a int, not a str"
    assert (outcome.tokens, outcome.cut) == (12, 1)
    assert embed_texts(Shaky(), ["12345", "123456"], "document").cut == 1


def test_an_overflow_of_no_single_row():
    """If each row alone is fine, the error is raised, and not retried forever."""
    with pytest.raises(ArithmeticError):
        embed_texts(Shaky(alone=False), ["four", "inf"], "document")


def test_a_column_of_vectors():
    """Vectors round-trip, chunked or not; nulls and other types are an error."""
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    table = with_vectors(pa.table({"a": [1, 2, 3]}), "v", vectors, {"k": "x"})
    assert table.schema.metadata == {b"k": b"x"}
    assert np.array_equal(vectors_of(table.column("v")), vectors)
    assert np.array_equal(vectors_of(table.column("v").combine_chunks()), vectors)
    with_null = with_vectors(pa.table({"a": [1, 2, 3]}), "v", vectors, {}, null=[1])
    assert with_null.column("v").to_pylist() == [[0, 1], None, [4, 5]]
    for column in (with_null.column("v"), pa.chunked_array([[1.0, 2.0]]), pa.chunked_array([[[1.0]]])):
        with pytest.raises(ValueError, match=r"The vector column is .*; it must contain float32 vectors of one size"):
            vectors_of(column)
