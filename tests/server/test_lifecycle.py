"""A server from its start to its end: signals, clients that leave, many at once, and a loop that is never blocked."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from server_kit import Process, serving

from penult.deepsparse.served_pipeline import QueuedPipeline
from penult.server import EndpointConfig, Limits


def slow(running, seconds: float) -> list[int]:
    """Make every call of the engine take so long; give the list that will hold the number of texts of each."""
    endpoint = running.app.state.service.endpoints[0].config
    embedder = running.app.state.service.models.embedder(endpoint).embedder
    calls: list[int] = []

    run = embedder.run

    def slowly(tokenized):
        calls.append(len(tokenized))
        time.sleep(seconds)
        return run(tokenized)

    embedder.run = slowly
    return calls


@pytest.fixture
def running(tiny):
    with serving(EndpointConfig(model=str(tiny)), limits=Limits(max_concurrent_requests=4)) as made:
        yield made


def test_sigterm_finishes_what_was_begun(tiny):
    """A request that is under way when SIGTERM comes is answered; then the process ends."""
    server = Process("--model_path", str(tiny))
    texts = [f"the cat sat on mat {i} " * 10 for i in range(1500)]
    body = json.dumps({"input": texts, "encoding_format": "base64"})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/embeddings", body)
    until = time.monotonic() + 20
    while "te_queue_size 1.0" not in _scrape(server.port) and time.monotonic() < until:
        time.sleep(0.005)
    server.process.terminate()
    answer = connection.getresponse()
    assert answer.status == 200
    assert len(json.loads(answer.read())["data"]) == 1500
    connection.close()
    assert server.end() in (0, -15, 143)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)


def test_a_client_that_never_reads_does_not_hold_up_the_end(tiny):
    """A client that asks for much and reads nothing is given up some time after SIGTERM."""
    server = Process("--model_path", str(tiny), before="import penult.server.run; penult.server.run._ENDING_SECONDS = 2")
    with socket.create_connection(("127.0.0.1", server.port)) as stalled:
        body = json.dumps({"inputs": ["cat"] * 1500}).encode()
        stalled.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        until = time.monotonic() + 30
        while not any("POST /predict 200" in line for line in server.lines):
            assert time.monotonic() < until, server.lines
            time.sleep(0.05)
        assert server.end() in (0, -15, 143)


def _scrape(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def test_log_json_in_a_process(tiny):
    """With --log-json every line of the process's log is a JSON object."""
    server = Process("--model_path", str(tiny), "--log-json")
    _scrape(server.port)
    server.end()
    lines = [json.loads(line) for line in server.lines]
    assert {"/metrics"} <= {line.get("path") for line in lines}
    assert all({"time", "level"} <= set(line) for line in lines)


def test_a_full_queue_is_429(running):
    """Over the bound, clients get 429 with Retry-After; those within it are all answered."""
    slow(running, 0.3)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: running.post("/v1/embeddings", {"input": f"cat {i}"}), range(16)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert 'te_request_failure{err="overloaded"}' in running.get("/metrics").text


def test_clients_are_batched_together(running, embedder):
    """Requests of different clients that wait run in one call, and each gets the vector of its own text."""
    calls = slow(running, 0.2)
    texts = [f"the cat {i}" for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda text: running.post("/embed", {"inputs": text}).json()[0], texts))
    np.testing.assert_allclose(np.array(answers, np.float32), embedder.embed(texts), atol=1e-6)
    assert len(calls) < 4
    assert sum(calls) == 4


def test_a_client_that_leaves_costs_nothing(running):
    """The work of a client that has gone is dropped, and counted."""
    calls = slow(running, 0.5)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.post, "/embed", {"inputs": "first"})
        while not calls:
            time.sleep(0.01)
        leaving = http.client.HTTPConnection("127.0.0.1", running.port)
        leaving.request("POST", "/embed", json.dumps({"inputs": ["leaves"] * 7}))
        time.sleep(0.15)
        leaving.sock.shutdown(socket.SHUT_RDWR)
        leaving.close()
        assert first.result().status_code == 200
    assert running.post("/embed", {"inputs": "last"}).status_code == 200
    assert calls == [1, 1]
    assert "penult_disconnects_total 1.0" in running.get("/metrics").text


def test_health_answers_while_the_engine_works(running):
    """Whatever the engine does, the health routes answer."""
    slow(running, 1.0)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(running.post, "/embed", {"inputs": ["cat"] * 500})
        answered = 0
        while not busy.done():
            assert running.get("/v2/health/ready").status_code == 200
            answered += 1
        assert busy.result().status_code == 200
    assert answered >= 20


def test_a_dead_engine_is_not_healthy(running):
    """When a queue is served no more, the health routes say so with 503."""
    running.post("/embed", {"inputs": "a"})
    running.app.state.service.models.embedder(running.app.state.service.endpoints[0].config).queue.close()
    assert running.get("/health").status_code == 503
    assert running.get("/v2/health/live").status_code == 503


def test_a_port_that_is_taken_is_one_line(tiny):
    """A server that cannot listen says so and ends with an error."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-c", "from penult.deepsparse.command import main; main()", "--model_path", str(tiny), "--host", "127.0.0.1",
                   "--port", str(taken.getsockname()[1])]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_many_threads_open_a_model_once(tiny):
    """Requests that need a model that is not open yet open it once."""
    with serving(EndpointConfig(model=str(tiny))) as running:
        threads = [threading.Thread(target=running.post, args=("/predict", {"inputs": "a"})) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(isinstance(model, QueuedPipeline) for model in running.app.state.service.models._models.values()) == 1
