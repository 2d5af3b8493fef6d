"""Connections: timeouts of headers, and a shutdown that resets no client."""

import http.client
import json
import socket
import threading
import time

import pytest
from server_kit import Process, serving

from penult.server import EndpointConfig, Limits, connection


@pytest.fixture
def running(tiny, monkeypatch):
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.5)
    with serving(EndpointConfig(model=str(tiny))) as server:
        yield server


def seconds_open(running, *parts: bytes, pause: float = 0.2) -> float:
    """Send parts with pauses; return the seconds until the server closed the connection."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
        try:
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
            while client.recv(65536):
                pass
        except ConnectionError:
            pass
    return time.monotonic() - started


WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (),  # nothing
        (b"POST /embed HT",),
        (b"POST /embed HTTP/1.1\r\nHost: localhost\r\n",),
        (WHOLE, b"GET /hea"),  # the second request of a connection
        tuple(b"X-%d: 1\r\n" % i if i else b"GET / HTTP/1.1\r\n" for i in range(20)),  # a line at intervals
    ],
)
def test_incomplete_headers_time_out(running, parts):
    """A connection with incomplete headers is closed after the timeout; the server keeps running."""
    assert 0.4 < seconds_open(running, *parts, pause=0.1) < 3
    assert running.get("/health").status_code == 200


def test_a_long_request_is_answered(running):
    """A request that runs longer than the header timeout is answered, also if its body arrives later."""
    service = running.app.state.service
    embedder = service.models.embedder(service.endpoints[0].config).embedder
    run = embedder.run
    embedder.run = lambda tokenized: (time.sleep(1.2), run(tokenized))[1]
    assert running.post("/embed", {"inputs": "a"}).status_code == 200
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
        client.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 14\r\nConnection: close\r\n\r\n")
        time.sleep(0.8)
        client.sendall(b'{"inputs":"a"}')
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_keep_alive_is_longer_than_the_header_timeout(tiny, monkeypatch):
    """An idle connection is closed after the keep-alive timeout, not after the header timeout."""
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.3)
    with serving(EndpointConfig(model=str(tiny))) as running:
        client = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        for _ in range(3):
            client.request("GET", "/health")
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (200, b"true")
            address = client.sock.getsockname()
            time.sleep(0.6)
        assert client.sock.getsockname() == address  # the same connection
        client.close()


def test_headers_over_the_limit_are_refused(running):
    """Headers over the size limit are refused."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
        answer = b""
        try:
            client.sendall(b"GET /health HTTP/1.1\r\nX: ")
            for _ in range(10_000):
                client.sendall(b"x" * 10_000)
        except ConnectionError:
            pass
        else:
            pytest.fail("100 MB of a head were taken")
        try:
            answer = client.recv(1000)
        except ConnectionError:
            return
        assert answer.startswith(b"HTTP/1.1 400 ")


POST = b"POST /embed HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "begin",
    [
        POST + b'Content-Length: 14\r\n\r\n{"inputs":"a"}GET /health HTTP/1.1\r\nHost: localhost\r\n',
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2;",
    ],
    ids=["a head behind a request", "a trailer", "extensions of a chunk"],
)
def test_trailers_and_extensions_are_limited(running, begin):
    """Trailers, chunk extensions and pipelined headers are limited while a request runs; the next request is answered."""
    service = running.app.state.service
    embedder = service.models.embedder(service.endpoints[0].config).embedder
    run, go = embedder.run, threading.Event()
    embedder.run = lambda tokenized: (go.wait(10), run(tokenized))[1]
    with socket.create_connection(("127.0.0.1", running.port), timeout=2) as client:
        client.sendall(begin)
        with pytest.raises(ConnectionError):
            client.sendall((b"X: " + b"a" * 60_000 + b"\r\n") * 800)
    go.set()
    embedder.run = run
    assert running.post("/embed", {"inputs": "a"}).status_code == 200


def test_an_unread_response_is_dropped(tiny, monkeypatch):
    """The connection of a client that does not read its response is closed, which frees the memory; a slow client gets everything."""
    monkeypatch.setattr(connection, "_UNREAD_SECONDS", 1.0)
    monkeypatch.setattr(connection, "_UNREAD_BYTES", 1000)
    body = json.dumps({"inputs": ["the cat sat on the mat " * 9] * 500}).encode()  # 10 MB of numbers
    head = b"POST /embed_all HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serving(EndpointConfig(model=str(tiny))) as running:
        for reads in (False, True):
            with socket.create_connection(("127.0.0.1", running.port), timeout=20) as client:
                client.sendall(head + body)
                read, started = len(client.recv(1000)), time.monotonic()
                while reads and time.monotonic() - started < 2:
                    time.sleep(0.05)
                    read += len(client.recv(1_000_000))
                if not reads:
                    time.sleep(3)
                try:
                    while data := client.recv(1 << 20):
                        read += len(data)
                        if read > 9_000_000:
                            break
                except ConnectionError:
                    pass
                assert (read > 9_000_000) == reads


def test_unread_responses_are_limited(tiny):
    """While a client does not read its large response, another one gets 429; later it gets the whole response."""
    body = {"inputs": ["the cat sat on the mat " * 9] * 500}  # 10 MB of numbers, more than the buffers of the operating system
    limits = Limits(max_body_bytes=1_000_000, max_bodies_in_flight=1_000_000)
    with serving(EndpointConfig(model=str(tiny)), limits=limits) as running:
        whole = running.post("/embed_all", body)
        assert whole.status_code == 200
        with running.client.stream("POST", "/embed_all", json=body) as unread:
            other = running.post("/embed_all", body)
            assert (other.status_code, other.headers["retry-after"]) == (429, "1")
            assert running.post("/embed", {"inputs": "a"}).status_code == 200
            assert unread.read() == whole.content
        assert running.post("/embed_all", body).content == whole.content


def test_sigterm_resets_no_busy_client(tiny):
    """Clients with continuous requests get `Connection: close`, and none loses a request that it has sent."""
    before = "import penult.server.connection as c; c._LAST_SECONDS = 10"  # for slow machines
    server = Process("--model_path", str(tiny), before=before)
    outcomes: list[str] = []

    def ask() -> None:
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        while True:
            time.sleep(0.02)
            try:
                client.request("POST", "/embed", '{"inputs": "a"}', {"Content-Type": "application/json"})
                answer = client.getresponse()
                assert answer.status == 200
                answer.read()
            except OSError as error:
                outcomes.append(repr(error))
                return
            if answer.headers.get("connection") == "close":
                outcomes.append("told to close")
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert server.end() in (0, -15, 143)
    for thread in threads:
        thread.join(20)
    assert outcomes == ["told to close"] * 4
