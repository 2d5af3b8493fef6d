"""Recorded requests to DeepSparse 1.8.0, sent to penult: equal statuses, keys and numbers of items."""

import re
import shlex
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from server_kit import Running, serving

from penult.deepsparse.arguments import TASK
from penult.deepsparse.config_file import DeepSparseEndpoint, DeepSparseServer, read
from penult.server.config_file import override

# Routes that DeepSparse 1.8.0 did not have: those of older versions and of other protocols.
NEW = {"/predict", "/ping", "/health", "/healthcheck", "/metrics", "/v1/models", "/v1/embeddings", "/invocations"}
# Valid requests that DeepSparse answered with 500: a strategy with return_numpy, an endpoint's own route.
ACCIDENTS = {("02", 12), ("02", 20)}
# Sent as a form: refused on a loopback address without a key, because foreign web pages can send forms.
FORMS = {("01", 25)}


@dataclass(frozen=True)
class Exchange:
    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: str | None
    status: int
    answer: str


def exchanges(transcript: Path) -> list[Exchange]:
    """Read the requests and responses of a transcript."""
    parsed = []
    for block in re.split(r"^### ", transcript.read_text(), flags=re.MULTILINE)[1:]:
        number, command, *rest = block.split("\n")
        if not command.startswith("$ curl"):
            continue
        words = shlex.split(command[2:])
        method, url = words[words.index("-X") + 1], words[words.index("-X") + 2]
        body = words[words.index("-d") + 1] if "-d" in words else None
        headers = {"content-type": "application/json"} if "-H" in words else {}
        if body is not None and not headers:
            headers = {"content-type": "application/x-www-form-urlencoded"}  # curl's default
        status = next(int(line.split()[1]) for line in rest if line.startswith("HTTP/"))
        answer = "\n".join(rest).split("\n\n", 1)[1].strip().split("\n\n")[0]
        parsed.append(Exchange(int(number), method, re.sub(r"^http://[^/]+", "", url), headers, body, status, answer))
    return parsed


def replay(running, transcript: Path, model: str) -> int:
    """Send the requests again and compare the responses; return the number of requests."""
    requests = [exchange for exchange in exchanges(transcript) if "6100" not in exchange.path]
    with httpx.Client(base_url=running.url, timeout=30) as client:
        for exchange in requests:
            body = None if exchange.body is None else re.sub(r'"scratch/[^"]*"', f'"{model}"', exchange.body)
            answer = client.request(exchange.method, exchange.path, headers=exchange.headers, content=body)
            compare(transcript.name[:2], exchange, answer)
    return len(requests)


def compare(file: str, exchange: Exchange, answer: httpx.Response) -> None:
    where = f"{file} #{exchange.number} {exchange.method} {exchange.path} {exchange.body}: {answer.text[:200]}"
    if exchange.status == 404 and exchange.path in NEW:
        assert answer.status_code == 200, where
    elif (file, exchange.number) in FORMS:
        assert (exchange.headers["content-type"], answer.status_code) == ("application/x-www-form-urlencoded", 415), where
    elif exchange.status == 500 and (file, exchange.number) not in ACCIDENTS:
        assert answer.status_code == 422, where
        assert len(str(answer.json()["detail"])) > 20, where
    else:
        assert answer.status_code == (200 if exchange.status == 500 else exchange.status), where
        if exchange.status == 307:
            assert answer.headers["location"].endswith("/docs" if exchange.path == "/" else exchange.path.rstrip("/"))
        elif exchange.answer.startswith('{"embeddings"'):
            texts = exchange.body.count('","') + 1 if '"inputs":[' in exchange.body else 1
            assert list(answer.json()) == ["embeddings"], where
            assert len(answer.json()["embeddings"]) == texts, where
        elif exchange.answer.startswith("{") and "...[body" not in exchange.answer and '"openapi"' not in exchange.answer:
            recorded = httpx.Response(200, text=exchange.answer).json()
            assert shape(answer.json()) == shape(recorded), where
        elif (
            "[body" not in exchange.answer
            and not exchange.answer.startswith('{"openapi"')
            and exchange.status == 200
            and exchange.path != "/docs"
        ):
            assert answer.text == exchange.answer, where


def shape(value):
    """Return the keys of a JSON value at every depth."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items() if key not in ("endpoints", "input")}
    return [shape(inner) for inner in value] if isinstance(value, list) else None


@pytest.fixture
def golden(shared) -> Path:
    return shared / "golden" / "http"


@contextmanager
def from_file(transcript: Path, model: str, folder: Path, integration: str = ""):
    """Serve the configuration of a transcript with another model."""
    text = transcript.read_text().split("$ deepsparse.server")[0].removeprefix("$ cat config.yaml\n")
    file = folder / "config.yaml"
    file.write_text(re.sub(r"scratch/srv\S*", model, text) + integration)
    running = Running(override(read(file), {"host": "127.0.0.1", "threads": 1, "allow_endpoints": True}))
    try:
        yield running
    finally:
        running.stop()


def task(model: Path) -> DeepSparseEndpoint:
    """Return the endpoint of `penult.server --task TASK --model_path MODEL`."""
    return DeepSparseEndpoint(model=str(model), task=TASK, name=TASK)


def test_task_on_the_command_line(golden, tiny):
    """A server of one task responds as DeepSparse did, with 422 and a reason instead of 500."""
    with serving(task(tiny)) as running:
        assert replay(running, golden / "01_task_cli.txt", str(tiny)) == 34


def test_configuration_file(golden, tiny, tmp_path):
    """A server of three endpoints responds as DeepSparse did, also after endpoints were added and removed."""
    with from_file(golden / "02_config_file.txt", str(tiny), tmp_path) as running:
        assert replay(running, golden / "02_config_file.txt", str(tiny)) == 22
        config = httpx.get(f"{running.url}/config").json()
    recorded = httpx.Response(200, text=(golden / "02_config_file.body.02").read_text()[:1648]).json()
    assert shape(config) == shape(recorded)
    assert {**config, "endpoints": None} == {**recorded, "endpoints": None}
    assert [exchange["name"] for exchange in config["endpoints"]] == [exchange["name"] for exchange in recorded["endpoints"]]
    for ours, exchange in zip(config["endpoints"], recorded["endpoints"], strict=True):
        assert {**ours, "model": None} == {**exchange, "model": None}


def test_sagemaker(golden, tiny):
    """With integration sagemaker, inference is only under /invocations."""
    with serving(task(tiny), kind=DeepSparseServer, integration="sagemaker") as running:
        assert replay(running, golden / "03_sagemaker.txt", str(tiny)) == 8


def test_names_and_routes(golden, tiny, tmp_path):
    """Endpoints without a name are numbered, and a route may have several parts."""
    with from_file(golden / "06_more_config.txt", str(tiny), tmp_path) as running:
        assert replay(running, golden / "06_more_config.txt", str(tiny)) == 3
