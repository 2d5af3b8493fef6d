"""Requests of web pages: refused on a local server, unless they are its own pages or allowed."""

import json

import httpx
import pytest
from server_kit import serving

from penult.server import EndpointConfig

HEADERS = {"content-type": "application/json"}
BODY = json.dumps({"input": "a", "inputs": "a"}).encode()
ROUTES = ("/v1/embeddings", "/embed", "/predict")


@pytest.fixture(scope="module")
def local(tiny):
    with serving(EndpointConfig(model=str(tiny))) as running:
        yield running


@pytest.fixture(scope="module")
def opened(tiny):
    """Serve with allowed host names and origins."""
    allowed = {"allowed_hosts": ("box.example", "*.lan"), "allow_origin": ("https://app.example", "http://localhost:3000")}
    with serving(EndpointConfig(model=str(tiny)), **allowed) as running:
        yield running


def post(running, headers=None, path="/v1/embeddings"):
    """Send a request with these headers and a content type."""
    return httpx.post(running.url + path, content=BODY, headers={**HEADERS, **(headers or {})})


def error(answer: httpx.Response) -> str:
    """Return the error message from the format of the route's protocol."""
    body = answer.json()
    details = body["detail"] if "detail" in body else body["error"]
    return details["message"] if isinstance(details, dict) else details


LOOPBACK = [
    "localhost",
    "LOCALHOST:5543",
    "localhost.",
    "penult.localhost:1",
    "127.0.0.1",
    "127.1.2.3:80",
    "[::1]:5543",
    "[::1]",
]
FOREIGN = ["evil.example", "evil.example:5543", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0:5543", "10.0.0.1",
           "notlocalhost", "localhost@evil.example", "box.example", "", "[::2]:1"]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_hosts_are_allowed(local, host):
    """All loopback names and addresses are allowed as host, with any port."""
    assert post(local, {"host": host}).status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_dns_rebinding_is_refused(local, host):
    """A host name that DNS rebinding points to this machine is refused on every route, for every method."""
    for path in ROUTES:
        answer = post(local, {"host": host}, path)
        assert answer.status_code == 403
        assert "--allowed-hosts" in error(answer)
    for path in ("/config", "/info", "/docs", "/metrics", "/v1/models", "/endpoints", "/health"):
        for method in ("GET", "POST", "DELETE"):
            assert httpx.request(method, local.url + path, headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [("box.example", 200), ("BOX.example:99", 200), ("a.lan", 200), ("a.b.lan:1", 200), ("localhost", 200), ("lan", 403),
     ("evillan", 403), ("x.box.example", 403), ("evil.example", 403)],
)  # fmt: skip
def test_allowed_hosts(opened, host, status):
    """--allowed-hosts adds host names, and with a wildcard all subdomains."""
    assert post(opened, {"host": host}).status_code == status


def test_allowed_hosts_on_every_address(tiny):
    """Allowed hosts are checked on every address, also with a key; without them, a public server accepts any host."""
    for options, status in (
        ({"host": "0.0.0.0"}, 200),
        ({"host": "0.0.0.0", "allowed_hosts": ("box.example",)}, 403),
        ({"api_key": "k"}, 200),
        ({"api_key": "k", "allowed_hosts": ("box.example",)}, 403),
        ({"allowed_hosts": ("*",)}, 200),
    ):
        with serving(EndpointConfig(model=str(tiny)), **options) as running:
            assert post(running, {"host": "evil.example", "authorization": "Bearer k"}).status_code == status, options
            assert post(running, {"host": "box.example", "authorization": "Bearer k"}).status_code == 200 or not options.get(
                "allowed_hosts"
            )


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"},
        {"origin": "http://localhost.evil.example:3000", "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1@evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "null", "sec-fetch-site": "cross-site"},  # a sandboxed frame or a file
        {"origin": "http://127.0.0.1.evil.example"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},  # an image or a script
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},  # a form
    ],
)
def test_foreign_pages_are_refused(local, headers):
    """Requests of foreign pages are refused before the body is read, in the error format of the route's protocol."""
    for path in ROUTES:
        answer = post(local, headers, path)
        assert answer.status_code == 403
        assert "--allow-origin" in error(answer)
        assert "access-control-allow-origin" not in answer.headers


