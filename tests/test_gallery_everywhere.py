"""Ten models of the gallery: server, adapters and command line give the vectors of `Embedder`, which are the expected ones."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from bulk.jobs import InProcess, vectors
from server_kit import serving

from langchain_penult import PenultEmbeddings
from llama_index.embeddings.penult import PenultEmbedding
from penult import Embedder, RemoteEmbedder
from penult.bulk import embed as bulk
from penult.cli import app
from penult.server import EndpointConfig

pytestmark = pytest.mark.filterwarnings("ignore::penult.types.TruncationWarning")  # some texts are meant to be cut

CASES = (
    "default-prompt-passage", "do-lower-case-cased", "e5-mistral", "embeddinggemma2", "instructor-t5", "matryoshka-mpnet",
    "potion", "query-length", "qwen3-embedding-kv", "router-two",
)  # fmt: skip
SAME = 1e-6  # between penult's interfaces: a batch of the server may hold other texts than one of the embedder
RIGHT = 1e-5  # from sentence-transformers in fp32


@dataclass(frozen=True)
class Call:
    """One use of a model: options of `Embedder.load`, the role, and the expected vectors."""

    options: dict
    role: str
    expected: list[np.ndarray]

    @property
    def prompt(self) -> str | None:
        return self.options.get("prompts", {}).get(self.role)


def calls_of(folder: Path, manifest: dict) -> list[Call]:
    """Return the calls of a case that every interface supports: a prompt in the text becomes a prompt argument."""
    arrays, actual = np.load(folder / "expected.npz"), []
    for call in manifest["calls"]:
        options = dict(call["load"])
        if "prepend" in options:
            options["prompts"] = {call["role"]: options.pop("prepend")}
        if {*options} <= {"dimensions", "prompts"} and "expect" not in call:
            keys = [key for key in call["key"].split("|") if key in arrays.files]
            actual.append(Call(options, call["role"], [arrays[key] for key in keys]))
    return actual


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A model's folder, its texts and the calls."""
    folder = Path(__file__).parent / "data" / "gallery" / request.param
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    calls = calls_of(folder, manifest)
    assert len(calls) >= 2
    return folder, manifest["texts"], calls


@pytest.fixture(scope="module")
def local(case):
    """The vectors of `Embedder` for each call, checked against the gallery."""
    folder, texts, calls = case
    actual = []
    for call in calls:
        with Embedder.load(folder, threads=1, **call.options) as opened:
            actual.append((opened.embed(texts, call.role), opened.fingerprint))
        assert min(far(actual[-1][0], array) for array in call.expected) <= RIGHT
    return actual


