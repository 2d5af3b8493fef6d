"""The messages of the section "Servers and clients" of docs/troubleshooting.md, each triggered as a user would meet it."""

import asyncio
import logging
import socket
import threading
import warnings

import httpx
import messages_kit
import pytest
from starlette.testclient import TestClient

from penult import RemoteEmbedder
from penult.server import ConfigError, EndpointConfig, Limits, ServerConfig
from penult.server.app import create_app
from penult.server.config_file import load
from penult.server.run import bind, run
from penult.types import TruncationWarning

SECTION = "Servers and clients"


@pytest.fixture(scope="module")
def server(tiny):
    """Create a test client of a server of the tiny model, once per configuration."""
    clients: dict[str, TestClient] = {}

    def start(*names: str, base_url: str = "http://localhost", **options) -> TestClient:
        key = repr((names, base_url, sorted(options.items())))
        if key not in clients:
            endpoints = tuple(EndpointConfig(model=str(tiny), name=name) for name in names or ("tiny",))
            config = ServerConfig(endpoints=endpoints, **{"host": "127.0.0.1", "threads": 1, **options})
            clients[key] = TestClient(create_app(config), base_url=base_url)
        return clients[key]

    yield start
    for client in clients.values():
        client.app.state.service.models.close()


def openai_message(response: httpx.Response, status: int) -> str:
    """Return the message of an error in OpenAI's format."""
    assert response.status_code == status
    return response.json()["error"]["message"]


def test_port_in_use():
    """A port is bound twice."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match="already in use") as caught:
            bind("127.0.0.1", port)
    messages_kit.check(SECTION, "Port is already in use", str(caught.value), PORT=port)


def test_no_api_key(monkeypatch, caplog):
    """A server on all interfaces logs a warning before it binds its port."""
    monkeypatch.setattr("penult.server.run.start_log", lambda *, as_json: None)  # this process's log is pytest's
    caplog.set_level(logging.WARNING, "penult")
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        config = ServerConfig(endpoints=(EndpointConfig(model="org/model"),), port=other.getsockname()[1])
        with pytest.raises(OSError, match="already in use"):
            run(config)
    messages_kit.check(SECTION, "Listening without an API key", caplog.records[0].getMessage())


def test_unknown_key(tmp_path):
    """The prompts of an endpoint have a key that is not a role."""
    file = tmp_path / "config.yaml"
    file.write_text("endpoints:\n  - model: org/model\n    prompts:\n      passage: 'passage: '\n")
    with pytest.raises(ConfigError) as caught:
        load(file, ServerConfig)
    messages_kit.check(SECTION, "Unknown key in the configuration file", str(caught.value), FOLDER=tmp_path)


def unauthorized(server) -> str:
    return openai_message(server(api_key="secret").post("/v1/embeddings", json={"input": "a"}), 401)


def foreign_host(server) -> str:
    return openai_message(server(base_url="http://box.example").post("/v1/embeddings", json={"input": "a"}), 403)


def foreign_origin(server) -> str:
    headers = {"Origin": "https://app.example"}
    return openai_message(server().post("/v1/embeddings", json={"input": "a"}, headers=headers), 403)


def unknown_model(server) -> str:
    body = {"input": "a", "model": "text-embedding-3-small"}
    return openai_message(server("first", "second").post("/v1/embeddings", json=body), 404)


def invalid_json(server) -> str:
    headers = {"Content-Type": "application/json"}
    return openai_message(server().post("/v1/embeddings", content="{'input': 'a'}", headers=headers), 400)


def token_ids(server) -> str:
    return openai_message(server().post("/v1/embeddings", json={"input": [[101, 102]]}), 400)


def too_many_texts(server) -> str:
    client = server(limits=Limits(max_client_batch_size=2, max_body_bytes=1000))
    assert client.post("/embed", json={"inputs": ["a", "b", "c"]}).status_code == 413
    return openai_message(client.post("/v1/embeddings", json={"input": ["a", "b", "c"]}), 422)


def too_large(server) -> str:
    client = server(limits=Limits(max_client_batch_size=2, max_body_bytes=1000))
    return openai_message(client.post("/v1/embeddings", json={"input": "a" * 1000}), 413)


RESPONSES = {
    "The API key is missing or wrong (401)": unauthorized,
    "Host is not allowed (403)": foreign_host,
    "Origin is not allowed (403)": foreign_origin,
    "The model is not served (404)": unknown_model,
    "The body is not valid JSON (400 or 422)": invalid_json,
    "Token ids instead of texts (400)": token_ids,
    "Too many texts in one request (413 or 422)": too_many_texts,
    "The body is too large (413)": too_large,
}


@pytest.mark.parametrize("heading", RESPONSES)
def test_error_response(server, heading):
    """A request that the server rejects has the message of the page."""
    messages_kit.check(SECTION, heading, RESPONSES[heading](server))


async def test_full_queue(tiny):
    """A second request arrives while the only allowed one runs."""
    limits = Limits(max_concurrent_requests=1)
    app = create_app(ServerConfig(endpoints=(EndpointConfig(model=str(tiny)),), host="127.0.0.1", threads=1, limits=limits))
    service = app.state.service
    embedder = service.models.embedder(service.endpoints[0].config).embedder
    embed, running, finish = embedder.run, threading.Event(), threading.Event()
    embedder.run = lambda tokenized: (running.set(), finish.wait(10), embed(tokenized))[2]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        first = asyncio.ensure_future(client.post("/v1/embeddings", json={"input": "first"}))
        assert await asyncio.to_thread(running.wait, 10)
        message = openai_message(await client.post("/v1/embeddings", json={"input": "second"}), 429)
        finish.set()
        assert (await first).status_code == 200
    service.models.close()
    messages_kit.check(SECTION, "The queue is full (429)", message)


def test_unreachable_server():
    """A client of a port without a server fails."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with RemoteEmbedder(url, retries=0) as remote, pytest.raises(ConnectionError) as caught:
            remote.embed(["a"])
    messages_kit.check(SECTION, "RemoteEmbedder: the server cannot be reached", str(caught.value), URL=url)


def test_truncated_texts(server):
    """A client whose server truncates a text gets a warning."""
    remote = RemoteEmbedder("http://localhost", transport=httpx.ASGITransport(server().app))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(remote.aembed(["cat", "cat " * 100]))
    messages = [str(one.message) for one in caught if one.category is TruncationWarning and "server" in str(one.message)]
    messages_kit.check(SECTION, "RemoteEmbedder: texts were truncated", *messages)


def test_every_message_has_a_test():
    """The section and these tests have the same headings."""
    others = (
        "Port is already in use",
        "Listening without an API key",
        "Unknown key in the configuration file",
        "The queue is full (429)",
        "RemoteEmbedder: the server cannot be reached",
        "RemoteEmbedder: texts were truncated",
    )
    messages_kit.check_complete(SECTION, [*RESPONSES, *others])
