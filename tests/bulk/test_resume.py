"""A job that is stopped at any moment resumes, and its output is that of an undisturbed job."""

import os
import random
import resource
import shutil
import signal
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk.jobs import alive, corpus, ids, recorded, run, started, workers_of

ROWS, SHARD = 600, 16


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny):
    """A corpus, and the output of an undisturbed job."""
    folder = tmp_path_factory.mktemp("undisturbed")
    source = corpus(folder / "in.jsonl", ROWS)
    done = run("embed", source, folder / "out.parquet", "--model", tiny, "--shard-rows", SHARD)
    assert done.returncode == 0, done.stderr
    assert ids(folder / "out.parquet") == [f"row {n}" for n in range(ROWS)]
    return source, (folder / "out.parquet").read_bytes()


def wait_for(job, out, shards):
    until = time.monotonic() + 60
    while recorded(out) < shards and job.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


@pytest.mark.parametrize("moment", range(3))
def test_killed_at_a_random_moment(undisturbed, tmp_path, tiny, moment):
    """Killed with signal 9 repeatedly: each run keeps the recorded shards, and the output is equal byte for byte."""
    source, expected = undisturbed
    out, rng, before = tmp_path / "out.parquet", random.Random(moment), 0
    arguments = ("embed", source, out, "--model", tiny, "--shard-rows", SHARD, "--workers", 1 + moment % 2)
    for _ in range(2):
        job = started(*arguments)
        wait_for(job, out, before + rng.randint(1, 12))
        time.sleep(rng.random() * 0.01)
        children = workers_of(job.pid)
        job.kill()
        job.communicate()
        assert recorded(out) >= before
        before = recorded(out)
    until = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, children)), "a worker outlives its job"
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet"]


def test_a_partial_record_is_done_again(undisturbed, tmp_path, tiny):
    """Shards with a partial record, or with a truncated or missing file, are embedded again."""
    source, expected = undisturbed
    out = tmp_path / "out.parquet"
    job = started("embed", source, out, "--model", tiny, "--shard-rows", SHARD)
    wait_for(job, out, 8)
    job.kill()
    job.communicate()
    folder = tmp_path / "out.parquet.job"
    shards = sorted(folder.glob("*/*.arrow"))
    shards[0].write_bytes(shards[0].read_bytes()[:-8])
    shards[1].unlink()
    with (folder / "done.jsonl").open("ab") as file:
        file.write(b'{"shard": 30, "ro')
    assert run("embed", source, out, "--model", tiny).returncode == 0
    assert out.read_bytes() == expected


def test_a_worker_that_is_killed_is_replaced(undisturbed, tmp_path, tiny):
    """A worker killed with signal 9: a message names it, its shards are retried, nothing is lost."""
    source, expected = undisturbed
    out = tmp_path / "out.parquet"
    job = started("embed", source, out, "--model", tiny, "--shard-rows", SHARD, "--workers", 2)
    wait_for(job, out, 2)
    os.kill(workers_of(job.pid)[0], signal.SIGKILL)
    _, output = job.communicate(timeout=60)
    assert job.returncode == 0, output
    assert "was killed by signal 9" in output
    assert out.read_bytes() == expected


def test_a_disk_that_is_full(undisturbed, tmp_path, tiny):
    """A failed write ends the job with one sentence; with room again, it resumes to the same output."""
    source, expected = undisturbed
    out = tmp_path / "out.parquet"
    arguments = ("embed", source, out, "--model", tiny, "--shard-rows", SHARD)

    def no_room():  # for a whole output; a shard still fits
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    full = run(*arguments, preexec_fn=no_room)
    assert full.returncode == 1
    last = full.stderr.strip().splitlines()[-1]
    assert "File too large" in last
    assert f"{ROWS} of {ROWS} rows are done and kept" in last
    assert not out.exists()

    def no_room_for_a_shard():  # while the output of no rows that is tried first still fits
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))

    shutil.rmtree(tmp_path / "out.parquet.job")
    arguments = (*arguments[:-1], 5 * SHARD)  # the recipe that every output carries is as large as a shard of few rows
    full = run(*arguments, preexec_fn=no_room_for_a_shard)
    assert full.returncode == 1
    assert "0 of 600 rows are done and kept" in full.stderr
    assert run(*arguments).returncode == 0
    assert pq.read_table(out).equals(pq.read_table(pa.BufferReader(expected)), check_metadata=True)


def test_interrupted_from_the_keyboard(undisturbed, tmp_path, tiny):
    """Ctrl-C prints one sentence that says how to resume."""
    source, _ = undisturbed
    job = started("embed", source, tmp_path / "out.parquet", "--model", tiny, "--shard-rows", SHARD)
    wait_for(job, tmp_path / "out.parquet", 2)
    job.send_signal(signal.SIGINT)
    _, output = job.communicate(timeout=30)
    assert job.returncode == 1
    assert "interrupted" in output
    assert "Run the same command to resume" in output
    assert "Traceback" not in output


def test_two_jobs_with_one_output(undisturbed, tmp_path, tiny):
    """A second job with the same output is an error while the first runs."""
    source, expected = undisturbed
    out = tmp_path / "out.parquet"
    job = started("embed", source, out, "--model", tiny, "--shard-rows", SHARD)
    wait_for(job, out, 1)
    job.send_signal(signal.SIGSTOP)
    second = run("embed", source, out, "--model", tiny)
    job.send_signal(signal.SIGCONT)
    job.communicate(timeout=60)
    assert second.returncode == 1
    assert "Another process is running the job in" in second.stderr
    assert out.read_bytes() == expected


@pytest.mark.parametrize("later", [0, 0.15, 0.4])
def test_interrupted_while_workers_start(tmp_path, tiny, later):
    """Ctrl-C goes to the whole process group; a worker that is importing prints no traceback, and no process is left."""
    source = corpus(tmp_path / "in.jsonl", 20_000)  # more than are done before the signal
    arguments = ("embed", source, tmp_path / "out.parquet", "--model", tiny, "--workers", 2)
    job = started(*arguments, start_new_session=True)
    first = job.stderr.readline()
    time.sleep(later)
    os.killpg(job.pid, signal.SIGINT)
    _, output = job.communicate(timeout=60)
    assert first.startswith("penult: loading model")
    assert job.returncode == 1
    assert "interrupted" in output
    assert len(output.splitlines()) == 1
    assert run(*arguments).returncode == 0
