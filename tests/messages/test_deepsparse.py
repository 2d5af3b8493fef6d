"""The messages of the section "DeepSparse" of docs/troubleshooting.md, each triggered as a user would meet it."""

import logging

import messages_kit
import pytest
from starlette.testclient import TestClient

from penult import Pipeline
from penult.deepsparse import config_file, routes
from penult.deepsparse.config_file import DeepSparseEndpoint, DeepSparseServer
from penult.server.app import create_app

SECTION = "DeepSparse"


def test_zoo_stub(tmp_path, monkeypatch):
    """A stub of SparseZoo is not in the cache."""
    monkeypatch.setenv("SPARSEZOO_MODELS_PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        Pipeline.create(model_path="zoo:bert-base-none")
    messages_kit.check(SECTION, "A zoo: stub is not in the cache", str(caught.value), CACHE=tmp_path)


def test_ignored_arguments(tiny, caplog):
    """Arguments without an effect are logged in one line."""
    with caplog.at_level(logging.WARNING, "penult"):
        Pipeline.create(model_path=tiny, num_cores=1, num_streams=4, scheduler="elastic").close()
    (record,) = caplog.records
    messages_kit.check(SECTION, "Arguments are ignored", record.getMessage())


def test_missing_attribute(tiny):
    """An attribute of DeepSparse's pipeline that penult does not have."""
    with Pipeline.create(model_path=tiny, num_cores=1) as pipeline, pytest.raises(AttributeError) as caught:
        _ = pipeline.tokenizer
    messages_kit.check(SECTION, "An attribute of Pipeline is missing", str(caught.value))


def test_layer_out_of_range(tiny):
    """The model has two layers."""
    with pytest.raises(ValueError, match="emb_extraction_layer") as caught:
        Pipeline.create(model_path=tiny, emb_extraction_layer=12)
    messages_kit.check(SECTION, "The layer is out of range", str(caught.value))


def test_ignored_key(tmp_path, caplog):
    """A key without an effect is logged with its line."""
    file = tmp_path / "config.yaml"
    file.write_text("num_workers: 2\nendpoints:\n  - task: transformers_embedding_extraction\n    model: org/model\n")
    with caplog.at_level(logging.INFO, "penult"):
        config_file.read(file)
    (record,) = caplog.records
    messages_kit.check(SECTION, "A key of the configuration file is ignored", record.getMessage(), FOLDER=tmp_path)


def test_endpoints_without_a_key(tiny):
    """A server without a key refuses new endpoints."""
    endpoints = (DeepSparseEndpoint(model=str(tiny)),)
    app = create_app(DeepSparseServer(endpoints=endpoints, host="127.0.0.1", threads=1), routes.add)
    response = TestClient(app, base_url="http://localhost").post("/endpoints", json={"task": "t", "model": "m"})
    app.state.service.models.close()
    assert response.status_code == 403
    messages_kit.check(SECTION, "Endpoints cannot be changed (403)", response.json()["detail"])


def test_every_message_has_a_test():
    """The section and these tests have the same headings."""
    messages_kit.check_complete(
        SECTION,
        (
            "A zoo: stub is not in the cache",
            "Arguments are ignored",
            "An attribute of Pipeline is missing",
            "The layer is out of range",
            "A key of the configuration file is ignored",
            "Endpoints cannot be changed (403)",
        ),
    )
