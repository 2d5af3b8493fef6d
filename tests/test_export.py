"""Export of folders without an ONNX file: messages, layout and cache with a stand-in for the child, and the real export."""

import importlib.util
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from damage_kit import DAMAGES
from models import bert_weights, tiny_model, write_json
from safetensors.numpy import save_file

from penult import Embedder
from penult.core import export as exporting
from penult.core.export import RECORD, export, exportable, exported, source_sha256, torch_available

TEXTS = ["the cat sat on the mat", "moon", "", "a dog and a cat in the bright river of stone, 27.3", "fish " * 80]
# The body of a stand-in interpreter: it answers in the worker's protocol, and counts its runs in a file.
FAKE = """#!{python}
import json, os, sys, time
from pathlib import Path
worker, folder, out = sys.argv[-3:]
here = Path(__file__).parent
with open(here / "runs", "a") as file:
    file.write(folder + "\\n")
(here / "env").write_text(json.dumps(dict(os.environ)))
{body}
"""
ANSWER = """
print(json.dumps({"progress": "exporting " + Path(folder).name}), flush=True)
print("noise of a library", flush=True)
(Path(out) / "model.onnx").write_bytes(b"graph of " + Path(folder).name.encode())
print(json.dumps({"done": {"difference": 1e-7}}), flush=True)
"""


@pytest.fixture
def python(tmp_path):
    """Return a function that writes an executable in place of an interpreter with torch."""

    def write(body: str = ANSWER) -> str:
        path = tmp_path / "interpreter" / "python"
        path.parent.mkdir(exist_ok=True)
        path.write_text(FAKE.format(python=sys.executable, body=body))
        path.chmod(0o755)
        return str(path)

    return write


@pytest.fixture
def saved(tmp_path) -> Path:
    """A folder as SentenceTransformer.save writes it: a BERT in safetensors, a Dense module, no ONNX."""
    return saved_model(tmp_path / "saved")


