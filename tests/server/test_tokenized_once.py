"""Each text of a request is tokenized once, on every route; the DeepSparse routes share an open session."""

import threading

import numpy as np
import pytest
from server_kit import serving

from penult import Pipeline
from penult.core.tokenizer import Tokenizer
from penult.deepsparse.config_file import DeepSparseEndpoint
from penult.deepsparse.shared_rows import SharedRows

TEXTS = ["the cat", "a dog sat on the mat", "moon " * 200]
PREDICT = "/predict"


@pytest.fixture(params=["per_token", "reduce_mean"])
def running(request, tiny):
    with serving(DeepSparseEndpoint(model=str(tiny), kwargs={"extraction_strategy": request.param})) as server:
        server.post("/v1/embeddings", {"input": "a"})
        server.post(PREDICT, {"inputs": "a"})  # loads all models
        yield server


@pytest.mark.parametrize(
    ("route", "key"), [("/v1/embeddings", "input"), ("/embed", "inputs"), ("/embed_all", "inputs"), (PREDICT, "inputs")]
)
def test_a_text_is_tokenized_once(running, monkeypatch, route, key):
    """A request of three texts, one of them too long, calls the tokenizer once with the three texts."""
    calls: list[int] = []
    tokenize = Tokenizer.tokenize

    def counted(self, texts, *arguments):
        calls.append(len(texts))
        return tokenize(self, texts, *arguments)

    monkeypatch.setattr(Tokenizer, "tokenize", counted)
    assert running.post(route, {key: TEXTS}).status_code == 200
    assert calls == [len(TEXTS)]


@pytest.mark.parametrize("lengths", [16, (8, 16)])
def test_token_vectors_use_the_open_session(tiny, lengths):
    """`per_token` uses the embedder's session, and returns the rows of a separate pipeline."""
    endpoint = DeepSparseEndpoint(model=str(tiny), kwargs={"sequence_length": lengths})
    with serving(endpoint) as running:
        answer = running.post(PREDICT, {"inputs": TEXTS}).json()["embeddings"]
        (pipeline,) = [
            model.pipeline for model in running.app.state.service.models._models.values() if hasattr(model, "pipeline")
        ]
        assert isinstance(pipeline.embedder, SharedRows)
    length = list(lengths) if isinstance(lengths, tuple) else lengths
    with Pipeline.create(model_path=tiny, sequence_length=length, return_numpy=True, num_cores=1) as own:
        np.testing.assert_allclose(np.float32(answer), np.stack(own(TEXTS).embeddings), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"precision": "int8"}, {"layer": 1}, {"max_length": 16}],
    ids=["int8", "layer", "shorter"],
)
def test_sessions_are_shared_if_token_vectors_are_equal(tiny, options):
    """The session is shared for other lengths and layers; if the token vectors differ, the pipeline opens its own."""
    endpoint = DeepSparseEndpoint(model=str(tiny), **options)
    with serving(endpoint) as running:
        answer = np.float32(running.post(PREDICT, {"inputs": TEXTS[:2]}).json()["embeddings"])
        models = running.app.state.service.models._models.values()
        (pipeline,) = [model.pipeline for model in models if hasattr(model, "pipeline")]
        assert isinstance(pipeline.embedder, SharedRows) == ("precision" not in options)
    layer = 0 if "layer" in options else -1
    with Pipeline.create(model_path=tiny, emb_extraction_layer=layer, return_numpy=True, num_cores=1) as own:
        np.testing.assert_allclose(answer, np.stack(own(TEXTS[:2]).embeddings), atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_only_embedders_that_can_be_shared_are_loaded(tiny, precision):
    """The DeepSparse routes load the embedder of their endpoint in order to share it, but never an int8 graph, which is slow to prepare."""
    with serving(DeepSparseEndpoint(model=str(tiny), open_at_start=False, precision=precision)) as running:
        assert running.post(PREDICT, {"inputs": "a"}).status_code == 200
        assert len(running.app.state.service.models.recipes) == (precision == "fp32")


def test_a_long_prompt_counts_for_each_text(running, monkeypatch):
    """Short texts with a long prompt are tokenized in a thread, which does not block other requests."""
    threads: list[str] = []
    tokenize = Tokenizer.tokenize

    def recorded(self, texts, *arguments):
        threads.append(threading.current_thread().name)
        return tokenize(self, texts, *arguments)

    monkeypatch.setattr(Tokenizer, "tokenize", recorded)
    running.post("/v1/embeddings", {"input": ["a"] * 100, "prompt": "a"})
    running.post("/v1/embeddings", {"input": ["a"] * 100, "prompt": "a" * 100})
    assert len(set(threads)) == 2
