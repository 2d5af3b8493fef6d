"""Worker processes: messages when they die or cannot start, and no deadlocks."""

import multiprocessing
import os
import signal
import time

import pyarrow as pa
import pytest
from bulk import dying
from bulk.jobs import corpus, run

from penult.bulk.input.sources import Shard
from penult.bulk.job import pool, worker
from penult.bulk.job.errors import WorkError
from penult.bulk.job.pool import Pool
from penult.bulk.job.worker import AT_ONCE, Failed, Ready, Task, serve
from penult.bulk.options import Columns, Model


def task(folder, number=5):
    return Task(Shard(number, pa.table({"text": ["a"]}), [("f", 1)], []), folder, Columns("text", "v", "document"))


def processes():
    return [child for child in multiprocessing.active_children() if child.name == "penult-worker"]


def test_every_task_is_answered_once(monkeypatch, tmp_path):
    """By any worker; shards are read on demand, and there are as many processes as requested."""
    monkeypatch.setattr(pool, "serve", dying.answering)
    read = []

    def tasks():
        for number in range(20):
            read.append(number)
            yield task(tmp_path, number)

    workers, found = Pool(Model("m"), "document", 2, print), []
    assert workers.ready == Ready(3, 64, {})
    for record in workers.run(tasks()):
        found.append(record.shard)
        assert min(len(found) + 1, 20) <= len(read) <= len(found) - 1 + 2 * AT_ONCE, "one is answered while another is in hand"
        assert len(processes()) == record.rows == 2
        assert all(process.daemon for process in processes()), "a process that ends would wait for them"
    assert sorted(found) == list(range(20))
    workers.close()
    assert processes() == []


def test_a_busy_worker_does_not_delay_the_end(monkeypatch):
    """An interrupted job ends at once, whatever its workers do."""
    monkeypatch.setattr(pool, "serve", dying.asleep)
    workers, began = Pool(Model("m"), "document", 1, print), time.monotonic()
    workers.close()
    assert time.monotonic() - began < 10
    assert processes() == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (0, "exited with status 0"),
        (7, "exited with status 7"),
        (-1, "was killed by signal 1"),
        (-9, "was killed by signal 9 (perhaps out of memory)"),
    ],
)
def test_the_message_for_a_dead_worker(code, message):
    """The signal's number, and a hint for the signal that the system sends when memory runs out."""
    assert pool._end(code) == message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("full"), Failed("full", user_error=True)),
        (ValueError("bad"), Failed("bad", user_error=True)),
        (ImportError("none"), Failed("none", user_error=True)),
        (KeyError("key"), Failed("KeyError: 'key'", user_error=False)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_message_for_an_error_in_a_worker(error, message):
    """A user error is its message only; a bug includes the class of its exception."""
    assert worker.failed(error) == message


def test_workers_share_the_cores(monkeypatch):
    """A single worker has the default; several have equal parts of it, at least one thread each."""
    monkeypatch.setattr("penult.bulk.job.worker.default_threads", lambda: 8)
    assert [worker._threads(workers) for workers in (1, 2, 3, 8, 16)] == [None, 4, 2, 1, 1]


def test_a_worker_that_dies_twice_at_a_task(monkeypatch, tmp_path):
    """A task is tried twice; then the job fails with the shard, the signal and what to do."""
    monkeypatch.setattr(pool, "serve", dying.at_work)
    messages = []
    workers = Pool(Model("m"), "document", 1, messages.append)
    with pytest.raises(
        WorkError, match=r"killed by signal 9 \(perhaps out of memory\) twice while embedding shards 5\. .*fewer --workers"
    ):
        list(workers.run(iter([task(tmp_path)])))
    workers.close()
    assert len(messages) == 1
    assert "a new one tries again" in messages[0]


def test_a_worker_that_dies_before_its_task(monkeypatch, tmp_path):
    """A task that cannot be sent counts as a try, as if the worker had died during it."""
    monkeypatch.setattr(pool, "serve", dying.when_ready)
    messages = []
    workers = Pool(Model("m"), "document", 1, messages.append)
    workers._workers[0].process.join(60)
    with pytest.raises(WorkError, match=r"exited with status 7 twice while (embedding shards 5|loading the model)"):
        list(workers.run(iter([task(tmp_path)])))
    workers.close()
    assert "exited with status 7 while embedding shards 5; a new one tries again" in messages[0]


def test_a_worker_that_dies_at_its_start(monkeypatch):
    """A worker that cannot start is tried once more, then the job fails with its exit status."""
    monkeypatch.setattr(pool, "serve", dying.at_once)
    messages = []
    with pytest.raises(WorkError, match="exited with status 7 twice while loading the model"):
        Pool(Model("m"), "document", 1, messages.append)
    assert len(messages) == 1


def test_a_worker_whose_last_answer_is_not_read(tmp_path, tiny):
    """A job that ends early closes its pipes: a worker with an unread answer ends silently, as the others do."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, Model(str(tiny)), "document", 1))
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes do not hear Ctrl-C
    process.start()
    signal.signal(signal.SIGINT, ours)
    theirs.close()
    assert isinstance(pipe.recv(), Ready)
    os.kill(process.pid, signal.SIGINT)  # Ctrl-C reaches all processes of a terminal, and is the job's to answer
    pipe.send(task(tmp_path))
    assert pipe.poll(60)
    pipe.close()
    process.join(60)
    assert process.exitcode == 0


def test_a_model_that_cannot_be_opened(tmp_path):
    """It is one sentence with exit status 1, and nothing is left behind."""
    source = corpus(tmp_path / "in.jsonl", 3)
    done = run("embed", source, tmp_path / "out.parquet", "--model", tmp_path / "nothing")
    assert done.returncode == 1
    assert str(tmp_path / "nothing") in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_number_of_workers_is_checked():
    """Zero workers are an error."""
    with pytest.raises(ValueError, match="--workers is 0"):
        Pool(Model("m"), "document", 0, print)
