"""RemoteEmbedder: server detection, splitting of texts, retries, and refusal of invalid responses."""

import asyncio
import json
import os
import pickle
import threading
import time
import warnings
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import numpy as np
import pytest
from server_kit import Process, serving

from penult import Embedder, Pipeline, RemoteEmbedder, TextEmbedder, TextError
from penult.deepsparse.arguments import TASK
from penult.deepsparse.config_file import DeepSparseEndpoint
from penult.server import EndpointConfig, Limits
from penult.types import TruncationWarning

TEXTS = ["the cat sat", "a dog on the mat", "", "the moon"]
INFER = f"/v2/models/{TASK}/infer"


def vector(text: str) -> list[float]:
    """Return a vector that depends on the text."""
    return [float(len(text)), 1.0, 0.5]


def expected(texts: list[str]) -> np.ndarray:
    return np.array([vector(text) for text in texts], np.float32)


def listed(body: dict) -> list[str]:
    return [body["inputs"]] if isinstance(body["inputs"], str) else body["inputs"]


def deepsparse(body: dict) -> httpx.Response:
    return httpx.Response(200, json={"embeddings": [vector(text) for text in listed(body)]})


def tei(body: dict) -> httpx.Response:
    if not body["inputs"] or len(body["inputs"]) > 8:
        return httpx.Response(413, json={"error": "batch size", "error_type": "Validation"})
    if body.get("prompt_name") not in (None, "query"):
        return httpx.Response(422, json={"error": "no such prompt", "error_type": "Validation"})
    shift = 100.0 if body.get("prompt_name") == "query" else 0.0
    return httpx.Response(200, json=[[value + shift for value in vector(text)] for text in body["inputs"]])


INFO = {
    "model_id": "some/model",
    "model_sha": "abc",
    "model_type": {"embedding": {"pooling": "cls"}},
    "max_client_batch_size": 8,
}


class Fake:
    """A server in memory: responds by path, and records its requests."""

    def __init__(self, routes: dict) -> None:
        self.routes = routes
        self.asked: list[tuple[str, dict]] = []
        self.headers: list[httpx.Headers] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        self.asked.append((request.url.path, body))
        self.headers.append(request.headers)
        answer = self.routes.get(request.url.path)
        if answer is None:
            return httpx.Response(404, json={"detail": "Not Found"})
        return answer(body) if callable(answer) else httpx.Response(200, json=answer)

    def embedder(self, **options) -> RemoteEmbedder:
        return RemoteEmbedder("http://fake", transport=httpx.MockTransport(self), **options)

    def bodies(self, path: str) -> list[dict]:
        return [body for asked, body in self.asked if asked == path]


@pytest.fixture
def waits(monkeypatch):
    """Record the pauses between attempts instead of waiting."""
    recorded: list[float] = []
    monkeypatch.setattr(time, "sleep", recorded.append)
    return recorded


# Detection of servers


def test_deepsparse_up_to_15():
    """A server with /predict is used there, and the vectors are in order."""
    fake = Fake({"/predict": deepsparse, "/health": True})
    with fake.embedder() as remote:
        np.testing.assert_array_equal(remote.embed(TEXTS), expected(TEXTS))
        assert remote.dimension == 3
    assert [body["inputs"] for body in fake.bodies("/predict")][-1] == TEXTS


def test_deepsparse_from_16():
    """A server with one /v2/models/NAME/infer is used there, with any name."""
    path = "/v2/models/my/route/infer"
    fake = Fake({path: deepsparse, "/openapi.json": {"paths": {path: {"post": {}}, "/config": {"get": {}}}}})
    with fake.embedder() as remote:
        np.testing.assert_array_equal(remote.embed(TEXTS), expected(TEXTS))
    assert [asked for asked, _ in fake.asked].count(path) == 1


def test_deepsparse_without_an_openapi_document():
    """Without a document, DeepSparse's usual names are tried."""
    fake = Fake({INFER: deepsparse})
    with fake.embedder() as remote:
        np.testing.assert_array_equal(remote.embed(TEXTS), expected(TEXTS))


