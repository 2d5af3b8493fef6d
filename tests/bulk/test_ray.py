"""A job on Ray: the vectors of one process, even if actors die."""

import json
import os
import resource
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.json
import pyarrow.parquet as pq
import pytest
from bulk.jobs import corpus, recorded, run, started

from penult.bulk import ray_engine
from penult.bulk.input import input_files, readers
from penult.bulk.job import reuse
from penult.bulk.job.errors import WorkError
from penult.bulk.options import Columns, Model
from penult.bulk.ray_engine import Setup, ShardActor

pytest.importorskip("ray.data", reason="the extra `ray` is not installed")

ROWS, SHARD = 1200, 16


def setup(source, tiny, folder):
    """The setup of an actor, with paths relative to the caller's folder."""
    file = input_files.opened(Path(source))
    columns = Columns("text", "embedding", "document")
    folder.mkdir()
    return Setup(Model(str(tiny)), columns, (file,), readers.scan([file], "text", SHARD), Path(folder.name), None)


def answers(actor, *numbers):
    return [json.loads(answer) for answer in actor({"shard": list(numbers)})["answer"]]


def test_an_actor_works_in_another_folder(tmp_path, tiny, monkeypatch):
    """The processes of a cluster have other working folders: an actor still finds model, input and output."""
    monkeypatch.chdir(tmp_path)
    table = pyarrow.json.read_json(corpus(tmp_path / "in.jsonl", 40))
    pq.write_table(table, "in.parquet")
    (tmp_path / "model").symlink_to(tiny)
    given = setup("in.parquet", "model", tmp_path / "shards").anywhere()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [answer["rows"] for answer in answers(ShardActor(given, 1), 0, 1, 2)] == [16, 16, 8]


def test_files_from_is_found_from_another_folder(tmp_path, tiny, monkeypatch):
    """A folder in `files_from` becomes an absolute path; a Hub id is unchanged."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pyarrow.json.read_json(corpus(tmp_path / "in.jsonl", 4)), "in.parquet")
    (tmp_path / "files").mkdir()
    given = setup("in.parquet", tiny, tmp_path / "shards")
    for files_from, absolute in (("files", str(tmp_path / "files")), ("org/name", "org/name"), (None, None)):
        model = replace(given.model, files_from=files_from)
        assert replace(given, model=model).anywhere().model == replace(model, files_from=absolute)


def test_an_actor_reuses_older_vectors(job, tmp_path, tiny, monkeypatch):
    """It embeds nothing that an older output has, also from another folder; long texts are counted without a warning."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pyarrow.json.read_json(corpus(tmp_path / "in.jsonl", 40)), "in.parquet")
    job("in.parquet", out="old.parquet")
    texts = pq.read_table("in.parquet").column("text").to_pylist()[:15]
    pq.write_table(pyarrow.table({"text": [*texts, "a " * 70]}), "in.parquet")
    given = setup("in.parquet", tiny, tmp_path / "shards")
    reuse.build(Path("old.parquet"), given.folder, "text")
    given = replace(given, old=given.folder, model=replace(given.model, truncate="warn")).anywhere()
    monkeypatch.chdir("/")
    (answer,) = answers(ShardActor(given, 1), 0)
    assert (answer["taken"], answer["rows"], answer["cut"]) == (15, 16, 1)


class Cluster:
    """A fake of Ray, which takes many seconds to start: makes shards in this process, and records its calls."""

    class RayError(Exception):
        """The exception of Ray."""

    def __init__(self, cpus=8.0, *, up=False, error=None):
        self.cpus, self.up, self.error, self.begun = {"CPU": cpus} if cpus else {}, up, error, []
        self.exceptions = self.data = self.DataContext = self
        self.enable_progress_bars = True

    def is_initialized(self):
        return self.up

    def init(self, **options):
        self.begun.append(options)
        self.up = True

    def shutdown(self):
        self.up = False

    def cluster_resources(self):
        return self.cpus

    def get_current(self):
        return self

    def ActorPoolStrategy(self, size):  # noqa: N802 - Ray's own name
        return size

    def from_items(self, items, override_num_blocks):
        assert len(items) == override_num_blocks, "a block would wait for another"
        self.items = items
        return self

    def map_batches(self, actor, *, batch_size, fn_constructor_args, compute, num_cpus):
        assert batch_size == 1
        self.actors, self.threads = compute, (num_cpus, fn_constructor_args[1])
        self.actor = actor(*fn_constructor_args)
        return self

    def iter_rows(self):
        assert not self.enable_progress_bars, "there is one of the job's own"
        for item in self.items:
            yield {"answer": self.actor({"shard": [item["shard"]]})["answer"][0]}
        if self.error is not None:
            raise self.error


