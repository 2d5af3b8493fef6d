"""Jobs that stopped at a certain point: what the next run counts as finished."""

import io
import json
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from bulk.jobs import corpus, half_done, vectors
from models import tiny_model

from penult.atomic_files import atomic_write
from penult.bulk.input import input_files
from penult.bulk.job.errors import StoppedError
from penult.bulk.job.manifest import Job
from penult.bulk.job.record import Record
from penult.bulk.output import writers


class Stopped(BaseException):
    """A stop like kill -9: nothing catches it."""


def stop_before(monkeypatch, module, name, path):
    """Stop the process before a file is renamed to its final name."""
    call = getattr(module, name)

    def called(given, *arguments):
        if Path(given).name == path:
            raise Stopped
        return call(given, *arguments)

    monkeypatch.setattr(module, name, called)


@pytest.mark.parametrize("ending", ["npy", "jsonl"])
def test_an_old_output_is_not_taken_for_the_new_one(job, tmp_path, monkeypatch, ending):
    """Files beside an output are written first: after a crash there, the old output does not count as the new one."""
    out = f"out.{ending}"
    job(corpus(tmp_path / "old.jsonl", 20, seed=1), out=out)
    source = corpus(tmp_path / "in.jsonl", 40)
    with monkeypatch.context() as patched:
        stop_before(patched, writers, "atomic_write", out)
        with pytest.raises(Stopped):
            job(source, out=out, overwrite=True)
    assert job(source, out=out).totals.rows == 40
    job(source, out=f"expected.{ending}")
    assert (tmp_path / out).read_bytes() == (tmp_path / f"expected.{ending}").read_bytes()


def test_an_output_that_reuses_its_own_vectors(job, tmp_path, monkeypatch):
    """--from OUT --overwrite, and a crash after OUT was replaced: the job counts as finished although OUT's hash changed."""
    job(corpus(tmp_path / "in.jsonl", 20))
    source, out = corpus(tmp_path / "in.jsonl", 40), tmp_path / "out.parquet"
    with monkeypatch.context() as patched:
        patched.setattr(Job, "clear", stop_if_begun)
        with pytest.raises(Stopped):
            job(source, old=out, overwrite=True)
    assert (tmp_path / "out.parquet.job").exists()
    assert job(source, old=out).rows_per_second is None
    assert pq.read_table(out).num_rows == 40
    assert not (tmp_path / "out.parquet.job").exists()


def test_resume_without_overwrite(job, tmp_path, monkeypatch):
    """A job started with --overwrite is resumed without it, and the message says so."""
    source = corpus(tmp_path / "in.jsonl", 60)
    with half_done(monkeypatch), pytest.raises(StoppedError, match="Run the same command without --overwrite to resume"):
        job(source, shard_rows=16, overwrite=True)
    with half_done(monkeypatch, after=0), pytest.raises(StoppedError, match=r"32 of 60 rows .* Run the same command to resume"):
        job(source)
    assert job(source).totals.rows == 60


def test_a_stopped_job_is_released(job, tmp_path, monkeypatch):
    """A caller that keeps the error can resume or start again with another model; on a terminal, the message has its own line."""
    source, terminal = corpus(tmp_path / "in.jsonl", 60), Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        with half_done(monkeypatch), pytest.raises(StoppedError) as stopped:
            job(source, shard_rows=16, shown="auto")
    assert "32/60" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")
    other = tiny_model(tmp_path / "cls", pooling="cls")
    with half_done(monkeypatch, after=1), pytest.raises(StoppedError) as again:
        job(source, model=other, shard_rows=20, overwrite=True)
    assert "20 of 60 rows" in str(again.value)
    assert job(source, model=other).totals.rows == 60
    job(source, model=other, out="expected.parquet", shard_rows=20)
    assert np.array_equal(vectors(tmp_path / "out.parquet"), vectors(tmp_path / "expected.parquet"))
    assert not list(tmp_path.glob("*.job"))
    del stopped, again


class Terminal(io.StringIO):
    def isatty(self):
        return True


def stop_if_begun(job):
    if job.manifest is not None:
        raise Stopped


class FullDisk(io.FileIO):
    """A file on a disk with room for ten more bytes, once."""

    full = True

    def write(self, data):
        short, self.full = self.full, False
        return super().write(data[:10] if short else data)