def test_deepsparse_of_several_models_needs_a_name():
    """With several endpoints, `model` is required; the error lists them."""
    paths = {f"/v2/models/{name}/infer": {"post": {}} for name in ("a", "b")}
    fake = Fake({"/v2/models/b/infer": deepsparse, "/openapi.json": {"paths": paths}})
    with fake.embedder() as remote, pytest.raises(ValueError, match="model= with one of: a, b"):
        remote.embed(TEXTS)
    with fake.embedder(model="b") as remote:
        np.testing.assert_array_equal(remote.embed(TEXTS), expected(TEXTS))
    with fake.embedder(model="c") as remote, pytest.raises(ValueError, match=r"not have the model 'c'. Its models: a, b"):
        remote.embed(TEXTS)


def test_a_route_of_the_configuration_is_found():
    """An endpoint's route of DeepSparse up to 1.5 is read from /config; with several, `model` is required."""
    paths = {"/emb/one": {"post": {}}, "/emb/two": {"post": {}}, "/ping": {"get": {}}}
    routes = {"/emb/one": deepsparse, "/emb/two": deepsparse, "/openapi.json": {"paths": paths}}
    one = Fake({**routes, "/config": {"endpoints": [{"route": "/emb/one", "task": "t"}]}})
    with one.embedder() as remote:
        np.testing.assert_array_equal(remote.embed(TEXTS), expected(TEXTS))
    assert one.bodies("/emb/one")
    two = Fake({**routes, "/config": {"endpoints": [{"route": "emb/one"}, {"route": "emb/two"}]}})
    with two.embedder() as remote, pytest.raises(ValueError, match="model= with one of: /emb/one, /emb/two"):
        remote.embed(TEXTS)
    with two.embedder(model="/emb/two") as remote:
        np.testing.assert_array_equal(remote.embed(TEXTS), expected(TEXTS))


def test_a_server_with_only_openais_protocol():
    """The error for an OpenAI-compatible server (vLLM also has /invocations) names clients for it."""
    paths = {path: {"post": {}} for path in ("/v1/embeddings", "/invocations")}
    fake = Fake({"/openapi.json": {"paths": paths}, "/invocations": lambda _: httpx.Response(400)})
    with (
        fake.embedder() as remote,
        pytest.raises(ValueError, match=r"OpenAI-compatible, but not a penult server.*use the openai package"),
    ):
        remote.embed(TEXTS)
    assert not fake.bodies("/invocations")


def test_a_server_that_is_not_ready_is_not_mistaken_for_another(waits):
    """A server that is busy at the first request raises ConnectionError."""
    fake = Fake({"/info": lambda _: httpx.Response(503, json={"error": "loading"})})
    with fake.embedder() as remote, pytest.raises(ConnectionError, match=r"not ready.*503.*loading"):
        remote.embed(TEXTS)


def test_a_server_that_redirects():
    """Redirects are not followed; the error states the target."""
    fake = Fake({"/predict": lambda _: httpx.Response(301, headers={"location": "https://other/predict"})})
    with fake.embedder() as remote, pytest.raises(ValueError, match=r"https://other/predict .*as base_url"):
        remote.embed(TEXTS)


def test_a_route_in_the_url_is_used():
    """A base URL with DeepSparse's route skips detection."""
    fake = Fake({"/deep/predict": deepsparse})
    with RemoteEmbedder("http://fake/deep/predict", transport=httpx.MockTransport(fake)) as remote:
        np.testing.assert_array_equal(remote.embed(TEXTS), expected(TEXTS))
    assert "/info" not in [asked for asked, _ in fake.asked]


def test_deepsparses_fingerprint_is_of_its_configuration():
    """Two DeepSparse servers have equal fingerprints exactly if their endpoints have equal configurations."""

    def fingerprint(strategy: str) -> str:
        endpoint = {"name": TASK, "task": TASK, "model": "m", "kwargs": {"extraction_strategy": strategy}}
        with Fake({INFER: deepsparse, "/config": {"endpoints": [endpoint]}}).embedder() as remote:
            return remote.fingerprint

    assert fingerprint("reduce_mean") == fingerprint("reduce_mean") != fingerprint("cls_token")


