"""BatchEmbedder returns a batch of the same type with one more column."""

import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from penult import Embedder, TextError
from penult.bulk import BatchEmbedder

TEXTS = ["the cat", "", "a bright moon"]


@pytest.fixture(scope="module")
def batcher(tiny):
    return BatchEmbedder(str(tiny), truncate="right")


def test_a_dict_of_arrays(batcher, embedder):
    """A dict gets an array of (N, D) float32; the given arrays are not changed."""
    batch = {"text": np.array(TEXTS, dtype=object), "id": np.arange(3)}
    made = batcher(batch)
    assert list(made) == ["text", "id", "embedding"]
    assert made["id"] is batch["id"]
    assert made["embedding"].dtype == np.float32
    assert np.array_equal(made["embedding"], embedder.embed(TEXTS))
    assert "embedding" not in batch


@pytest.mark.parametrize("kind", [pa.Table, pa.RecordBatch])
def test_arrow(batcher, embedder, kind):
    """Arrow gets fixed-size lists of float32; metadata that identify the model are added to the existing ones."""
    table = kind.from_pydict({"text": TEXTS}).replace_schema_metadata({"mine": "kept"})
    made = batcher(table)
    assert isinstance(made, kind)
    assert made.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    assert np.array_equal(np.array(made.column("embedding").to_pylist(), np.float32), embedder.embed(TEXTS))
    assert made.schema.metadata[b"penult.fingerprint"].decode() == embedder.fingerprint
    assert made.schema.metadata[b"mine"] == b"kept"
    empty = batcher(table.slice(0, 0))
    assert isinstance(empty, kind)
    assert empty.schema.equals(made.schema)


def test_pandas(batcher, embedder):
    """A DataFrame gets one array per row and keeps its index."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"text": TEXTS}, index=[7, 8, 9])
    made = batcher(frame)
    assert list(made.index) == [7, 8, 9]
    assert np.array_equal(np.stack(list(made["embedding"])), embedder.embed(TEXTS))


def test_an_iterator_of_batches(batcher):
    """`batches` has the signature of mapInArrow: it takes an iterator and returns one, batch by batch."""
    stream = batcher.batches(pa.RecordBatch.from_pydict({"text": [text]}) for text in TEXTS)
    assert next(stream).num_rows == 1
    assert sum(batch.num_rows for batch in stream) == 2


def test_bad_rows(tiny, embedder):
    """A row that is not text raises an error with its number, or is null if nulls are requested and supported."""
    table = pa.table({"text": ["the cat", None, "moon"]})
    with pytest.raises(TextError) as raised:
        BatchEmbedder(str(tiny))(table)
    assert list(raised.value.rows) == [1]
    lenient = BatchEmbedder(str(tiny), bad_rows="null")
    rows = lenient(table).column("embedding").to_pylist()
    assert rows[1] is None
    assert np.array_equal(np.float32([rows[0], rows[2]]), embedder.embed(["the cat", "moon"]))
    with pytest.raises(TextError):
        lenient({"text": np.array(["a", None], dtype=object)})


def test_variable_size_lists(tiny, embedder):
    """fixed_size=False returns the lists that Spark supports, with the same values, nulls and metadata."""
    batch = pa.RecordBatch.from_pydict({"text": ["the cat", None, "moon"]})
    made = BatchEmbedder(str(tiny), bad_rows="null", fixed_size=False)(batch)
    assert made.schema.field("embedding").type == pa.list_(pa.float32())
    assert made.schema.metadata[b"penult.fingerprint"].decode() == embedder.fingerprint
    rows = made.column("embedding").to_pylist()
    assert rows[1] is None
    assert np.array_equal(np.float32([rows[0], rows[2]]), embedder.embed(["the cat", "moon"]))
    assert BatchEmbedder(str(tiny), fixed_size=False)(batch.slice(0, 0)).num_rows == 0


def test_the_pickle_is_small(tiny, embedder):
    """It has a few hundred bytes before and after use; the receiver imports little and loads the model once."""
    batcher = BatchEmbedder(str(tiny), threads=1)
    before = pickle.dumps(batcher)
    batcher({"text": ["a"]})
    assert len(pickle.dumps(batcher)) == len(before) < 1000
    code = (
        "import pickle, sys\nb = pickle.loads(sys.stdin.buffer.read())\n"
        "assert not {'onnxruntime', 'tokenizers', 'pyarrow'} & {*sys.modules}\n"
        "one = b.embedder\nsys.stdout.buffer.write(b({'text': ['the cat']})['embedding'].tobytes())\nassert b.embedder is one"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(batcher), capture_output=True, check=True)
    assert np.array_equal(np.frombuffer(done.stdout, np.float32), embedder.embed(["the cat"])[0])


def test_threads(tiny, monkeypatch):
    """One by default, as Ray counts an actor's CPUs; more if requested."""
    load, asked = Embedder.load, []

    def loaded(*arguments, threads, **options):
        asked.append(threads)
        return load(*arguments, threads=threads, **options)

    monkeypatch.setattr(Embedder, "load", loaded)
    for options in ({}, {"threads": 2}):
        assert BatchEmbedder(str(tiny), **options).embedder.dimension == 32
    assert asked == [1, 2]


def test_prompts_and_poolings(tiny):
    """A role's prompt is put before its texts, several poolings are concatenated; the pickle contains both."""
    prompts = {"query": "query: ", "document": "passage of "}
    made = pickle.loads(pickle.dumps(BatchEmbedder(str(tiny), role="query", prompts=prompts, pooling=["mean", "max"])))
    with Embedder.load(tiny, prompts=prompts, pooling=["mean", "max"], threads=1) as local:
        assert np.array_equal(made({"text": np.array(TEXTS)})["embedding"], local.embed(TEXTS, "query"))
        assert made.embedder.fingerprint == local.fingerprint
    with pytest.raises(ValueError, match="prompts has the key 'passage'; the keys must be the roles"):
        BatchEmbedder(str(tiny), prompts={"passage": "a"})


def test_every_option_reaches_load(monkeypatch, embedder):
    """Every option of a BatchEmbedder is passed to Embedder.load."""
    asked = []
    monkeypatch.setattr(Embedder, "load", lambda model, **options: asked.append((model, options)) or embedder)
    options = {
        "precision": "int8", "dimensions": 3, "max_length": 9, "truncate": "left", "max_batch_tokens": 7, "pooling": "cls",
        "prompts": {"query": "q"}, "files_from": "f", "model_file": "m.onnx", "task": "t", "threads": 2,
        "normalize": False, "layer_norm": True, "layer": 2,
    }  # fmt: skip
    assert BatchEmbedder("m", **options).embedder is embedder
    assert asked == [("m", options)]


def test_invalid_batches(tiny, batcher):
    """An unsupported type, a missing column and an existing vector column are errors that name them."""
    with pytest.raises(TypeError, match=r"The batch is a list\. Pass a dict of arrays"):
        batcher(["the cat"])
    with pytest.raises(ValueError, match="text_column is 'text', but the columns of the batch are body"):
        batcher({"body": TEXTS})
    with pytest.raises(ValueError, match="already has a column 'embedding'"):
        batcher(pa.table({"text": TEXTS, "embedding": TEXTS}))
    with pytest.raises(ValueError, match="bad_rows is 'drop'"):
        BatchEmbedder(str(tiny), bad_rows="drop")


def test_a_data_frame_with_the_vector_column(batcher):
    """It is an error, as for a table."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    with pytest.raises(ValueError, match="already has a column 'embedding'"):
        batcher(pandas.DataFrame({"text": TEXTS, "embedding": TEXTS}))
