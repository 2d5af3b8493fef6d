"""The command line as a user sees it, in a process of its own."""

import json
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import reference
from models import tiny_model
from typer.testing import CliRunner

from penult import Embedder, __version__
from penult.__main__ import main
from penult.cli import app
from penult.extras import install_hint
from penult.server import Limits


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "penult", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_version_and_help():
    """--version prints the version; without arguments, the help lists every command."""
    assert run("--version").stdout.strip() == f"penult {__version__}"
    for command in ("inspect", "cut"):
        assert command in run("--help").stdout
        assert run(command, "--help").returncode == 0


def test_the_options_of_a_server():
    """`penult serve --help` fits in 80 columns and has the default of every limit; no help loads the server's packages."""
    shown = run("serve", "--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    for name, field in Limits.model_fields.items():
        assert re.search(rf"--{name.replace('_', '-')} \S+\s[^-]*\s{field.default}\.", shown), name
    code = "import sys; from penult.cli import app; app(sys.argv[1:], standalone_mode=False); print(' '.join(sys.modules))"
    for words in (["--help"], ["serve", "--help"]):
        loaded = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True).stdout.split()
        assert "penult.server.command" in loaded
        assert not {"penult.server.config", "yaml", "fastapi", "onnx", "onnxruntime"} & set(loaded)


def test_inspect_prints_json(tmp_path):
    """--json has the documented keys; the head of a masked language model is removed."""
    folder = tiny_model(tmp_path, mlm_head=True)
    out = json.loads(run("inspect", folder, "--json").stdout)
    assert {"inputs", "outputs", "layers", "cut", "removed", "recipe"} <= set(out)
    assert [end["name"] for end in out["inputs"]] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [(layer["index"], layer["hidden_size"]) for layer in out["layers"]] == [(0, 32), (1, 32), (2, 32)]
    assert out["cut"]["tensor"] == out["layers"][-1]["tensor"]
    assert out["cut"]["why"]
    assert out["removed"]["bytes"] >= 4 * (32 * 32 + 64)
    assert out["removed"]["nodes"] >= 8
    assert out["recipe"]["pooling"] == "mean"
    assert out["recipe"]["origin"]["pooling"] == "1_Pooling/config.json"


def test_inspect_needs_no_tokenizer(tmp_path):
    """A bare .onnx file is enough; the text shows the cut and the source of each value."""
    folder = tiny_model(tmp_path / "whole")
    bare = tmp_path / "bare.onnx"
    bare.write_bytes((folder / "onnx" / "model.onnx").read_bytes())
    out = run("inspect", bare, "--layer", "1").stdout
    assert "cut ->" in next(line for line in out.splitlines() if "   1     32  " in line)
    assert "not stated by any file" in out


def test_inspect_writes_a_picture(tmp_path):
    """--html writes one self-contained page: no script, no URL, every layer by name."""
    page = tmp_path / "stack.html"
    assert run("inspect", tiny_model(tmp_path / "model", mlm_head=True), "--html", page).returncode == 0
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    for name in ("Embedding output", "Layer 1", "Layer 2", "Head", "cut here"):
        assert name in text


@pytest.mark.parametrize("command", [("inspect",), ("inspect", "--layer", "9"), ("cut",)])
def test_errors_are_one_sentence(tmp_path, tiny, command):
    """A user error is one line on standard error with exit status 1, without a traceback."""
    target = tiny if "--layer" in command else tmp_path / "missing"
    result = run(command[0], target, *command[1:], *(["out.onnx"] if command[0] == "cut" else []))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("penult: ")
    assert "Traceback" not in result.stderr


def test_the_output_of_cut_ends_in_onnx(tmp_path, tiny):
    """With another extension nothing is written, and the error says how to name it."""
    result = run("cut", tiny, tmp_path / "out.bin")
    assert result.returncode == 1
    assert result.stderr == f"penult: {tmp_path / 'out.bin'} does not end in .onnx. Pass an output name that ends in .onnx.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("weights", ["inside", "beside"])