def test_tei_gets_small_requests_and_the_role():
    """Requests to TEI have at most its batch size, and the prompt of the role if the model has one."""
    fake = Fake({"/info": INFO, "/embed": tei})
    texts = [f"text {'x' * i}" for i in range(20)]
    with fake.embedder() as remote:
        np.testing.assert_array_equal(remote.embed(texts), expected(texts))
        np.testing.assert_array_equal(remote.embed(texts, "query"), expected(texts) + 100)
        assert len(remote.fingerprint) == 32
    assert max(len(body["inputs"]) for body in fake.bodies("/embed")) == 8
    assert all(body["truncate"] is True for body in fake.bodies("/embed"))


def test_a_tei_server_without_vectors():
    """TEI with a classifier is refused."""
    fake = Fake({"/info": {**INFO, "model_type": {"classifier": {}}}})
    with fake.embedder() as remote, pytest.raises(ValueError, match="served as classifier"):
        remote.embed(TEXTS)


def test_an_unsupported_server():
    """The error for another server lists the supported servers and the requests."""
    with Fake({}).embedder() as remote, pytest.raises(ValueError, match=r"not a supported server.*404"):
        remote.embed(TEXTS)


# Validation of responses


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([{"label": "POSITIVE", "score": 0.9}], "classification endpoint"),
        ([[{"label": "POSITIVE", "score": 0.9}]], "classification endpoint"),
        ({"labels": ["positive"], "scores": [0.9]}, "classification endpoint"),
        ({"embeddings": [[1.0, 2.0]]}, "1 items of 2 values instead of 2 vectors"),
        ({"embeddings": [[1.0, 2.0], [1.0]]}, "items of 1, 2 values"),
        ({"embeddings": [[1.0], ["x"]]}, "the keys embeddings"),
        ({"embeddings": [[1.0], None]}, "values instead of 2 vectors|the keys embeddings"),
        ({"embeddings": [[[1.0]], [[1.0]]]}, "items of 0 values"),
        ({"embeddings": [[], []]}, "items of 0 values"),
        ({"embeddings": "no"}, "the keys embeddings"),
        ({"embeddings": [["1.5"], ["2.5"]]}, "the keys embeddings"),
        ({"embeddings": [[None, "1.5"], [1.0, 2.0]]}, "the keys embeddings"),
        ({"embeddings": [[True], [False]]}, "the keys embeddings"),
        ({"embeddings": [[None, 1.0], [1.0, 2.0]]}, "NaN or infinite values in 1 of 2"),
        ({"embeddings": [[1.0, float("nan")], [1.0, 1.0]]}, "NaN or infinite values in 1 of 2"),
        ({"embeddings": [[1e300, 1.0], [1.0, 1.0]]}, "NaN or infinite values in 1 of 2"),
        ({}, "an empty JSON object"),
        (None, "a body that is not JSON"),
    ],
)
def test_other_answers_are_refused(answer, words):
    """A response that is not N finite vectors of one size is refused with a description."""
    fake = Fake({"/predict": lambda _: httpx.Response(200, text=json.dumps(answer))})
    with (
        RemoteEmbedder("http://fake/predict", transport=httpx.MockTransport(fake)) as remote,
        pytest.raises(ValueError, match=words),
    ):
        remote.embed(["a", "b"])


def test_a_change_of_size_is_refused():
    """A change of the vector size between two calls is refused."""
    sizes = iter([3, 3, 4])
    fake = Fake({"/predict": lambda body: httpx.Response(200, json={"embeddings": [[1.0] * next(sizes)]})})
    with RemoteEmbedder("http://fake/predict", transport=httpx.MockTransport(fake)) as remote:
        remote.embed(["a"])
        remote.embed(["a"])
        with pytest.raises(ValueError, match="changed from 3 to 4"):
            remote.embed(["a"])


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (401, {"error": {"message": "Incorrect key."}}, PermissionError, "Incorrect key. Pass api_key="),
        (403, {"error": {"message": "No such host."}}, PermissionError, "rejected the request.*No such host. If it requires"),
        (422, {"detail": [{"loc": ["body"], "msg": "too long"}]}, ValueError, "HTTP 422.*too long"),
        (413, {"error": "too large", "error_type": "Validation"}, ValueError, "HTTP 413.*too large"),
        (500, "Internal Server Error", ConnectionError, "HTTP 500"),
    ],
)
def test_errors_contain_the_servers_message(status, body, error, words):
    """An error response raises an exception with the server's message."""
    fake = Fake({"/predict": lambda _: httpx.Response(status, json=body)})
    with (
        RemoteEmbedder("http://fake/predict", transport=httpx.MockTransport(fake)) as remote,
        pytest.raises(error, match=words),
    ):
        remote.embed(["a"])


