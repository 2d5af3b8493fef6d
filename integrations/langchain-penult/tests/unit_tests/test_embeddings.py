"""Behavior that LangChain's standard tests do not cover: roles, order, pickling, concurrency, caches, stores."""

import asyncio
import copy
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

import penult
from langchain_penult import PenultEmbeddings
from penult.types import TextError

TEXTS = ["a long sentence about the moon and the tides", "cats", "", "the river and the bridge"]


# What reaches the embedder, and what comes back


def test_documents_and_queries_have_their_roles(lengths):
    """Documents are embedded as documents and queries as queries, so that each gets its prompt."""
    embeddings = PenultEmbeddings(embedder=lengths)
    assert embeddings.embed_documents(["one", "three"]) == [[3, 0, 1], [5, 0, 1]]
    assert embeddings.embed_query("one") == [3, 1, 1]


async def test_async_calls_have_their_roles(lengths):
    """The async methods return the same as the blocking ones."""
    embeddings = PenultEmbeddings(embedder=lengths)
    assert await embeddings.aembed_documents(["one", "three"]) == [[3, 0, 1], [5, 0, 1]]
    assert await embeddings.aembed_query("one") == [3, 1, 1]


def test_text_is_passed_on_unaltered(lengths):
    """The adapter does not strip, fold newlines or prepend a prompt."""
    texts = ["  two\n\nlines\t", "", "\x00", "e\u0301"]
    PenultEmbeddings(embedder=lengths).embed_documents(texts)
    assert lengths.calls == [(texts, "document", False)]


def test_one_call_reaches_the_embedder_with_all_texts(lengths):
    """All texts arrive at once, because penult forms its own batches."""
    PenultEmbeddings(embedder=lengths).embed_documents(["x"] * 5000)
    assert [len(texts) for texts, _, _ in lengths.calls] == [5000]


def test_progress_is_for_documents(lengths):
    """`show_progress` applies to documents, not to a query."""
    embeddings = PenultEmbeddings(embedder=lengths, show_progress=True)
    embeddings.embed_documents(["a"])
    embeddings.embed_query("a")
    assert [progress for _, _, progress in lengths.calls] == [True, False]


def test_values_are_python_floats(embeddings):
    """Stores that write JSON reject NumPy's floats."""
    vectors = [*embeddings.embed_documents(TEXTS), embeddings.embed_query("cats")]
    assert {type(value) for vector in vectors for value in vector} == {float}
    json.dumps(vectors)


def test_vectors_are_the_cores(embeddings, tiny):
    """The vectors equal those of the embedder bit for bit."""
    expected = penult.Embedder.load(tiny, threads=1)
    assert np.array_equal(np.float32(embeddings.embed_documents(TEXTS)), expected.embed(TEXTS))
    assert np.array_equal(np.float32(embeddings.embed_query("cats")), expected.embed(["cats"], role="query")[0])


def test_each_text_has_its_own_vector_in_order(embeddings):
    """A text's vector does not depend on its position or the other texts."""
    together = np.array(embeddings.embed_documents(TEXTS))
    alone = np.array([embeddings.embed_documents([text])[0] for text in TEXTS])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS[::-1]), alone[::-1], rtol=0, atol=1e-6)
    assert np.unique(alone.round(4), axis=0).shape[0] == len(TEXTS)


def test_no_documents_give_no_vectors(embeddings):
    assert embeddings.embed_documents([]) == []


@pytest.mark.parametrize(
    "texts", [lambda: (text for text in TEXTS), lambda: map(str, TEXTS), lambda: dict.fromkeys(TEXTS), lambda: np.array(TEXTS)]
)
async def test_any_iterable_of_texts(embeddings, texts):
    """A generator, a map, the keys of a dict and an array are embedded like a list of the same texts."""
    expected = embeddings.embed_documents(TEXTS)
    assert embeddings.embed_documents(texts()) == await embeddings.aembed_documents(texts()) == expected


def test_a_str_for_a_list_is_an_error(embeddings):
    """A str is a sequence of str; its characters would be embedded silently."""
    with pytest.raises(TypeError, match="str"):
        embeddings.embed_documents("a text")


def test_errors_of_the_core_pass_through(embeddings):
    """The error for an invalid text names its row, as without LangChain."""
    with pytest.raises(TextError) as caught:
        embeddings.embed_documents(["fine", "a lone surrogate: \ud800"])
    assert list(caught.value.rows) == [1]


