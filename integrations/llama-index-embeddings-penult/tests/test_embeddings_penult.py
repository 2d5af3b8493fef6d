"""PenultEmbedding inside LlamaIndex: roles, order, serialization, pickling, pipelines, async, stores."""

import asyncio
import copy
import json
import logging
import multiprocessing
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.schema import TextNode
from pydantic import ValidationError

import penult
from llama_index.embeddings import penult as package
from llama_index.embeddings.penult import PenultEmbedding
from penult.types import TextError

EXPECTED_ALL = ["PenultEmbedding", "__version__"]
TEXTS = ["a long sentence about the moon and the tides", "cats", "", "the river and the bridge"]


# The public surface


def test_class():
    """LlamaIndex accepts subclasses of its base class as embedding models."""
    assert BaseEmbedding.__name__ in [base.__name__ for base in PenultEmbedding.__mro__]
    assert PenultEmbedding.class_name() == "PenultEmbedding"


def test_all():
    """The package exports these names and no others, and has the core's version."""
    assert sorted(package.__all__) == sorted(EXPECTED_ALL)
    assert all(hasattr(package, name) for name in EXPECTED_ALL)
    assert package.__version__ == penult.__version__


def test_namespace_is_shared():
    """No `__init__.py` closes `llama_index` or `llama_index.embeddings` to other distributions."""
    root = Path(package.__file__).parents[2]
    assert not (root / "__init__.py").exists()
    assert not (root / "embeddings" / "__init__.py").exists()


def test_construction_loads_nothing_heavy():
    """Building a pipeline loads neither a runtime nor a model: they are loaded with the first text."""
    code = (
        "import sys; from llama_index.embeddings.penult import PenultEmbedding; PenultEmbedding(model_name='m'); "
        "print(*sorted({'onnx', 'onnxruntime', 'tokenizers', 'transformers', 'torch'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


# What reaches the embedder, and what comes back


def test_texts_and_queries_have_their_roles(lengths):
    """Texts are embedded as documents and queries as queries, so that each gets its prompt."""
    embedding = PenultEmbedding(embedder=lengths)
    assert embedding.get_text_embedding_batch(["one", "three"]) == [[3, 0, 1], [5, 0, 1]]
    assert embedding.get_text_embedding("one") == [3, 0, 1]
    assert embedding.get_query_embedding("one") == [3, 1, 1]


async def test_async_calls_have_their_roles(lengths):
    """The async methods return the same as the blocking ones."""
    embedding = PenultEmbedding(embedder=lengths)
    assert await embedding.aget_text_embedding_batch(["one", "three"]) == [[3, 0, 1], [5, 0, 1]]
    assert await embedding.aget_text_embedding("one") == [3, 0, 1]
    assert await embedding.aget_query_embedding("one") == [3, 1, 1]


def test_text_is_passed_on_unaltered(lengths):
    """The adapter does not strip, fold newlines or prepend a prompt."""
    texts = ["  two\n\nlines\t", "", "\x00", "e\u0301"]
    PenultEmbedding(embedder=lengths).get_text_embedding_batch(texts)
    assert lengths.calls == [(texts, "document", False)]


def test_batches_are_large(lengths):
    """Texts arrive in hundreds, because penult sorts them by length and forms its own batches."""
    PenultEmbedding(embedder=lengths).get_text_embedding_batch(["x"] * 1100)
    assert [len(texts) for texts, _, _ in lengths.calls] == [512, 512, 76]
    with pytest.raises(ValidationError, match="2048"):
        PenultEmbedding(embedder=lengths, embed_batch_size=2049)


def test_progress_is_for_texts(lengths):
    """`show_progress` applies to many texts, not to a query."""
    embedding = PenultEmbedding(embedder=lengths, show_progress=True)
    embedding.get_text_embedding_batch(["a", "b"])
    embedding.get_query_embedding("a")
    assert [progress for _, _, progress in lengths.calls] == [True, False]


def test_values_are_python_floats(embedding):
    """Stores that write JSON reject NumPy's floats."""
    vectors = [*embedding.get_text_embedding_batch(TEXTS), embedding.get_query_embedding("cats")]
    assert {type(value) for vector in vectors for value in vector} == {float}
    json.dumps(vectors)


def test_vectors_are_the_cores(embedding, tiny):
    """The vectors equal those of the embedder bit for bit."""
    expected = penult.Embedder.load(tiny, threads=1)
    assert np.array_equal(np.float32(embedding.get_text_embedding_batch(TEXTS)), expected.embed(TEXTS))
    assert np.array_equal(np.float32(embedding.get_query_embedding("cats")), expected.embed(["cats"], role="query")[0])


def test_each_text_has_its_own_vector_in_order(embedding):
    """A text's vector does not depend on its position, the other texts or the batch size."""
    alone = np.array([embedding.get_text_embedding(text) for text in TEXTS])
    embedding.embed_batch_size = 3
    for order in (slice(None), slice(None, None, -1)):
        together = embedding.get_text_embedding_batch(TEXTS[order])
        np.testing.assert_allclose(together, alone[order], rtol=0, atol=1e-6)
    assert np.unique(alone.round(4), axis=0).shape[0] == len(TEXTS)


async def test_no_texts_give_no_vectors(embedding):
    assert embedding.get_text_embedding_batch([]) == []
    assert await embedding.aget_text_embedding_batch([]) == []
    assert embedding([]) == []


async def test_a_str_for_a_list_is_refused(lengths):
    """LlamaIndex would embed the characters of a str one by one."""
    embedding = PenultEmbedding(embedder=lengths)
    with pytest.raises(TypeError, match="a str"):
        embedding.get_text_embedding_batch("a text")
    with pytest.raises(TypeError, match="a str"):
        await embedding.aget_text_embedding_batch("a text")
    assert lengths.calls == []


def test_errors_of_the_core_pass_through(embedding):
    """The error for an invalid text names its row, as without LlamaIndex."""
    with pytest.raises(TextError) as caught:
        embedding.get_text_embedding_batch(["fine", "a lone surrogate: \ud800"])
    assert list(caught.value.rows) == [1]


# Construction


@pytest.mark.parametrize("word", ["model", "model_name"])
def test_model_and_model_name_mean_the_same(tiny, word):
    """A path is accepted too, and is stored as text, which can be serialized."""
    assert PenultEmbedding(**{word: tiny}).model_name == str(tiny)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither model_name nor embedder"),
        ({"model": "m", "model_name": "n"}, "Extra inputs"),
        ({"model_name": "m", "pooling": "sum"}, "'mean', 'max', 'cls'"),
        ({"model_name": "m", "max_len": 5}, "max_len"),
        ({"model_name": "fingerprint:abc"}, r"from_dict\(data, embedder=...\)"),
    ],
)
def test_wrong_options_are_refused_at_construction(given, message):
    with pytest.raises(ValidationError, match=message):
        PenultEmbedding(**given)