def test_too_large_requests_are_halved():
    """A request that gets 413 is sent again in halves."""
    seen = []

    def small_only(body):
        seen.append(len(body["inputs"]))
        return deepsparse(body) if len(body["inputs"]) <= 10 else httpx.Response(413, json={"detail": "too large"})

    texts = [f"{i}" for i in range(40)]
    with RemoteEmbedder("http://fake/predict", transport=httpx.MockTransport(Fake({"/predict": small_only}))) as remote:
        np.testing.assert_array_equal(remote.embed(texts), expected(texts))
    assert seen == [40, 20, 10, 10, 20, 10, 10]


# Retries


@pytest.mark.parametrize(
    "failure", [429, 502, 503, 504, httpx.ConnectError("x"), httpx.ReadError("x"), httpx.RemoteProtocolError("x")]
)
def test_busy_and_lost_servers_are_retried(failure, waits):
    """Requests to a busy or lost server are retried with growing pauses."""
    left = [failure] * 4

    def answer(body):
        if left and (result := left.pop()):
            if isinstance(result, Exception):
                raise result
            return httpx.Response(result, json={})
        return deepsparse(body)

    with RemoteEmbedder("http://fake/predict", transport=httpx.MockTransport(Fake({"/predict": answer}))) as remote:
        np.testing.assert_array_equal(remote.embed(TEXTS), expected(TEXTS))
    assert len(waits) == 4
    assert all(0.125 * 2**i <= wait <= 0.25 * 2**i for i, wait in enumerate(waits))


def test_an_error_states_the_position_in_the_whole_list(tiny):
    """The error states which texts of the caller's list the request had, because the server numbers the texts of a request."""
    texts = ["a"] * 6 + ["b " * 100]
    with serving(EndpointConfig(model=str(tiny), truncate="error"), limits=Limits(max_client_batch_size=4)) as running:
        with RemoteEmbedder(running.url) as remote, pytest.raises(ValueError, match=r"texts\[2\] has .* had your texts 4 to 6"):
            remote.embed(texts)
        with RemoteEmbedder(running.url) as remote, pytest.raises(ValueError, match=r"texts\[2\] has .* had your texts 4 to 6"):
            asyncio.run(remote.aembed(texts))
    with serving(EndpointConfig(model=str(tiny)), limits=Limits(max_text_chars=100)) as running:
        with RemoteEmbedder(running.url) as remote, pytest.raises(ValueError, match=r"Text 0 of .* had your texts 6 to 6;"):
            remote.embed(texts)  # halved by 413s until the text is alone
        assert remote.embed([]).shape[0] == 0


