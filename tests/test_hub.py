"""References to the Hub, the files that are downloaded, and a local Hub that fails in every way."""

import fcntl
import json
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hub_server import Fault, serve
from huggingface_hub import constants
from onnx import TensorProto, helper, numpy_helper

from penult.core import hub
from penult.core.hub import HubId, Snapshot, hint, parse
from penult.core.source import data_files

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hub cache, and settings that do not depend on this machine's variables."""
    for name, value in {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_ETAG_TIMEOUT": 10,
        "HF_HUB_DOWNLOAD_TIMEOUT": 10,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return tmp_path / "hub"


def choose(names: list[str]) -> str:
    """Return the default graph, as `source` does."""
    for usual in ("onnx/model.onnx", "model.onnx"):
        if usual in names:
            return usual
    if len(names) != 1:
        raise (ValueError if names else FileNotFoundError)(f"several or no graphs: {names}")
    return names[0]


def fetch(text: str, **options) -> Snapshot:
    hub_id = parse(text)
    assert hub_id is not None
    return hub.fetch(text, hub_id, **{"choose": choose, "data_files": data_files} | options)


def graph(*data: str) -> bytes:
    """Return the bytes of a graph with external data files of these names."""
    tensors = []
    for number, name in enumerate(data):
        tensor = numpy_helper.from_array(np.zeros(1, np.float32), f"w{number}")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)
        tensors.append(tensor)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([], "g", [], [output], tensors))
    model.metadata_props.append(onnx.StringStringEntryProto(key="size", value="x" * 3_000))
    return model.SerializeToString()


