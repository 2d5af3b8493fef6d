"""Where models are found: folders, files, packages, and a local Hub."""

import json
import os
import shutil
import subprocess
import sys
import threading
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import tiny_model

from penult import Embedder
from penult.core.source import resolve


def test_a_folder_or_its_file(tiny):
    """A folder means its default graph; a graph alone finds the tokenizer in the folder above."""
    assert resolve(tiny) == resolve(str(tiny))
    assert resolve(tiny).model == tiny / "onnx" / "model.onnx"
    assert resolve(tiny / "onnx" / "model.onnx").folder == tiny


def test_several_graphs(tmp_path):
    """Two graphs without a standard name are an error that lists them; a single one is used."""
    (tmp_path / "a.onnx").write_bytes(b"x")
    assert resolve(tmp_path).model.name == "a.onnx"
    (tmp_path / "b.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.onnx, b\.onnx"):
        resolve(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert resolve(tmp_path).model.name == "model.onnx"


def test_a_missing_model(tmp_path):
    """A reference that is not a file, a Hub id or a package is an error that says so."""
    with pytest.raises(FileNotFoundError, match=r"not a local file or folder"):
        resolve(str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match=r"has no \.onnx file"):
        resolve(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"not an \.onnx file"):
        resolve(tmp_path / "notes.txt")


def test_pointers_and_incomplete_models(tmp_path):
    """A Git LFS pointer, an empty file and missing weights are errors that say what to do."""
    graph = tmp_path / "model.onnx"
    graph.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        resolve(tmp_path)
    graph.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        resolve(tmp_path)
    external(tiny_model(tmp_path / "whole"), graph)
    (tmp_path / "model.onnx_data").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights in model\.onnx_data, which is missing"):
        resolve(tmp_path)


def test_external_data_with_an_invalid_name(tmp_path):
    """External data with a name longer than the disk allows are an error like other missing files."""
    graph = external(tiny_model(tmp_path / "whole"), tmp_path / "model.onnx")
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "x" * 300
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(FileNotFoundError, match=r"weights in x{300}, which is missing"):
        resolve(tmp_path)


def external(folder: Path, target: Path) -> Path:
    """Rewrite a model's graph with its weights as external data."""
    model = onnx.load(folder / "onnx" / "model.onnx")
    onnx.save_model(model, target, save_as_external_data=True, location=f"{target.name}_data", size_threshold=100)
    return target


def test_an_incomplete_file(tmp_path):
    """A graph or weights that are cut off at any byte are errors."""
    folder = tiny_model(tmp_path)
    graph = folder / "onnx" / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.onnx.*Download it again"):
        Embedder.load(folder)
    graph.write_bytes(whole)
    external(folder, graph)
    data = graph.with_name("model.onnx_data")
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"is incomplete: it has \d+ bytes, and the weights"):
        Embedder.load(folder)


def test_external_data_behind_links(tmp_path, embedder):
    """A snapshot of links to blobs works, as in the Hub's cache."""
    folder = tiny_model(tmp_path / "real")
    external(folder, folder / "onnx" / "model.onnx")
    store = tmp_path / "hub" / "models--a--b"
    (store / "blobs").mkdir(parents=True)
    snapshot = store / "snapshots" / "0123abc"
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        blob = store / "blobs" / f"blob{number}"
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    with Embedder.load(snapshot) as e:
        assert np.array_equal(e.embed(["the cat"]), embedder.embed(["the cat"]))


@pytest.mark.parametrize("place", ["../secret", "/etc/hostname", "link"])
def test_data_outside_the_folder(tmp_path, place):
    """A graph cannot read other files of this machine, by a path or through a link."""
    folder = tiny_model(tmp_path / "model")
    graph = external(folder, folder / "onnx" / "model.onnx")
    data = graph.with_name("model.onnx_data")
    shutil.move(data, tmp_path / "model" / "secret" if place == "../secret" else tmp_path / "secret")
    if place == "link":
        (graph.parent / "link").symlink_to(tmp_path / "secret")
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="outside its folder"):
        Embedder.load(folder)


