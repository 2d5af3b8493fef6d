"""A job on Ray: the vectors of one process, whatever happens to an actor."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.json
import pyarrow.parquet as pq
import pytest
from bulk.jobs import corpus, recorded, run, started

from penult.bulk import inputs, ray_engine, readers
from penult.bulk.options import Columns, Model
from penult.bulk.ray_engine import Setup, ShardActor

pytest.importorskip("ray.data", reason="the extra `ray` is not installed")

ROWS, SHARD = 1200, 16


def setup(source, tiny, folder):
    """What an actor gets, its paths relative to the folder of the caller."""
    file = inputs.opened(Path(source))
    columns = Columns("text", "embedding", "document")
    folder.mkdir()
    return Setup(Model(str(tiny)), columns, (file,), readers.scan([file], "text", SHARD), Path(folder.name), None)


def answers(actor, *numbers):
    return [json.loads(answer) for answer in actor({"shard": list(numbers)})["answer"]]


def test_an_actor_works_in_another_folder(tmp_path, tiny, monkeypatch):
    """A cluster's processes do not stand where the command was given: an actor finds model, input and output all the same."""
    monkeypatch.chdir(tmp_path)
    table = pyarrow.json.read_json(corpus(tmp_path / "in.jsonl", 40))
    pq.write_table(table, "in.parquet")
    (tmp_path / "model").symlink_to(tiny)
    given = setup("in.parquet", "model", tmp_path / "shards").anywhere()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [answer["rows"] for answer in answers(ShardActor(given, 1), 0, 1, 2)] == [16, 16, 8]


def test_what_fails_in_an_actor_is_a_sentence(tmp_path, tiny, monkeypatch):
    """A full disk and a missing model are said by the driver in one sentence, without Ray's pages of stack."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pyarrow.json.read_json(corpus(tmp_path / "in.jsonl", 40)), "in.parquet")
    given = setup("in.parquet", tiny, tmp_path / "shards")
    shutil.rmtree("shards")
    assert "No such file or directory" in answers(ShardActor(given, 1), 0)[0]["message"]
    (tmp_path / "shards").mkdir()
    lost = replace(given, model=replace(given.model, reference=str(tmp_path / "none")))
    (answer,) = answers(ShardActor(lost, 1), 0)
    with pytest.raises(ValueError, match=r"No model at .*none"):
        ray_engine._record(answer)


def test_a_shard_that_kills_its_actors_ends_the_job(tmp_path, tiny, monkeypatch):
    """Ray would start an actor again for ever; after three deaths over one shard the job ends and says at which."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pyarrow.json.read_json(corpus(tmp_path / "in.jsonl", 40)), "in.parquet")
    given = setup("in.parquet", tiny, tmp_path / "shards")
    for _ in range(3):
        ShardActor(given, 1)._begin(1)  # each dies in the midst of it
    assert "an actor died 3 times at shard 1" in answers(ShardActor(given, 1), 1)[0]["message"]
    again = replace(given, run="of a later job")
    assert answers(ShardActor(again, 1), 1)[0]["rows"] == 16


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