def test_retry_after_is_respected(waits):
    """Retry-After is respected as a number and as a date, up to a minute."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    heads = iter(["7", later, "100000", "soon", "1, 1 Jan 2000 00:00:00 +99999999999999"])

    def answer(body):
        head = next(heads, None)
        return deepsparse(body) if head is None else httpx.Response(429, headers={"retry-after": head}, json={})

    with RemoteEmbedder("http://fake/predict", transport=httpx.MockTransport(Fake({"/predict": answer}))) as remote:
        remote.embed(TEXTS)
    assert waits[0] == 7
    assert 25 <= waits[1] <= 30
    assert waits[2] == 60
    assert waits[3] <= 2
    assert waits[4] <= 4


def test_keys_that_are_not_valid_in_a_header():
    """A trailing line break is removed from a key; a key with a line break inside is refused, without the key in the message."""
    fake = Fake({"/predict": deepsparse})
    with RemoteEmbedder("http://fake/predict", api_key="schlüssel\n", transport=httpx.MockTransport(fake)) as remote:
        np.testing.assert_array_equal(remote.embed(TEXTS), expected(TEXTS))
    for key in ("s3cret\r\nX: y", " ", "s3cret\ud800"):
        with pytest.raises(ValueError, match="api_key is empty or has") as caught:
            RemoteEmbedder("http://fake", api_key=key)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("failure", "error", "attempts"),
    [
        (503, ConnectionError, 3),
        (httpx.ConnectError("refused"), ConnectionError, 3),
        (httpx.ReadTimeout("slow"), TimeoutError, 3),
        (httpx.WriteTimeout("slow"), TimeoutError, 3),
        (400, ValueError, 1),
    ],
)
@pytest.mark.parametrize("retries", [2, 6])
def test_retries_are_limited(failure, error, attempts, retries, waits):
    """The last attempt raises an error; failures that would repeat are not retried.

    A timeout is retried at most twice, whatever `retries` is.
    """
    attempts = retries + 1 if error is ConnectionError else attempts
    count = []

    def answer(_):
        count.append(1)
        if isinstance(failure, Exception):
            raise failure
        return httpx.Response(failure, json={})

    transport = httpx.MockTransport(Fake({"/predict": answer}))
    with RemoteEmbedder("http://fake/predict", transport=transport, retries=retries) as remote, pytest.raises(error):
        remote.embed(TEXTS)
    assert len(count) == attempts


def test_timeouts_are_retried(waits):
    """A request that timed out is sent again."""
    lates = iter([httpx.ReadTimeout("slow"), httpx.WriteTimeout("slow"), None])

    def answer(body):
        if (late := next(lates)) is not None:
            raise late
        return deepsparse(body)

    with RemoteEmbedder("http://fake/predict", transport=httpx.MockTransport(Fake({"/predict": answer}))) as remote:
        np.testing.assert_array_equal(remote.embed(TEXTS), expected(TEXTS))


# The interface


@pytest.mark.parametrize("url", ["localhost:5543", "", "ftp://x", 5, "http://", "http://h:port", "http://ann:s3/cret@h"])
def test_invalid_urls(url):
    """A base URL that is not http(s) is refused at once, without the password in the message."""
    with pytest.raises(ValueError, match="must be a URL") as caught:
        RemoteEmbedder(url)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "server", "path"),
    [
        ("http://h/v1/", "http://h", "/info"),
        ("http://v1", "http://v1", "/info"),
        ("http://[::1]:5543/x/", "http://[::1]:5543", "/x/info"),
        ("https://ann:s3cret@h:443/deep/predict", "https://h", "/config"),
    ],
)
def test_the_parts_of_a_url(url, server, path):
    """/v1, DeepSparse's route, user and password are removed from the base URL."""
    asked = []

    def answer(request):
        asked.append(str(request.url))
        return httpx.Response(404)

    with RemoteEmbedder(url, transport=httpx.MockTransport(answer)) as remote, pytest.raises(ValueError, match="404"):
        remote.embed(["a"])
    assert asked[0] == server + path


@pytest.mark.parametrize("options", [{"timeout": 0}, {"concurrency": 0}, {"retries": -1}])
def test_numbers_below_the_minimum(options):
    """Numbers below the minimum are refused at once."""
    with pytest.raises(ValueError, match="at least"):
        RemoteEmbedder("http://x", **options)


def test_nothing_is_sent_before_the_first_use_nor_for_no_texts():
    """The constructor sends nothing; invalid texts are refused before a request is sent."""
    fake = Fake({"/predict": deepsparse})
    remote = fake.embedder()
    for bad, error in (("text", TypeError), ([1], TextError), (["a", "\ud800"], TextError)):
        with pytest.raises(error):
            remote.embed(bad)
        with pytest.raises(error):
            asyncio.run(remote.aembed(bad))
    with pytest.raises(ValueError, match="role"):
        remote.embed(["a"], "poem")
    assert fake.asked == []
    assert remote.embed([]).shape == (0, 3)
    assert asyncio.run(remote.aembed([])).shape == (0, 3)


def test_the_key_is_sent_and_never_shown():
    """The key is sent as a bearer token, and is not in the repr."""
    fake = Fake({"/predict": deepsparse})
    with fake.embedder(api_key="s3cret") as remote:
        remote.embed(["a"])
        assert "s3cret" not in repr(remote)
    assert {headers.get("authorization") for headers in fake.headers} == {"Bearer s3cret"}