def test_own_pages_links_and_programs(local):
    """Requests of /docs, of links from other sites and of programs without an Origin header are allowed."""
    own = {"origin": local.url, "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}
    assert post(local, own).status_code == 200
    named = f"localhost:{local.port}"
    assert post(local, {"host": named, "origin": f"http://{named}"}).status_code == 200
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert httpx.get(f"{local.url}/docs", headers=link).status_code == 200
    assert httpx.get(f"{local.url}/info", headers={"sec-fetch-site": "none"}).status_code == 200
    assert (
        httpx.get(f"{local.url}/info", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}).status_code == 403
    )


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 200),
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),
        ("TEXT/plain;charset=UTF-8", 415),
        ("text/plain; application/json", 415),
        ("text/html", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
    ],
)
def test_forms_are_refused(local, content_type, status):
    """Content types that need no preflight request are refused; a missing content type is allowed, as in DeepSparse."""
    for path in ROUTES:
        headers = {} if content_type is None else {"content-type": content_type}
        assert httpx.post(local.url + path, content=BODY, headers=headers).status_code == status


@pytest.mark.parametrize("options", [{"host": "0.0.0.0"}, {"api_key": "k"}])
def test_network_servers_accept_pages_and_forms(tiny, options):
    """A server on a network address, or with a key, accepts pages and forms."""
    with serving(EndpointConfig(model=str(tiny)), **options) as running:
        headers = {
            "authorization": "Bearer k",
            "origin": "https://app.example",
            "content-type": "application/x-www-form-urlencoded",
        }
        assert post(running, headers).status_code == 200


def preflight(running, origin: str, more: dict[str, str] | None = None) -> httpx.Response:
    request_headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    return httpx.options(f"{running.url}/v1/embeddings", headers=request_headers | (more or {}))


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost.evil.example", "http://evil-localhost", "null"])
def test_cors_is_off(local, origin):
    """Without --allow-origin, no foreign origin is allowed, also not in a preflight request."""
    answer = preflight(local, origin)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:5173", "https://app.localhost"]
)
def test_local_origins(local, opened, origin):
    """Pages served by this machine are allowed, unless --allow-origin is set."""
    browser = {"origin": origin, "sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}
    for question in ({}, {"access-control-request-private-network": "true"}):  # the second is Chrome's
        allowed = preflight(local, origin, question)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, origin)
    assert post(local, browser).headers["access-control-allow-origin"] == origin
    assert post(opened, browser).status_code == (200 if origin == "http://localhost:3000" else 403)
    assert httpx.post(f"{local.url}/endpoints", json={}, headers=browser).status_code == 403


@pytest.mark.parametrize(("origin", "allowed"), [("https://app.example", True), ("https://evil.example", False)])
def test_cors_for_allowed_origins(opened, origin, allowed):
    """An origin of --allow-origin may send a preflight request and a request, and read responses and errors."""
    answer = preflight(opened, origin)
    assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (
        (200, origin) if allowed else (400, None)
    )
    browser = {"origin": origin, "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
    answer = post(opened, browser)
    assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (
        (200, origin) if allowed else (403, None)
    )
    wrong = httpx.post(f"{opened.url}/v1/embeddings", content=b"{", headers={**HEADERS, **browser})
    assert (wrong.status_code, wrong.headers.get("access-control-allow-origin")) == ((400, origin) if allowed else (403, None))


def test_cors_for_all_origins_and_with_a_key(tiny):
    """* allows every origin; a preflight request needs no key, the request does."""
    with serving(EndpointConfig(model=str(tiny)), allow_origin=("*",), api_key="k") as running:
        answer = preflight(running, "https://any.example")
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
        browser = {"origin": "https://any.example", "sec-fetch-site": "cross-site"}
        assert post(running, browser).status_code == 401
        assert post(running, {**browser, "authorization": "Bearer k"}).headers["access-control-allow-origin"] == "*"
    with serving(EndpointConfig(model=str(tiny)), allow_origin=("*",)) as running:
        assert post(running, browser).status_code == 200


def test_changing_endpoints_needs_an_option(local, tiny):
    """On a loopback address without a key, changing endpoints needs --allow-endpoints."""
    body = {"task": "transformers_embedding_extraction", "model": str(tiny), "name": "more"}
    for method in ("POST", "DELETE"):
        answer = local.client.request(method, "/endpoints", json=body)
        assert answer.status_code == 403
        assert "--allow-endpoints" in answer.json()["detail"]
    with serving(EndpointConfig(model=str(tiny)), allow_endpoints=True) as running:
        assert running.post("/endpoints", body, headers={"origin": "https://evil.example"}).status_code == 403
        assert running.post("/endpoints", body).status_code == 200
    with serving(EndpointConfig(model=str(tiny)), allow_endpoints=True, host="0.0.0.0") as running:
        assert running.post("/endpoints", body).status_code == 403  # other machines need a key