def test_weights_in_a_package(tmp_path, monkeypatch, embedder):
    """package:NAME/folder finds an installed package's files without importing it."""
    package = tmp_path / "carrier_of_weights"
    tiny_model(package / "assets" / "tiny")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with Embedder.load("package:carrier_of_weights/assets/tiny") as e:
        assert np.array_equal(e.embed(["dog"]), embedder.embed(["dog"]))
    with pytest.raises(ValueError, match="outside the package"):
        resolve("package:carrier_of_weights/../..")
    with pytest.raises(FileNotFoundError, match="has no 'other'"):
        resolve("package:carrier_of_weights/other")
    with pytest.raises(FileNotFoundError, match="the package 'not_installed_at_all' is not installed"):
        resolve("package:not_installed_at_all")


class Hub:
    """A local Hub with one repository that counts its requests."""

    commit = "a" * 40

    def __init__(self, folder: Path) -> None:
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.asked: list[str] = []
        self.broken: set[str] = set()
        self.altered: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request):
        path = request.path.partition("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/org/tiny/tree/"):
            entries = [{"type": "file", "path": n, "size": len(c), "oid": sha1(c).hexdigest()} for n, c in self.files.items()]
            return self.send(request, 200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        if path.startswith("/api/models/org/tiny"):
            body = json.dumps(
                {"id": "org/tiny", "sha": self.commit, "siblings": [{"rfilename": n} for n in self.files]}
            ).encode()
            return self.send(request, 200, body, {"Content-Type": "application/json"})
        name = path.partition(f"/resolve/{self.commit}/")[2]
        if name not in self.files:
            return self.send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        content = self.files[name]
        etag = sha256(content).hexdigest() if name.endswith(".onnx") else sha1(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit}
        if name in self.broken and request.command == "GET":
            request.send_response(200)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content[: len(content) // 2])
            return request.wfile.flush()
        return self.send(request, 200, self.altered.get(name, content), headers)

    def send(self, request, status, body, headers):
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def hub(tiny, tmp_path):
    """A local Hub with the tiny model, and weights of other frameworks that must not be downloaded."""
    folder = tmp_path / "repo"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").write_bytes(b"big")
    (folder / "onnx" / "model_O2.onnx").write_bytes(b"other")
    served = Hub(folder)
    yield served
    served.server.shutdown()
    served.server.server_close()


# In a process of its own: huggingface_hub reads its settings once, when it is imported.
_LOAD = """
import sys, numpy as np
from penult import Embedder
e = Embedder.load(sys.argv[1])
print(e.recipe.pooling, e.embed(["the cat"])[0][:3].tolist())
"""


def load(tmp_path, url, reference="org/tiny", **env):
    settings = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", _LOAD, reference], env=os.environ | settings | env, capture_output=True, text=True, timeout=120
    )


def test_the_hub_is_queried_once(hub, tmp_path, embedder):
    """The first load downloads only what is needed; the second, and an offline one, send no request."""
    first = load(tmp_path, hub.url)
    assert first.returncode == 0, first.stderr
    assert first.stdout.split()[0] == "mean"
    assert np.allclose(json.loads(first.stdout.partition(" ")[2]), embedder.embed(["the cat"])[0][:3], atol=1e-6)
    assert not any("safetensors" in path or "O2" in path for path in hub.asked)
    hub.asked.clear()
    for env in ({}, {"HF_HUB_OFFLINE": "1"}):
        again = load(tmp_path, hub.url, **env)
        assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    assert load(tmp_path, hub.url, "hf:org/tiny@" + hub.commit).stdout == first.stdout
    assert hub.asked == []


def test_a_file_missing_in_the_repository(hub, tmp_path):
    """A graph or external data that the Hub does not have are named in the error, whatever is cached."""
    missing = load(tmp_path, hub.url, "org/tiny/onnx/model_O9.onnx")
    assert "the repository has no 'onnx/model_O9.onnx'" in missing.stderr
    assert load(tmp_path, hub.url, "org/tiny/onnx/model.onnx").returncode == 0
    missing = load(tmp_path, hub.url, "org/tiny/onnx/model_O9.onnx")
    assert "the repository has no 'onnx/model_O9.onnx'" in missing.stderr
    external(tmp_path / "repo", tmp_path / "apart.onnx")
    hub.files["onnx/apart.onnx"], hub.commit = (tmp_path / "apart.onnx").read_bytes(), "b" * 40
    missing = load(tmp_path, hub.url, "org/tiny/onnx/apart.onnx")
    assert "the repository has no apart.onnx_data, the external data of onnx/apart.onnx" in missing.stderr


def test_an_empty_graph_of_the_hub(hub, tmp_path):
    """An empty graph is an error that says so, when it is downloaded and when it is cached."""
    hub.files["onnx/model.onnx"] = b""
    for _ in range(2):
        empty = load(tmp_path, hub.url)
        assert "onnx/model.onnx is empty: its download was not completed. Download it again." in empty.stderr


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name(name, tmp_path, monkeypatch):
    """An empty path would be the current folder, which is not intended."""
    monkeypatch.chdir(tiny_model(tmp_path))
    with pytest.raises(ValueError, match="The model is an empty string"):
        resolve(name)


def test_an_interrupted_download_is_completed(hub, tmp_path):
    """An interrupted download is an error; the next one completes it."""
    hub.broken.add("onnx/model.onnx")
    first = load(tmp_path, hub.url)
    assert first.returncode != 0
    assert "'org/tiny' is not a local folder, is not complete in the Hub's cache, and could not be downloaded" in first.stderr
    hub.broken.clear()
    assert load(tmp_path, hub.url).returncode == 0


def test_offline_and_nothing_cached(hub, tmp_path):
    """HF_HUB_OFFLINE with an empty cache: no request, and an error that says what to do."""
    result = load(tmp_path, hub.url, HF_HUB_OFFLINE="1")
    assert result.returncode != 0
    assert "Without network, run `penult pull org/tiny" in result.stderr
    assert hub.asked == []


def test_a_partial_snapshot_is_completed(hub, tmp_path):
    """A snapshot without modules.json does not show the pooling: the Hub is queried, and nothing is guessed."""
    assert load(tmp_path, hub.url).returncode == 0
    snapshot = next((tmp_path / "home" / "hub").rglob("snapshots/*"))
    (snapshot / "modules.json").unlink()
    shutil.rmtree(snapshot / "1_Pooling")
    again = load(tmp_path, hub.url)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("mean")


def test_content_that_is_not_what_the_hub_states(hub, tmp_path):
    """Weights of a pinned commit must have the SHA-256 that the Hub states, after the download and later in the cache."""
    pinned, whole = f"org/tiny@{hub.commit}", hub.files["onnx/model.onnx"]
    at = whole.index(np.float32(2**0.5).tobytes())
    other = whole[:at] + np.float32(1.41422).tobytes() + whole[at + 4 :]
    refused = f"has the SHA-256 {sha256(other).hexdigest()}, not the one in its name"

    hub.altered["onnx/model.onnx"] = other
    first = load(tmp_path, hub.url, pinned)
    assert first.returncode != 0
    assert refused in first.stderr
    assert load(tmp_path, hub.url, pinned, HF_HUB_OFFLINE="1").returncode != 0  # nor is it taken later

    hub.altered.clear()
    blob = next((tmp_path / "home" / "hub").rglob(f"blobs/{sha256(whole).hexdigest()}"))
    assert str(blob) in first.stderr
    blob.unlink()  # as the error says
    assert load(tmp_path, hub.url, pinned).returncode == 0

    blob.chmod(0o644)
    blob.write_bytes(other)
    again = load(tmp_path, hub.url, pinned)
    assert again.returncode != 0
    assert refused in again.stderr
