"""The requests of `penult embed` and `penult ingest`, their last lines and their exit status."""

import json
import shutil
from pathlib import Path

import pytest

from penult.bulk.ingest import Ingested
from penult.bulk.job.errors import StoppedError, WorkError
from penult.bulk.job.progress import Totals
from penult.bulk.options import Columns, Model, ReadOptions
from penult.bulk.request import Request, Summary
from penult.cli import app
from penult.extras import install_hint


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs a command with a fake job and returns its requests."""

    def command(*arguments, ends):
        requests = []

        def job(*request, **named):
            requests.append((*request, named) if named else request[0])
            if isinstance(ends, BaseException):
                raise ends
            return ends

        monkeypatch.setattr("penult.bulk.embed.embed_files", job)
        monkeypatch.setattr("penult.bulk.ingest.ingest", job)
        with pytest.raises(SystemExit) as end:
            app(list(arguments))
        return end.value.code, capsys.readouterr().err, requests[0]

    return command


EMBED = ("embed", "a.csv", "b.csv", "out.jsonl", "--model", "m")


def test_the_default_request(run):
    """The request of a command with the required options only."""
    _, _, request = run(*EMBED, ends=Summary(Totals(), 64, None))
    model = Model("m", "fp32", None, None, "warn", None)
    columns = Columns("text", "embedding", "document")
    assert request == Request(
        ("a.csv", "b.csv"), Path("out.jsonl"), model, columns, None, None, None, None, 1, False, "auto", "local", None
    )


def test_every_option_is_in_the_request(run):
    """Each option is in the request under its own name."""
    options = (
        "--text-column t --id-column i --vector-column v --role query --precision int8 --dimensions 9 --max-length 8 --truncate "
        "left --batch-tokens 7 --workers 6 --shard-rows 5 --format text --from old.parquet --overwrite --progress off --engine "
        "ray --address here --prompt q --prompt-document d --pooling mean,max --files-from org/name --model-file f.onnx --task t"
    )
    _, _, request = run(*EMBED, *options.split(), ends=Summary(Totals(), 64, None))
    model = Model("m", "int8", 9, 8, "left", 7, ("mean", "max"), "q", "d", "org/name", "f.onnx", "t")
    columns = Columns("t", "v", "query")
    inputs, out, old = ("a.csv", "b.csv"), Path("out.jsonl"), Path("old.parquet")
    assert request == Request(inputs, out, model, columns, "i", "text", old, 5, 6, True, "off", "ray", "here")


def test_the_prompt_is_that_of_the_role(run):
    """--prompt applies to the chosen role; --prompt-query and --prompt-document to theirs, as in `penult serve`."""
    ends = Summary(Totals(), 64, None)
    assert run(*EMBED, "--prompt", "", ends=ends)[2].model.prompts == {"document": ""}
    assert run(*EMBED, "--role", "query", "--prompt", "q: ", ends=ends)[2].model.prompts == {"query": "q: "}
    assert run(*EMBED, "--prompt-query", "q", "--prompt", "d", ends=ends)[2].model.prompts == {"query": "q", "document": "d"}
    assert run(*EMBED, "--pooling", "cls", "--task", "3", ends=ends)[2].model == Model("m", pooling="cls", task=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "a", "--prompt-document", "a"], "--prompt and --prompt-document are both set. Pass only one of them."),
        (["--pooling", "mean,median"], "--pooling is 'mean,median'. Pass one of mean, max, cls, last,"),
        (["--pooling", ""], "--pooling is ''. Pass one of mean"),
    ],
)
def test_invalid_options(capsys, options, message):
    """They are one sentence before any work, with exit status 1."""
    with pytest.raises(SystemExit) as end:
        app([*EMBED, *options])
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith(f"penult: {message}")


@pytest.mark.parametrize(
    ("totals", "rate", "message"),
    [
        (Totals(1200), 2345.6, "1,200 rows in out.jsonl; 2,346 rows/s"),
        (Totals(2), 0, "2 rows in out.jsonl"),
        (Totals(2), None, "2 rows in out.jsonl; already finished, nothing to do"),
        (Totals(2, cut=1), 0, "2 rows in out.jsonl; 1 truncated to 64 tokens"),
        (Totals(2, taken=1), 0, "2 rows in out.jsonl; 1 vectors reused from old.parquet"),
        (Totals(2, rejected=1), 0, "2 rows in out.jsonl; 1 rejected, reasons in out.jsonl.rejected.jsonl"),
        (
            Totals(2, cut=3000, taken=4),
            1,
            "2 rows in out.jsonl; 3,000 truncated to 64 tokens; 4 vectors reused from old.parquet; 1 rows/s",
        ),
    ],
)
def test_the_last_line(run, totals, rate, message):
    """It contains only counts that are not zero; with rejected rows, the exit status is 3."""
    code, last, _ = run(*EMBED, "--from", "old.parquet", ends=Summary(totals, 64, rate))
    assert last == f"penult: {message}\n"
    assert code == (3 if totals.rejected else 0)


@pytest.mark.parametrize("rejected", [0, 1])
def test_the_last_line_of_json(run, rejected):
    """One object with all totals, and the path of the rejected rows file if there is one."""
    code, last, _ = run(*EMBED, "--progress", "json", ends=Summary(Totals(2, rejected, 3, 4, 5), 64, 1.0))
    assert json.loads(last) == {
        "event": "done", "out": "out.jsonl", "rejected_file": "out.jsonl.rejected.jsonl" if rejected else None,
        "rows": 2, "rejected": rejected, "cut": 3, "taken": 4, "tokens": 5,
    }  # fmt: skip
    assert code == (3 if rejected else 0)


@pytest.mark.parametrize("error", [StoppedError("s"), ValueError("s"), OSError("s"), ImportError("s")])
@pytest.mark.parametrize("progress", ["json", "off", "auto"])
def test_a_job_that_fails(run, error, progress):
    """The message without a traceback, as JSON if requested, and exit status 1."""
    code, last, _ = run(*EMBED, "--progress", progress, ends=error)
    assert last == ('{"event": "failed", "message": "s"}\n' if progress == "json" else "penult: s\n")
    assert code == 1


def test_ingest(run):
    """It prints the rows read and the entries in the collection; an error is one sentence with exit status 1."""
    arguments = ("ingest", "in.parquet", "--to", "qdrant:p", "--collection", "c", "--id-column", "i")
    code, last, requests = run(*arguments, ends=Ingested(1234, 5678))
    assert requests[3].pop("advance")
    assert requests[:3] == (Path("in.parquet"), "qdrant:p", "c")
    assert requests[3] == {"id_column": "i", "id_suffix": None, "layout": "columns", "index": "auto"}
    assert (code, last) == (0, "penult: 1,234 rows read; c has 5,678 entries\n")
    assert run(*arguments, ends=ValueError("no"))[:2] == (1, "penult: no\n")


def test_options_that_affect_vectors(run):
    """They are passed as to `Embedder.load`; both spellings of a prompt option are the same."""
    ends = Summary(Totals(), 64, None)
    options = "--layer 2 --no-normalize --layer-norm --query-prompt q --document-prompt d --max-row-bytes 9 --encoding latin-1"
    request = run(*EMBED, *options.split(), ends=ends)[2]
    assert request.model == Model("m", normalize=False, layer_norm=True, layer=2, query_prompt="q", document_prompt="d")
    assert request.reading == ReadOptions("latin-1", 9)
    assert run(*EMBED, "--layer", "none", "--normalize", ends=ends)[2].model == Model("m", layer=None, normalize=True)


def test_a_prompt_by_its_name(run, capsys, tiny, tmp_path):
    """The name must be in the model's files; otherwise the error lists the names there."""
    model, ends = shutil.copytree(tiny, tmp_path / "model"), Summary(Totals(), 64, None)
    (model / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"classification": "classify: ", "query": "q: "}})
    )
    command = ("embed", "a.csv", "out.jsonl", "--model", str(model), "--prompt-name")
    assert run(*command, "classification", ends=ends)[2].model.prompts == {"document": "classify: "}
    assert run(*command, "classification", "--role", "query", ends=ends)[2].model.prompts == {"query": "classify: "}
    for options, message in (
        (["other"], "--prompt-name is 'other', which the files of"),
        (["query", "--prompt", "x"], "--prompt and --prompt-name are both set"),
    ):
        with pytest.raises(SystemExit) as end:
            app([*command, *options])
        assert end.value.code == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("Pass pooling='mean', or files_from='org/x'."), "Pass --pooling mean, or --files-from org/x."),
        (KeyboardInterrupt(), "interrupted; no work was done in this run, and the work of earlier runs is kept."),
        (
            ModuleNotFoundError("x", name="pyarrow"),
            f"pyarrow is not installed. Install {install_hint('parquet')}.",
        ),
        (WorkError("a worker was killed"), "a worker was killed"),
    ],
)
def test_the_message_of_a_failure(run, error, message):
    """Messages name options, not arguments; Ctrl-C and a missing extra are one sentence too."""
    assert run(*EMBED, ends=error)[:2] == (1, f"penult: {message}\n")


def test_an_interrupted_ingest(run):
    """The message says that it can be run again."""
    code, message, _ = run("ingest", "in.parquet", "--to", "qdrant:p", "--collection", "c", ends=KeyboardInterrupt())
    assert (code, message) == (
        1,
        "penult: interrupted; run the same command again to write the remaining rows. No row is written twice.\n",
    )


def test_an_ingest_without_arrow(capsys, monkeypatch):
    """The message names the extra of the store, before any file is read."""
    monkeypatch.setattr("penult.bulk.commands.find_spec", lambda name: None)
    for to, extra in (("qdrant:p", "qdrant"), ("pgvector:d", "pgvector"), ("other", "parquet")):
        with pytest.raises(SystemExit):
            app(["ingest", "in.parquet", "--to", to, "--collection", "c"])
        assert capsys.readouterr().err == f"penult: `penult ingest` needs {install_hint(extra)}.\n"


def test_help_lists_the_exit_statuses(capsys):
    """The help of `penult embed` lists the exit statuses."""
    with pytest.raises(SystemExit):
        app(["embed", "--help"])
    message = " ".join(capsys.readouterr().out.split())
    assert "Exit status: 0 = every row has a vector; 3 = some rows were rejected" in message