def far(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, without rows for which sentence-transformers has no vectors."""
    if actual.shape != expected.shape:
        return float("inf")
    whole = ~np.isnan(expected).any(axis=1)
    return float(np.abs(actual - expected)[whole].max())


@pytest.fixture(scope="module")
def running(case):
    """A server with the model once per call, named by the call's number, and once unchanged, named "plain"."""
    folder, _, calls = case
    own = [EndpointConfig(model=str(folder), name=f"{i}", **call.options) for i, call in enumerate(calls)]
    with serving(*own, EndpointConfig(model=str(folder), name="plain")) as server:
        yield server


def test_server(case, local, running):
    """OpenAI's route, TEI's and penult's client give the vectors of the local model, with its fingerprint."""
    _, texts, calls = case
    for i, (call, (expected, fingerprint)) in enumerate(zip(calls, local, strict=True)):
        answer = running.post("/v1/embeddings", {"input": texts, "model": f"{i}", "input_type": call.role})
        assert far(np.array([item["embedding"] for item in answer.json()["data"]]), expected) <= SAME
        assert answer.headers["x-penult-fingerprint"] == fingerprint
        unit = running.get("/info", params={"model": f"{i}"}).json()["normalized"]
        tei = running.post("/embed", {"inputs": texts, "model": f"{i}", "prompt_name": call.role, "normalize": unit})
        assert far(np.array(tei.json()), expected) <= SAME
        with RemoteEmbedder(running.url, model=f"{i}") as remote:
            assert far(remote.embed(iter(texts), call.role), expected) <= SAME
            assert remote.fingerprint == fingerprint


def test_options_of_a_request(case, local, running):
    """A request to the unchanged model may pass a prompt and fewer dimensions."""
    _, texts, calls = case
    for call, (expected, _) in zip(calls, local, strict=True):
        body = {
            "input": texts,
            "model": "plain",
            "input_type": call.role,
            "prompt": call.prompt,
            "dimensions": call.options.get("dimensions"),
        }
        answer = running.post("/v1/embeddings", body)
        assert far(np.array([item["embedding"] for item in answer.json()["data"]]), expected) <= SAME


def test_langchain(case, local, running):
    """LangChain's adapter gives the vectors of the local model, in process and through a server."""
    folder, texts, calls = case
    for i, (call, (expected, fingerprint)) in enumerate(zip(calls, local, strict=True)):
        for adapter in (
            PenultEmbeddings(model=folder, threads=1, **call.options),
            PenultEmbeddings(base_url=running.url, model=f"{i}"),
        ):
            query = call.role == "query"
            actual = [adapter.embed_query(text) for text in texts] if query else adapter.embed_documents(iter(texts))
            assert far(np.array(actual), expected) <= SAME
            assert adapter.cache_namespace == fingerprint


def test_llama_index(case, local, running):
    """LlamaIndex's adapter gives the vectors of the local model, after serialization and through a server."""
    folder, texts, calls = case
    for i, (call, (expected, fingerprint)) in enumerate(zip(calls, local, strict=True)):
        written = PenultEmbedding(model_name=folder, **call.options).to_json()
        for adapter in (PenultEmbedding.from_json(written, threads=1), PenultEmbedding(base_url=running.url, model=f"{i}")):
            query = call.role == "query"
            actual = [adapter.get_query_embedding(t) for t in texts] if query else adapter.get_text_embedding_batch(iter(texts))
            assert far(np.array(actual), expected) <= SAME
            assert adapter.cache_namespace == fingerprint


def test_command_line(case, local, tmp_path, monkeypatch):
    """`penult embed` gives the vectors of the local model; its workers run in this process, since a start takes a second."""
    folder, texts, calls = case
    monkeypatch.setattr(bulk, "Pool", InProcess)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    for i, (call, (expected, fingerprint)) in enumerate(zip(calls, local, strict=True)):
        out = tmp_path / f"{i}.parquet"
        options = ["--model", folder, "--role", call.role, "--progress", "off"]
        options += [] if call.prompt is None else ["--prompt", call.prompt]
        options += [word for key in call.options.keys() & {"dimensions"} for word in ("--dimensions", call.options[key])]
        with pytest.raises(SystemExit) as end:
            app(["embed", *map(str, [source, out, *options])])
        assert end.value.code == 0
        table = pq.read_table(out)
        assert far(vectors(table), expected) <= SAME
        assert table.schema.metadata[b"penult.fingerprint"].decode() == fingerprint


def test_a_layer_norm_before_the_cut(tmp_path, monkeypatch):
    """Every interface takes layer_norm, which model cards may require and no file states: a layer norm before the cut."""
    folder = Path(__file__).parent / "data" / "gallery" / "e5-mistral"
    options, texts = {"dimensions": 16, "layer_norm": True, "normalize": True}, ["a cat", "the moon over the river"]
    with Embedder.load(folder, threads=1, **options) as opened, Embedder.load(folder, threads=1, dimensions=16) as plain:
        expected, fingerprint = opened.embed(texts), opened.fingerprint
        assert far(plain.embed(texts), expected) > 1e-3
    assert far(np.array(PenultEmbeddings(model=folder, threads=1, **options).embed_documents(texts)), expected) <= SAME
    assert far(np.array(PenultEmbedding(model_name=folder, **options).get_text_embedding_batch(texts)), expected) <= SAME
    with (
        serving(EndpointConfig(model=str(folder), name="a", **options)) as server,
        RemoteEmbedder(server.url, model="a") as remote,
    ):
        assert far(remote.embed(texts), expected) <= SAME
        assert remote.fingerprint == fingerprint
    monkeypatch.setattr(bulk, "Pool", InProcess)
    (tmp_path / "in.txt").write_text("\n".join(texts), encoding="utf-8")
    words = [
        "embed",
        tmp_path / "in.txt",
        tmp_path / "out.parquet",
        "--model",
        folder,
        "--role",
        "document",
        "--progress",
        "off",
    ]
    with pytest.raises(SystemExit) as end:
        app([*map(str, words), "--dimensions", "16", "--layer-norm", "--normalize"])
    assert end.value.code == 0
    assert far(vectors(pq.read_table(tmp_path / "out.parquet")), expected) <= SAME
