"""penult sends nothing and writes nothing into HOME: each use runs in a network whose name server records look-ups."""

import importlib.util
import os
import subprocess
import sys

import network_kit
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penult.bulk import ray_engine

PENULT = [sys.executable, "-m", "penult"]
WAIT = "; import time; time.sleep({seconds})"  # onnxruntime 1.32 reports some seconds after it was imported
LOAD = "import sys; from penult import Embedder; e = Embedder.load(sys.argv[1]{options}); e.embed(['the cat'])" + WAIT
SERVE = """
import json, os, subprocess, sys, time, urllib.request
server = subprocess.Popen([sys.executable, "-m", "penult", "serve", sys.argv[1], "--host", "127.0.0.1", "--port", "8123"])
for _ in range(200):
    try:
        body = json.dumps({"model": "any", "input": ["the cat"]}).encode()
        urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8123/v1/embeddings", body, {"content-type": "application/json"}))
        break
    except OSError:
        time.sleep(0.2)
else:
    sys.exit("the server does not answer")
time.sleep(2)
server.terminate()
server.wait()
"""
ADAPTERS = {
    "langchain_penult": "from langchain_penult import PenultEmbeddings; PenultEmbeddings(model=sys.argv[1]).embed_query('the cat')",
    "llama_index.embeddings.penult": "from llama_index.embeddings.penult import PenultEmbedding; PenultEmbedding(model_name=sys.argv[1]).get_text_embedding('the cat')",
}


@pytest.fixture(scope="module")
def namespaces():
    """Skip on systems without unprivileged namespaces."""
    if not network_kit.available():
        pytest.skip("needs `unshare -rmn`: namespaces of network and mounts")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A file with eight texts."""
    path = tmp_path_factory.mktemp("rows") / "in.parquet"
    pq.write_table(pa.table({"id": [f"r{i}" for i in range(8)], "text": [f"the cat {i}" for i in range(8)]}), path)
    return path


def python(code, *arguments):
    return [sys.executable, "-c", code, *map(str, arguments)]


def check_silent(commands, tmp_path, allowed=(), files=(), **env):
    """Run commands in one HOME: they succeed, look up no other names and write no other files there."""
    home = tmp_path / "home"
    home.mkdir()
    for command in commands:
        seen = network_kit.observed(command, home, PENULT_CACHE=str(tmp_path / "cache"), **env)
        assert seen["status"] == 0, seen["output"]
        assert set(seen["names"]) <= set(allowed)
        assert set(seen["files"]) <= set(files)
        assert allowed or seen["without_route"] == 0


def newer_runtime():
    return tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 29)


def test_the_instrument_detects_look_ups_packets_and_files(namespaces, tmp_path):
    """A process that looks up a name, sends a packet and writes into HOME is detected: the tests below can fail."""
    (tmp_path / "home").mkdir()
    code = """
import pathlib, socket
for call in (lambda: socket.getaddrinfo("telemetry.example", 443), lambda: socket.create_connection(("192.0.2.1", 443), timeout=1)):
    try:
        call()
    except OSError:
        pass
pathlib.Path.home().joinpath("deviceid").write_text("1")
"""
    seen = network_kit.observed(python(code), tmp_path / "home")
    assert seen["names"] == ["telemetry.example"]
    assert seen["without_route"] > 0
    assert seen["files"] == ["deviceid"]


def test_a_runtime_imported_first_is_reported(tiny, tmp_path):
    """The telemetry of an onnxruntime that is already imported cannot be turned off: one log line says what to set."""
    code = "import onnxruntime; " + LOAD.format(options="", seconds=0)
    env = {name: text for name, text in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env |= {"PENULT_CACHE": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(python(code, tiny), env=env, capture_output=True, text=True, check=True)
    lines = done.stderr.count("Set ORT_DISABLE_TELEMETRY=1 before the first import of onnxruntime")
    assert lines == 1


@pytest.mark.skipif(not newer_runtime(), reason="needs an onnxruntime that reports usage")
def test_the_telemetry_of_onnxruntime(namespaces, tiny, tmp_path):
    """Without the switch, onnxruntime looks up its vendor's server and stores an id, at an unpredictable time."""
    if not os.environ.get("PENULT_SLOW_TESTS"):
        pytest.skip("depends on when onnxruntime reports: set PENULT_SLOW_TESTS=1")
    (tmp_path / "home").mkdir()
    code = "import onnxruntime; " + LOAD.format(options="", seconds=30)
    seen = network_kit.observed(python(code, tiny), tmp_path / "home", PENULT_CACHE=str(tmp_path / "cache"))
    assert seen["names"] == ["mobile.events.data.microsoft.com"]
    assert any(name.endswith("deviceid") for name in seen["files"])


def test_a_load_is_silent(namespaces, tiny, tmp_path):
    """For longer than onnxruntime waits before it reports."""
    check_silent([python(LOAD.format(options="", seconds=12), tiny)], tmp_path)


def test_an_int8_load_is_silent(namespaces, tiny, tmp_path):
    """Including calibration and quantization."""
    options = ", precision='int8', calibration=['the cat']"
    check_silent([python(LOAD.format(options=options, seconds=0), tiny)], tmp_path)


def test_a_server_is_silent(namespaces, tiny, tmp_path):
    """From its start to its end, with a request."""
    check_silent([python(SERVE, tiny)], tmp_path)


def test_bulk_jobs_and_stores_are_silent(namespaces, tiny, tmp_path, rows):
    """Workers, a local Qdrant and LanceDB."""
    out = tmp_path / "out.parquet"
    commands = [[*PENULT, "embed", str(rows), str(out), "--model", str(tiny), "--workers", "2"]]
    for package, store in (("qdrant_client", "qdrant"), ("lancedb", "lancedb")):
        if importlib.util.find_spec(package) is not None:
            commands.append([*PENULT, "ingest", str(out), "--to", f"{store}:{tmp_path / store}", "--collection", "c"])
    check_silent(commands, tmp_path)


def test_ray_reports_no_usage(namespaces, tiny, tmp_path, rows):
    """Ray checks for a cloud TPU, and writes the key of its own cluster; it sends no usage report."""
    if not os.environ.get("PENULT_SLOW_TESTS"):
        pytest.skip("takes a minute: set PENULT_SLOW_TESTS=1")
    pytest.importorskip("ray")
    command = [*PENULT, "embed", str(rows), str(tmp_path / "out.parquet"), "--model", str(tiny), "--engine", "ray"]
    check_silent([command], tmp_path, allowed=["metadata.google.internal"], files=[".ray/auth_token"])


@pytest.mark.parametrize("package", ADAPTERS)
def test_adapters_are_silent(namespaces, tiny, tmp_path, package):
    """The adapters for LangChain and LlamaIndex, each with its framework."""
    if importlib.util.find_spec(package.partition(".")[0]) is None or importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    check_silent([python(f"import sys; {ADAPTERS[package]}", tiny)], tmp_path)


@pytest.mark.parametrize("value", [None, "0"])
def test_the_switch_is_in_the_environment(value):
    """Child processes inherit it; a value that the user set stays."""
    env = {name: text for name, text in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env |= {} if value is None else {"ORT_DISABLE_TELEMETRY": value}
    code = "import os, penult; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{value or 1}\n"


def test_rays_switch_is_in_the_environment(monkeypatch):
    """It is set before Ray is imported."""
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)  # as if the extra were not installed
    with pytest.raises(ImportError, match="needs the extra"):
        ray_engine._ray()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
