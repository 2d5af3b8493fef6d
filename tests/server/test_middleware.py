"""The middleware: API key, limits, log, and no traceback in a response."""

import io
import json
import logging
import socket
import time

import httpx
import pytest
from server_kit import serving

from penult.server import EndpointConfig, Limits, bodies
from penult.server.log_format import Json, Plain

KEY = "s3cret-kéy"
OPEN = ["/health", "/ping", "/healthcheck", "/status", "/v2/health/ready", "/v2/health/live"]


@pytest.fixture(scope="module")
def guarded(tiny):
    with serving(EndpointConfig(model=str(tiny)), api_key=KEY) as running:
        yield running


@pytest.mark.parametrize("path", OPEN)
def test_health_needs_no_key(guarded, path):
    """The health routes need no key."""
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", f"Basic {KEY}", KEY, "Bearer", f"Bearer {KEY}"[:-1], f"Bearer {KEY}x"]
)
def test_all_other_routes_need_the_key(guarded, header):
    """Without the right key, every other route returns 401, in the error format of its protocol."""
    headers = {} if header is None else {"authorization": header.encode()}
    for path in ("/docs", "/openapi.json", "/metrics", "/config", "/v2/models/x", "/nowhere"):
        answer = guarded.get(path, headers=headers)
        assert (answer.status_code, set(answer.json())) == (401, {"detail"})
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.get("/info", headers=headers).json()["error_type"] == "Validation"
    error = guarded.post("/v1/embeddings", {"input": "a"}, headers=headers).json()["error"]
    assert error["code"] == "invalid_api_key"


def test_the_key_is_accepted(guarded):
    """With the key, every route responds."""
    headers = {"authorization": f"Bearer {KEY}".encode()}
    assert guarded.post("/v1/embeddings", {"input": "a"}, headers=headers).status_code == 200
    assert guarded.get("/docs", headers=headers).status_code == 200


def test_a_key_with_surrounding_whitespace(tiny):
    """A key with surrounding whitespace, such as one read from a file, works."""
    with serving(EndpointConfig(model=str(tiny)), api_key=f" {KEY}\n") as running:
        headers = {"authorization": f"Bearer {KEY}".encode()}
        assert running.post("/v1/embeddings", {"input": "a"}, headers=headers).status_code == 200


def test_changing_endpoints(tiny, guarded):
    """Changing endpoints needs the key; without a key it is possible only from this machine, and never from a web page."""
    body = {"task": "transformers_embedding_extraction", "model": str(tiny), "name": "more"}
    with serving(EndpointConfig(model=str(tiny)), host="0.0.0.0") as public:
        for method in ("POST", "DELETE"):
            answer = public.client.request(method, "/endpoints", json=body)
            assert answer.status_code == 403
            assert "cannot be changed on a server that listens on 0.0.0.0 without an API key" in answer.json()["detail"]
        assert public.post("/v2/models/more/infer", {"inputs": "a"}).status_code == 404
    assert guarded.post("/endpoints", body).status_code == 401
    headers = {"authorization": f"Bearer {KEY}".encode()}
    text = {"content-type": "text/plain", **headers}  # needs no preflight request
    answer = guarded.client.post("/endpoints", content=json.dumps(body), headers=text)
    assert (answer.status_code, answer.json()) == (
        415,
        {"detail": "The Content-Type is not application/json. Send the endpoint as application/json."},
    )
    for method, status in (("POST", 200), ("DELETE", 404)):
        assert guarded.client.request(method, "/endpoints", json=body, headers=headers).status_code == 200
        assert guarded.post("/v2/models/more/infer", {"inputs": "a"}, headers=headers).status_code == status
    broken = guarded.client.post("/endpoints", content=b"{", headers={"content-type": "application/json", **headers})
    assert (broken.status_code, broken.json()["detail"][0]["type"]) == (422, "json_invalid")
    answer = guarded.client.request("DELETE", "/endpoints", json={**body, "task": "qa"}, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"].startswith(
        "The body is not a valid endpoint: the body: task is 'qa'; it must be transformers_embedding_extraction"
    )


def test_the_maximum_of_endpoints(tiny):
    """A server has at most 16 endpoints; one more is accepted after another was removed."""
    with serving(*(EndpointConfig(model=str(tiny), name=f"n{i}") for i in range(16)), allow_endpoints=True) as full:
        body = {"task": "transformers_embedding_extraction", "model": str(tiny), "name": "more"}
        answer = full.post("/endpoints", body)
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["msg"] == "The limit of 16 endpoints is reached. Remove one."
        assert full.client.request("DELETE", "/endpoints", json={**body, "name": "n3"}).status_code == 200
        assert full.post("/endpoints", body).status_code == 200


def test_a_large_body_is_413(served, client):
    """A body over the limit gets 413 with the limit in the message, with or without Content-Length."""
    body = json.dumps({"input": "a" * 300_000})

    def chunks():
        for i in range(0, len(body), 10_000):
            yield body[i : i + 10_000].encode()

    for content in (body, chunks()):
        answer = client.post("/v1/embeddings", content=content)
        assert answer.status_code == 413
        assert "200000 bytes" in answer.json()["error"]["message"]
    assert client.post("/embed", content=body).json()["error_type"] == "Validation"
    assert "200000" in client.post("/predict", content=body).json()["detail"]