def test_a_partial_record_on_a_full_disk(tmp_path):
    """A partial write of a record is an error, and its bytes are removed before the next record."""
    job = Job(tmp_path / "out.parquet")
    job._records = FullDisk(job.folder / "done.jsonl", "ab")
    record = Record(0, 1, 0, 0, 0, 3, 100)
    with pytest.raises(OSError, match="No space left on device"):
        job.record(record)
    job.record(record)
    job.release()
    lines = (job.folder / "done.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == [3]


def test_a_full_disk_while_indexing_an_older_output(job, tmp_path, monkeypatch):
    """A disk too full for the index of --from is one sentence; with room again, the job resumes."""
    source = corpus(tmp_path / "in.jsonl", 40)
    job(source, out="old.parquet")
    with monkeypatch.context() as patched:
        patched.setattr("penult.bulk.output.output_files.batches", full_disk)
        with pytest.raises(StoppedError, match=r"the index of .*old\.parquet cannot be written to .*disk is full"):
            job(source, old=tmp_path / "old.parquet")
    assert job(source, old=tmp_path / "old.parquet").totals.taken == 40


def full_disk(*_, **__):
    raise sqlite3.OperationalError("database or disk is full")


def test_a_glob_matches_an_unfinished_job(job, tmp_path, monkeypatch):
    """Records of jobs and files beside outputs are never matched by a glob, so a resumed job has the same files."""
    corpus(tmp_path / "in.jsonl", 60)
    job(tmp_path / "in.jsonl", out="other.npy")
    pattern = f"{tmp_path}/**/*.jsonl"
    with half_done(monkeypatch), pytest.raises(StoppedError):
        job(pattern, shard_rows=16)
    assert (tmp_path / "out.parquet.job" / "done.jsonl").exists()
    assert job(pattern).totals.rows == 60
    (tmp_path / "x.rejected.jsonl").write_text('{"text": "once more"}\n')
    assert job(pattern).rows_per_second is None
    assert job(f"{tmp_path}/*.rejected.jsonl", out="again.parquet").totals.rows == 1


class Pipe(io.TextIOWrapper):
    def __init__(self, data):
        super().__init__(io.BytesIO(data))


class Keyboard:
    """A terminal without input: reading from it would block forever."""

    def isatty(self):
        return True


def test_a_pipe_that_cannot_be_read_again(job, tmp_path, monkeypatch):
    """An unfinished job keeps the piped input: the same or empty input resumes it; other input is an error."""
    data = corpus(tmp_path / "in.jsonl", 60).read_bytes()
    monkeypatch.setattr(sys, "stdin", Pipe(data))
    with half_done(monkeypatch), pytest.raises(StoppedError):
        job("-", shard_rows=16)
    monkeypatch.setattr(sys, "stdin", Pipe(b'{"text": "another"}\n'))
    with pytest.raises(ValueError, match="- changed"):
        job("-")
    monkeypatch.setattr(sys, "stdin", Pipe(data))
    with half_done(monkeypatch, after=1), pytest.raises(StoppedError, match="48 of 60 rows"):
        job("-")
    monkeypatch.setattr(sys, "stdin", Keyboard())
    with half_done(monkeypatch, after=0), pytest.raises(StoppedError, match="48 of 60 rows"):
        job("-")
    kept = [path.read_bytes() for path in (tmp_path / "out.parquet.job").iterdir() if path.name.startswith("stdin.")]
    assert kept == [data], "the disk needs no second copy of it"
    monkeypatch.setattr(sys, "stdin", Pipe(b""))
    assert job("-").totals.rows == 60
    job(tmp_path / "in.jsonl", out="expected.parquet", shard_rows=16)
    assert np.array_equal(vectors(tmp_path / "out.parquet"), vectors(tmp_path / "expected.parquet"))


def test_a_full_disk_while_copying_a_pipe(job, tmp_path, monkeypatch):
    """A disk too full for it is one sentence, and nothing is left behind."""
    monkeypatch.setattr(sys, "stdin", Pipe(b'{"text": "a"}\n'))
    monkeypatch.setattr(input_files, "atomic_write", full)
    with pytest.raises(OSError, match=r"Standard input cannot be copied to .*out\.parquet\.job: No space left on device"):
        job("-")
    assert list(tmp_path.iterdir()) == []


def full(*_):
    raise OSError("No space left on device")


def test_a_pipe_of_another_format(job, tmp_path, monkeypatch):
    """--format sets the format of a pipe and of files with unknown extensions; known extensions take precedence."""
    monkeypatch.setattr(sys, "stdin", Pipe(b"text\none\n"))
    (tmp_path / "b.dat").write_text("text\ntwo\n")
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n')
    job(tmp_path / "b.dat", tmp_path / "c.jsonl", "-", format="csv")
    assert pq.read_table(tmp_path / "out.parquet").column("text").to_pylist() == ["two", "three", "one"]


def test_unchanged_input_is_not_hashed_again(job, tmp_path, monkeypatch):
    """A resumed job, and one with a wrong name in its input, do not read gigabytes first."""
    source = corpus(tmp_path / "in.jsonl", 60)
    with half_done(monkeypatch), pytest.raises(StoppedError):
        job(source, shard_rows=16)
    with monkeypatch.context() as patched:
        patched.setattr(input_files, "_sha256", refused)
        patched.setattr(sys, "stdin", Keyboard())
        (tmp_path / "in.dat").write_text("text")
        with pytest.raises(ValueError, match=r"has an unknown file extension\. Pass --format"):
            job(source, tmp_path / "in.dat", "-", out="other.parquet")
        assert job(source).totals.rows == 60


def refused(*_):
    raise AssertionError("read for nothing")


def half_written(path):
    with atomic_write(path) as file:
        file.write(b"half")
        raise Stopped


def test_files_are_written_atomically(tmp_path):
    """An error while a file is written leaves the previous file, and no temporary one."""
    (tmp_path / "file").write_bytes(b"before")
    with pytest.raises(Stopped):
        half_written(tmp_path / "file")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]
