"""The section "Models" of the troubleshooting page: each message comes from a load that fails."""

from contextlib import contextmanager
from functools import partial
from pathlib import Path

import messages_kit
import onnx
import pytest
from hub_server import Fault, serve
from huggingface_hub import constants
from models import tiny_model, write_json

from penult import Embedder
from penult.core import export
from penult.extras import install_hint

SECTION = "Models"
GRAPH = Path("onnx", "model.onnx")
HUB = "https://huggingface.co"


@contextmanager
def path_without_a_model(folder, monkeypatch):
    """Load from a path that does not exist."""
    yield partial(Embedder.load, "./models/all-MiniLM-L6-v2"), {}


@contextmanager
def offline(folder, monkeypatch):
    """Load a Hub model that is not cached."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", HUB)
    yield partial(Embedder.load, "sentence-transformers/all-MiniLM-L6-v2"), {}


@contextmanager
def unauthorized(folder, monkeypatch):
    """Load from a Hub that answers 401."""
    with serve({}) as server:
        server.faults["list"] = Fault("status", status=401)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield partial(Embedder.load, "my-company/our-model"), {HUB: server.url, "huggingface.co": server.host}


@contextmanager
def weights_without_a_graph(folder, monkeypatch):
    """Load weights for torch where torch is not installed."""
    (folder / GRAPH).unlink()
    (folder / "model.safetensors").write_bytes(b"weights")
    write_json(folder / "config.json", {"model_type": "bert"})
    monkeypatch.setattr(export, "torch_available", lambda: False)
    yield partial(Embedder.load, folder), {"EXTRA": install_hint("export")}


@contextmanager
def neither_graph_nor_weights(folder, monkeypatch):
    """Load a folder that only has configuration files."""
    (folder / GRAPH).unlink()
    yield partial(Embedder.load, folder), {}


@contextmanager
def several_graphs(folder, monkeypatch):
    """Load a folder with two graphs, neither with a standard name."""
    (folder / GRAPH).rename(folder / "onnx" / "model_fp32.onnx")
    (folder / "onnx" / "model_int8.onnx").write_bytes(b"")
    yield partial(Embedder.load, folder), {}


@contextmanager
def unknown_model_file(folder, monkeypatch):
    """Load a graph that the folder does not have."""
    yield partial(Embedder.load, folder, model_file="onnx/model_O4.onnx"), {}


@contextmanager
def missing_external_data(folder, monkeypatch):
    """Load a graph whose weights are in a missing file."""
    model = onnx.load(folder / GRAPH)
    onnx.save(model, folder / GRAPH, save_as_external_data=True, location="model.onnx_data")
    (folder / "onnx" / "model.onnx_data").unlink()
    yield partial(Embedder.load, folder), {}


@contextmanager
def git_lfs_pointer(folder, monkeypatch):
    """Load a clone made without Git LFS."""
    (folder / GRAPH).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 90405214\n")
    yield partial(Embedder.load, folder), {}


@contextmanager
def incomplete_graph(folder, monkeypatch):
    """Load the first part of a graph."""
    (folder / GRAPH).write_bytes((folder / GRAPH).read_bytes()[:40_000])
    yield partial(Embedder.load, folder), {}


@contextmanager
def no_tokenizer(folder, monkeypatch):
    """Load a graph without tokenizer files."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    yield partial(Embedder.load, folder), {}


@contextmanager
def no_pooling(folder, monkeypatch):
    """Load a folder without the files of sentence-transformers."""
    (folder / "modules.json").unlink()
    (folder / "1_Pooling" / "config.json").unlink()
    yield partial(Embedder.load, folder), {}


@contextmanager
def reranker(folder, monkeypatch):
    """Load a model that scores pairs of texts."""
    write_json(folder / "config.json", {"architectures": ["BertForSequenceClassification"]})
    with no_pooling(folder, monkeypatch) as case:
        yield case


@contextmanager
def unwritable_cache(folder, monkeypatch):
    """Load with a PENULT_CACHE that is a file."""
    cache = folder.parent / "cache"
    cache.write_bytes(b"")
    monkeypatch.setenv("PENULT_CACHE", str(cache))
    yield partial(Embedder.load, folder), {"CACHE": cache, "REASON": "File exists"}


CASES = {
    "No model at this path": path_without_a_model,
    "Offline, and the model is not in the cache": offline,
    "401 Unauthorized from the Hub": unauthorized,
    "Weights, but no ONNX file": weights_without_a_graph,
    "No ONNX file and no weights": neither_graph_nor_weights,
    "Several ONNX files": several_graphs,
    "model_file does not exist": unknown_model_file,
    "Weights beside the graph are missing": missing_external_data,
    "A Git LFS pointer in place of a file": git_lfs_pointer,
    "Incomplete ONNX file": incomplete_graph,
    "No tokenizer": no_tokenizer,
    "No pooling is stated": no_pooling,
    "A reranker or a classifier": reranker,
    "PENULT_CACHE cannot be written": unwritable_cache,
}


@pytest.mark.parametrize("heading", CASES)
def test_message(heading, tmp_path, monkeypatch):
    """The load fails with the message on the page."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = tiny_model(tmp_path / "model")
    with CASES[heading](folder, monkeypatch) as (load, names), pytest.raises((OSError, ValueError)) as error:
        load()
    messages_kit.check(SECTION, heading, str(error.value), **{"FOLDER": folder, **names})


def test_every_entry_has_a_case():
    """The entries on the page are the cases here."""
    messages_kit.check_complete(SECTION, CASES)
