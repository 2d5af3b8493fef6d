"""Worker processes: what is said when they die or cannot begin, and that nothing hangs."""

import multiprocessing

import pyarrow as pa
import pytest
from bulk import dying
from bulk.jobs import corpus, run

from penult.bulk import pool
from penult.bulk.options import Columns, Model
from penult.bulk.pool import Pool, WorkError
from penult.bulk.sources import Shard
from penult.bulk.worker import Ready, Task, serve


def test_a_worker_that_dies_twice_over_a_task_ends_the_job(monkeypatch, tmp_path):
    """A task is tried twice; then the job fails, naming the shard, the signal and what may help."""
    monkeypatch.setattr(pool, "serve", dying.at_work)
    said = []
    workers = Pool(Model("m"), "document", 1, said.append)
    task = Task(Shard(5, pa.table({"text": ["a"]}), [("f", 1)], []), tmp_path, Columns("text", "v", "document"))
    with pytest.raises(WorkError, match=r"killed by signal 9, perhaps .* memory, twice at shards 5; .*fewer --workers"):
        list(workers.run(iter([task])))
    workers.close()
    assert len(said) == 1
    assert "another one tries once more" in said[0]


def test_a_worker_that_dies_before_it_is_given_a_task(monkeypatch, tmp_path):
    """A task that cannot be handed over has been tried, as one that the worker died over."""
    monkeypatch.setattr(pool, "serve", dying.when_ready)
    said = []
    workers = Pool(Model("m"), "document", 1, said.append)
    workers._workers[0].process.join(60)
    task = Task(Shard(5, pa.table({"text": ["a"]}), [("f", 1)], []), tmp_path, Columns("text", "v", "document"))
    with pytest.raises(WorkError, match=r"ended with status 7 twice at (shards 5|opening the model)"):
        list(workers.run(iter([task])))
    workers.close()
    assert "ended with status 7 at shards 5; another one tries once more" in said[0]


def test_a_worker_that_dies_before_it_begins(monkeypatch):
    """A worker that cannot even start is tried once more, then the job fails with its exit status."""
    monkeypatch.setattr(pool, "serve", dying.at_once)
    said = []
    with pytest.raises(WorkError, match="ended with status 7 twice at opening the model"):
        Pool(Model("m"), "document", 1, said.append)
    assert len(said) == 1


def test_a_worker_whose_answer_is_not_heard_any_more(tmp_path, tiny):
    """A job that ends early closes its pipes: a worker whose answer lies there unread ends without a word, as the others do."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    worker = context.Process(target=serve, args=(theirs, Model(str(tiny)), "document", 1))
    worker.start()
    theirs.close()
    assert isinstance(pipe.recv(), Ready)
    pipe.send(Task(Shard(0, pa.table({"text": ["a"]}), [("f", 1)], []), tmp_path, Columns("text", "v", "document")))
    assert pipe.poll(60)
    pipe.close()
    worker.join(60)
    assert worker.exitcode == 0


def test_a_model_that_cannot_be_opened(tmp_path):
    """It is one sentence and exit status 1, and nothing is left behind."""
    source = corpus(tmp_path / "in.jsonl", 3)
    done = run("embed", source, tmp_path / "out.parquet", "--model", tmp_path / "nothing")
    assert done.returncode == 1
    assert str(tmp_path / "nothing") in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_number_of_workers_is_checked():
    """No workers, no job."""
    with pytest.raises(ValueError, match="workers is 0"):
        Pool(Model("m"), "document", 0, print)