def modules(*listed: tuple[str, str]) -> bytes:
    kinds = [
        {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{k}"} for i, (k, p) in enumerate(listed)
    ]
    return json.dumps(kinds).encode()


BERT = {
    "config.json": b'{"model_type": "bert"}',
    "modules.json": modules(("Transformer", ""), ("Pooling", "1_Pooling")),
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "config_sentence_transformers.json": b'{"prompts": {}}',
    "tokenizer.json": b'{"model": {}}',
    "vocab.txt": b"a\nb\n",
    "README.md": b"---\nbase_model: org/base\n---\n",
}
FRAMEWORKS = {
    "model.safetensors": b"torch",
    "pytorch_model.bin": b"torch",
    "tf_model.h5": b"tensorflow",
    "openvino/openvino_model.xml": b"<xml/>",
    "openvino/openvino_config.json": b"{}",
    ".gitattributes": b"",
}
TINY = BERT | FRAMEWORKS | {
    "onnx/model.onnx": graph("model.onnx_data", "Constant_7_attr__value"),
    "onnx/model.onnx_data": b"w" * 5_000,
    "onnx/Constant_7_attr__value": b"c" * 100,
    "onnx/model_int8.onnx": graph("model_int8.onnx_data"),
    "onnx/model_int8.onnx_data": b"8" * 2_000,
    "onnx/model_fp16.onnx": graph("model_fp16.onnx_data"),
    "onnx/model_fp16.onnx_data": b"f" * 2_000,
    "onnx/tokenizer.json": b"{}",
}  # fmt: skip
NEEDED = {*BERT, "onnx/model.onnx", "onnx/model.onnx_data", "onnx/Constant_7_attr__value", "onnx/tokenizer.json"}


@pytest.fixture
def server(cache, monkeypatch):
    """A Hub with one model of several variants."""
    with serve({"org/tiny": TINY}) as running:
        point(monkeypatch, running.url)
        yield running


def point(monkeypatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)


SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name")),
        ("hf:org/name", HubId("org/name")),
        ("hf://org/name", HubId("org/name")),
        ("hf://models/org/name", HubId("org/name")),
        ("hf:gpt2", HubId("gpt2")),
        ("org/name@v1.0", HubId("org/name", "v1.0")),
        ("org/name@refs/pr/21", HubId("org/name", "refs/pr/21")),
        ("org/name@refs/pr/21/onnx/model.onnx", HubId("org/name", "refs/pr/21", "onnx/model.onnx")),
        ("org/name@refs/pr/21/a/b/model.onnx", HubId("org/name", "refs/pr/21", "a/b/model.onnx")),
        ("org/name@refs/convert/onnx", HubId("org/name", "refs/convert/onnx")),
        ("org/name@feature/x", HubId("org/name", "feature/x")),
        ("org/name@feature/x/onnx/model_O4.onnx", HubId("org/name", "feature/x", "onnx/model_O4.onnx")),
        ("org/name@feature/x/0_BERT/onnx/model.onnx", HubId("org/name", "feature/x", "0_BERT/onnx/model.onnx")),
        ("org/name@main/sub/folder/model.onnx", HubId("org/name", "main", "sub/folder/model.onnx")),
        (f"org/name@{SHA}/sub/model.onnx", HubId("org/name", SHA, "sub/model.onnx")),
        ("org/name/onnx/model.onnx", HubId("org/name", None, "onnx/model.onnx")),
        ("https://huggingface.co/org/name", HubId("org/name")),
        ("http://www.huggingface.co/org/name/", HubId("org/name")),
        ("https://hf.co/org/name?library=x#usage", HubId("org/name")),
        ("huggingface.co/org/name", HubId("org/name")),
        ("https://huggingface.co/gpt2", HubId("gpt2")),
        ("https://huggingface.co/gpt2/tree/main", HubId("gpt2", "main")),
        ("https://huggingface.co/org/name/tree/main", HubId("org/name", "main")),
        ("https://huggingface.co/org/name/tree/main/onnx", HubId("org/name", "main")),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F21", HubId("org/name", "refs/pr/21")),
        ("https://huggingface.co/org/name/tree/refs/pr/21", HubId("org/name", "refs/pr/21")),
        ("https://huggingface.co/org/name/blob/feature%2Fx/onnx/m.onnx", HubId("org/name", "feature/x", "onnx/m.onnx")),
        ("https://huggingface.co/org/name/resolve/main/onnx/m.onnx?download=true", HubId("org/name", "main", "onnx/m.onnx")),
        ("https://mirror.example:8443/hf/org/name/tree/v1", HubId("org/name", "v1")),
    ],
)
def test_references(text, expected, cache, monkeypatch):
    """Every form of a reference gives its repository, revision and file."""
    point(monkeypatch, "https://mirror.example:8443/hf")
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "name", "./org/name", "../name", "/org/name", "~/name", "a/b/c", "org/na me", "org/name@", "org/name@../x",
     "org/name@a/../b", "org/..", "org/name/../../x.onnx", "model.onnx", "org/name@refs/pr/21/notes.txt/../x", "a--b/c", "C:\\x"],
)  # fmt: skip
def test_what_is_not_a_reference(text, cache):
    """Paths, typing errors and unknown bare names are not references: no request is sent for them."""
    assert parse(text) is None


@pytest.mark.parametrize(
    "text",
    ["hf:../x", "hf:org/name/notes.txt", "hf:", "https://example.org/org/name", "https://huggingface.co/datasets/org/name",
     "https://huggingface.co/org/name/discussions/21", "https://huggingface.co/org/name/blob/main/README.md",
     "https://huggingface.co/org/name/tree/main/some/folder", "https://huggingface.co", "https://huggingface.co/org/name/tree"],
)  # fmt: skip
def test_invalid_references(text, cache):
    """An invalid reference to the Hub is an error that states the valid forms."""
    with pytest.raises(ValueError, match=r"org/name|model's files and pass their folder"):
        parse(text)


def test_bare_names(cache, tmp_path, monkeypatch):
    """A bare name is completed from the cache only, sentence-transformers first; otherwise the error suggests the full id."""
    assert parse("all-mini") is None
    assert "sentence-transformers/all-mini" in hint("all-mini")
    assert hint("notes.txt") == hint("org/name") == hint("./x") == ""
    (cache / "models--all-mini" / "snapshots").mkdir(parents=True)
    assert parse("all-mini") == HubId("all-mini")
    (cache / "models--sentence-transformers--all-mini" / "snapshots").mkdir(parents=True)
    assert parse("all-mini") == parse("hf:all-mini") == HubId("sentence-transformers/all-mini")
    assert parse("all-mini@refs/pr/3") == HubId("sentence-transformers/all-mini", "refs/pr/3")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work" / "models").mkdir(parents=True)
    assert parse("work/models/onnx/modle.onnx") is None  # a slip in a path that is here
    assert parse("hf:work/models/onnx/modle.onnx") == HubId("work/models", None, "onnx/modle.onnx")