OPTIONS = {
    "layer": 0,
    "pooling": "max",
    "max_length": 6,
    "truncate": "right",
    "dimensions": 3,
    "normalize": True,
    "prompts": {"query": "query: ", "document": "the passage: "},
}


def test_options_do_what_the_cores_do(tiny):
    """Each loading option changes what the core's same option changes."""
    vectors = PenultEmbeddings(model=tiny, threads=1, **OPTIONS).embed_documents(TEXTS)
    assert np.array_equal(np.float32(vectors), penult.Embedder.load(tiny, threads=1, **OPTIONS).embed(TEXTS))
    assert np.shape(vectors) == (len(TEXTS), 3)


def test_every_option_reaches_load(monkeypatch, lengths):
    """Every option of the adapter is passed to the core, `threads` and `precision` too."""
    options = OPTIONS | {
        "precision": "int8",
        "threads": 3,
        "files_from": "f",
        "model_file": "f.onnx",
        "task": "t",
        "layer_norm": True,
    }
    asked = []
    monkeypatch.setattr(penult.Embedder, "load", lambda model, **given: asked.append((model, given)) or lengths)
    assert PenultEmbeddings(model="m", **options).embed_query("one") == [3, 1, 1]
    assert asked == [("m", options)]


# Construction


def test_model_name_is_accepted_for_model(tiny):
    assert PenultEmbeddings(model_name=str(tiny)).model == str(tiny)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither of model and embedder"),
        ({"model": "m", "embedder": object()}, "both of model and embedder"),
        ({"model": "m", "pooling": "sum"}, "'mean', 'max', 'cls'"),
        ({"model": "m", "max_len": 5}, "max_len"),
    ],
)
def test_wrong_options_are_refused_at_construction(given, message):
    with pytest.raises(ValidationError, match=message):
        PenultEmbeddings(**given)