PROMPTS = {"query": "query: ", "document": "the passage: "}


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": PROMPTS},
        {"query_instruction": "query: ", "text_instruction": "the passage: "},
        {"prompts": {"query": "query: "}, "text_instruction": "the passage: "},
        {"prompts": PROMPTS, "query_instruction": "query: "},
    ],
)
def test_prompts_are_put_before_the_texts(tiny, options):
    """A prompt precedes each text of its role, unchanged, by either of its names, also after serialization."""
    plain, prompted = PenultEmbedding(model_name=tiny, threads=1), PenultEmbedding(model_name=tiny, threads=1, **options)
    expected = plain.get_text_embedding_batch([f"the passage: {text}" for text in TEXTS])
    np.testing.assert_allclose(prompted.get_text_embedding_batch(TEXTS), expected, rtol=0, atol=1e-6)
    query = prompted.get_query_embedding("cats")
    np.testing.assert_allclose(query, plain.get_query_embedding("query: cats"), rtol=0, atol=1e-6)
    assert prompted.cache_namespace == penult.Embedder.load(tiny, prompts=PROMPTS).fingerprint != plain.cache_namespace
    for again in (PenultEmbedding.from_dict(prompted.to_dict()), PenultEmbedding.from_json(prompted.to_json())):
        assert again.get_query_embedding("cats") == query


def test_a_changed_prompt_takes_effect(embedding):
    """A prompt set after the first text, also inside the dict, is used for the next ones."""
    plain = embedding.get_query_embedding("cats")
    embedding.prompts = {"query": "query: "}
    first = embedding.get_query_embedding("cats")
    embedding.prompts["query"] = "the passage: "
    assert len({tuple(plain), tuple(first), tuple(embedding.get_query_embedding("cats"))}) == 3


