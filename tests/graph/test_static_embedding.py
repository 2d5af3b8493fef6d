"""The graph of a static embedding gives the mean of a table's rows, whatever the padding and however long the text."""

import json

import numpy as np
import onnx
import pytest
from conftest import data_file
from graph_kit import append_reducer, cut
from tokenizers import Tokenizer

from penult import Engine
from penult.core.config.module_weights import static_table
from penult.graph.output_names import VECTORS
from penult.graph.rewrite import static_embedding
from penult.graph.rewrite.pooling import Reducer

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(50, 6)).astype(np.float32)


def static_graph(table):
    return static_embedding.static_graph(onnx.numpy_helper.from_array(table))


def embedded(model, ids, mask):
    """Run a graph."""
    onnx.checker.check_model(model, full_check=True)
    with Engine(model.SerializeToString(), threads=1) as engine:
        return engine.mapped_run({"input_ids": ids, "attention_mask": mask})[VECTORS]


def mean(table, ids, mask):
    """The oracle, in float64."""
    return np.stack([
        table[row[real > 0]].astype(np.float64).mean(0) if real.any() else np.zeros(table.shape[1])
        for row, real in zip(ids, mask, strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 7, 4096])
@pytest.mark.parametrize(("texts", "tokens"), [(1, 1), (1, 9), (4, 13), (5, 0)])
def test_the_mean_of_the_rows(texts, tokens, rows, monkeypatch):
    """It is the same whatever the size of the parts, and zeros for a text without tokens."""
    monkeypatch.setattr(static_embedding, "_ROWS", rows)
    ids, mask = RNG.integers(0, 50, (texts, tokens)), (RNG.random((texts, tokens)) < 0.7).astype(np.int64)
    mask[-1] = 0
    found = embedded(static_graph(TABLE), ids, mask)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, mean(TABLE, ids, mask), rtol=1e-5, atol=1e-6)
    assert not found[-1].any()


def test_padding_with_any_id():
    """An id that the table does not have may stand under the mask; elsewhere it is an error."""
    ids, mask = np.array([[3, 4, 2**40], [7, 999, 50]]), np.array([[1, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(embedded(static_graph(TABLE), ids, mask), mean(TABLE, np.minimum(ids, 49), mask), rtol=1e-5)
    with pytest.raises(ValueError, match="has the id 1099511627776; ids must be from 0 to 49"):
        embedded(static_graph(TABLE), ids, np.ones_like(mask))


def test_a_text_of_a_million_tokens():
    """The sums lose nothing over many parts."""
    ids = RNG.integers(0, 50, (1, 1_000_000))
    np.testing.assert_allclose(
        embedded(static_graph(TABLE), ids, np.ones_like(ids)), mean(TABLE, ids, np.ones_like(ids)), atol=1e-6
    )


def test_it_is_cut_and_continued_like_any_graph():
    """Its output can be what a reducer begins with."""
    model = append_reducer(cut(static_graph(TABLE), VECTORS), "token_embeddings", Reducer(None, ("normalize",), dimensions=4))
    ids, mask = np.array([[3, 4, 0], [7, 8, 9]]), np.array([[1, 1, 0], [1, 1, 1]])
    wanted = mean(TABLE, ids, mask)[:, :4]
    np.testing.assert_allclose(embedded(model, ids, mask), wanted / np.linalg.norm(wanted, axis=1, keepdims=True), rtol=1e-5)


def test_a_static_model_of_the_gallery():
    """The vectors that sentence-transformers gives for model2vec's layout, after its Normalize module."""
    folder = data_file("gallery/potion")
    texts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["texts"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    ids, mask = (np.array([getattr(e, name) for e in encodings]) for name in ("ids", "attention_mask"))
    vectors = embedded(static_graph(static_table(folder)), ids, mask)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    with np.load(folder / "expected.npz") as arrays:
        np.testing.assert_allclose(vectors, arrays["document"], atol=1e-6)
