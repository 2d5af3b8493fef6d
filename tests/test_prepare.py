"""The cache of prepared graphs: created once, never partially, never in the model's folder."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from folder_kit import static_model
from models import VOCABULARY, Size, bert_graph, bert_weights, tiny_model
from safetensors.numpy import save_file

from penult import Embedder, Engine
from penult.core.loading import read
from penult.core.prepare import prepare
from penult.core.recipe import Overrides
from penult.graph.rewrite.standalone import write_standalone


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_read_only_folder_is_enough(tmp_path, cache):
    """Nothing is written into the model's folder."""
    folder = tiny_model(tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with Embedder.load(folder) as e:
        e.embed(["a"])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_prepared_once_and_again_when_the_file_changes(tmp_path, cache, monkeypatch):
    """A second load uses the cache; another graph with the same name does not."""
    folder = tiny_model(tmp_path / "model")
    with Embedder.load(folder) as e:
        first = e.embed(["the cat"])
    (result,) = (cache / "graphs").iterdir()
    stamp = (result / "model.onnx").stat().st_mtime_ns
    with Embedder.load(folder) as e:
        assert np.array_equal(e.embed(["the cat"]), first)
    assert (result / "model.onnx").stat().st_mtime_ns == stamp
    onnx.save(bert_graph(bert_weights(seed=5), 4), folder / "onnx" / "model.onnx")
    with Embedder.load(folder) as e:
        assert not np.allclose(e.embed(["the cat"]), first)
    assert len(list((cache / "graphs").iterdir())) == 2


def test_concurrent_loads_leave_one_entry(tmp_path, cache):
    """Threads that prepare the same model at once get correct vectors and leave one complete entry."""
    folder = tiny_model(tmp_path / "model")
    with ThreadPoolExecutor(4) as pool:
        vectors = list(pool.map(lambda _: Embedder.load(folder).embed(["the cat"]), range(4)))
    assert all(np.array_equal(vectors[0], other) for other in vectors)
    assert len(list((cache / "graphs").iterdir())) == 1


def test_a_killed_process_leaves_no_partial_entry(tmp_path, cache):
    """After kill -9 at any moment of the first load, the next load works."""
    folder = tiny_model(tmp_path / "model")
    code = f"from penult import Embedder; Embedder.load({str(folder)!r})"
    expected = None
    for delay in (0.2, 0.4, 0.5, 0.6, 0.7, 0.9):
        shutil.rmtree(cache, ignore_errors=True)
        child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PENULT_CACHE": str(cache)})
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with Embedder.load(folder) as e:
            vectors = e.embed(["the cat"])
        expected = vectors if expected is None else expected
        assert np.array_equal(vectors, expected)


def test_weights_beside_the_graph_are_not_copied(tmp_path, cache):
    """The prepared graph refers to external data; the cache only has the graph."""
    folder = tiny_model(tmp_path / "model")
    graph = folder / "onnx" / "model.onnx"
    model = onnx.load(graph)
    onnx.save_model(model, graph, save_as_external_data=True, location="weights.bin", size_threshold=100)
    with Embedder.load(folder) as e:
        e.embed(["a"])
    stored = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert stored < (folder / "onnx" / "weights.bin").stat().st_size


def inline_model(folder):
    """Write a model whose graph contains weights of more than 64 KiB."""
    return tiny_model(folder, size=Size(hidden=128))


def test_weights_inside_the_graph_are_not_copied(tmp_path, cache, monkeypatch):
    """The prepared graph refers to the model's own file, and gives bit-identical vectors to a copy."""
    folder = inline_model(tmp_path / "model")
    graph = folder / "onnx" / "model.onnx"
    with Embedder.load(folder) as e:
        vectors = e.embed(["the cat", "a dog sat on the mat"])
    (prepared,) = (cache / "graphs").iterdir()
    assert sum(path.stat().st_size for path in prepared.iterdir()) < graph.stat().st_size / 4
    tensors = onnx.load(prepared / "model.onnx", load_external_data=False).graph.initializer
    pointed = [tensor for tensor in tensors if tensor.external_data]
    assert {entry.value for tensor in pointed for entry in tensor.external_data if entry.key == "location"} == {"model.onnx"}
    assert len(pointed) >= 4
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "another cache"))
    monkeypatch.setattr("penult.graph.wire_format.LARGE", 2**40)
    with Embedder.load(folder) as e:
        assert np.array_equal(e.embed(["the cat", "a dog sat on the mat"]), vectors)
    (copied,) = (tmp_path / "another cache" / "graphs").iterdir()
    assert (copied / "model.onnx.data").stat().st_size > graph.stat().st_size / 2


