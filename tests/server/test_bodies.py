"""Limits on request bodies: total bytes, time, and a refusal that reaches the client."""

import asyncio
import http.client
import json
import os
import socket
import threading
import time
from contextlib import ExitStack

import pytest
from server_kit import serving

from penult.server import EndpointConfig, Limits, bodies
from penult.server.bodies import Answer, Answers
from penult.server.errors import Refusal

CHUNKED = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
HEAD = "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n"


def connect(running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), timeout=20)


def send(client: socket.socket, body: bytes, announced: int | None = None, headers: str = "") -> None:
    client.sendall(HEAD.format(len(body) if announced is None else announced, headers).encode() + body)


def read(client: socket.socket) -> bytes:
    """Read until the server closes."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def used(running) -> int:
    """Return the bytes that the server currently counts."""
    layer = running.app.middleware_stack
    while not hasattr(layer, "_bodies"):
        layer = layer.app if hasattr(layer, "app") else layer._app
    return layer._bodies._used


def wait_for(condition) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_bodies_in_flight_are_bounded(tiny):
    """Incomplete bodies count up to the limit; then large requests get 429, small ones are answered, and the count returns to 0."""
    limits = Limits(max_body_bytes=400_000, max_bodies_in_flight=1_000_000)
    with serving(EndpointConfig(model=str(tiny)), limits=limits) as running, ExitStack() as stack:
        clients = [stack.enter_context(connect(running)) for _ in range(2)]
        for client in clients:
            send(client, b" " * 390_000, 400_000)
        wait_for(lambda: used(running) == 780_000)
        with connect(running) as third:  # a body of unknown length is refused when the limit is reached
            third.sendall(CHUNKED)
            third.sendall(b"493e0\r\n" + b" " * 300_000 + b"\r\n0\r\n\r\n")
            assert third.recv(65536).startswith(b"HTTP/1.1 429 ")
        with connect(running) as third:
            send(third, b" " * 390_000, headers="Connection: close\r\n")
            answer = read(third)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1" in answer.lower()
        assert running.post("/embed", {"inputs": "a"}).status_code == 200
        for client in clients:
            client.close()
        wait_for(lambda: used(running) == 0)
        assert running.post("/embed", {"inputs": "a" * 390_000}).status_code == 200
        wait_for(lambda: used(running) == 0)  # the client may get the response shortly before


def test_one_body_always_fits(tiny):
    """A total limit below the limit of one body still accepts one body."""
    with serving(EndpointConfig(model=str(tiny)), limits=Limits(max_bodies_in_flight=1)) as running:
        assert running.post("/embed", {"inputs": "a" * 500_000}).status_code == 200


def test_a_slow_body_gets_408(tiny, monkeypatch):
    """A body that arrives byte by byte gets 408."""
    monkeypatch.setattr(bodies, "_STALL_SECONDS", 0.5)
    with serving(EndpointConfig(model=str(tiny))) as running, connect(running) as slow:
        send(slow, b" ", 5000)
        started, answer = time.monotonic(), b""
        slow.settimeout(0.1)
        while not answer and time.monotonic() - started < 10:
            try:
                slow.sendall(b" ")
                answer = slow.recv(65536)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("headers", ["", "Connection: close\r\n"])
@pytest.mark.parametrize("size", [300_000, 3_000_000])
def test_a_client_that_sends_everything_first_gets_413(tiny, headers, size):
    """A body over the limit is drained within limits, so that the client gets the 413 and not a connection reset."""
    with serving(
        EndpointConfig(model=str(tiny)), limits=Limits(max_body_bytes=1_000_000 if size > 1e6 else 200_000)
    ) as running:
        with connect(running) as client:
            send(client, b" " * size, headers=headers)
            answer = read(client)
        assert answer.startswith(b"HTTP/1.1 413 ")
        with connect(running) as client:  # without Content-Length
            client.sendall(CHUNKED)
            for _ in range(size // 50_000):
                client.sendall(b"c350\r\n" + b" " * 50_000 + b"\r\n")
            client.sendall(b"0\r\n\r\n")
            answer = read(client)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert used(running) == 0


def test_draining_a_refused_body_is_limited(tiny, monkeypatch):
    """The connection of a client that sends without end is closed."""
    monkeypatch.setattr(bodies, "_DRAIN_TIMES", 2)
    with serving(EndpointConfig(model=str(tiny)), limits=Limits(max_body_bytes=100_000)) as running, connect(running) as client:
        sent = []

        def flood():
            try:
                while len(sent) < 10_000:
                    client.sendall(b"c350\r\n" + b" " * 50_000 + b"\r\n")
                    sent.append(1)
            except OSError:
                return

        client.sendall(CHUNKED)
        thread = threading.Thread(target=flood)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert len(sent) < 1000  # including the buffers of the operating system


def test_a_refusal_of_a_small_body_keeps_the_connection(tiny):
    """After the refusal of a small body, the client can reuse the connection."""
    with serving(EndpointConfig(model=str(tiny)), api_key="k") as running:
        client = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        for key, status in (("wrong", 401), ("k", 200)):
            client.request("POST", "/embed", json.dumps({"inputs": "a"}), {"Authorization": f"Bearer {key}"})
            answer = client.getresponse()
            answer.read()
            assert (answer.status, answer.headers.get("connection")) == (status, None)
        client.close()


def test_expect_100_continue(tiny):
    """`Expect: 100-continue` with a body over the limit gets 413 instead of 100, at once."""
    with serving(EndpointConfig(model=str(tiny)), limits=Limits(max_body_bytes=1000)) as running, connect(running) as client:
        started = time.monotonic()
        send(client, b"", 300_000, "Expect: 100-continue\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - started < 2


async def test_responses_count_until_they_are_read():
    """Large unread responses have a common limit; a single one is always sent, in pieces and unchanged."""
    answers, got, read = Answers(300_000), [], asyncio.Event()

    async def slow_send(message):
        if message["type"] == "http.response.body":
            await read.wait()
        got.append(message)

    def start(size: int) -> dict:
        return {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]}

    content = os.urandom(2_500_000)
    first = Answer(slow_send, answers)
    await first.send(start(len(content)))
    sending = asyncio.ensure_future(first.send({"type": "http.response.body", "body": content}))
    await asyncio.sleep(0)
    with pytest.raises(Refusal, match="2500000 bytes; the limit is 300000"):
        await Answer(slow_send, answers).send(start(100_000))
    await Answer(slow_send, answers).send(start(1000))  # small responses are not counted
    read.set()
    await sending
    first.release()
    await Answer(slow_send, answers).send(start(100_000))
    parts = [message for message in got if message["type"] == "http.response.body"]
    assert b"".join(part["body"] for part in parts) == content
    assert [part.get("more_body", False) for part in parts] == [True, True, False]
