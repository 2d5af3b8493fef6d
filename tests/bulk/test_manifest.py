"""The folder of an unfinished job: its records, their validity after a crash, and its lock."""

import os
import resource
import signal
from dataclasses import asdict, replace

import pyarrow as pa
import pytest

from penult.bulk.input.readers import Scanned
from penult.bulk.job.manifest import Identity, Job, Manifest
from penult.bulk.job.record import Record, shard_path

IDENTITY = Identity(("h1", "h2"), "f", "document", "text", "vector", None, "cut", None)
SCHEMA = pa.schema([pa.field("text", pa.string()), pa.field("n", pa.int64(), metadata={b"k": b"v"})])
MANIFEST = Manifest(IDENTITY, Scanned(SCHEMA, (3, 4), 2), ((("a", 1, 2), ("b", 3, 4)), (("c", 5, 6),)))


@pytest.fixture
def job(tmp_path):
    (tmp_path / "deep").mkdir()
    held = Job(tmp_path / "deep" / "out")
    yield held
    held.release()


def done(job, shard, size=5):
    """Write a shard's file and record it."""
    record = Record(shard, 2, 1, 1, 0, 9, size)
    shard_path(job.shards(IDENTITY), shard).write_bytes(b"x" * 5)
    job.record(record)
    return record


def test_a_manifest_round_trips(job):
    """All of it: the schema with its metadata, counts, and stamps as tuples."""
    assert job.manifest is None
    job.begin(MANIFEST)
    assert job.manifest == MANIFEST
    assert job.manifest.scanned.schema.equals(SCHEMA, check_metadata=True)
    assert job.manifest.hashes() == {MANIFEST.stamps[0]: "h1", MANIFEST.stamps[1]: "h2"}


def test_identities():
    """Each part changes the hash, and is named with its old and new value; the number of files too."""
    others = {name: replace(IDENTITY, **{name: "other" if name != "format" else 9}) for name in asdict(IDENTITY)}
    others["inputs"] = replace(IDENTITY, inputs=("h1",))
    assert len({IDENTITY.digest, *(other.digest for other in others.values())}) == len(others) + 1
    assert len(IDENTITY.digest) == 32
    assert IDENTITY.differences(IDENTITY) == []
    assert IDENTITY.differences(others["role"]) == ["--role was 'document' and is now 'other'"]
    assert IDENTITY.differences(others["inputs"]) == ["the number of input files was 2 and is now 1"]
    assert all(len(IDENTITY.differences(other)) == 1 for other in others.values())


def test_records_after_a_crash(job):
    """A partial line is removed, so that the next one is valid; a shard whose file does not match its record is not done."""
    job.begin(MANIFEST)
    assert job.recorded(IDENTITY) == {}
    records = [done(job, 0), done(job, 1, size=6), done(job, 2)]
    shard_path(job.shards(IDENTITY), 2).unlink()
    with (job.folder / "done.jsonl").open("ab") as file:
        file.write(b'{"shard": 7, "ro')
    assert job.recorded(IDENTITY) == {0: records[0]}
    more = done(job, 3)
    assert job.recorded(IDENTITY) == {0: records[0], 3: more}
    assert (job.folder / "done.jsonl").read_bytes().count(b"\n") == 4
    (job.folder / "done.jsonl").write_bytes(b"no line end")
    assert job.recorded(IDENTITY) == {}


def test_shards_of_another_job_do_not_count(job):
    """They are in another folder, so records of one job do not apply to the other."""
    job.begin(MANIFEST)
    done(job, 0)
    other = replace(IDENTITY, role="query")
    assert job.shards(other) != job.shards(IDENTITY)
    assert job.recorded(other) == {}


def test_one_process_has_the_lock(job):
    """A second process gets an error; after a release, or a clearing, the lock is available again."""
    out = job.folder.with_name("out")
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"Another process is running the job in .*out\.job\. Wait for it, or pass another output"
        ):
            Job(out)
        job.clear()
    job.release()
    Job(out).release()


def test_a_folder_of_the_user_is_not_removed(tmp_path):
    """A folder that has the name of a job's folder, but is not a job, is kept."""
    (tmp_path / "out.parquet.job").mkdir()
    (tmp_path / "out.parquet.job" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="contains files that are not part of a penult job"):
        Job(tmp_path / "out.parquet")
    assert [path.name for path in (tmp_path / "out.parquet.job").iterdir()] == ["notes.txt"]


def test_clearing_and_removing(job):
    """After clearing, only the lock is left, and work starts again; after removing, the folder is gone."""
    job.begin(MANIFEST)
    done(job, 0)
    job.clear()
    assert [path.name for path in job.folder.iterdir()] == ["lock"]
    assert job.manifest is None
    job.begin(MANIFEST)
    assert done(job, 1).shard in job.recorded(IDENTITY)
    job.remove()
    assert not job.folder.exists()


@pytest.mark.parametrize("how", ["clear", "remove"])
def test_a_crash_while_a_job_is_deleted(job, how, monkeypatch):
    """The manifest is deleted first, so that a partially deleted job is never resumed."""
    job.begin(MANIFEST)
    done(job, 0)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        getattr(job, how)()
    assert job.folder.exists()
    assert job.manifest is None


def test_the_scratch_folder(job):
    """It is created on demand, keeps its files until then, and is deleted with the rest."""
    (job.scratch / "part").write_bytes(b"x")
    assert (job.scratch / "part").read_bytes() == b"x"
    assert job.scratch.parent == job.folder
    job.clear()
    assert not any(job.scratch.iterdir())


def test_a_job_may_begin_again(job):
    """A job that was started and not cleared can start again without an error."""
    job.begin(MANIFEST)
    job.begin(MANIFEST)
    assert job.manifest == MANIFEST


def test_a_disk_with_room_for_half_a_record(job):
    """The half is removed, the error is that of a full disk, and earlier records stay valid."""
    job.begin(MANIFEST)
    first = done(job, 0)
    stated = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = job.folder / "done.jsonl"
    whole = path.read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 9, stated[1]))
        with pytest.raises(OSError, match="No space left on device"):
            done(job, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, stated)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == whole
    assert job.recorded(IDENTITY) == {0: first}