def test_a_duplicate_prompt_is_an_error():
    """Two prompts for one role are an error that names both; so is an unknown role."""
    for word, role in (("query_instruction", "query"), ("text_instruction", "document")):
        with pytest.raises(ValidationError, match=rf"prompts\['{role}'\] and {word} are both given and differ"):
            PenultEmbedding(model_name="m", prompts={role: "a"}, **{word: "b"})
    with pytest.raises(ValidationError, match="'document' or 'query'"):
        PenultEmbedding(model_name="m", prompts={"text": "a"})


@pytest.mark.parametrize("option", [{"prompts": PROMPTS}, {"query_instruction": "q"}, {"text_instruction": ""}], ids=str)
def test_prompts_do_not_fit_a_loaded_embedder(lengths, option):
    """A loaded embedder has its prompts; others would be ignored."""
    with pytest.raises(ValidationError, match=f"{next(iter(option))} given with a loaded embedder"):
        PenultEmbedding(embedder=lengths, **option)


def test_several_poolings(tiny):
    """Several poolings are concatenated, also after serialization."""
    both = PenultEmbedding(model_name=str(tiny), pooling=["mean", "max"], threads=1)
    vector = both.get_query_embedding("cats")
    assert len(vector) == 64
    assert PenultEmbedding.from_json(both.to_json()).get_query_embedding("cats") == vector


@pytest.mark.parametrize(
    "texts", [lambda: (text for text in TEXTS), lambda: map(str, TEXTS), lambda: dict.fromkeys(TEXTS), lambda: np.array(TEXTS)]
)
async def test_any_iterable_of_texts(embedding, texts):
    """A generator, a map, the keys of a dict and an array are embedded like a list of the same texts."""
    expected = embedding.get_text_embedding_batch(TEXTS)
    assert embedding.get_text_embedding_batch(texts()) == await embedding.aget_text_embedding_batch(texts()) == expected


def test_loading_options_do_not_fit_a_loaded_embedder(lengths):
    """An option that would be ignored is an error that names it."""
    with pytest.raises(ValidationError, match="pooling, dimensions given with a loaded embedder"):
        PenultEmbedding(embedder=lengths, pooling="mean", dimensions=2, show_progress=True)
    with pytest.raises(ValidationError, match="model_name='other' and an embedder of fingerprint:lengths-1"):
        PenultEmbedding(embedder=lengths, model_name="other")


def test_an_embedder_must_embed():
    with pytest.raises(TypeError, match="given: str"):
        PenultEmbedding(embedder="sentence-transformers/all-MiniLM-L6-v2")


# Serialization

OPTIONS = {
    "layer": 0,
    "pooling": "max",
    "max_length": 6,
    "truncate": "right",
    "dimensions": 3,
    "normalize": True,
    "prompts": {"query": "query: ", "document": "the passage: "},
}


def test_dict_and_json_build_the_same_vectors(tiny):
    """Every option that affects a vector survives serialization, and has the effect of the core's same option."""
    embedding = PenultEmbedding(model_name=str(tiny), threads=1, **OPTIONS)
    expected = penult.Embedder.load(tiny, threads=1, **OPTIONS).embed(TEXTS)
    for again in (PenultEmbedding.from_dict(embedding.to_dict()), PenultEmbedding.from_json(embedding.to_json())):
        assert {name: getattr(again, name) for name in OPTIONS} == OPTIONS
        assert np.array_equal(np.float32(again.get_text_embedding_batch(TEXTS)), expected)
    assert expected.shape == (len(TEXTS), 3)


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
    assert PenultEmbedding(model_name="m", **options).get_query_embedding("one") == [3, 1, 1]
    assert asked == [("m", options)]


def pipeline_hash(**options):
    return get_transformation_hash([TextNode(text="cats")], PenultEmbedding(model_name="m", **options))


@pytest.mark.parametrize(
    "option",
    [
        *({name: OPTIONS[name]} for name in OPTIONS),
        {"precision": "int8"},
        {"query_instruction": ""},
        {"text_instruction": "passage: "},
        {"files_from": "f"},
        {"model_file": "f.onnx"},
        {"task": 0},
        {"layer_norm": True},
        {"pooling": ["mean", "max"]},
    ],
    ids=str,
)
def test_pipeline_cache_depends_on_options_that_affect_vectors(option):
    """A changed option that may change vectors misses the pipeline's cache."""
    assert pipeline_hash(**option) != pipeline_hash()


@pytest.mark.parametrize(
    "option", [{"threads": 1}, {"show_progress": True}, {"embed_batch_size": 8}, {"num_workers": 2}], ids=str
)
def test_pipeline_cache_does_not_depend_on_other_options(option):
    """A changed option that does not affect vectors hits the pipeline's cache."""
    assert pipeline_hash(**option) == pipeline_hash()


