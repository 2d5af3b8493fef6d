"""Fixtures of the server tests: the tiny model on every route, served once for all tests."""

import warnings
from pathlib import Path

import httpx
import pytest
from models import tiny_model
from server_kit import serving

from penult.deepsparse.config_file import DeepSparseEndpoint
from penult.server import Limits
from penult.types import TruncationWarning


@pytest.fixture(scope="session")
def served(tiny):
    """Serve the tiny model on every route, with small limits that tests can exceed."""
    limits = Limits(max_body_bytes=200_000, max_client_batch_size=100, max_text_chars=5_000)
    with serving(DeepSparseEndpoint(model=str(tiny), kwargs={"extraction_strategy": "reduce_mean"}), limits=limits) as running:
        yield running


@pytest.fixture
def client(served):
    """Return an HTTP client of that server."""
    with httpx.Client(base_url=served.url, timeout=20) as made:
        yield made


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory):
    """Create a tiny model with other options, once per name."""
    root = tmp_path_factory.mktemp("more")
    made: dict[str, dict[str, object]] = {}

    def make(name: str, **options) -> Path:
        if name not in made:
            made[name] = options
            return tiny_model(root / name, **options)
        assert made[name] == options, f"{name} was made with other options; give this one another name"
        return root / name

    return make


@pytest.fixture(autouse=True)
def _truncation_is_counted():
    """Ignore TruncationWarning, as a server process does: each response counts its truncated texts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        yield