def test_an_async_only_transport():
    """An async-only transport supports aembed; embed raises TypeError."""

    class OnlyAwaits(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            content = await request.aread()
            return deepsparse(json.loads(content)) if content else httpx.Response(404)

    remote = RemoteEmbedder("http://fake/predict", transport=OnlyAwaits())
    np.testing.assert_array_equal(asyncio.run(remote.aembed(TEXTS)), expected(TEXTS))
    with pytest.raises(TypeError, match="Use aembed"):
        remote.embed(TEXTS)


def test_a_sync_only_transport():
    """A sync-only transport supports embed; aembed raises TypeError."""

    class OnlyBlocks(httpx.BaseTransport):
        def handle_request(self, request):
            content = request.read()
            return deepsparse(json.loads(content)) if content else httpx.Response(404)

    remote = RemoteEmbedder("http://fake/predict", transport=OnlyBlocks())
    np.testing.assert_array_equal(remote.embed(TEXTS), expected(TEXTS))
    with pytest.raises(TypeError, match=r"transport is a OnlyBlocks, which is sync only. Use embed"):
        asyncio.run(remote.aembed(TEXTS))


def test_progress_counts_texts(capsys):
    """progress=True shows a bar that counts texts; by default there is none."""
    with Fake({"/predict": deepsparse}).embedder() as remote:
        remote.embed(TEXTS * 5)
        assert capsys.readouterr().err == ""
        remote.embed(TEXTS * 5, progress=True)
    assert "20/20" in capsys.readouterr().err


async def test_busy_servers_are_retried_in_async_calls(monkeypatch):
    """An async call retries with the same number of attempts."""
    waited = []

    async def recorded(seconds):
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", recorded)
    busy = [httpx.Response(503, json={}) for _ in range(2 + 3)]  # two, then three
    stays = 3

    def answer(body):
        return busy.pop() if len(busy) > stays else deepsparse(body)

    transport = httpx.MockTransport(Fake({"/predict": answer}))
    async with RemoteEmbedder("http://fake/predict", transport=transport, retries=2) as remote:
        np.testing.assert_array_equal(await remote.aembed(TEXTS), expected(TEXTS))
        assert len(waited) == 2
        stays = 0
        with pytest.raises(ConnectionError, match="503"):
            await remote.aembed(TEXTS)
    assert len(waited) == 4


# Against penult's own server, over real sockets


@pytest.fixture(scope="module")
def running(tiny):
    with serving(EndpointConfig(model=str(tiny)), limits=Limits(max_client_batch_size=20)) as server:
        yield server


def many(count: int) -> list[str]:
    words = "the cat dog sat mat moon river stone".split()
    return [" ".join(words[(i * j) % 8] for j in range(1 + i % 17)) for i in range(count)]


def test_equal_to_the_local_embedder(running, embedder):
    """Vectors over a real socket equal the local Embedder's bit for bit; so do dimension and fingerprint."""
    with RemoteEmbedder(running.url) as remote:
        assert isinstance(remote, TextEmbedder)
        assert (remote.dimension, remote.fingerprint) == (embedder.dimension, embedder.fingerprint)
        for texts in (TEXTS, many(20), [""], ["naïve café — 東京 🎉"]):
            np.testing.assert_array_equal(remote.embed(texts), embedder.embed(texts))
        np.testing.assert_array_equal(remote(TEXTS), embedder(TEXTS))


async def test_async_calls_equal_sync_calls(running, embedder):
    """Async calls return the same vectors, with and without kept connections, also in concurrent calls."""
    async with RemoteEmbedder(running.url) as remote:
        answers = await asyncio.gather(*(remote.aembed([text]) for text in many(20)))
        np.testing.assert_allclose(np.concatenate(answers), embedder.embed(many(20)), atol=1e-6)
    remote = RemoteEmbedder(running.url)
    np.testing.assert_array_equal(await remote.aembed(TEXTS), embedder.embed(TEXTS))


def test_many_texts_in_order(running, embedder):
    """The vectors of many concurrent requests are in order."""
    texts = many(300)
    with RemoteEmbedder(f"{running.url}/v1", concurrency=8) as remote:
        np.testing.assert_allclose(remote.embed(texts, progress=False), embedder.embed(texts), atol=1e-6)


def test_roles_reach_the_model(tmp_path):
    """The role selects the model's own prompt."""
    from models import tiny_model

    folder = tiny_model(tmp_path / "m", prompts={"query": "query: ", "document": "passage: "})
    with (
        serving(EndpointConfig(model=str(folder))) as server,
        RemoteEmbedder(server.url) as remote,
        Embedder.load(folder, threads=1) as local,
    ):
        for role in ("query", "document"):
            np.testing.assert_array_equal(remote.embed(TEXTS, role), local.embed(TEXTS, role))


def test_prompts_reach_the_model(tmp_path):
    """Prompts of the object or of a call override the server's; the fingerprint includes the object's prompts."""
    from models import tiny_model

    folder = tiny_model(tmp_path / "m", prompts={"query": "query: ", "document": "passage: "})
    with serving(EndpointConfig(model=str(folder))) as server, Embedder.load(folder, threads=1) as local:
        with RemoteEmbedder(server.url, prompts={"query": "fish "}) as remote:
            np.testing.assert_array_equal(remote.embed(TEXTS, "query"), local.embed(TEXTS, "query", prompt="fish "))
            np.testing.assert_array_equal(remote.embed(TEXTS), local.embed(TEXTS))
            np.testing.assert_array_equal(remote.embed(TEXTS, "query", prompt=""), local.embed(TEXTS, "query", prompt=""))
            np.testing.assert_array_equal(asyncio.run(remote.aembed(TEXTS, prompt="a ")), local.embed(TEXTS, prompt="a "))
            fingerprint = remote.fingerprint
            with pickle.loads(pickle.dumps(remote)) as again:
                assert again.fingerprint == fingerprint
            with pytest.raises(ValueError, match="The prompt has 5000 characters; the server's limit is 4096"):
                remote.embed(TEXTS, prompt="x" * 5000)
        with RemoteEmbedder(server.url, prompts={"query": "query: "}) as remote:
            assert remote.fingerprint == local.fingerprint != fingerprint


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        ({"/info": INFO, "/embed": tei}, "Text Embeddings Inference does not support prompts in requests"),
        ({"/predict": deepsparse}, "DeepSparse does not support prompts in requests"),
        (
            {"/info": {"server": "penult", "fingerprint": "f", "dimension": 3, "served_model_name": "m",
                       "max_client_batch_size": 9, "max_body_bytes": 9999}},
            "This penult server is too old to support prompts",
        ),
    ],
)  # fmt: skip
async def test_a_server_without_support_for_prompts(routes, words):
    """A prompt that the server would ignore raises ValueError before texts are sent, also for the fingerprint."""
    fake = Fake(routes)
    with fake.embedder(prompts={"query": "query: "}) as remote:
        for call in (lambda: remote.embed(TEXTS, "query"), lambda: remote.embed(TEXTS, prompt=""), lambda: remote.fingerprint):
            with pytest.raises(ValueError, match=words):
                call()
        with pytest.raises(ValueError, match=words):
            await remote.aembed(TEXTS, "query")
    assert not [body for _, body in fake.asked if TEXTS in body.values()]