def test_the_order_of_options_is_kept():
    """A pipeline's cache hashes the text of `to_dict`: another order of the same options would embed everything again."""
    names = list(PenultEmbedding(model_name="m").to_dict())
    assert names[names.index("base_url") :] == [
        "base_url", "layer", "pooling", "precision", "max_length", "truncate", "dimensions", "normalize", "layer_norm",
        "prompts", "query_instruction", "text_instruction", "files_from", "model_file", "task", "class_name",
    ]  # fmt: skip


def test_a_ready_embedder_is_known_by_its_fingerprint(lengths):
    """The serialized form has the fingerprint; reading it back needs an embedder with the same one."""
    data = PenultEmbedding(embedder=lengths).to_dict()
    assert data["model_name"] == "fingerprint:lengths-1"
    assert PenultEmbedding.from_dict(data, embedder=lengths).get_text_embedding("one") == [3, 0, 1]
    lengths.fingerprint = "lengths-2"
    with pytest.raises(ValidationError, match="fingerprint:lengths-2"):
        PenultEmbedding.from_dict(data, embedder=lengths)


def test_cache_namespace_distinguishes_vectors(tiny, lengths):
    """Equal recipes share a namespace, another pooling has another, and options that do not affect vectors do not matter."""
    namespace = PenultEmbedding(model_name=str(tiny)).cache_namespace
    assert namespace == penult.Embedder.load(tiny).fingerprint
    assert PenultEmbedding(model_name=str(tiny), threads=1, embed_batch_size=7).cache_namespace == namespace
    assert PenultEmbedding(model_name=str(tiny), pooling="max").cache_namespace != namespace
    assert PenultEmbedding(embedder=lengths).cache_namespace == "lengths-1"


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


def test_threads_that_race_load_one_model(embedding, loads):
    """The model is loaded at the first text, once, by any number of concurrent threads."""
    assert loads == []
    barrier = threading.Barrier(6)

    def query():
        barrier.wait()
        embedding.get_query_embedding("cats")

    threads = [threading.Thread(target=query) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


def test_a_changed_option_takes_effect(embedding, loads):
    """After a changed option, the old model is not used."""
    mean = embedding.get_query_embedding("the river and the bridge")
    embedding.pooling = "max"
    assert embedding.get_query_embedding("the river and the bridge") != mean
    embedding.pooling = None
    assert embedding.get_query_embedding("the river and the bridge") == mean
    assert len(loads) == 2


def test_copies_and_pickles_of_a_loaded_object_work(embedding, caplog):
    """A pickle contains the options and not the session, loads the model again, and logs nothing."""
    embedding.embed_batch_size = 7
    vector = embedding.get_query_embedding("cats")
    with caplog.at_level(logging.DEBUG):
        data = pickle.dumps(embedding)
        again = pickle.loads(data)
    assert [record for record in caplog.records if "emoving" in record.message] == []
    assert (again.embed_batch_size, again.threads) == (7, 1)
    assert len(data) < 5000
    assert again.get_query_embedding("cats") == vector
    assert copy.deepcopy(embedding).get_query_embedding("cats") == vector


def test_another_process_gives_the_same_vector(embedding):
    """A new process that unpickles the object loads the model and returns the same vector, without output."""
    vector = embedding.get_query_embedding("cats")
    code = "import json, pickle, sys; print(json.dumps(pickle.load(sys.stdin.buffer).get_query_embedding('cats')))"
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, input=pickle.dumps(embedding), capture_output=True, check=True, timeout=120)
    assert json.loads(out.stdout) == vector
    assert out.stderr == b""


def test_a_ready_embedder_is_pickled_or_rejected(embedding, tiny, lengths):
    """A ready embedder is pickled if possible; otherwise pickling raises an error instead of dropping it."""
    ready = PenultEmbedding(embedder=penult.Embedder.load(tiny, threads=1))
    vector = pickle.loads(pickle.dumps(ready)).get_query_embedding("cats")
    assert vector == embedding.get_query_embedding("cats")
    lengths.lock = threading.Lock()
    with pytest.raises(TypeError, match="lock"):
        pickle.dumps(PenultEmbedding(embedder=lengths))


# Pipelines and stores


def nodes_of(texts):
    return [TextNode(text=text, id_=str(UUID(int=row))) for row, text in enumerate(texts)]


