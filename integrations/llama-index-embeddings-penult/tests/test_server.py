"""PenultEmbedding over a server: real sockets on this machine."""

import pickle

import numpy as np
import pytest
from models import tiny_model
from server_kit import serving

from llama_index.embeddings.penult import PenultEmbedding
from penult import Embedder
from penult.server import EndpointConfig

TEXTS = ["the cat sat", "a dog on the mat", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("served"), prompts={"query": "query: ", "document": "passage: "})


@pytest.fixture(scope="module")
def served(folder):
    with serving(EndpointConfig(model=str(folder)), api_key="s3cret") as running:
        yield running


@pytest.fixture(scope="module")
def local(folder):
    with Embedder.load(folder, threads=1) as opened:
        yield opened


async def test_server_vectors_equal_local_vectors(served, local):
    """With base_url, texts and queries have the local model's vectors, each with its own prompt, blocking and async."""
    remote = PenultEmbedding(base_url=served.url, api_key="s3cret")
    documents, query = local.embed(TEXTS).tolist(), local.embed(TEXTS[:1], "query")[0].tolist()
    assert remote.get_text_embedding_batch(TEXTS) == documents
    assert await remote.aget_text_embedding_batch(TEXTS) == documents
    assert remote.get_query_embedding(TEXTS[0]) == await remote.aget_query_embedding(TEXTS[0]) == query
    assert not np.allclose(query, documents[0])
    assert remote.cache_namespace == local.fingerprint


def test_the_key_is_read_from_the_environment_and_never_dumped(served, monkeypatch):
    """PENULT_API_KEY is the key; no dump and no representation contains it."""
    monkeypatch.setenv("PENULT_API_KEY", "s3cret")
    remote = PenultEmbedding(base_url=served.url)
    assert len(remote.get_query_embedding("a")) == 32
    assert "s3cret" not in repr(remote) + remote.to_json() + str(remote.to_dict())
    assert len(pickle.loads(pickle.dumps(remote)).get_query_embedding("a")) == 32


def test_a_missing_key_is_reported(served):
    """Without the key, the error contains the server's message."""
    with pytest.raises(PermissionError, match="api_key="):
        PenultEmbedding(base_url=served.url, api_key="wrong").get_query_embedding("a")


async def test_prompts_go_to_the_server(served, folder):
    """With prompts, the vectors are the local model's with the same prompts; a role without one keeps the server's."""
    remote = PenultEmbedding(base_url=served.url, api_key="s3cret", query_instruction="search ")
    with Embedder.load(folder, threads=1, prompts={"query": "search "}) as local:
        query = local.embed(TEXTS[:1], "query")[0].tolist()
        assert remote.get_query_embedding(TEXTS[0]) == await remote.aget_query_embedding(TEXTS[0]) == query
        assert remote.get_text_embedding_batch(TEXTS) == local.embed(TEXTS).tolist()
    plain = PenultEmbedding(base_url=served.url, api_key="s3cret")
    assert plain.get_query_embedding(TEXTS[0]) != query
    assert plain.cache_namespace != remote.cache_namespace


def test_a_server_that_takes_no_prompt(served):
    """DeepSparse's route does not support prompts: they are an error instead of being ignored."""
    remote = PenultEmbedding(base_url=f"{served.url}/predict", api_key="s3cret", prompts={"document": "passage: "})
    with pytest.raises(ValueError, match="DeepSparse does not support prompts in requests"):
        remote.get_text_embedding("a")


def test_options_of_loading_belong_to_the_server(lengths):
    """Load options are an error with base_url; so is a loaded embedder."""
    with pytest.raises(ValueError, match="pooling given with a server"):
        PenultEmbedding(base_url="http://x", pooling="cls")
    with pytest.raises(ValueError, match="files_from, model_file, task given with a server"):
        PenultEmbedding(base_url="http://x", files_from="f", model_file="m", task=0)
    with pytest.raises(ValueError, match="both base_url and embedder"):
        PenultEmbedding(base_url="http://x", embedder=lengths)


def test_the_server_is_part_of_the_pipeline_hash(served):
    """`to_dict` contains the server's URL, so that a pipeline's cache distinguishes servers, and from_dict restores it."""
    remote = PenultEmbedding(base_url=served.url, api_key="s3cret")
    assert remote.to_dict()["base_url"] == served.url
    again = PenultEmbedding.from_dict(remote.to_dict(), api_key="s3cret")
    assert again.get_text_embedding("a") == remote.get_text_embedding("a")