@pytest.mark.parametrize(
    ("prompts", "error", "words"),
    [
        ({"passage": "a"}, ValueError, "the key 'passage'; the allowed keys are"),
        ({"query": 5}, TypeError, r"prompts\['query'\] is a int, not a str; pass a str"),
        ({"query": "\ud800"}, ValueError, "not valid Unicode"),
        ("query: ", TypeError, "prompts is a str; pass a dict"),
    ],
)
def test_invalid_prompts(prompts, error, words):
    """Invalid prompts are refused before a request is sent."""
    with pytest.raises(error, match=words):
        RemoteEmbedder("http://x", prompts=prompts)


@pytest.mark.parametrize(
    "texts",
    [lambda: (text for text in TEXTS), lambda: map(str, TEXTS), lambda: dict.fromkeys(TEXTS).keys(), lambda: np.array(TEXTS)],
)
async def test_any_iterable_of_texts(texts):
    """A generator, a map, the keys of a dict and an array are embedded like a list."""
    fake = Fake({"/predict": deepsparse})
    with fake.embedder() as remote:
        np.testing.assert_array_equal(remote.embed(texts()), expected(TEXTS))
        np.testing.assert_array_equal(await remote.aembed(texts()), expected(TEXTS))


@pytest.mark.parametrize("texts", ["a text", b"bytes", None, 5])
async def test_values_that_are_not_texts(texts):
    """A str, bytes and objects that are not iterable raise TypeError with the type."""
    with Fake({"/predict": deepsparse}).embedder() as remote:
        with pytest.raises(TypeError, match=f"texts is a {type(texts).__name__}; pass a list"):
            remote.embed(texts)
        with pytest.raises(TypeError, match="pass a list"):
            await remote.aembed(texts)
        with pytest.raises(TextError, match=r"texts\[1\] is a int"):
            remote.embed(iter(["a", 5]))
        with pytest.raises(TypeError, match="prompt is a int, not a str"):
            remote.embed(["a"], prompt=5)