def test_pipeline_sets_the_nodes_vectors(embedding):
    """As a step of a pipeline, it sets the vector of each node; the second run uses the cache."""
    pipeline = IngestionPipeline(transformations=[embedding], cache=IngestionCache())
    expected = embedding.get_text_embedding_batch(TEXTS)
    assert [node.embedding for node in pipeline.run(nodes=nodes_of(TEXTS))] == expected
    pipeline.transformations = [PenultEmbedding.from_dict(embedding.to_dict() | {"threads": 1})]
    assert [node.embedding for node in pipeline.run(nodes=nodes_of(TEXTS))] == expected
    assert pipeline.transformations[0]._opened.peek() is None, "the second run came from the cache"


@pytest.mark.filterwarnings("ignore:Specified num_workers exceed:UserWarning")  # on a machine with one core
def test_pipeline_with_two_processes(embedding):
    """Two spawned workers each load the model and return the vectors of one."""
    expected = dict(zip(TEXTS, embedding.get_text_embedding_batch(TEXTS), strict=True))
    nodes = IngestionPipeline(transformations=[embedding]).run(nodes=nodes_of(TEXTS), num_workers=2)
    assert {node.text: node.embedding for node in nodes} == expected


@pytest.mark.filterwarnings("ignore:Specified num_workers exceed:UserWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this platform has no fork")
def test_awaited_pipeline_with_two_processes(tiny):
    """The async run forks a process with a loaded model and threads; its workers embed without a deadlock."""
    code = """
import asyncio, sys
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.embeddings.penult import PenultEmbedding

async def main():
    embedding = PenultEmbedding(model_name=sys.argv[1], threads=2)
    vectors = await embedding.aget_text_embedding_batch(["cats", "the river"])
    nodes = [TextNode(text="cats"), TextNode(text="the river")]
    nodes = await IngestionPipeline(transformations=[embedding]).arun(nodes=nodes, num_workers=2)
    return sorted(node.embedding for node in nodes) == sorted(vectors)

sys.exit(0 if asyncio.run(main()) else 3)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tiny)], check=False, timeout=120).returncode == 0


def test_settings_and_index_find_the_passage(embedding):
    """As LlamaIndex's default, it embeds documents and queries of an index, and the right passage is found."""
    Settings.embed_model = embedding
    documents = [Document(text=text) for text in TEXTS if text]
    retriever = VectorStoreIndex.from_documents(documents).as_retriever(similarity_top_k=1)
    assert [found.text for found in retriever.retrieve("the river and the bridge")] == ["the river and the bridge"]


async def test_awaited_index_finds_the_passage(embedding):
    index = VectorStoreIndex(nodes_of(TEXTS), embed_model=embedding)
    found = await index.as_retriever(similarity_top_k=1).aretrieve("cats")
    assert [node.text for node in found] == ["cats"]


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")  # LlamaIndex asks for one
def test_qdrant_finds_the_passage(embedding):
    """The same through Qdrant's local mode, with the nodes' metadata."""
    reason = "llama-index-vector-stores-qdrant is not installed"
    store = pytest.importorskip("llama_index.vector_stores.qdrant", reason=reason)
    client = pytest.importorskip("qdrant_client", reason=reason).QdrantClient(":memory:")
    context = StorageContext.from_defaults(vector_store=store.QdrantVectorStore(collection_name="passages", client=client))
    nodes = [TextNode(text=text, metadata={"row": row}, excluded_embed_metadata_keys=["row"]) for row, text in enumerate(TEXTS)]
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=embedding)
    (found,) = index.as_retriever(similarity_top_k=1).retrieve("cats")
    assert found.metadata["row"] == 1
    client.close()


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


async def test_awaited_calls_keep_few_threads_and_the_loop_free():
    """Many async batches wait in a queue, at most four in threads; the event loop keeps running and releases them."""
    embedder = Blocking()
    embedding = PenultEmbedding(embedder=embedder, embed_batch_size=1)
    task = asyncio.create_task(embedding.aget_text_embedding_batch(["a"] * 50))
    while embedder.inside < 4:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert embedder.inside == 4
    assert await asyncio.to_thread(lambda: "free") == "free"
    embedder.go.set()
    assert await task == [[1.0]] * 50


# The repository


def test_readme_examples_run(tiny, capsys):
    """The examples of the README run from top to bottom."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) >= 5
    code = "\n".join(blocks).replace("sentence-transformers/all-MiniLM-L6-v2", tiny.as_posix())
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out
