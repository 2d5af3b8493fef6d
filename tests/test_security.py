"""What a downloaded model cannot do, what penult never runs, and what it never logs."""

import ast
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import bert_graph, bert_weights, tiny_model, write_json
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from test_hostile_files import add_dense, apart, embeds
from test_source import hub, load  # noqa: F401 - hub is a fixture

from penult import Embedder, Pipeline

ROOT = Path(__file__).parents[1]
SECRET = "hunter2 wrote the swordfish memo"


def outside(place: str) -> TensorProto:
    """Return a tensor whose data are in another file."""
    tensor = TensorProto(name="taken", dims=[1], data_type=TensorProto.INT64, data_location=TensorProto.EXTERNAL)
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value=place))
    return tensor


def swapped(model, place):
    """Serialize a model with the location before its key, so that a search for the usual bytes misses it."""
    key, named = b"\x0a\x08location", b"\x12" + bytes([len(place)]) + place.encode()
    content = model.SerializeToString()
    assert key + named in content
    return content.replace(key + named, named + key)


def value(name):
    return helper.make_tensor_value_info(name, TensorProto.INT64, None)


def inner_graph(place):
    """Return two branches of an If, one of which adds a number from another file to the ids."""
    then = helper.make_graph(
        [helper.make_node("Add", ["input_ids", "taken"], ["a"])], "then", [], [value("a")], [outside(place)]
    )
    other = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["b"])], "else", [], [value("b")])
    model = bert_graph(bert_weights(), 4)
    model.graph.node.insert(0, helper.make_node("If", ["yes"], ["ids"], then_branch=then, else_branch=other))
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    return reading_ids(model)


def reading_ids(model):
    """Make the token embedding read "ids"."""
    lookup = next(node for node in model.graph.node if "embeddings.word_embeddings.weight" in node.input)
    lookup.input[1] = "ids"
    return model


def constant(place):
    """Return a Constant node whose value is in another file."""
    model = bert_graph(bert_weights(), 4)
    model.graph.node.insert(0, helper.make_node("Add", ["input_ids", "c"], ["ids"]))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=outside(place)))
    return reading_ids(model)