def test_only_what_is_needed(server, cache):
    """The graph, its external data and the configuration files are downloaded; the next load sends no request."""
    snapshot = fetch("org/tiny")
    assert snapshot.graph == "onnx/model.onnx"
    assert set(server.fetched()) == set(snapshot.names) == NEEDED
    assert all((snapshot.folder / name).read_bytes() == TINY[name] for name in NEEDED)
    assert snapshot.folder.name == snapshot.revision == server.commit
    assert not list(cache.rglob("*.incomplete"))
    server.asked.clear()
    assert fetch("org/tiny") == fetch("org/tiny@main") == fetch(f"hf:org/tiny@{server.commit}") == snapshot
    assert server.asked == []
    assert fetch("org/tiny", refresh=True) == snapshot
    assert [asked.path for asked in server.asked] == ["/api/models/org/tiny/revision/main"]


def test_a_variant_beside_the_usual_graph(server):
    """A variant is downloaded with its own external data; a variant alone in the cache is not used as the default graph."""
    first = fetch("org/tiny", model_file="model_int8.onnx")
    assert first.graph == "onnx/model_int8.onnx"
    assert {"onnx/model_int8.onnx_data"} == {n for n in server.fetched() if "_data" in n}
    server.asked.clear()
    assert fetch("org/tiny/onnx/model_int8.onnx") == first
    assert server.asked == []
    assert fetch("org/tiny").graph == "onnx/model.onnx"
    with pytest.raises(FileNotFoundError, match=r"has no 'onnx/model_O9\.onnx'; it has onnx/model\.onnx"):
        fetch("org/tiny", model_file="onnx/model_O9.onnx")
    with pytest.raises(ValueError, match="Pass one of them"):
        fetch("org/tiny/onnx/model.onnx", model_file="model_int8.onnx")


def test_an_interrupted_download_is_completed(server):
    """An interrupted download is not complete, whichever file is missing, and no file is downloaded twice."""
    server.faults["tokenizer.json"] = Fault("status", status=500)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        fetch("org/tiny")
    server.faults.clear()
    server.asked.clear()
    snapshot = fetch("org/tiny")
    assert set(snapshot.names) == NEEDED
    assert "config.json" not in server.fetched()
    (snapshot.folder / "config_sentence_transformers.json").unlink()
    assert set(fetch("org/tiny").names) == NEEDED


def test_external_data_missing_in_the_repository(server):
    """A graph whose external data are not in the repository is an error that names the file."""
    del server.repos["org/tiny"]["onnx/Constant_7_attr__value"]
    with pytest.raises(FileNotFoundError, match=r"has no Constant_7_attr__value, the external data of onnx/model\.onnx"):
        fetch("org/tiny")


