"""Methods and paths of clients, proxies and probes."""

import pytest
from server_kit import serving

from penult.server import EndpointConfig
from penult.server.request_line import normalized

GETS = ("/health", "/ping", "/healthcheck", "/status", "/v2/health/live", "/v2/health/ready", "/info", "/metrics", "/v1/models",
        "/docs", "/openapi.json", "/v2", "/config")  # fmt: skip


@pytest.mark.parametrize("path", GETS)
def test_head(client, path):
    """HEAD is answered as GET, without its body."""
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == client.get(path).headers["content-type"]


def test_head_of_a_post_route_is_405(client):
    """HEAD of a path that supports only POST gets 405."""
    assert client.head("/v1/embeddings").status_code == 405
    assert client.head("/nowhere").status_code == 404


@pytest.mark.parametrize("path", ["/embeddings", "//v1/embeddings", "/v1//embeddings", "///embeddings"])
def test_paths_of_openai(client, served, path):
    """Base URLs with an extra slash, and without /v1, reach the same route with the same error format."""
    expected = client.post("/v1/embeddings", json={"input": "the cat"})
    answer = client.post(served.url + path, json={"input": "the cat"})  # httpx itself normalizes a relative path
    assert (answer.status_code, answer.content) == (200, expected.content)
    assert client.post(served.url + path, json={"input": []}).json()["error"]["param"] == "input"


def test_models_without_v1(client):
    """/models responds as /v1/models does."""
    listed = client.get("/models").json()
    assert listed == client.get("/v1/models").json()
    name = listed["data"][0]["id"]
    assert client.get(f"/models/{name}").json() == client.get(f"/v1/models/{name}").json()


@pytest.mark.parametrize("path", ["//embed", "//", "/"])
def test_paths_of_tei(client, served, path):
    """TEI's POST / embeds, with TEI's error format."""
    path = served.url + path
    assert client.post(path, json={"inputs": ["the cat"]}).json() == client.post("/embed", json={"inputs": "the cat"}).json()
    assert client.post(path, json={"inputs": []}).json()["error_type"] == "Empty"


def test_every_spelling_needs_the_key(tiny):
    """Another spelling of a path does not bypass the API key."""
    with serving(EndpointConfig(model=str(tiny)), api_key="k") as running:
        for path in ("/", "//embed", "//v1/embeddings", "/embeddings", "/tokenize", "/decode", "/similarity"):
            assert running.post(running.url + path, {"inputs": "a", "input": "a"}).status_code == 401, path
        assert running.client.head("/info").status_code == 401
        assert running.client.head(f"{running.url}//health").status_code == 200


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer ", "bEaReR"])
def test_the_scheme_is_case_insensitive(tiny, scheme):
    """The scheme of Authorization is case-insensitive (RFC 9110); the key is case-sensitive."""
    with serving(EndpointConfig(model=str(tiny)), api_key="Key") as running:
        assert running.get("/info", headers={"authorization": f"{scheme} Key"}).status_code == 200
        assert running.get("/info", headers={"authorization": f"{scheme} key"}).status_code == 401
        assert running.get("/info", headers={"authorization": f"{scheme}Key"}).status_code == (
            200 if scheme[-1] == " " else 401
        )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/embeddings", "/v1/embeddings"),
        ("//v1///embeddings", "/v1/embeddings"),
        ("//", "/"),
        ("/v1/models//srv/models/m", "/v1/models//srv/models/m"),
        ("//v1//models/org/name", "/v1/models/org/name"),
        ("/v2/models/a//infer", "/v2/models/a/infer"),
    ],
)
def test_normalized(path, expected):
    """Empty segments are removed, except in the name of a model."""
    assert normalized(path) == expected
