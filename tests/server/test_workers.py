"""Several workers: one port, summed metrics, restarts, and a common shutdown."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from server_kit import Process

from penult.server import ConfigError, EndpointConfig, ServerConfig
from penult.server.config_file import load
from penult.server.workers import with_threads

SINGLE, SEVERAL = 'te_request_count{method="single"}', 'te_request_success{method="batch"}'

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")


def workers(process) -> list[int]:
    """Return the processes of the workers; the first child is multiprocessing's resource tracker."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def scrape(server) -> dict[str, float]:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def wait_for(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tiny):
    running = Process("--model_path", str(tiny), "--workers", "2")
    yield running
    if running.process.poll() is None:
        running.end()


def embed(server, text: str = "the cat") -> list[float]:
    return httpx.post(f"{server.url}/v1/embeddings", json={"input": text}, timeout=30).json()["data"][0]["embedding"]


def test_metrics_are_the_sum(server, embedder):
    """/metrics has the counters of all workers, whichever worker responds."""
    before = scrape(server)
    assert {"te_queue_size", "penult_truncated_texts_total", "te_embed_duration_count"} <= set(before)
    for i in range(20):  # each on its own connection
        np.testing.assert_allclose(embed(server, f"cat {i}"), embedder.embed([f"cat {i}"])[0], atol=1e-6)
    for _ in range(4):
        after = scrape(server)
        assert after[SINGLE] - before[SINGLE] == 20
        assert after["te_embed_duration_count"] - before["te_embed_duration_count"] == 20
        assert after["te_queue_size"] == 0
    each = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in workers(server.process)]
    assert sum(each) * 0.8 < after["process_resident_memory_bytes"] < sum(each) * 1.2


def test_endpoints_are_not_changed(server, tiny):
    """Endpoints cannot be changed with several workers."""
    body = {"task": "transformers_embedding_extraction", "model": str(tiny), "name": "more"}
    answer = httpx.post(f"{server.url}/endpoints", json=body)
    assert (answer.status_code, "2 workers" in answer.text) == (403, True)


def test_a_dead_worker_is_replaced(server):
    """While a worker restarts, the others respond; its counters are kept."""
    embed(server)
    before = scrape(server)
    dead, other = workers(server.process)
    os.kill(dead, signal.SIGKILL)
    wait_for(lambda: dead not in workers(server.process))
    embed(server)
    wait_for(lambda: len(workers(server.process)) == 2)
    assert other in workers(server.process)
    assert any(f"Worker {dead} ended with exit status -9" in line for line in server.lines)
    after = scrape(server)
    assert after[SINGLE] == before[SINGLE] + 1
    assert after["te_queue_size"] == 0


def test_sigterm_finishes_requests_in_progress(server):
    """Requests in progress in any worker are answered; then all processes end."""
    texts = [
        f"the cat sat on mat {i} " * 10 for i in range(150)
    ]  # few enough for one queue, in case one worker gets all of them
    body = json.dumps({"input": texts, "encoding_format": "base64"})
    before = scrape(server)
    with ExitStack() as stack:
        connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(6)]
        for connection in connections:
            stack.callback(connection.close)
            connection.request("POST", "/v1/embeddings", body)

        def all_in_progress() -> bool:
            now = scrape(server)
            return now["te_queue_size"] + now[SEVERAL] - before[SEVERAL] == 6

        wait_for(all_in_progress)
        running = workers(server.process)
        server.process.terminate()
        time.sleep(0.3)  # uvicorn looks for signals ten times a second
        with pytest.raises(httpx.ConnectError):  # refused at once; a waiting client would get a reset
            httpx.get(f"{server.url}/health", timeout=30)
        for connection in connections:
            answer = connection.getresponse()
            assert (answer.status, len(json.loads(answer.read())["data"])) == (200, 150)
    assert server.end() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in running)


def test_workers_end_with_the_first_process(tiny):
    """If the first process is killed, no worker keeps the port."""
    server = Process("--model_path", str(tiny), "--workers", "2")
    running = workers(server.process)
    assert len(running) == 2
    server.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in running))


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path):
    """The error is one line with the worker's message and exit status 2."""
    code = "from penult.deepsparse.command import main; main()"
    command = [sys.executable, "-c", code, str(tmp_path), "--workers", "2", "--host", "127.0.0.1", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_other_workers_continue_if_one_cannot_restart(tiny, tmp_path):
    """If a worker dies while the model is missing, the other one responds, and a new one starts once the model is back."""
    model, away = tmp_path / "model", tmp_path / "away"
    shutil.copytree(tiny, model)
    server = Process("--model_path", str(model), "--workers", "2")
    try:
        model.rename(away)
        os.kill(workers(server.process)[0], signal.SIGKILL)
        wait_for(lambda: any("cannot start; the others continue" in line for line in server.lines))
        embed(server)
        away.rename(model)
        wait_for(lambda: sum("Application startup complete" in line for line in server.lines) == 3)
        embed(server)
    finally:
        assert server.end() == 0


@pytest.mark.parametrize(
    ("cores", "count", "stated", "threads"), [(8, 2, None, 4), (8, 3, None, 2), (2, 4, None, 1), (8, 2, 3, 3)]
)
def test_cores_are_divided(monkeypatch, cores, count, stated, threads):
    """The cores are divided among the workers, with at least one thread each, unless threads are set."""
    monkeypatch.setattr("penult.server.workers.default_threads", lambda: cores)
    config = ServerConfig(endpoints=(EndpointConfig(model="some/model"),), workers=count, threads=stated)
    assert with_threads(config).threads == threads


@pytest.mark.parametrize("count", [0, 65, "two"])
def test_invalid_numbers_of_workers(tmp_path, count):
    """The number of workers is limited."""
    file = tmp_path / "config.yaml"
    file.write_text(f"workers: {count}\nendpoints: [{{model: some/model}}]\n")
    with pytest.raises(ConfigError, match="workers is"):
        load(file, ServerConfig)
