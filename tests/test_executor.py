"""Scheduling of batches and threads: one lock, a single batch on all threads, many batches in parallel."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from penult import Embedder
from penult.core.engine import Engine
from penult.core.executor import Executor

SECONDS = 30


class Fake:
    """An engine that doubles its input, records how many engines run at once, and waits until `together` do."""

    running, most, opened = 0, 0, []
    lock = threading.Lock()

    def __init__(self, threads, together=None):
        self.threads, self.together, self.closed = threads or 3, together, False
        Fake.opened.append(self)

    def run(self, inputs, *, outputs):
        if self.closed:
            raise RuntimeError("closed")
        with Fake.lock:
            Fake.running += 1
            Fake.most = max(Fake.most, Fake.running)
        if self.together is not None:
            self.together.wait(SECONDS)
        with Fake.lock:
            Fake.running -= 1
        if inputs["x"] < 0:
            raise ValueError(f"{outputs[0]} of {inputs['x']}")
        return [np.array(2 * inputs["x"])]

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def _fresh():
    Fake.running, Fake.most, Fake.opened = 0, 0, []


def feeds(*values):
    return [lambda value=value: {"x": value} for value in values]


def test_many_batches_run_in_parallel_in_order():
    """Of six batches, three run at once, each on an engine with one thread; results keep the order."""
    together = threading.Barrier(3)  # blocks until three threads wait
    executor = Executor(lambda threads: Fake(threads, together if threads else None), second=True)
    assert [int(v) for v in executor.run_many(feeds(*range(6)), "y")] == [0, 2, 4, 6, 8, 10]
    assert [fake.threads for fake in Fake.opened] == [3, 1]
    assert Fake.most == 3


@pytest.mark.parametrize(("second", "count"), [(False, 20), (True, 5)])
def test_few_batches_share_all_threads(second, count):
    """With fewer than two batches per thread, or if the weights may not be copied, batches run one at a time on one engine."""
    executor = Executor(Fake, second=second)
    assert [int(v) for v in executor.run_many(feeds(*range(count)), "y")] == [2 * i for i in range(count)]
    assert (len(Fake.opened), Fake.most) == (1, 1)


def test_one_lock_for_all_callers():
    """Callers with one batch and callers with many never use more threads at once than the engine has."""
    executor = Executor(Fake, second=True)
    with ThreadPoolExecutor(8) as pool:
        many = [pool.submit(lambda: list(executor.run_many(feeds(*range(30)), "y"))) for _ in range(4)]
        lone = [pool.submit(executor.run, feeds(i)[0], "y") for i in range(200)]
        assert [int(f.result(SECONDS)) for f in lone] == [2 * i for i in range(200)]
        assert all([int(v) for v in f.result(SECONDS)] == [2 * i for i in range(30)] for f in many)
    assert len(Fake.opened) == 2
    assert Fake.most <= 3


def test_an_error_in_one_batch():
    """The error of one batch is raised to the caller, and the lock is released."""
    executor = Executor(Fake, second=True)
    with pytest.raises(ValueError, match="y of -1"):
        list(executor.run_many(feeds(0, 1, 2, 3, -1, 5), "y"))
    assert int(executor.run(feeds(4)[0], "y")) == 8


def test_closed():
    """Both engines are closed, and a later call raises an error."""
    executor = Executor(Fake, second=True)
    list(executor.run_many(feeds(*range(6)), "y"))
    executor.close()
    assert all(fake.closed for fake in Fake.opened)
    with pytest.raises(RuntimeError, match="closed"):
        list(executor.run_many(feeds(*range(6)), "y"))


def test_vectors_are_the_same_on_any_number_of_threads(tiny):
    """Parallel batches give the vectors that one thread gives."""
    texts = [" ".join(["the cat sat on the mat"] * (1 + i % 7)) + f" {i}" for i in range(60)]
    with Embedder.load(tiny, threads=1) as one, Embedder.load(tiny, threads=3, max_batch_tokens=64) as three:
        assert np.abs(one.embed(texts) - three.embed(texts)).max() <= 1e-6


def test_repeated_texts_run_once(tiny, monkeypatch):
    """A text that occurs many times in one call runs once, and all its rows get the vector."""
    rows, run = [], Engine.run

    def counted(self, inputs, *, outputs=None):
        rows.append(len(inputs["input_ids"]))
        return run(self, inputs, outputs=outputs)

    with Embedder.load(tiny, threads=1) as e:
        alone = e.embed(["the cat", "a dog sat", "moon"])
        monkeypatch.setattr(Engine, "run", counted)
        tokenized = e.tokenize(["moon", "the cat", "moon", "a dog sat", "the cat", "moon"])
        vectors = e.run(tokenized)
    assert sum(rows) == 3
    assert np.abs(vectors - alone[[2, 0, 2, 1, 0, 2]]).max() <= 1e-6
    assert tokenized.counts[0] == tokenized.counts[2] == tokenized.counts[5]
