"""`penult pull`: a model from the Hub as a plain folder, for a machine without network."""

import json
import shutil

import numpy as np
import pytest
from hub_server import HubServer, files_of, serve
from huggingface_hub import constants

from penult import Embedder
from penult.pull import pull


@pytest.fixture
def server(tiny, tmp_path, monkeypatch):
    """A Hub with the tiny model, a variant of it and weights of other frameworks."""
    files = files_of(tiny)
    files |= {"onnx/model_O2.onnx": files["onnx/model.onnx"], "model.safetensors": b"torch", "openvino/model.xml": b"<xml/>"}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve({"org/tiny": files}) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        yield running


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_for_another_machine(server: HubServer, tmp_path, monkeypatch, embedder, tiny):
    """The folder has the files of one model, no links and nothing else, and loads without the Hub and its cache."""
    folder = pull("org/tiny", to=tmp_path / "usb" / "tiny")
    assert folder == tmp_path / "usb" / "tiny"
    assert names(folder) == names(tiny) | {".penult-pull.json"}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    shutil.rmtree(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.asked.clear()
    with Embedder.load(folder) as opened:
        assert np.array_equal(opened.embed(["the cat"]), embedder.embed(["the cat"]))
    assert server.asked == []


def test_into_the_cache(server: HubServer):
    """Without a folder, the model is in the Hub's cache afterwards, and loads by its id without a request."""
    folder = pull("org/tiny")
    assert folder.name == server.commit
    server.asked.clear()
    assert pull(f"hf:org/tiny@{server.commit}") == folder
    assert server.asked == []


def test_a_variant(server: HubServer, tmp_path):
    """A variant is pulled by its file name, without the default graph."""
    folder = pull("org/tiny", to=tmp_path / "out", model_file="model_O2.onnx")
    assert {name for name in names(folder) if name.endswith(".onnx")} == {"onnx/model_O2.onnx"}


def test_a_later_pull_replaces_the_files(server: HubServer, tmp_path):
    """A later pull of the same repository replaces all files of the earlier one; an empty folder is accepted."""
    to = tmp_path / "out"
    to.mkdir()
    pull("org/tiny", to=to)
    before = names(to)
    server.repos["org/tiny"]["1_Pooling/notes.txt"] = server.repos["org/tiny"].pop("vocab.txt", b"new")
    server.commit = "b" * 40
    pull(f"org/tiny@{server.commit}", to=to)
    assert names(to) == (before - {"vocab.txt"}) | {"1_Pooling/notes.txt"}
    assert json.loads((to / ".penult-pull.json").read_text())["revision"] == server.commit


def test_a_branch_that_has_moved(server: HubServer, tmp_path, monkeypatch):
    """A pull of a branch requests its newest commit; one of a commit, or offline, uses the cache."""
    pull("org/tiny")
    first = server.commit
    server.commit = "b" * 40
    server.repos["org/tiny"]["1_Pooling/notes.txt"] = b"new"
    asked = len(server.asked)
    assert pull(f"org/tiny@{first}").name == first
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert pull("org/tiny").name == first
    assert len(server.asked) == asked
    assert pull("org/tiny").name == server.commit


@pytest.mark.parametrize("kind", ["other files", "a file more", "another repository", "a file"])
def test_a_folder_with_other_files_is_an_error(kind, server: HubServer, tmp_path):
    """A folder with anything but an earlier pull of this repository is unchanged, and nothing is downloaded."""
    to = tmp_path / "out"
    if kind in ("a file more", "another repository"):
        pull("org/tiny", to=to)
    server.repos["org/other"] = server.repos["org/tiny"]
    if kind == "a file":
        to.write_text("text")
    elif kind != "another repository":
        to.mkdir(exist_ok=True)
        (to / "thesis.txt").write_text("text")
    before = names(to)
    server.asked.clear()
    with pytest.raises(ValueError, match="Pass a new or an empty folder"):
        pull("org/other" if kind == "another repository" else "org/tiny", to=to)
    assert names(to) == before
    assert server.asked == []


def test_a_modified_file_is_rejected(server: HubServer, tmp_path):
    """A graph that was modified in transit, with the same size, is not written to the folder."""
    pull("org/tiny")
    blob = next(path for path in (tmp_path / "hub").rglob("blobs/*") if len(path.name) == 64)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(ValueError, match="not the one in its name"):
        pull("org/tiny", to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["all-mini", "./model", "package:x", "org/tiny/notes.txt"])
def test_invalid_references(text, server: HubServer):
    """The message states that the reference is not a Hub id; for a bare name, also the correct form."""
    with pytest.raises(ValueError, match="is not a Hub id") as caught:
        pull(text)
    assert ("sentence-transformers/all-mini" in str(caught.value)) == (text == "all-mini")
    assert server.asked == []