def saved_model(folder: Path) -> Path:
    tiny_model(folder)
    shutil.rmtree(folder / "onnx")
    config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 0, "hidden_size": 32, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 128, "type_vocab_size": 2}
    weights = {}
    for name, array in bert_weights().items():
        matrix = name.endswith("_T")
        weights[name.removesuffix("_T")] = np.ascontiguousarray(array.T if matrix else array)
    config["vocab_size"] = len(weights["embeddings.word_embeddings.weight"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config | {"pad_token_id": 0, "hidden_act": "gelu"})
    return folder


def runs(python: str) -> int:
    path = Path(python).with_name("runs")
    return len(path.read_text().splitlines()) if path.exists() else 0


# ---- without torch ------------------------------------------------------------------------------------------------------------


def test_torch_is_found_without_an_import(monkeypatch):
    """torch_available uses the module finder and imports nothing."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "torch" else None)
    assert torch_available()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not torch_available()


@pytest.mark.parametrize("call", [export, exported])
def test_without_torch_the_error_names_both_options(saved, tmp_path, monkeypatch, call):
    """Without torch, the error names the extra and an export on another machine; nothing is written."""
    monkeypatch.setattr(exporting, "torch_available", lambda: False)
    with pytest.raises(FileNotFoundError, match="no ONNX file, and the export needs torch, which is not installed") as error:
        call(saved, tmp_path / "out")
    assert "\n" not in str(error.value)
    for way in ("the extra penult[export] (pip install ", "penult export", "optimum-cli export onnx --task feature-extraction"):
        assert way in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_weights_is_refused(tiny, tmp_path, python):
    """A folder without a transformer with weights is an error before a child process starts."""
    fake = python()
    assert not exportable(tiny)
    with pytest.raises(FileNotFoundError, match=r"has no transformer to export: it needs a config\.json with a model_type"):
        export(tiny, tmp_path / "out", python=fake)
    assert runs(fake) == 0


def test_a_folder_that_is_not_empty_is_left_alone(saved, tmp_path, python):
    """An export is never mixed with existing files."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        export(saved, tmp_path / "out", python=python())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_module_outside_the_folder_is_refused(saved, tmp_path, python):
    """A path in modules.json cannot make an export copy files from elsewhere."""
    write_json(saved / "modules.json", [{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "../secret"}])
    with pytest.raises(ValueError, match=r"names the module folder '\.\./secret', outside the model"):
        export(saved, tmp_path / "out", python=python())


def test_a_pointer_is_not_weights(saved, tmp_path, python):
    """A Git LFS pointer in place of the weights is an error before a child process starts."""
    (saved / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"model\.safetensors is a Git LFS pointer"):
        export(saved, tmp_path / "out", python=python())


def test_the_new_folder_is_complete(saved, tmp_path, python, capsys):
    """The new folder has every file of the model except the weights that are in the graph."""
    (saved / "2_Dense").mkdir()
    write_json(saved / "2_Dense" / "config.json", {"in_features": 32, "out_features": 8})
    save_file({"linear.weight": np.zeros((8, 32), np.float32)}, saved / "2_Dense" / "model.safetensors")
    listed = [{"type": f"x.{kind}", "path": path} for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"))]
    write_json(saved / "modules.json", [*listed, {"type": "x.Dense", "path": "2_Dense"}])
    (saved / "checkpoint-500").mkdir()
    (saved / "checkpoint-500" / "optimizer.pt").write_bytes(b"0")
    (saved / "merges.txt").write_text("#version")
    (saved / "pytorch_model.bin").write_bytes(b"0")
    out = export(saved, tmp_path / "new" / "out", python=python())
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    expected = {"config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json"}
    expected |= {"merges.txt", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "onnx/model.onnx"}
    assert names == expected | {RECORD}
    assert json.loads((out / RECORD).read_text())["source_sha256"] == source_sha256(saved)
    assert capsys.readouterr().err == "penult: exporting saved\n"


def test_progress_can_be_switched_off(saved, tmp_path, python, capsys):
    """With progress off, nothing is printed."""
    export(saved, tmp_path / "out", python=python(), progress=False)
    assert capsys.readouterr().err == ""


def test_each_transformer_of_a_router_is_exported_in_its_place(tmp_path, python):
    """The two transformers of a Router keep their folders, each with its own graph."""
    folder = tmp_path / "router"
    for name in ("query_0_Transformer", "document_0_Transformer"):
        saved_model(folder / name)
    write_json(folder / "modules.json", [{"type": "x.Router", "path": ""}])
    types = {"query_0_Transformer": "x.Transformer", "document_0_Transformer": "x.Transformer"}
    write_json(folder / "router_config.json", {"types": types, "structure": {}})
    out = export(folder, tmp_path / "out", python=python())
    for name in types:
        assert (out / name / "onnx" / "model.onnx").read_bytes() == f"graph of {name}".encode()
        assert (out / name / "tokenizer.json").exists()
    assert (out / "router_config.json").exists()


def test_the_child_is_offline_and_sends_nothing(saved, tmp_path, python):
    """The child's environment turns off the Hub and onnxruntime's telemetry."""
    fake = python()
    export(saved, tmp_path / "out", python=fake)
    env = json.loads(Path(fake).with_name("env").read_text())
    assert (env["ORT_DISABLE_TELEMETRY"], env["HF_HUB_OFFLINE"]) == ("1", "1")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ('print(json.dumps({"error": "saved cannot be exported: because."}))', "^saved cannot be exported: because.$"),
        ("os.kill(os.getpid(), 9)", "killed by signal 9, probably because memory ran out"),
        ("import torch_of_nowhere", r"cannot export: .*No module named 'torch_of_nowhere'.*penult\[export\]"),
        ("raise SystemExit('a library failed')", "The export of .* failed: a library failed$"),
        ("time.sleep(60)", "took longer than 0 minutes and was stopped"),
    ],
)
def test_a_failing_child(saved, tmp_path, python, monkeypatch, body, sentence):
    """However the child process ends, the error is one sentence, and no partial folder remains."""
    if "sleep" in body:
        monkeypatch.setattr(exporting, "_SECONDS", 0.5)
    with pytest.raises(ValueError, match=sentence) as error:
        export(saved, tmp_path / "out" / "model", python=python(body))
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_cache_exports_once(saved, tmp_path, python):
    """The second call uses the export of the first; the child process runs once."""
    fake = python()
    first = exported(saved, tmp_path / "cache", python=fake)
    assert first.parent == tmp_path / "cache" / "exports"
    assert first.name == source_sha256(saved)[:32]
    assert exported(saved, tmp_path / "cache", python=fake) == first
    assert runs(fake) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json", "merges.txt"])
def test_a_changed_file_is_another_export(saved, name):
    """Every file that decides a vector is part of the cache key; the model card is not."""
    before = source_sha256(saved)
    (saved / "README.md").write_text("a card")
    assert source_sha256(saved) == before
    path = saved / name
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")
    assert source_sha256(saved) != before


def test_a_copy_elsewhere_is_the_same_export(saved, tmp_path):
    """The cache key depends on contents, not on the folder's path."""
    assert source_sha256(shutil.copytree(saved, tmp_path / "elsewhere")) == source_sha256(saved)