def test_truncation_is_reported_once(running):
    """Truncation by the server is reported once, as by the local Embedder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the server's own, in this process
        RemoteEmbedder(running.url).embed(["cat " * 100])  # an unclosed object does not leave a connection
    with RemoteEmbedder(running.url) as remote:
        with pytest.warns(TruncationWarning, match="1 of 3 texts"):
            remote.embed(["cat", "cat " * 100, "dog"])
        remote.embed(["cat " * 100])


def test_penults_deepsparse_routes(tiny):
    """The DeepSparse routes of a penult server return DeepSparse's numbers."""
    endpoint = DeepSparseEndpoint(model=str(tiny), task=TASK, name="one", kwargs={"extraction_strategy": "reduce_mean"})
    pipeline = Pipeline.create(TASK, str(tiny), extraction_strategy="reduce_mean", sequence_length=128, return_numpy=True)
    with serving(endpoint) as server, RemoteEmbedder(f"{server.url}/v2/models/one/infer") as remote, pipeline:
        np.testing.assert_array_equal(remote.embed(TEXTS), np.stack(pipeline(TEXTS).embeddings))


def test_a_model_that_changes_is_refused(tiny, tmp_path):
    """A server that restarts with another model is refused, because vectors of two models must not be mixed."""
    from models import tiny_model

    other = tiny_model(tmp_path / "other", pooling="max")
    first = Process("--model_path", str(tiny))
    remote = RemoteEmbedder(first.url)
    remote.embed(["a"])
    first.end()
    second = Process("--model_path", str(other), port=first.port)
    try:
        with pytest.raises(ValueError, match="another model"):
            remote.embed(["a"])
    finally:
        second.end()
        remote.close()


def test_a_server_killed_under_load(tiny, embedder):
    """If the server is killed and restarted, the client's retries return all vectors."""
    texts = many(2000)
    server = Process("--model_path", str(tiny))
    result: dict[str, object] = {}

    def ask() -> None:
        with RemoteEmbedder(server.url, concurrency=4) as remote:
            result["vectors"] = remote.embed(texts)

    client = threading.Thread(target=ask)
    client.start()
    until = time.monotonic() + 20
    while not any("POST /v1/embeddings 200" in line for line in server.lines) and time.monotonic() < until:
        time.sleep(0.002)
    server.kill()
    assert client.is_alive()
    again = Process("--model_path", str(tiny), port=server.port)
    client.join(60)
    assert not client.is_alive()
    again.end()
    np.testing.assert_allclose(result["vectors"], embedder.embed(texts), atol=1e-6)


def test_a_server_that_does_not_return(tiny):
    """If the server does not return, the client raises ConnectionError."""
    server = Process("--model_path", str(tiny))
    remote = RemoteEmbedder(server.url, retries=1)
    assert remote.dimension == 32
    server.kill()
    with pytest.raises(ConnectionError, match="cannot be reached"):
        remote.embed(many(300))
    remote.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_opens_its_own_connections(running, embedder):
    """A forked child opens its own connections, and the parent keeps its connections."""
    with RemoteEmbedder(running.url) as remote:
        expected = embedder.embed(TEXTS)
        np.testing.assert_array_equal(remote.embed(TEXTS), expected)
        inherited = remote._client.get()
        if not (pid := os.fork()):
            try:
                os._exit(0 if np.array_equal(remote.embed(TEXTS), expected) and remote._client.get() is not inherited else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert remote._client.get() is inherited
        np.testing.assert_array_equal(remote.embed(TEXTS), expected)


def test_pickling(running, embedder):
    """An unpickled RemoteEmbedder opens its own connections."""
    remote = pickle.loads(pickle.dumps(RemoteEmbedder(running.url, "key", concurrency=2)))
    with remote:
        np.testing.assert_array_equal(remote.embed(TEXTS), embedder.embed(TEXTS))
