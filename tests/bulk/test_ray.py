"""A job on Ray: the vectors of one process, whatever happens to an actor."""

import os
import signal
import time
from pathlib import Path

import pyarrow.json
import pyarrow.parquet as pq
import pytest
from bulk.jobs import corpus, recorded, run, started

pytest.importorskip("ray.data", reason="the extra `ray` is not installed")

ROWS, SHARD = 1200, 16


def actors():
    """List the processes of Ray's actors that make shards."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"ShardActor" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_two_actors_one_of_which_is_killed(tmp_path, tiny):
    """Two actors give what one process gives, byte for byte, though one of them is killed in the midst of its work."""
    table = pyarrow.json.read_json(corpus(tmp_path / "in.jsonl", ROWS))
    pq.write_table(table.slice(0, 700), tmp_path / "a.parquet", row_group_size=100)
    pq.write_table(table.slice(700), tmp_path / "b.parquet")
    arguments = ("embed", tmp_path / "a.parquet", tmp_path / "b.parquet")
    options = ("--model", tiny, "--shard-rows", SHARD)
    assert run(*arguments, tmp_path / "one.parquet", *options).returncode == 0
    out, before = tmp_path / "ray.parquet", set(actors())
    job = started(*arguments, out, *options, "--engine", "ray", "--workers", 2)
    until = time.monotonic() + 90
    while recorded(out) < 5 and job.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    ours = sorted(set(actors()) - before)
    assert len(ours) == 2
    assert recorded(out) < ROWS // SHARD, "the job was over before an actor could be killed"
    os.kill(ours[0], signal.SIGKILL)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert out.read_bytes() == (tmp_path / "one.parquet").read_bytes()