def test_an_export_that_lost_its_graph(saved, tmp_path, python):
    """An export whose graph was deleted from the cache is exported again."""
    fake = python()
    out = exported(saved, tmp_path / "cache", python=fake)
    (out / "onnx" / "model.onnx").unlink()
    assert exported(saved, tmp_path / "cache", python=fake) == out
    assert (out / "onnx" / "model.onnx").exists()
    assert runs(fake) == 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_export_is_exported_again(saved, tmp_path, python, damage, caplog):
    """Whichever file is damaged: the next call exports again, logs it, and writes the same files."""
    fake = python()
    out = exported(saved, tmp_path / "cache", python=fake)
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in whole} >= {"model.onnx", "config.json", RECORD}
    for path in whole:
        caplog.clear()
        runs_before = runs(fake)
        damage(path)
        assert exported(saved, tmp_path / "cache", python=fake) == out
        assert (runs(fake), "exporting again" in caplog.text) == (runs_before + 1, True), path
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole
    assert list((tmp_path / "cache" / "exports").iterdir()) == [out]


def test_concurrent_exports(saved, tmp_path, python):
    """Two concurrent callers get the same folder, and nothing else remains in the cache."""
    fake = python(
        """
while len((here / "runs").read_text().splitlines()) < 2:  # neither ends before both have begun
    time.sleep(0.01)
"""
        + ANSWER
    )
    got: list[Path] = []
    threads = [threading.Thread(target=lambda: got.append(exported(saved, tmp_path / "cache", python=fake))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert runs(fake) == 2
    assert len(got) == 2
    assert set(got) == set((tmp_path / "cache" / "exports").iterdir())
    assert (got[0] / "onnx" / "model.onnx").exists()


# ---- with torch ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch_python() -> str:
    """An interpreter with torch: this one, or the one that PENULT_TORCH_PYTHON names."""
    if torch_available():
        return sys.executable
    if named := os.environ.get("PENULT_TORCH_PYTHON"):
        return named
    pytest.skip("needs torch and onnxscript: install penult[export], or set PENULT_TORCH_PYTHON to an interpreter with them")


def test_the_exported_model_gives_the_vectors_of_its_weights(saved, tiny, tmp_path, torch_python, capsys):
    """A BERT exported with torch gives the vectors of the same weights in a graph that was built without torch."""
    out = export(saved, tmp_path / "out", python=torch_python)
    with Embedder.load(tiny, truncate="right") as expected, Embedder.load(out, truncate="right") as got:
        np.testing.assert_allclose(got.embed(TEXTS), expected.embed(TEXTS), atol=1e-5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("penult: exporting saved (bert) to ONNX with torch ")
    assert "checked against torch on three texts" in lines[-1]
    assert not list(tmp_path.glob(".exporting-*"))


def test_large_weights_are_external_data(saved, tiny, tmp_path, torch_python, monkeypatch):
    """Weights over the limit of a protobuf message are written to model.onnx_data, and the vectors are equal."""
    monkeypatch.setenv("PENULT_EXPORT_INLINE_BYTES", "10000")
    out = export(saved, tmp_path / "out", python=torch_python)
    assert sorted(path.name for path in (out / "onnx").iterdir()) == ["model.onnx", "model.onnx_data"]
    assert (out / "onnx" / "model.onnx").stat().st_size < 200_000
    with Embedder.load(tiny, truncate="right") as expected, Embedder.load(out, truncate="right") as got:
        np.testing.assert_allclose(got.embed(TEXTS), expected.embed(TEXTS), atol=1e-5)


def test_custom_code_is_not_replaced(saved, tmp_path, torch_python):
    """A model with a custom class is not exported as transformers' class of the same type."""
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "modeling_my.MyBert"}}))
    with pytest.raises(ValueError, match=r"has custom model code \(auto_map in config\.json\)"):
        export(saved, tmp_path / "out", python=torch_python)


def test_missing_weights_are_an_error(saved, tmp_path, torch_python):
    """An export with a missing weight, which transformers initializes at random, is rejected. A pooler may be missing."""
    from safetensors.numpy import load_file

    weights = load_file(saved / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights are missing, encoder\.layer\.1\.output\.dense\.weight among them") as error:
        export(saved, tmp_path / "out", python=torch_python)
    assert "\n" not in str(error.value)


def test_custom_code_is_never_run(saved, tmp_path, torch_python):
    """A folder with its own Python code is rejected, and the code is not run."""
    config = json.loads((saved / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    write_json(saved / "config.json", config | {"model_type": "of-its-own", "auto_map": auto})
    (saved / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match=r"cannot read config\.json of saved") as error:
        export(saved, tmp_path / "out", python=torch_python)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