def made_on(cluster, monkeypatch, given, *, workers=2, address=None):
    monkeypatch.setattr(ray_engine, "_ray", lambda: cluster)
    return [record.shard for record in ray_engine.run(given, [0, 2], workers=workers, address=address)]


def test_the_calls_of_a_cluster(tmp_path, tiny, monkeypatch):
    """The missing shards, as many actors as workers, with equal CPUs; shut down only if the job started it."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pyarrow.json.read_json(corpus(tmp_path / "in.jsonl", 40)), "in.parquet")
    given = setup("in.parquet", tiny, tmp_path / "shards")
    for cpus, workers, threads in ((8.0, 2, 4), (8.0, 16, 1), (None, 1, 1)):
        cluster = Cluster(cpus)
        assert made_on(cluster, monkeypatch, given, workers=workers) == [0, 2]
        assert (cluster.actors, cluster.threads) == (workers, (threads, threads))
        assert not cluster.up
        given = replace(given, run=f"again with {workers}")
    (options,) = cluster.begun
    quiet = {"log_to_driver": False, "include_dashboard": False, "configure_logging": False}
    assert options == {"address": "local"} | quiet
    theirs = Cluster(up=True)
    assert made_on(theirs, monkeypatch, given) == [0, 2]
    assert (theirs.up, theirs.begun) == (True, [])
    far = Cluster()
    made_on(far, monkeypatch, replace(given, run="far"), address="ray://far:1")
    assert far.begun[0]["address"] == "ray://far:1"


@pytest.mark.parametrize(
    ("error", "message"),
    [("\n many lines \n of stack \nthe node died \n", "Ray failed: the node died$"), (" \n", "Ray failed: RayError$")],
    ids=["lines", "nothing"],
)
def test_a_cluster_that_fails(tmp_path, tiny, monkeypatch, error, message):
    """The error is the last line of Ray's message, and the cluster is shut down."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pyarrow.json.read_json(corpus(tmp_path / "in.jsonl", 40)), "in.parquet")
    cluster = Cluster(error=Cluster.RayError(error))
    with pytest.raises(WorkError, match=message):
        made_on(cluster, monkeypatch, setup("in.parquet", tiny, tmp_path / "shards"))
    assert not cluster.up


def test_errors_of_ray_come_before_any_work(tmp_path, monkeypatch):
    """Input formats without random access are named, and so is the missing extra."""
    pq.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n')
    files = [input_files.opened(tmp_path / name) for name in ("a.parquet", "b.jsonl")]
    with pytest.raises(
        ValueError, match=r"--engine ray does not read .*b\.jsonl\. Convert it to Parquet or Lance, or remove --engine ray"
    ):
        ray_engine.check(files)
    monkeypatch.delenv("RAY_DATA_LOG_LEVEL", raising=False)
    ray_engine.check(files[:1])
    assert os.environ["RAY_DATA_LOG_LEVEL"] == "ERROR", "its lines would stand between those of --progress json"
    assert not ray_engine._ray().is_initialized(), "to look is to begin nothing"
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"--engine ray needs the extra penult\[ray\] \(pip install .*\[ray\]\"\)\."):
        ray_engine.check(files[:1])


def test_an_error_in_an_actor_is_one_sentence(tmp_path, tiny, monkeypatch):
    """The driver prints a full disk or a missing model as one sentence, without Ray's stack traces."""
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
    """Ray would restart an actor forever; after three deaths at one shard the job ends and names it."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pyarrow.json.read_json(corpus(tmp_path / "in.jsonl", 40)), "in.parquet")
    given = setup("in.parquet", tiny, tmp_path / "shards")
    for _ in range(3):
        ShardActor(given, 1)._begin(1)  # each dies in the midst of it
    assert "an actor died 3 times at shard 1" in answers(ShardActor(given, 1), 1)[0]["message"]
    again = replace(given, run="of a later job")
    assert answers(ShardActor(again, 1), 1)[0]["rows"] == 16


def actors():
    """List the processes of Ray's actors that embed shards."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"ShardActor" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY, reason="Ray maps more memory than a limit lets it"
)
def test_two_actors_one_of_which_is_killed(tmp_path, tiny):
    """Two actors produce the output of one process, byte for byte, although one of them is killed during its work."""
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
    _, message = job.communicate(timeout=120)
    assert job.returncode == 0, message
    assert out.read_bytes() == (tmp_path / "one.parquet").read_bytes()