def test_a_cut_file_runs_without_penult(tmp_path, weights):
    """`penult cut` writes a file that returns the same vectors in plain ONNX Runtime."""
    folder = tiny_model(tmp_path / "model", mlm_head=True)
    graph = folder / "onnx" / "model.onnx"
    if weights == "beside":
        onnx.save_model(onnx.load(graph), graph, save_as_external_data=True, location="weights.bin", size_threshold=100)
    out = tmp_path / "cut.onnx"
    result = run("cut", folder, out, "--layer", "1", "--pooling", "cls", "--dimensions", "8")
    assert result.returncode == 0, result.stderr
    session = ort.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
    ids = np.array([reference.read_ids(folder, "the cat sat", 64)])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    (vectors,) = session.run(["sentence_embedding"], {node.name: feed[node.name] for node in session.get_inputs()})
    with Embedder.load(folder, layer=1, pooling="cls", dimensions=8) as e:
        assert np.abs(vectors - e.embed(["the cat sat"])).max() <= 1e-6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inspect", "MODEL", "--layer", ""], "--layer is empty. Pass a number, a tensor name, or none."),
        (["inspect", "MODEL", "--pooling", ","], "--pooling is ','. Pass one of mean, max"),
        (["inspect", "MODEL", "--html", "none/x.html"], "none is not a folder. Create it, or pass another path for x.html."),
        (["inspect", "MODEL", "--html", "folder"], "folder is a folder. Pass the name of a file."),
        (["cut", "MODEL", "x.onnx", "--dimensions", "33"], "--dimensions 33 exceeds the model's 32 values."),
        (["cut", "MODEL", "folder/y.onnx"], "folder/y.onnx is a folder. Pass the name of a file."),
        (
            ["cut", "MODEL/onnx/model.onnx", "MODEL/onnx/model.onnx"],
            "is a file of the source model, which is never overwritten",
        ),
        (["quality", "MODEL", "--data", "latin.txt"], "latin.txt is not UTF-8 (byte 3)"),
        (["quality", "MODEL", "--data", "none.txt"], "none.txt: No such file or directory."),
        (["quality", "MODEL", "--data", "number.jsonl"], "number.jsonl line 2 has no `text`."),
        (["quality", "MODEL", "--data", "broken.jsonl"], "broken.jsonl is not valid JSON Lines: line 1: "),
        (
            ["quality", "MODEL", "--data", "word.tsv"],
            "word.tsv, line 2: must have the tab-separated columns score, sentence1, sentence2",
        ),
        (
            ["quality", "MODEL", "--data", "short.tsv"],
            "short.tsv, line 2: must have the tab-separated columns score, sentence1, sentence2",
        ),
        (
            ["quality", "MODEL", "--data", "nan.tsv"],
            "nan.tsv, line 2: must have the tab-separated columns score, sentence1, sentence2",
        ),
        (["quality", "MODEL", "--data", "search"], "corpus.jsonl line 1 has no `text`."),
        (["quality", "MODEL", "--data", "folder"], "folder has 0 files corpus.jsonl; a search corpus needs exactly one."),
        (["quality", "MODEL", "--limit", "0"], "Invalid value for '--limit'"),
        (["bench", "MODEL", "--texts", "number.jsonl"], "number.jsonl line 2 has no `text`."),
        (["bench", "MODEL", "--texts", "latin.txt"], "latin.txt is not UTF-8 (byte 3)"),
        (["bench", "MODEL", "--rounds", "0"], "Invalid value for '--rounds'"),
        (["bench", "MODEL", "--threads", "-1"], "Invalid value for '--threads'"),
        (["bench", "MODEL", "--json", "none/x.json"], "none is not a folder. Create it, or pass another path for x.json."),
    ],
)
def test_wrong_input_is_one_sentence(tiny, tmp_path, monkeypatch, arguments, sentence):
    """A user error names the file or the option, without a traceback, and no file of the model is overwritten."""
    files = {
        "latin.txt": b"caf\xe9\n",
        "number.jsonl": b'{"text": "a"}\n{"text": 5}\n',
        "broken.jsonl": b"{text}\n",
        "word.tsv": b"score\tsentence1\tsentence2\nhigh\ta\tb\n",
        "nan.tsv": b"score\tsentence1\tsentence2\nnan\ta\tb\n",
        "short.tsv": b"score\tsentence1\tsentence2\n1\ta\n",
        "search/corpus.jsonl": b'{"_id": "1"}\n',
        "search/queries.jsonl": b'{"_id": "q", "text": "a"}\n',
        "search/qrels.tsv": b"query-id\tcorpus-id\tscore\nq\t1\t1\n",
        "folder/y.onnx/z": b"",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    before = (tiny / "onnx" / "model.onnx").read_bytes()
    done = CliRunner().invoke(app, [word.replace("MODEL", str(tiny)) for word in arguments])
    assert done.exit_code in {1, 2}, done.output
    assert isinstance(done.exception, SystemExit), done.exception
    assert sentence in done.output
    assert (tiny / "onnx" / "model.onnx").read_bytes() == before


def test_errors_of_inspect_as_json(tmp_path):
    """`inspect --json` prints an object with `error` if there is nothing else to show."""
    done = run("inspect", tmp_path, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] == done.stderr.removeprefix("penult: ").rstrip("\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "penult: interrupted\n"),
        (
            ModuleNotFoundError("x", name="uvicorn"),
            1,
            f"penult: uvicorn is not installed. Install {install_hint('server')}.\n",
        ),
    ],
)
def test_errors_before_a_command_starts(monkeypatch, capsys, error, code, message):
    """Ctrl-C during imports and a missing package are one line."""

    def app():
        raise error

    monkeypatch.setattr("penult.cli.app", app)
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().err) == (code, message)


def test_a_bug_keeps_its_traceback(monkeypatch):
    """A missing module of penult itself is not a missing extra."""

    def app():
        raise ModuleNotFoundError("No module named 'penult.cor'", name="penult.cor")

    monkeypatch.setattr("penult.cli.app", app)
    with pytest.raises(ModuleNotFoundError):
        main()