@pytest.mark.parametrize("form", ["as it is", "in half precision", "with weights"])
def test_a_static_table_is_copied_only_where_it_changes(tmp_path, cache, form):
    """float32 rows stay in the model's file; converted or multiplied rows are written to the cache."""
    table = static_model(tmp_path / "model", dimension=256)
    file = tmp_path / "model" / "0_StaticEmbedding" / "model.safetensors"
    if form == "in half precision":
        table = table.astype(np.float16)
        save_file({"embedding.weight": table}, file)
    elif form == "with weights":
        save_file({"embeddings": table, "weights": np.full(len(table), 2, np.float32)}, file)
    with Embedder.load(tmp_path / "model") as e:
        vectors = e.embed(["the cat"])
    expected = table[[VOCABULARY.index("the"), VOCABULARY.index("cat")]].astype(np.float32).mean(0)
    assert np.abs(vectors[0] - expected * (1 + (form == "with weights"))).max() < 1e-6
    stored = sum(path.stat().st_size for path in (cache / "graphs").rglob("*") if path.is_file())
    assert (stored > table.size * 4) == (form != "as it is")


MANY = [f"the cat {word}" for word in VOCABULARY[5:]] * 30


def change_weights(folder):
    """Replace a folder's graph by one with other weights, as `mv` does."""
    graph, other = folder / "onnx" / "model.onnx", folder / "onnx" / "other.onnx"
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            tensor.raw_data = onnx.numpy_helper.to_array(tensor)[::-1].tobytes()
    onnx.save(model, other)
    other.replace(graph)


@pytest.mark.parametrize("change", [shutil.rmtree, change_weights])
def test_an_open_model_keeps_its_weights(tmp_path, cache, change, caplog):
    """If the file is removed or replaced before the second session opens, the vectors stay those of the first."""
    folder = inline_model(tmp_path / "model")
    with Embedder.load(folder, threads=2, max_batch_tokens=16) as e:
        lone = np.concatenate([e.embed([text]) for text in MANY[:40]])
        change(folder)
        assert np.abs(e.embed(MANY)[:40] - lone).max() <= 1e-6
    assert "Batches run one at a time" in caplog.text


@pytest.mark.parametrize("external", [False, True])
def test_weights_overwritten_in_place(tmp_path, cache, external):
    """Overwriting the file of an open model is an error that says what to do."""
    folder = inline_model(tmp_path / "model")
    file = folder / "onnx" / "model.onnx"
    if external:
        onnx.save_model(onnx.load(file), file, save_as_external_data=True, location="weights.bin", size_threshold=100)
        file = file.with_name("weights.bin")
    with Embedder.load(folder) as e:
        first = e.embed(["the cat"])
        os.utime(file.parent)  # a change beside it
        assert np.array_equal(e.embed(["the cat"]), first)
        data = file.read_bytes()
        with file.open("r+b") as opened:
            opened.write(data)  # the same bytes, for all that a reader of the time can tell
        with pytest.raises(ValueError, match=r"was overwritten while the model was open, .*Load the model again"):
            e.embed(["the cat"])
    with Embedder.load(folder) as e:
        assert np.array_equal(e.embed(["the cat"]), first)


def test_other_weights_in_another_process(tmp_path, cache):
    """A pickled embedder opens the weights that it was loaded with, or raises an error."""
    folder = inline_model(tmp_path / "model")
    with Embedder.load(folder) as e:
        pickled = pickle.dumps(e)
        assert pickle.loads(pickled).fingerprint == e.fingerprint
    change_weights(folder)
    with pytest.raises(ValueError, match=r"model\.onnx has changed since the model was loaded\. Load it again\."):
        pickle.loads(pickled)


def test_a_moved_graph_is_found_again(tmp_path, cache):
    """A moved model with weights in its graph keeps its fingerprint and vectors; the former path may not exist."""
    folder = inline_model(tmp_path / "model")
    with Embedder.load(folder) as e:
        first, name = e.embed(["the cat"]), e.fingerprint
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    with Embedder.load(moved) as e:
        assert np.array_equal(e.embed(["the cat"]), first)
        assert e.fingerprint == name