def test_a_very_large_body_gets_413(tiny):
    """A client that sends far more than the limit gets 413, not a connection reset."""
    with serving(EndpointConfig(model=str(tiny)), limits=Limits(max_body_bytes=1000)) as running:
        answer = httpx.post(f"{running.url}/embed", content=b" " * 30_000_000, timeout=30)
        assert answer.status_code == 413


HALF = b'POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{"input": "mo'


def test_a_disconnect_during_the_body_is_not_a_failure(tiny, log):
    """A client that disconnects during its body is counted as a disconnect, without a traceback and without a failure."""
    with serving(EndpointConfig(model=str(tiny))) as running:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", running.port)) as leaving:
                leaving.sendall(HALF)
                time.sleep(0.1)
        until = time.monotonic() + 10
        while "penult_disconnects_total 2.0" not in (scraped := running.get("/metrics").text):
            assert time.monotonic() < until, scraped
            time.sleep(0.05)
        assert 'te_request_failure{err="backend"} 0.0' in scraped
    assert "Traceback" not in log[0].getvalue()
    assert "POST /v1/embeddings 499" in log[0].getvalue()


def test_a_stalled_body_gets_408(tiny, monkeypatch):
    """A body that stalls gets 408, so that it cannot delay shutdown."""
    monkeypatch.setattr(bodies, "_STALL_SECONDS", 0.3)
    with serving(EndpointConfig(model=str(tiny))) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as stalled:
            stalled.sendall(HALF)
            answer = b"".join(iter(lambda: stalled.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"no byte for 0.3 s" in answer
        assert running.post("/embed", {"inputs": "a"}).status_code == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/embeddings", 405), ("POST", "/v1/nope", 404),
                                                        ("GET", "/v1/models/a%0Ab", 404), ("GET", "/embed", 405),
                                                        ("GET", "/predict", 405), ("POST", "/nope", 404)])  # fmt: skip
def test_unknown_routes_have_the_protocols_error_format(client, method, path, status):
    """Unknown paths and methods get an error in the format of OpenAI, TEI or FastAPI, depending on the path."""
    answer = client.request(method, path)
    assert answer.status_code == status
    assert ("allow" in answer.headers) == (status == 405)
    if path.startswith("/v1/"):
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == ("unknown_url" if status == 404 else None)
    elif path == "/embed":
        assert set(answer.json()) == {"error", "error_type"}
    else:
        assert answer.json() == {"detail": "Not Found" if status == 404 else "Method Not Allowed"}


@pytest.fixture
def log():
    """Capture the server's log as plain lines and as JSON."""
    streams = io.StringIO(), io.StringIO()
    logger = logging.getLogger("penult.server")
    handlers = []
    for stream, formatter in zip(streams, (Plain(), Json()), strict=True):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        handlers.append(handler)
        logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield streams
    logger.setLevel(level)
    for handler in handlers:
        logger.removeHandler(handler)


def test_one_log_line_per_request(guarded, log):
    """Each request has one log line, plain and JSON, with counts and without a text, a key or a query string."""
    headers = {"authorization": f"Bearer {KEY}".encode()}
    guarded.post("/v1/embeddings?token=hidden", {"input": ["moonlight", "river"]}, headers=headers)
    guarded.post("/embed", {"inputs": []}, headers=headers)
    guarded.get("/no%0Awhere?token=hidden")
    until = time.monotonic() + 10
    while "no%0Awhere" not in log[1].getvalue() and time.monotonic() < until:
        time.sleep(0.01)  # the line is written after the response
    # The line of an earlier request may therefore still arrive.
    plain, as_json = ("".join(line for line in stream.getvalue().splitlines(keepends=True) if "/nope" not in line)
                      for stream in log)  # fmt: skip
    assert len(plain.splitlines()) == len(as_json.splitlines()) == 3
    for secret in ("moonlight", "hidden", KEY, "s3cret"):
        assert secret not in plain + as_json
    first, second, third = map(json.loads, as_json.splitlines())
    assert (first["path"], first["status"], first["texts"], first["method"]) == ("/v1/embeddings", 200, 2, "POST")
    assert first["tokens"] > 4
    assert (second["status"], second["reason"]) == (400, "empty")
    assert (third["status"], third["path"]) == (401, "/no%0Awhere")
    assert "POST /v1/embeddings 200" in plain


def test_a_failure_has_no_traceback_in_the_response(tiny, log):
    """If the model fails, the client gets a message and the log gets the traceback; the server keeps running."""
    with serving(EndpointConfig(model=str(tiny))) as running:
        assert running.post("/embed", {"inputs": "a"}).status_code == 200
        (model,) = running.app.state.service.models._models.values()
        model.embedder.close()
        for path, body, key in (("/embed", {"inputs": "a"}, "error"), ("/v1/embeddings", {"input": "a"}, "error")):
            answer = running.post(path, body)
            assert answer.status_code in (424, 500)
            assert "Traceback" not in answer.text
            assert "log states the reason" in json.dumps(answer.json()[key])
        assert running.get("/health").status_code == 200
    assert "The engine is closed" in log[0].getvalue()