LAYOUTS = {
    "dense": (
        {"modules.json": modules(("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Dense", "3_Dense")),
         "1_Pooling/config.json": b"{}", "2_Dense/config.json": b"{}", "2_Dense/model.safetensors": b"d",
         "2_Dense/pytorch_model.bin": b"d", "2_Dense_64/config.json": b"{}", "2_Dense_64/model.safetensors": b"n",
         "3_Dense/config.json": b"{}", "3_Dense/pytorch_model.bin": b"p", "tokenizer.json": b"{}", "model.safetensors": b"n",
         "onnx/model.onnx": graph()},
        {"modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "3_Dense/config.json",
         "3_Dense/pytorch_model.bin", "tokenizer.json", "onnx/model.onnx", "2_Dense_64/config.json"},
    ),
    "static": (
        {"modules.json": modules(("StaticEmbedding", ""), ("Normalize", "1_Normalize")), "tokenizer.json": b"{}",
         "model.safetensors": b"table", "onnx/model.onnx": graph()},
        {"modules.json", "tokenizer.json", "model.safetensors"},
    ),
    "router": (
        {"modules.json": modules(("Router", ""), ("Normalize", "1_Normalize")),
         "router_config.json": json.dumps({
             "types": {"query_0_StaticEmbedding": "sentence_transformers.models.StaticEmbedding",
                       "document_0_Transformer": "sentence_transformers.models.Transformer"},
             "structure": {"query": ["query_0_StaticEmbedding"], "document": ["document_0_Transformer"]},
             "parameters": {"default_route": "document"}}).encode(),
         "query_0_StaticEmbedding/tokenizer.json": b"{}", "query_0_StaticEmbedding/model.safetensors": b"table",
         "document_0_Transformer/config.json": b"{}", "document_0_Transformer/tokenizer.json": b"{}",
         "document_0_Transformer/model.safetensors": b"n", "document_0_Transformer/onnx/model.onnx": graph("d"),
         "document_0_Transformer/onnx/d": b"data", "document_0_Transformer/onnx/model_O4.onnx": graph()},
        {"modules.json", "router_config.json", "query_0_StaticEmbedding/tokenizer.json",
         "query_0_StaticEmbedding/model.safetensors", "document_0_Transformer/config.json",
         "document_0_Transformer/tokenizer.json", "document_0_Transformer/onnx/model.onnx", "document_0_Transformer/onnx/d"},
    ),
    "module folder": (
        {"modules.json": modules(("Transformer", "text/0_BERT"), ("Pooling", "1_Pooling")), "1_Pooling/config.json": b"{}",
         "text/0_BERT/config.json": b"{}", "text/0_BERT/bpe.codes": b"c", "text/0_BERT/onnx/model.onnx": graph(),
         "text/0_BERT/onnx/model_O2.onnx": graph(), "text/notes.txt": b"n", "text/0_BERT/model.safetensors": b"n"},
        {"modules.json", "1_Pooling/config.json", "text/0_BERT/config.json", "text/0_BERT/bpe.codes",
         "text/0_BERT/onnx/model.onnx"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_modules(layout, cache, monkeypatch):
    """The weights of listed modules, tables of static embeddings, and the graph of a route or of a module's folder."""
    files, needed = LAYOUTS[layout]
    files = {name: content + b" " * number for number, (name, content) in enumerate(files.items())}  # no two share a blob
    with serve({"org/m": files}) as server:
        point(monkeypatch, server.url)
        snapshot = fetch("org/m")
        assert set(server.fetched()) == set(snapshot.names) == needed
        server.asked.clear()
        assert fetch("org/m") == snapshot
        assert server.asked == []
    expected = {"dense": "onnx/model.onnx", "module folder": "text/0_BERT/onnx/model.onnx"}
    assert snapshot.graph == expected.get(layout)


def test_weights_for_an_export(cache, monkeypatch):
    """With weights=True, the safetensors and their index are downloaded, and no graph; else a missing graph is an error."""
    shards = {f"model-0000{i}-of-00002.safetensors": b"w%d" % i for i in (1, 2)} | {
        "model.safetensors.index.json": b'{"weight_map": {}}'
    }
    with serve({"org/m": BERT | shards | {"pytorch_model.bin": b"n"}, "org/old": BERT | {"pytorch_model.bin": b"w"}}) as server:
        point(monkeypatch, server.url)
        with pytest.raises(FileNotFoundError, match="several or no graphs"):
            fetch("org/m")
        server.asked.clear()
        with pytest.raises(FileNotFoundError, match="several or no graphs"):
            fetch("org/m", choose=choose)
        snapshot = fetch("org/m", weights=True)
        assert set(snapshot.names) == {*BERT, *shards}
        assert set(server.fetched()) == {*shards, "README.md"}
        assert "pytorch_model.bin" in fetch("org/old", weights=True).names
    shutil.rmtree(snapshot.folder.parents[1] / "penult")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # offline, without a recorded list of files
    with pytest.raises(FileNotFoundError, match="several or no graphs"):
        fetch("org/m")
    assert fetch("org/m", weights=True) == snapshot


def test_files_of_another_model(server):
    """Without a choice of a graph, only the configuration files are downloaded."""
    snapshot = fetch("org/tiny", choose=None)
    assert snapshot.graph is None
    assert set(snapshot.names) == set(server.fetched()) == set(BERT)


def test_a_snapshot_that_was_copied(server, cache, monkeypatch):
    """A snapshot without a list of the repository's files is checked by its own files, without a request."""
    snapshot = fetch("org/tiny")
    shutil.rmtree(snapshot.folder.parents[1] / "penult")
    server.asked.clear()
    assert set(fetch("org/tiny").names) == NEEDED
    assert server.asked == []
    (snapshot.folder / "1_Pooling" / "config.json").unlink()  # modules.json names it
    assert set(fetch("org/tiny").names) == NEEDED
    assert server.asked != []


GRAPH, DATA, SMALL = "onnx/model.onnx", "onnx/model.onnx_data", "config.json"


@pytest.mark.parametrize(
    ("name", "fault", "reason"),
    [
        ("list", Fault("stall"), r"did not answer within 0\.5 s"),
        (SMALL, Fault("stall"), r"did not answer within 0\.5 s"),
        (SMALL, Fault("stall", method="GET"), r"did not answer within 0\.5 s"),
        (GRAPH, Fault("stall-body", method="GET"), r"did not answer within 0\.5 s"),
        (GRAPH, Fault("drop", method="GET"), "closed the connection before the end"),
        (SMALL, Fault("close"), "closed the connection before the end"),
        (GRAPH, Fault("short", method="GET"), r"sent fewer than the [\d,]+ bytes"),
        (SMALL, Fault("short", method="GET"), r"sent fewer than the [\d,]+ bytes"),
        (SMALL, Fault("short", method="GET HEAD"), r"sent config\.json damaged: its sha1 is not [0-9a-f]{40}"),
        (GRAPH, Fault("long", method="GET"), r"sent more than the [\d,]+ bytes"),
        ("list", Fault("status", status=401), "answered 401 Unauthorized .*HF_TOKEN"),
        (SMALL, Fault("status", status=403), "answered 403 Forbidden .*HF_TOKEN"),
        (SMALL, Fault("status", status=404), r"answered 404 Not Found \(it has no such file\)"),
        ("list", Fault("status", status=429, headers={"Retry-After": "300"}), "answered 429 .* requires waiting 300 s"),
        ("list", Fault("status", status=503, headers={"Retry-After": "0"}), "answered 503 Service Unavailable"),
        (SMALL, Fault("status", status=500, headers={"Retry-After": "0"}), "answered 500"),
        (SMALL, Fault("status", status=418), "answered 418"),
        ("list", Fault("html"), "a response that a Hub does not send"),
        (SMALL, Fault("html"), "without an ETag"),
        (SMALL, Fault("redirect", to="/org/tiny/resolve/" + "a" * 40 + "/config.json"), "redirected more than 10 times"),
        (SMALL, Fault("redirect", to="ftp://example.org/x"), "could not be reached"),
    ],
)  # fmt: skip
def test_faults(name, fault, reason, server, cache, monkeypatch):
    """Whatever a server does, the download ends soon, with one error that states cause and remedy, and no damaged file."""
    server.faults[name] = replace(fault)
    start = time.monotonic()
    with monkeypatch.context() as patient:
        if fault.kind.startswith("stall"):
            patient.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
            patient.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
        with pytest.raises(FileNotFoundError, match=reason) as caught:
            fetch("org/tiny")
    assert time.monotonic() - start < 8
    message = str(caught.value)
    shown = "the list of files" if name == "list" else name
    for part in (
        "'org/tiny'",
        server.host,
        shown,
        f"HF_ENDPOINT (now {server.url})",
        "HF_HUB_OFFLINE",
        "penult pull org/tiny --to",
    ):
        assert part in message
    assert "\n" not in message
    assert len(traceback.format_exception(caught.value)) == len(traceback.format_exception(caught.value, chain=False))
    for path in (path for path in cache.rglob("*") if path.is_file() and "snapshots" in path.parts):
        assert path.read_bytes() == TINY[path.relative_to(cache / "models--org--tiny" / "snapshots" / server.commit).as_posix()]
    assert not list(cache.rglob("*.incomplete"))
    server.faults.clear()
    assert set(fetch("org/tiny").names) == NEEDED


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (DATA, Fault("drop", method="GET", times=2)),
        (SMALL, Fault("drop", method="GET", times=1)),
        (SMALL, Fault("close", times=1)),
        ("list", Fault("status", status=503, headers={"Retry-After": "0"}, times=2)),
        (SMALL, Fault("status", status=429, headers={"Retry-After": "1"}, times=1)),
        (GRAPH, Fault("short", method="GET", times=1)),
    ],
)
@pytest.mark.parametrize("ignores_range", [False, True])
def test_temporary_faults(name, fault, ignores_range, server):
    """A connection that breaks once or twice, or a busy server, costs an attempt; a download resumes where it broke."""
    server.faults[name] = replace(fault)
    server.ignores_range = ignores_range
    files = server.repos["org/tiny"]
    files[DATA] = np.random.default_rng(0).bytes(400_000)
    snapshot = fetch("org/tiny")
    assert all((snapshot.folder / wanted).read_bytes() == files[wanted] for wanted in NEEDED)
    if (name, fault.kind) == (DATA, "drop"):
        assert [asked.headers["range"] for asked in server.asked if "range" in asked.headers]


def test_a_long_download_that_keeps_breaking(server):
    """The count of attempts restarts while a download progresses; a server that always restarts is an error."""
    large = np.random.default_rng(0).bytes(20 << 20)
    server.repos["org/tiny"][DATA] = large
    server.faults[DATA] = Fault("drop", method="GET", times=4)
    snapshot = fetch("org/tiny")
    assert (snapshot.folder / DATA).read_bytes() == large

    server.faults[DATA] = Fault("drop", method="GET")
    server.ignores_range = True
    shutil.rmtree(snapshot.folder.parents[1])
    server.asked.clear()
    with pytest.raises(FileNotFoundError, match="closed the connection"):
        fetch("org/tiny")
    assert len([asked for asked in server.asked if "/large/" in asked.path and asked.path.endswith(DATA)]) == 4


def test_redirects(server):
    """A redirect of a renamed repository is followed on the same host; the token is sent to no other host."""
    server.renamed["old/name"] = "org/tiny"
    snapshot = fetch("old/name")
    assert set(snapshot.names) == NEEDED
    sent = {asked.headers["host"]: asked.headers.get("authorization") for asked in server.asked}
    assert sent == {server.host: "Bearer hf_secret", server.elsewhere.removeprefix("http://"): None}
    server.faults[SMALL] = Fault("redirect", times=2, to="../../../moved/resolve/" + server.commit + "/config.json")
    server.repos["org/moved"] = TINY
    shutil.rmtree(snapshot.folder.parents[2])
    assert set(fetch("org/tiny").names) == NEEDED


def test_nothing_but_the_request_is_sent(server):
    """No request states the libraries, the system or the session."""
    fetch("org/tiny")
    for asked in server.asked:
        assert asked.headers["user-agent"].startswith("penult/")
        assert not {"telemetry", "session_id"} & set(asked.headers)


def test_path_traversal_in_names_and_etags(server, cache, tmp_path):
    """A list with files above the repository, and an ETag that is a path, write nothing outside the cache."""
    server.repos["org/tiny"] |= {"../../evil.json": b"{}", "a/../../evil.json": b"{}", "/etc/evil.json": b"{}", "": b""}
    assert set(fetch("org/tiny").names) == NEEDED
    assert not list(tmp_path.rglob("evil*"))
    server.faults[SMALL] = Fault("status", status=200, headers={"ETag": '"../../evil"'})
    shutil.rmtree(cache)
    with pytest.raises(FileNotFoundError, match="without an ETag"):
        fetch("org/tiny")
    assert not list(tmp_path.rglob("evil*"))


def test_unknown_repositories_and_revisions(server):
    """A missing repository or revision is named; for a bare name, the error gives the full id."""
    with pytest.raises(FileNotFoundError, match=r"401 Unauthorized .*does not exist"):
        fetch("org/other")
    with pytest.raises(FileNotFoundError, match=r"has no model 'org/tiny' of revision 'nowhere'"):
        fetch("org/tiny@nowhere")
    with pytest.raises(FileNotFoundError, match=r"for a model of sentence-transformers, pass sentence-transformers/all-mini\)"):
        fetch("hf:all-mini")
    assert fetch("org/tiny@feature/x").graph == GRAPH


def test_an_unreachable_endpoint(cache, monkeypatch):
    """A closed port, and an endpoint that is not a URL, are errors at once; a password in the endpoint is not shown."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        point(monkeypatch, f"http://me:pass@127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(FileNotFoundError, match="could not be reached") as caught:
            fetch("org/tiny")
    assert "pass@" not in str(caught.value)
    point(monkeypatch, "mirror.example")
    with pytest.raises(FileNotFoundError, match="HF_ENDPOINT is not a URL"):
        fetch("org/tiny")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:-1] + b"\1"])
def test_a_damaged_small_file_is_downloaded_again(server, cache, monkeypatch, damage):
    """Each small cached file is compared with the SHA-1 in its name; without the Hub, a damaged file counts as missing."""
    snapshot = fetch("org/tiny")
    small = [name for name in sorted(NEEDED - {hub.README}) if len((snapshot.folder / name).resolve().name) == 40]
    assert {"config.json", "tokenizer.json", "modules.json"} <= set(small)
    for name in small:
        path = (snapshot.folder / name).resolve()
        path.chmod(0o644)
        path.write_bytes(damage(TINY[name]))
        if path.read_bytes() == TINY[name]:
            continue
        with monkeypatch.context() as offline:
            offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"):
                fetch("org/tiny")
        server.asked.clear()
        assert fetch("org/tiny") == snapshot
        assert server.fetched() == [name]
        assert (snapshot.folder / name).read_bytes() == TINY[name]


def test_leftovers_of_killed_downloads_are_removed(server, cache):
    """At once for a file that is downloaded again, whose lock is held; else after a day without a byte."""
    fetch("org/tiny")
    blobs = cache / "models--org--tiny" / "blobs"
    graph = (cache / "models--org--tiny" / "snapshots" / server.commit / "onnx" / "model.onnx").resolve()
    graph.unlink()
    left = {name: blobs / name for name in (f"{graph.name[:64]}.0a1b2c3d.incomplete", f".{graph.name}.0a1b2c3d.incomplete",
                                            ".other.0a1b2c3d.incomplete", ".old.0a1b2c3d.incomplete")}  # fmt: skip
    for path in left.values():
        path.write_bytes(b"half")
    os.utime(left[".old.0a1b2c3d.incomplete"], (time.time() - 2 * 86400,) * 2)
    fetch("org/tiny")
    assert [path.name for path in blobs.glob("*.incomplete")] == [".other.0a1b2c3d.incomplete"]
    assert graph.read_bytes() == TINY["onnx/model.onnx"]


def test_a_cache_that_cannot_be_written(server, cache):
    """A cache below a file is an OSError that names the setting."""
    cache.write_text("a file")
    with pytest.raises(OSError, match=r"could not be written to the Hub's cache .*Set HF_HUB_CACHE") as caught:
        fetch("org/tiny")
    assert caught.value.__suppress_context__


def test_a_user_without_a_home_directory(server, monkeypatch, tmp_path):
    """A folder named ~ in the working directory is not the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    with pytest.raises(OSError, match="Set HF_HUB_CACHE to a persistent folder"):
        fetch("org/tiny")
    assert not (tmp_path / "~").exists()


def test_a_disk_without_links(server, monkeypatch):
    """On a disk without symbolic links, the snapshot has copies."""

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    snapshot = fetch("org/tiny")
    assert all((snapshot.folder / name).read_bytes() == TINY[name] for name in NEEDED)
    assert not (snapshot.folder / SMALL).is_symlink()


def test_two_at_once(server):
    """Of two concurrent loads of one model, one downloads each file and both get it."""
    server.repos["org/tiny"][DATA] = b"w" * (8 << 20)
    actual: list[Snapshot] = []
    threads = [threading.Thread(target=lambda: actual.append(fetch("org/tiny"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [set(snapshot.names) for snapshot in actual] == [NEEDED] * 4
    bodies = [asked.path for asked in server.asked if asked.method == "GET" and "/large/" in asked.path]
    assert len(bodies) == len(set(bodies))


_FETCH = """
import sys, time
from penult.core import hub
from penult.core.source import data_files
start = time.monotonic()
try:
    text = sys.argv[1]
    snapshot = hub.fetch(text, hub.parse(text), choose=lambda names: "onnx/model.onnx", data_files=data_files)
    print(sorted(snapshot.names))
finally:
    print(f"{time.monotonic() - start:.1f}")
"""


def run(tmp_path, url: str, text: str = "org/tiny", **env) -> subprocess.CompletedProcess:
    names = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_CACHE", "HF_HUB_DISABLE_PROGRESS_BARS")
    clean = {key: value for key, value in os.environ.items() if key not in names}
    settings = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": url} | env
    return subprocess.run(
        [sys.executable, "-c", _FETCH, text], env=clean | settings, capture_output=True, text=True, timeout=60
    )


def test_settings_of_the_environment(tmp_path):
    """Timeouts are 10 s unless set; HF_HUB_OFFLINE sends no request; a page's URL may be on HF_ENDPOINT."""
    with serve({"org/tiny": TINY}) as server:
        offline = run(tmp_path, server.url, HF_HUB_OFFLINE="1")
        assert "HF_HUB_OFFLINE is set" in offline.stderr
        assert server.asked == []
        server.faults["list"] = Fault("stall")
        short = run(tmp_path, server.url, HF_HUB_ETAG_TIMEOUT="1")
        assert "did not answer within 1 s" in short.stderr
        stalled = run(tmp_path, server.url)
        assert "did not answer within 10 s" in stalled.stderr
        assert 9 < float(stalled.stdout) < 20
        assert "During handling" not in stalled.stderr + short.stderr + offline.stderr
        assert "above exception" not in stalled.stderr + short.stderr + offline.stderr
        server.faults.clear()
        whole = run(tmp_path, server.url, f"{server.url}/org/tiny/tree/main")
        assert whole.returncode == 0, whole.stderr
        assert whole.stderr == ""  # no bar without a terminal
        again = run(tmp_path, server.url, HF_HUB_OFFLINE="1")
        assert again.stdout.splitlines()[0] == whole.stdout.splitlines()[0]


_THEIRS = """
import sys, json
from huggingface_hub import hf_hub_download, snapshot_download
if sys.argv[1] == "all":
    print(snapshot_download("org/tiny", allow_patterns=json.loads(sys.argv[2])))
else:
    print(hf_hub_download("org/tiny", "config.json", revision=sys.argv[1], local_files_only=True))
"""


def test_huggingface_hub_and_penult_share_a_cache(tmp_path):
    """A model that huggingface_hub downloaded is complete for penult without a request, and the reverse."""
    with serve({"org/tiny": TINY}) as server:
        env = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url}
        env.pop("HF_HUB_CACHE", None)
        theirs = [sys.executable, "-c", _THEIRS]
        fetched = subprocess.run(
            [*theirs, "all", json.dumps(sorted(NEEDED))], env=env, capture_output=True, text=True, timeout=60
        )
        assert fetched.returncode == 0, fetched.stderr
        server.asked.clear()
        assert run(tmp_path, server.url).stdout.splitlines()[0] == str(sorted(NEEDED))
        assert server.asked == []
        shutil.rmtree(tmp_path / "home")
        assert run(tmp_path, server.url, "org/tiny@refs/pr/21").returncode == 0
        for revision in (server.commit, "refs/pr/21"):
            held = subprocess.run([*theirs, revision], env=env, capture_output=True, text=True, timeout=60)
            assert Path(held.stdout.strip()).read_bytes() == TINY["config.json"], held.stderr


@pytest.mark.parametrize("disabled", [False, True])
def test_a_bar_on_a_terminal(disabled, tmp_path):
    """A terminal shows the progress of a download, unless HF_HUB_DISABLE_PROGRESS_BARS is set."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 100, 0, 0))
    with serve({"org/tiny": TINY}) as server:
        env = os.environ | {
            "HF_HOME": str(tmp_path),
            "HF_ENDPOINT": server.url,
            "HF_HUB_DISABLE_PROGRESS_BARS": str(int(disabled)),
        }
        env.pop("HF_HUB_CACHE", None)
        done = subprocess.run(
            [sys.executable, "-c", _FETCH, "org/tiny"], env=env, stdout=subprocess.PIPE, stderr=theirs, timeout=60
        )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(mine, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(mine)
    assert done.returncode == 0, shown
    assert (b"Fetching org/tiny" in shown) is not disabled