def function(place):
    """Return the same inside a local function."""
    model = bert_graph(bert_weights(), 4)
    body = [helper.make_node("Constant", [], ["c"], value=outside(place)), helper.make_node("Add", ["x", "c"], ["y"])]
    model.functions.append(helper.make_function("f", "plus", ["x"], ["y"], body, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.graph.node.insert(0, helper.make_node("plus", ["input_ids"], ["ids"], domain="f"))
    return reading_ids(model)


def initializer(place):
    """Return a weight of the graph with its location written in an unusual order."""
    model = bert_graph(bert_weights(), 4)
    model.graph.node.insert(0, helper.make_node("Add", ["input_ids", "taken"], ["ids"]))
    model.graph.initializer.append(outside(place))
    return reading_ids(model)


@pytest.mark.parametrize("place", ["secret", "../secret", "/etc/hostname"])
@pytest.mark.parametrize("hide", [inner_graph, constant, function, initializer])
def test_hidden_external_data(tmp_path, hide, place):
    """External data of inner graphs, constants and functions, or named so that a scan misses them, are never read."""
    folder = tiny_model(tmp_path)
    (folder / "secret").write_bytes(bytes(8))
    (folder / "onnx" / "secret").write_bytes(bytes(8))
    (folder / "onnx" / "model.onnx").write_bytes(swapped(hide(place), place))
    with pytest.raises(ValueError, match=r"model\.onnx (has external data for|has no location for)"):
        Embedder.load(folder)


@pytest.mark.parametrize("place", ["/dev/zero", "../../../../../../../../dev/zero"])
def test_a_device_is_not_read(tmp_path, place):
    """External data on a device are rejected before a byte is hashed."""
    folder = tiny_model(tmp_path)
    graph = folder / "onnx" / "model.onnx"
    model = onnx.load(graph)
    onnx.save_model(model, graph, save_as_external_data=True, location="w.data", size_threshold=100)
    model = onnx.load(graph, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = place
    graph.write_bytes(model.SerializeToString())
    assert "outside its folder" in apart(embeds, folder)


@pytest.mark.parametrize("name", ["../other", "..", "a/../../other", "/etc"])
def test_modules_stay_in_the_folder(tmp_path, name):
    """A module folder outside the model is rejected, for a pooling and for a dense layer."""
    for kind in ("Dense", "Pooling"):
        folder = tiny_model(tmp_path / "model")
        add_dense(tiny_model(tmp_path / "other"), {"weight": np.ones((5, 32), np.float32)}, name="1_Pooling")
        listed = json.loads((folder / "modules.json").read_text())
        listed[1 if kind == "Pooling" else 2] = {"type": f"sentence_transformers.models.{kind}", "path": name}
        write_json(folder / "modules.json", listed)
        with pytest.raises(ValueError, match=r"modules\.json names the folder .* outside the model's folder"):
            Embedder.load(folder)


def test_a_dense_layer_behind_a_link(tmp_path):
    """Weights that are a link out of the folder are not read; a link inside it is allowed."""
    folder = tiny_model(tmp_path / "model")
    add_dense(folder, {"linear.weight": np.ones((5, 32), np.float32)})
    weights = folder / "2_Dense" / "model.safetensors"
    shutil.move(weights, folder / "real.safetensors")
    weights.symlink_to(folder / "real.safetensors")
    with Embedder.load(folder) as e:
        assert e.dimension == 5
    weights.unlink()
    save_file({"linear.weight": np.ones((5, 32), np.float32)}, tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match=r"refers to '2_Dense/model\.safetensors', outside its folder"):
        Embedder.load(folder)


@pytest.mark.parametrize("place", ["..", "../secret", "inside/../../secret", "{root}/secret", "link", "link/onnx/model.onnx"])
def test_a_package_reference_stays_in_the_package(tmp_path, monkeypatch, place):
    """A package: reference with `..`, an absolute path or a link out of the package is an error; nothing is imported."""
    package = tmp_path / "weights_of_evil"
    tiny_model(package / "inside")
    tiny_model(tmp_path / "secret")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "link").symlink_to(tmp_path / "secret")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="is outside the package 'weights_of_evil'"):
        Embedder.load(f"package:weights_of_evil/{place.format(root=tmp_path)}")
    with Embedder.load("package:weights_of_evil/inside") as e:
        assert e.dimension == 32


@pytest.mark.parametrize("name", ["../secret", "os.path", "a-b", "", ".", "/etc"])
def test_a_package_name_is_a_name(name):
    """A name that cannot be imported is not looked up."""
    with pytest.raises(FileNotFoundError, match=r"package .* is not installed"):
        Embedder.load(f"package:{name}")


@pytest.mark.parametrize(
    "reference", ["hf:org/tiny/../../x.onnx", "org/tiny/../../../etc/x.onnx", "hf:../x", "org/..", "../org", "org/tiny@../x"]
)
def test_a_hub_id_with_path_traversal(reference, monkeypatch):
    """An id or a file name with `..` is rejected before the Hub or a cache is queried."""
    import penult.core.hub_client

    def asked(*_, **__):
        raise AssertionError("asked")

    monkeypatch.setattr(penult.core.hub_client, "Client", asked)
    with pytest.raises((ValueError, FileNotFoundError)):
        Embedder.load(reference)


def test_a_hub_with_path_traversal(hub, tmp_path):  # noqa: F811 - the fixture
    """A repository that lists a file above itself writes nothing outside the cache folder of that model."""
    hub.files |= {"../../evil.json": b"{}", "../evil.onnx": hub.files["onnx/model.onnx"]}
    result = load(tmp_path, hub.url)
    actual = list(tmp_path.rglob("evil.*"))
    assert not actual, result.stderr


SOURCES = sorted(
    path
    for folder in (ROOT / "src", *(ROOT / "integrations").iterdir())
    for path in folder.rglob("*.py")
    if "tests" not in path.relative_to(folder).parts
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_runs_what_it_reads(path):
    """Only torch's reader of weights reads pickles; no file uses marshal, shelve, eval, exec, a shell or custom model code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name for a in node.names} | {getattr(node, "module", None) or ""}
            assert not {n.partition(".")[0] for n in names} & {"cPickle", "dill", "joblib", "marshal", "shelve"}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert "pickle" not in called or called == "pickle.dumps"  # writing is safe
            assert called not in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
            if called == "torch.load":  # torch's reader of weights alone, which runs nothing
                assert [ast.unparse(k.value) for k in node.keywords if k.arg == "weights_only"] == ["True"]
            for keyword in node.keywords:
                assert keyword.arg not in {"shell", "allow_pickle"}
                if keyword.arg == "trust_remote_code":
                    assert ast.unparse(keyword.value) == "False"
                if keyword.arg == "Loader" or called == "yaml.load":
                    assert "Safe" in ast.unparse(node)


def test_no_text_is_ever_logged(tiny, caplog, capfd, recwarn):
    """With every logger at DEBUG, log, standard streams and warnings have no word of a text."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("penult").setLevel(logging.DEBUG)
    texts = [SECRET, SECRET * 40, ""]
    with Embedder.load(tiny) as e:
        e.embed(texts, progress=True)
        e.embed_tokens(texts)
        e.count_tokens(texts)
        list(e.embed_stream(iter(texts)))
        repr(e)
        with pytest.raises(ValueError, match="lone surrogate") as caught:
            e.embed([f"{SECRET} \ud800"])
        assert "hunter2" not in str(caught.value)
    with Embedder.load(tiny, truncate="error") as e, pytest.raises(ValueError, match=r"has \d+ tokens") as caught:
        e.embed(texts)
    assert "hunter2" not in str(caught.value)
    with Pipeline.create(model_path=tiny, sequence_length=[16, 32], num_streams=2, alias="x") as p:
        p(texts)
    streams = capfd.readouterr()
    said = [caplog.text, streams.out, streams.err, *(str(w.message) for w in recwarn)]
    assert "Pipeline" in caplog.text  # the log was on
    assert not [text for text in said if "hunter2" in text or "swordfish" in text]


def test_a_pinned_fingerprint_admits_nothing_else(tiny, tmp_path, embedder):
    """`fingerprint=` loads an equal model at any path, and rejects one changed weight, token or setting."""
    pin = embedder.fingerprint
    copy = tiny_model(tmp_path / "copy")
    with Embedder.load(copy, fingerprint=pin) as e:
        assert np.array_equal(e.embed(["the cat"]), embedder.embed(["the cat"]))
    with pytest.raises(ValueError, match=rf"has the fingerprint [0-9a-f]{{32}}, not {pin}"):
        Embedder.load(copy, max_length=32, fingerprint=pin)
    graph = copy / "onnx" / "model.onnx"
    whole = graph.read_bytes()
    at = whole.index(np.float32(2**0.5).tobytes())
    graph.write_bytes(whole[:at] + np.float32(1.41422).tobytes() + whole[at + 4 :])
    with pytest.raises(ValueError, match="settings are not the pinned ones"):
        Embedder.load(copy, fingerprint=pin)
    graph.write_bytes(whole)
    words = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(words.replace('"cat"', '"tac"'))
    with pytest.raises(ValueError, match="settings are not the pinned ones"):
        Embedder.load(copy, fingerprint=pin)
