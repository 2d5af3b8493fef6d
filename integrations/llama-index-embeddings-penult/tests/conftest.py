"""A model small enough to build in tests, and an embedder with predictable vectors."""

import numpy as np
import pytest
from llama_index.core import Settings
from models import tiny_model

from llama_index.embeddings.penult import PenultEmbedding


class Lengths:
    """Embed a text as (its length, 1 for a query else 0, 1), and record the calls."""

    dimension = 3
    fingerprint = "lengths-1"

    def __init__(self):
        self.calls = []

    def embed(self, texts, role="document", *, progress=False):
        self.calls.append((list(texts), role, progress))
        rows = [(len(text), role == "query", 1) for text in texts]
        return np.array(rows, np.float32).reshape(-1, 3)


@pytest.fixture
def lengths():
    return Lengths()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep prepared graphs of tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENULT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch):
    """Restore LlamaIndex's global default model after each test."""
    monkeypatch.setattr(Settings, "_embed_model", None)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def embedding(tiny):
    return PenultEmbedding(model_name=str(tiny), threads=1)