def test_a_graph_behind_a_link(tmp_path, cache):
    """If the graph is a link, as in the Hub's cache, the prepared graph refers to the link's target."""
    folder = inline_model(tmp_path / "model")
    with Embedder.load(folder) as e:
        first = e.embed(["the cat"])
    graph = folder / "onnx" / "model.onnx"
    graph.symlink_to(graph.rename(tmp_path / "blob"))
    with Embedder.load(folder) as e:
        assert np.array_equal(e.embed(["the cat"]), first)


def test_a_graph_cut_by_penult_is_complete(tmp_path, cache):
    """`penult cut` writes the weights that the prepared graph refers to into the one file."""
    folder = inline_model(tmp_path / "model")
    prepared = prepare(*read(folder, Overrides()))
    assert write_standalone(prepared.graph, prepared.data_folder, tmp_path / "cut.onnx") == [tmp_path / "cut.onnx"]
    assert not any(tensor.external_data for tensor in onnx.load(tmp_path / "cut.onnx").graph.initializer)
    ids = np.array([[2, 30, 3]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    with Engine(prepared.graph, data_folder=prepared.data_folder) as ours, Engine(tmp_path / "cut.onnx") as theirs:
        assert all(np.array_equal(a, b) for a, b in zip(ours.run(feed), theirs.run(feed), strict=True))


def test_moved_weights_are_found_again(tmp_path, cache):
    """A model that moves keeps its fingerprint and its vectors."""
    folder = tiny_model(tmp_path / "model")
    graph = folder / "onnx" / "model.onnx"
    onnx.save_model(onnx.load(graph), graph, save_as_external_data=True, location="weights.bin", size_threshold=100)
    with Embedder.load(folder) as e:
        first, name = e.embed(["the cat"]), e.fingerprint
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    with Embedder.load(moved) as e:
        assert np.array_equal(e.embed(["the cat"]), first)
        assert e.fingerprint == name


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 21])
@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "last"])
def test_reducers_of_every_opset(tmp_path, cache, opset, pooling):
    """The reducer fits the opset of the graph it is appended to."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "lookup",
        [onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["b", "t"])],
        [onnx.helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, ["b", "t", 8])],
        [onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32), "table")],
    )
    folder = tiny_model(tmp_path / "model", pooling=pooling)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=7)
    onnx.save(model, folder / "onnx" / "model.onnx")
    with Embedder.load(folder, layer=None) as e:
        tokens = e.embed_tokens(["the cat", "a"])
        reduce = {"mean": lambda t: t.mean(0), "max": lambda t: t.max(0), "cls": lambda t: t[0], "last": lambda t: t[-1]}[
            pooling
        ]
        expected = np.stack([reduce(states) / np.linalg.norm(reduce(states)) for states in tokens])
        assert np.abs(e.embed(["the cat", "a"]) - expected).max() <= 1e-6


def test_a_graphs_own_vector_is_used_where_no_file_says_more(tmp_path, cache):
    """A graph with `sentence_embedding` (B, D) needs no pooling, and has no token embeddings."""
    folder = tiny_model(tmp_path / "model", pooling=None)
    graph = folder / "onnx" / "model.onnx"
    model = onnx.load(graph)
    model.graph.node.append(
        onnx.helper.make_node("ReduceMax", ["last_hidden_state"], ["sentence_embedding"], axes=[1], keepdims=0)
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("sentence_embedding", onnx.TensorProto.FLOAT, ["b", 32]))
    onnx.save(model, graph)
    with Embedder.load(folder) as e:
        assert e.dimension == 32
        assert e.recipe.pooling is None
        assert np.isfinite(e.embed(["the cat"])).all()
        with pytest.raises(ValueError, match="no token embeddings"):
            e.embed_tokens(["the cat"])


def test_a_graph_that_takes_text_is_rejected(tmp_path, cache):
    """The error says that the graph contains a tokenizer."""
    folder = tiny_model(tmp_path / "model")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["text"], ["out"])],
        "text",
        [onnx.helper.make_tensor_value_info("text", onnx.TensorProto.STRING, ["b"])],
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.STRING, ["b"])],
    )
    onnx.save(onnx.helper.make_model(graph), folder / "onnx" / "model.onnx")
    with pytest.raises(ValueError, match="contains a tokenizer"):
        Embedder.load(folder)
