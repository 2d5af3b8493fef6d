"""The messages of the section "Command line and bulk jobs" of docs/troubleshooting.md, each printed by the command line."""

import re
from pathlib import Path

import messages_kit
import pytest
from bulk import dying
from bulk.jobs import InProcess, corpus, half_done
from typer.testing import CliRunner

from penult.bulk import embed
from penult.bulk.job import pool
from penult.bulk.job.manifest import Job
from penult.cli import app

SECTION = "Command line and bulk jobs"
TEXTS = {"in.jsonl": '{"text": "the cat", "title": "a"}\n{"text": "the dog", "title": "b"}\n'}
STORE = ("ingest", "vectors.parquet", "--to", "qdrant:store", "--collection", "docs")

WRONG_INPUT = {
    "No input files": ({}, ["docs/*.jsonl", "vectors.parquet"]),
    "Unknown format of an input file": ({"texts.dat": "the cat\n"}, ["texts.dat", "vectors.parquet"]),
    "Unknown format of the output": (TEXTS, ["in.jsonl", "vectors.xlsx"]),
    "The folder of the output does not exist": (TEXTS, ["in.jsonl", "results/vectors.parquet"]),
    "The text column is missing": ({"in.csv": "id,title,body\n1,a,the cat\n"}, ["in.csv", "vectors.parquet"]),
    "The id column is missing": (TEXTS, ["in.jsonl", "vectors.parquet", "--id-column", "key"]),
}
"""Files and arguments of `penult embed` by heading; the command fails and prints the message."""


@pytest.fixture
def command(tiny, tmp_path, monkeypatch):
    """Run a command in an empty folder and in this process; return its exit status and its last line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embed, "Pool", InProcess)

    def run(*arguments: str) -> tuple[int, str]:
        model = ["--model", str(tiny)] if arguments[0] == "embed" else []
        result = CliRunner().invoke(app, [*arguments, *model])
        return result.exit_code, result.output.splitlines()[-1]

    return run


def write(files: dict[str, str]) -> None:
    for name, content in files.items():
        Path(name).write_text(content)


@pytest.mark.parametrize("heading", WRONG_INPUT)
def test_wrong_input(command, heading):
    """A file, a folder or a column does not exist, or has another name."""
    files, arguments = WRONG_INPUT[heading]
    write(files)
    status, message = command("embed", *arguments)
    assert status == 1
    messages_kit.check(SECTION, heading, message)


def test_output_exists(command):
    """The input changed after its vectors were written."""
    write(TEXTS)
    assert command("embed", "in.jsonl", "vectors.parquet")[0] == 0
    write({"in.jsonl": '{"text": "the bird"}\n'})
    status, message = command("embed", "in.jsonl", "vectors.parquet")
    assert status == 1
    messages_kit.check(SECTION, "The output exists", message)


def test_unfinished_job(command, monkeypatch):
    """A job stops because the disk is full, and the next command has another option."""
    corpus(Path("in.jsonl"), 40)
    with half_done(monkeypatch):
        assert command("embed", "in.jsonl", "vectors.parquet", "--shard-rows", "8")[0] == 1
    status, message = command("embed", "in.jsonl", "vectors.parquet", "--role", "query")
    assert status == 1
    messages_kit.check(SECTION, "An unfinished job has other input or options", message)


def test_running_job(command):
    """Another process has locked the job."""
    write(TEXTS)
    job = Job(Path("vectors.parquet"))
    try:
        status, message = command("embed", "in.jsonl", "vectors.parquet")
    finally:
        job.release()
    assert status == 1
    messages_kit.check(SECTION, "Another process writes the same output", message)


def test_killed_worker(command, monkeypatch):
    """The system kills each worker process while it loads the model."""
    monkeypatch.setattr(embed, "Pool", pool.Pool)
    monkeypatch.setattr(pool, "serve", dying.killed)
    write(TEXTS)
    status, message = command("embed", "in.jsonl", "vectors.parquet")
    assert status == 1
    messages_kit.check(SECTION, "A worker process was killed", message)


def test_rejected_rows(command):
    """The text of one row is a number."""
    write({"in.jsonl": '{"text": "the cat"}\n{"text": 5}\n'})
    status, message = command("embed", "in.jsonl", "vectors.parquet")
    assert status == 3
    (speed,) = re.findall(r"[\d,]+ rows/s", message)
    messages_kit.check(SECTION, "Some rows were rejected (exit status 3)", message, SPEED=speed)


def test_encoding(command, tiny):
    """A file of Windows-1252 is read as UTF-8."""
    Path("in.csv").write_bytes("text\ncafé\nthe cat\n".encode("cp1252"))
    result = CliRunner().invoke(app, ["embed", "in.csv", "vectors.parquet", "--model", str(tiny)])
    assert result.exit_code == 3
    (message,) = [line for line in result.output.splitlines() if "UTF-8" in line]
    messages_kit.check(SECTION, "A file is not UTF-8", message)


def test_repeated_ids(command):
    """Two chunks of one document have its id."""
    write({"in.jsonl": '{"id": "a.md", "text": "the cat"}\n{"id": "b.md", "text": "a"}\n{"id": "a.md", "text": "the dog"}\n'})
    assert command("embed", "in.jsonl", "vectors.parquet")[0] == 0
    status, message = command(*STORE)
    assert status == 1
    messages_kit.check(SECTION, "The ids are not unique", message)


def test_other_model(command):
    """A collection has vectors of another pooling."""
    pytest.importorskip("qdrant_client", reason="the extra `qdrant` is not installed")
    write(TEXTS)
    fingerprints = []
    for pooling in ("mean", "cls"):
        assert command("embed", "in.jsonl", "vectors.parquet", "--pooling", pooling, "--overwrite")[0] == 0
        fingerprints.append(embed.output_files.metadata(Path("vectors.parquet"))["penult.fingerprint"])
        status, message = command(*STORE)
    assert status == 1
    old, new = fingerprints
    messages_kit.check(SECTION, "A collection has vectors of another model", message, OLD=old, NEW=new)


def test_every_entry_is_tested():
    """Each heading of the section is that of a test."""
    tested = re.findall(r'check\(\s*SECTION, "(.+?)"', Path(__file__).read_text(encoding="utf-8"))
    messages_kit.check_complete(SECTION, [*WRONG_INPUT, *tested])
