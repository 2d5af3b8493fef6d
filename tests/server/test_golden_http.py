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
    found = []
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
        found.append(Exchange(int(number), method, re.sub(r"^http://[^/]+", "", url), headers, body, status, answer))
    return found


def replay(running, transcript: Path, model: str) -> int:
    """Send the requests again and compare the responses; return the number of requests."""
    asked = [one for one in exchanges(transcript) if "6100" not in one.path]
    with httpx.Client(base_url=running.url, timeout=30) as client:
        for one in asked:
            body = None if one.body is None else re.sub(r'"scratch/[^"]*"', f'"{model}"', one.body)
            answer = client.request(one.method, one.path, headers=one.headers, content=body)
            compare(transcript.name[:2], one, answer)
    return len(asked)


def compare(file: str, one: Exchange, answer: httpx.Response) -> None:
    where = f"{file} #{one.number} {one.method} {one.path} {one.body}: {answer.text[:200]}"
    if one.status == 404 and one.path in NEW:
        assert answer.status_code == 200, where
    elif (file, one.number) in FORMS:
        assert (one.headers["content-type"], answer.status_code) == ("application/x-www-form-urlencoded", 415), where
    elif one.status == 500 and (file, one.number) not in ACCIDENTS:
        assert answer.status_code == 422, where
        assert len(str(answer.json()["detail"])) > 20, where
    else:
        assert answer.status_code == (200 if one.status == 500 else one.status), where
        if one.status == 307:
            assert answer.headers["location"].endswith("/docs" if one.path == "/" else one.path.rstrip("/"))
        elif one.answer.startswith('{"embeddings"'):
            texts = one.body.count('","') + 1 if '"inputs":[' in one.body else 1
            assert list(answer.json()) == ["embeddings"], where
            assert len(answer.json()["embeddings"]) == texts, where
        elif one.answer.startswith("{") and "...[body" not in one.answer and '"openapi"' not in one.answer:
            theirs = httpx.Response(200, text=one.answer).json()
            assert shape(answer.json()) == shape(theirs), where
        elif (
            "[body" not in one.answer and not one.answer.startswith('{"openapi"') and one.status == 200 and one.path != "/docs"
        ):
            assert answer.text == one.answer, where


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
    theirs = httpx.Response(200, text=(golden / "02_config_file.body.02").read_text()[:1648]).json()
    assert shape(config) == shape(theirs)
    assert {**config, "endpoints": None} == {**theirs, "endpoints": None}
    assert [one["name"] for one in config["endpoints"]] == [one["name"] for one in theirs["endpoints"]]
    for mine, one in zip(config["endpoints"], theirs["endpoints"], strict=True):
        assert {**mine, "model": None} == {**one, "model": None}


def test_sagemaker(golden, tiny):
    """With integration sagemaker, inference is only under /invocations."""
    with serving(task(tiny), kind=DeepSparseServer, integration="sagemaker") as running:
        assert replay(running, golden / "03_sagemaker.txt", str(tiny)) == 8


def test_names_and_routes(golden, tiny, tmp_path):
    """Endpoints without a name are numbered, and a route may have several parts."""
    with from_file(golden / "06_more_config.txt", str(tiny), tmp_path) as running:
        assert replay(running, golden / "06_more_config.txt", str(tiny)) == 3
