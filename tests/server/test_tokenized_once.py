"""Each text of a request is tokenized once, whatever the route; DeepSparse's routes share the session that is open."""

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
    with serving(DeepSparseEndpoint(model=str(tiny), kwargs={"extraction_strategy": request.param})) as made:
        made.post("/v1/embeddings", {"input": "a"})
        made.post(PREDICT, {"inputs": "a"})  # every model is open now
        yield made


@pytest.mark.parametrize(
    ("route", "key"), [("/v1/embeddings", "input"), ("/embed", "inputs"), ("/embed_all", "inputs"), (PREDICT, "inputs")]
)
def test_a_text_is_tokenized_once(running, monkeypatch, route, key):
    """A request of three texts, one of them too long, makes one call of the tokenizer, of these three texts."""
    calls: list[int] = []
    tokenize = Tokenizer.tokenize

    def counted(self, texts, *arguments):
        calls.append(len(texts))
        return tokenize(self, texts, *arguments)

    monkeypatch.setattr(Tokenizer, "tokenize", counted)
    assert running.post(route, {key: TEXTS}).status_code == 200
    assert calls == [len(TEXTS)]


@pytest.mark.parametrize("lengths", [16, (8, 16)])
def test_rows_of_tokens_come_from_the_session_that_is_open(tiny, lengths):
    """`per_token` answers with the rows of the embedder's own graph, and they are those of a pipeline of its own."""
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
def test_another_recipe_may_share(tiny, options):
    """Another length or layer shares the session; where the token vectors would be others, the pipeline opens its own."""
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
def test_only_what_may_be_shared_is_opened_for_it(tiny, precision):
    """DeepSparse's routes open the embedder of a DeepSparse endpoint along with them, but never an int8 graph, which takes long."""
    with serving(DeepSparseEndpoint(model=str(tiny), open_at_start=False, precision=precision)) as running:
        assert running.post(PREDICT, {"inputs": "a"}).status_code == 200
        assert len(running.app.state.service.models.recipes) == (precision == "fp32")


def test_a_prompt_counts_as_often_as_it_is_read(running, monkeypatch):
    """Short texts with a long prompt are tokenized in a thread, so that other requests are answered meanwhile."""
    threads: list[str] = []
    tokenize = Tokenizer.tokenize

    def seen(self, texts, *arguments):
        threads.append(threading.current_thread().name)
        return tokenize(self, texts, *arguments)

    monkeypatch.setattr(Tokenizer, "tokenize", seen)
    running.post("/v1/embeddings", {"input": ["a"] * 100, "prompt": "a"})
    running.post("/v1/embeddings", {"input": ["a"] * 100, "prompt": "a" * 100})
    assert len(set(threads)) == 2