PROMPTS = {"query": "query: ", "document": "the passage: "}


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": PROMPTS},
        {"query_instruction": "query: ", "embed_instruction": "the passage: "},
        {"prompts": {"query": "query: "}, "embed_instruction": "the passage: "},
        {"prompts": PROMPTS, "query_instruction": "query: "},
    ],
)
def test_prompts_are_put_before_the_texts(tiny, options):
    """A prompt precedes each text of its role, unchanged, by either of its names; it is part of the namespace."""
    plain, prompted = PenultEmbeddings(model=tiny, threads=1), PenultEmbeddings(model=tiny, threads=1, **options)
    expected = plain.embed_documents([f"the passage: {text}" for text in TEXTS])
    np.testing.assert_allclose(prompted.embed_documents(TEXTS), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(prompted.embed_query("cats"), plain.embed_query("query: cats"), rtol=0, atol=1e-6)
    assert prompted.cache_namespace == penult.Embedder.load(tiny, prompts=PROMPTS).fingerprint != plain.cache_namespace
    assert PenultEmbeddings(**json.loads(prompted.model_dump_json())).embed_query("cats") == prompted.embed_query("cats")


def test_a_changed_prompt_takes_effect(embeddings, tiny):
    """A prompt set after the first text, also inside the dict, is used for the next ones."""
    plain = embeddings.embed_query("cats")
    embeddings.prompts = {"query": "query: "}
    first = embeddings.embed_query("cats")
    embeddings.prompts["query"] = "the passage: "
    assert len({tuple(plain), tuple(first), tuple(embeddings.embed_query("cats"))}) == 3
    embeddings.prompts = None
    embeddings.query_instruction = "query: "
    assert embeddings.embed_query("cats") == first


def test_a_duplicate_prompt_is_an_error():
    """Two prompts for one role are an error that names both; so is an unknown role."""
    for word, role in (("query_instruction", "query"), ("embed_instruction", "document")):
        with pytest.raises(ValidationError, match=rf"prompts\['{role}'\] and {word} are both given and differ"):
            PenultEmbeddings(model="m", prompts={role: "a"}, **{word: "b"})
    with pytest.raises(ValidationError, match="'document' or 'query'"):
        PenultEmbeddings(model="m", prompts={"passage": "a"})


@pytest.mark.parametrize("option", [{"prompts": PROMPTS}, {"query_instruction": "q"}, {"embed_instruction": ""}], ids=str)
def test_prompts_do_not_fit_a_loaded_embedder(lengths, option):
    """A loaded embedder has its prompts; others would be ignored."""
    with pytest.raises(ValidationError, match=f"{next(iter(option))} given with a loaded embedder"):
        PenultEmbeddings(embedder=lengths, **option)


def test_several_poolings(tiny):
    """Several poolings are concatenated, also after a dump."""
    both = PenultEmbeddings(model=str(tiny), pooling=["mean", "max"], threads=1)
    assert len(both.embed_query("cats")) == 64
    assert PenultEmbeddings(**json.loads(both.model_dump_json())) == both


def test_loading_options_do_not_fit_a_loaded_embedder(lengths):
    """An option that would be ignored is an error that names it."""
    with pytest.raises(ValidationError, match="pooling, dimensions given with a loaded embedder"):
        PenultEmbeddings(embedder=lengths, pooling="mean", dimensions=2, show_progress=True)


def test_an_embedder_must_embed():
    with pytest.raises(TypeError, match="given: str"):
        PenultEmbeddings(embedder="sentence-transformers/all-MiniLM-L6-v2")


def test_dump_builds_an_equal_object(tiny):
    """`model_dump_json` keeps every option; the vectors are the same after the round trip."""
    embeddings = PenultEmbeddings(model=str(tiny), pooling="cls", dimensions=4, threads=1)
    again = PenultEmbeddings(**json.loads(embeddings.model_dump_json()))
    assert again == embeddings
    assert again.embed_query("cats") == embeddings.embed_query("cats")


# Loading, copies, processes


@pytest.fixture
def loads(monkeypatch):
    """Count the loads of a model."""
    seen = []
    load = penult.Embedder.load

    def counting(*args, **options):
        seen.append(args)
        time.sleep(0.05)  # long enough for a second thread to come in
        return load(*args, **options)

    monkeypatch.setattr(penult.Embedder, "load", counting)
    return seen


def test_threads_that_race_load_one_model(embeddings, loads):
    """The model is loaded at the first text, once, by any number of concurrent threads."""
    assert loads == []
    barrier = threading.Barrier(6)

    def query():
        barrier.wait()
        embeddings.embed_query("cats")

    threads = [threading.Thread(target=query) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


def test_a_changed_option_takes_effect(embeddings, loads):
    """After a changed option, also in a copy, the old model is not used; a plain copy shares it."""
    mean = embeddings.embed_query("the river and the bridge")
    other = embeddings.model_copy(update={"pooling": "max"})
    assert other.embed_query("the river and the bridge") != mean
    assert embeddings.model_copy().embed_query("the river and the bridge") == mean
    assert len(loads) == 2
    embeddings.pooling = "max"
    assert embeddings.embed_query("the river and the bridge") != mean


def test_copies_and_pickles_of_a_loaded_object_work(embeddings):
    """A pickle contains the options and not the session, and loads the model again."""
    vector = embeddings.embed_query("cats")
    data = pickle.dumps(embeddings)
    assert len(data) < 2000
    assert pickle.loads(data).embed_query("cats") == vector
    assert copy.deepcopy(embeddings).embed_query("cats") == vector


def test_another_process_gives_the_same_vector(embeddings):
    """A new process that unpickles the object loads the model and returns the same vector, without output."""
    vector = embeddings.embed_query("cats")
    code = "import json, pickle, sys; print(json.dumps(pickle.load(sys.stdin.buffer).embed_query('cats')))"
    command = [sys.executable, "-W", "error", "-c", code]
    out = subprocess.run(command, input=pickle.dumps(embeddings), capture_output=True, check=True, timeout=120)
    assert json.loads(out.stdout) == vector
    assert out.stderr == b""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_process_gives_the_same_vector(tiny):
    """A fork of a process with a loaded model embeds too, instead of waiting for the parent's threads."""
    code = """
import asyncio, os, sys
from langchain_penult import PenultEmbeddings
embeddings = PenultEmbeddings(model=sys.argv[1], threads=2)
vector = asyncio.run(embeddings.aembed_query("cats"))
child = os.fork()
if child == 0:
    same = asyncio.run(embeddings.aembed_query("cats")) == vector == embeddings.embed_query("cats")
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(tiny)]
    assert subprocess.run(command, check=False, timeout=120).returncode == 0


# Async


class Blocking:
    """An embedder that blocks until it is released, and counts the waiting calls."""

    dimension = 1
    fingerprint = "blocking"

    def __init__(self):
        self.go = threading.Event()
        self.inside = 0
        self.lock = threading.Lock()

    def embed(self, texts, role="document", *, progress=False):
        with self.lock:
            self.inside += 1
        assert self.go.wait(20), "the event loop was blocked"
        return np.ones((len(texts), 1), np.float32)


async def test_the_loop_runs_while_texts_are_embedded():
    """Awaiting a vector does not block the event loop, which releases the embedder here."""
    embedder = Blocking()
    task = asyncio.create_task(PenultEmbeddings(embedder=embedder).aembed_documents(["a"]))
    while not embedder.inside:
        await asyncio.sleep(0.001)
    assert not task.done()
    embedder.go.set()
    assert await task == [[1.0]]


async def test_awaited_calls_keep_few_threads():
    """Many async calls wait in a queue, at most four in threads, and do not use the loop's own threads."""
    embedder = Blocking()
    embeddings = PenultEmbeddings(embedder=embedder)
    tasks = [asyncio.create_task(embeddings.aembed_query("a")) for _ in range(50)]
    while embedder.inside < 4:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert embedder.inside == 4
    assert await asyncio.to_thread(lambda: "free") == "free"
    embedder.go.set()
    assert await asyncio.gather(*tasks) == [[1.0]] * 50


# Caches and stores


def test_cache_namespace_distinguishes_vectors(tiny, lengths):
    """Equal recipes share a namespace, another pooling has another, and options that do not affect vectors do not matter."""
    namespace = PenultEmbeddings(model=tiny).cache_namespace
    assert namespace == penult.Embedder.load(tiny).fingerprint
    assert PenultEmbeddings(model=tiny, threads=1, show_progress=True).cache_namespace == namespace
    assert PenultEmbeddings(model=tiny, pooling="max").cache_namespace != namespace
    assert PenultEmbeddings(embedder=lengths).cache_namespace == "lengths-1"


def test_cached_vectors_of_two_models_do_not_mix(tiny):
    """With the namespace set, one store serves two poolings, and a second run embeds nothing."""
    classic = pytest.importorskip("langchain_classic.embeddings", reason="langchain-classic is not installed")
    from langchain_core.stores import InMemoryByteStore

    store = InMemoryByteStore()
    answers = {}
    for pooling in ("max", "cls"):
        embeddings = PenultEmbeddings(model=tiny, pooling=pooling)
        cached = classic.CacheBackedEmbeddings.from_bytes_store(
            embeddings, store, namespace=embeddings.cache_namespace, key_encoder="sha256"
        )
        answers[pooling] = embeddings.embed_documents(TEXTS)
        assert cached.embed_documents(TEXTS) == cached.embed_documents(TEXTS) == answers[pooling]
    assert answers["max"] != answers["cls"]


def test_in_memory_store_finds_the_passage(embeddings):
    """Text in, vectors in a store, the right passage found."""
    store = InMemoryVectorStore.from_texts([text for text in TEXTS if text], embeddings)
    found = store.as_retriever(search_kwargs={"k": 1}).invoke("the river and the bridge")
    assert [document.page_content for document in found] == ["the river and the bridge"]


async def test_in_memory_store_finds_the_passage_awaited(embeddings):
    store = await InMemoryVectorStore.afrom_texts([text for text in TEXTS if text], embeddings)
    found = await store.asimilarity_search("cats", k=1)
    assert [document.page_content for document in found] == ["cats"]


def test_qdrant_finds_the_passage(embeddings):
    """The same through Qdrant's local mode, with the documents' metadata."""
    qdrant = pytest.importorskip("langchain_qdrant", reason="langchain-qdrant is not installed")
    documents = [Document(text, metadata={"row": row}) for row, text in enumerate(TEXTS)]
    store = qdrant.QdrantVectorStore.from_documents(documents, embeddings, location=":memory:", collection_name="passages")
    (found,) = store.similarity_search("a long sentence about the moon and the tides", k=1)
    assert found.metadata["row"] == 0
    store.client.close()


def test_readme_examples_run(tiny, capsys):
    """The examples of the README run from top to bottom."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) >= 3
    code = "\n".join(blocks).replace("sentence-transformers/all-MiniLM-L6-v2", tiny.as_posix())
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out
