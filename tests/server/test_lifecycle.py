"""Life cycle of a server: signals, disconnects, concurrent requests, and an event loop that is never blocked."""

import errno
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
from penult.server import EndpointConfig, Limits, run


def slow(running, seconds: float) -> list[int]:
    """Delay every call of the model; return a list to which the number of texts of each call is appended."""
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
    with serving(EndpointConfig(model=str(tiny)), limits=Limits(max_concurrent_requests=4)) as server:
        yield server


def test_sigterm_finishes_requests_in_progress(tiny):
    """A request in progress at SIGTERM is answered; then the process ends."""
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


def test_a_client_that_never_reads_does_not_block_shutdown(tiny):
    """A client that does not read its response delays shutdown only up to the limit."""
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
    """With --log-json, every log line is a JSON object."""
    server = Process("--model_path", str(tiny), "--log-json")
    _scrape(server.port)
    server.end()
    lines = [json.loads(line) for line in server.lines]
    assert {"/metrics"} <= {line.get("path") for line in lines}
    assert all({"time", "level"} <= set(line) for line in lines)


def test_a_full_queue_is_429(running):
    """Requests over the limit get 429 with Retry-After; the others are answered."""
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
    """Waiting requests of different clients run in one call, and each gets the vector of its own text."""
    calls = slow(running, 0.2)
    texts = [f"the cat {i}" for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda text: running.post("/embed", {"inputs": text}).json()[0], texts))
    np.testing.assert_allclose(np.array(answers, np.float32), embedder.embed(texts), atol=1e-6)
    assert len(calls) < 4
    assert sum(calls) == 4


def test_a_disconnected_client_is_dropped(running):
    """The request of a client that has disconnected is dropped and counted."""
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


def test_health_responds_while_the_model_runs(running):
    """The health routes respond while the model runs."""
    slow(running, 1.0)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(running.post, "/embed", {"inputs": ["cat"] * 500})
        answered = 0
        while not busy.done():
            assert running.get("/v2/health/ready").status_code == 200
            answered += 1
        assert busy.result().status_code == 200
    assert answered >= 20


def test_a_dead_queue_is_not_healthy(running):
    """If the thread of a queue has ended, the health routes return 503."""
    running.post("/embed", {"inputs": "a"})
    running.app.state.service.models.embedder(running.app.state.service.endpoints[0].config).queue.close()
    assert running.get("/health").status_code == 503
    assert running.get("/v2/health/live").status_code == 503


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_in_use_is_one_line(host, workers):
    """A server whose port is in use fails before it loads the model."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = serve("no/such/model", "--host", host, "--port", port, "--api-key", "k", "--workers", workers)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"Port {port} on {host} is already in use. Pass another --port" in line


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("203.0.113.9", "0", "Cannot listen on port 0 of 203.0.113.9"),
        ("no.such.host.invalid", "0", "--host 'no.such.host.invalid' is not an address or a name of this machine"),
    ],
)
def test_an_address_of_another_machine(host, port, words):
    """A host that is not an address of this machine fails with one line."""
    done = serve("no/such/model", "--host", host, "--port", port)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, words in line) == (2, True), line


def test_a_privileged_port():
    """The error of a privileged port advises a port of at least 1024."""
    error = OSError(errno.EACCES, "Permission denied")
    assert "Pass a --port of at least 1024" in str(run._refused("127.0.0.1", 80, error))


def serve(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from penult.deepsparse.command import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_localhost_has_both_addresses():
    """A host name with an IPv4 and an IPv6 address is bound on both, with the same port."""
    bound = run.bind("localhost", 0)
    try:
        assert len({one.getsockname()[1] for one in bound}) == 1
        assert {one.family for one in bound} <= {socket.AF_INET, socket.AF_INET6}
    finally:
        for one in bound:
            one.close()


def test_idle_connections_stay_open(tiny):
    """Idle connections stay open for the time of --keep-alive, not for uvicorn's default of 5 s."""
    for words, open_ in (((), True), (("--keep-alive", "1"), False)):
        server = Process("--model_path", str(tiny), *words)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("GET", "/health")
        connection.getresponse().read()
        time.sleep(6.5 if open_ else 2.5)
        connection.sock.settimeout(0.2)
        if open_:
            with pytest.raises(TimeoutError):
                connection.sock.recv(1)
        else:
            assert connection.sock.recv(1) == b""
        connection.close()
        server.end()


def test_many_threads_open_a_model_once(tiny):
    """Concurrent requests for a model that is not loaded yet load it once."""
    with serving(EndpointConfig(model=str(tiny))) as running:
        threads = [threading.Thread(target=running.post, args=("/predict", {"inputs": "a"})) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(isinstance(model, QueuedPipeline) for model in running.app.state.service.models._models.values()) == 1
