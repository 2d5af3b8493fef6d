"""Run batches on the sessions of one graph, under one lock for all callers.

A single batch runs on all threads of one session. Several batches run in parallel, each on one thread of a second session:
threads that share a batch wait for each other at every operator, which takes 11 to 14 % more CPU time (all-MiniLM-L6-v2, int8
and fp32, two threads, ONNX Runtime 1.32).
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import Any

from numpy.typing import NDArray

from penult.core.engine import Engine
from penult.core.mapped_files import ChangedFilesError
from penult.fork import PerProcess

_LOGGER = logging.getLogger(__name__)

Feed = Callable[[], Mapping[str, NDArray[Any]]]
"""Builds the arrays of one batch, in the thread that runs it, so that only running batches are in memory."""
_TURN = 8  # batches per thread after which the lock is released for other callers


class Executor:
    """The sessions of one graph: a first one, and a second one for several batches, opened at the first call that has them.

    Thread-safe: at any time either a single batch runs, or at most as many batches as the engine has threads.

    Args:
        open_engine: opens the graph with a number of threads. None: the configured number.
        second: whether a second session, with its own copy of the weights, may be opened.

    Attributes:
        engine: the first session.
    """

    def __init__(self, open_engine: Callable[[int | None], Engine], *, second: bool) -> None:
        self.engine = open_engine(None)
        self._open = open_engine
        self._second = second and self.engine.threads > 1
        self._single: Engine | None = None
        # A fork may copy a lock that a thread of the parent holds, but not that thread.
        self._lock = PerProcess(threading.Lock)
        self._pool = PerProcess(partial(ThreadPoolExecutor, max(1, self.engine.threads - 1), "penult-batch"))

    def run(self, feed: Feed, output: str) -> NDArray[Any]:
        """Run one batch and return one of its outputs.

        Raises:
            ValueError: the graph rejected its inputs.
            RuntimeError: the sessions are closed.
        """
        with self._lock.get():
            return _run(self.engine, feed, output)

    def run_many(self, feeds: Sequence[Feed], output: str) -> Iterator[NDArray[Any]]:
        """Run batches and yield one output of each, in order; other callers may run in between. For errors see `run`."""
        team = self.engine.threads
        if not self._second or len(feeds) < 2 * team:
            yield from (self.run(feed, output) for feed in feeds)
            return
        for start in range(0, len(feeds), _TURN * team):
            with self._lock.get():
                engine = self._second_session()
                results = self._in_parallel(engine, feeds[start : start + _TURN * team], output) if engine else None
            if results is None:
                yield from (self.run(feed, output) for feed in feeds[start:])
                return
            yield from results

    def close(self) -> None:
        """Free the sessions. Further calls do nothing; running afterwards raises RuntimeError."""
        self.engine.close()
        self._second = False
        if self._single is not None:
            self._single.close()
        if (pool := self._pool.pop()) is not None:
            pool.shutdown(wait=False)

    def _second_session(self) -> Engine | None:
        """Return the session for parallel batches; None if the files to open it from have changed."""
        if self._single is None:
            try:
                self._single = self._open(1)
            except ChangedFilesError as error:  # the first session still has the original weights
                self._second = False
                _LOGGER.warning("Batches run one at a time: %s", error)
        return self._single

    def _in_parallel(self, engine: Engine, feeds: Sequence[Feed], output: str) -> list[NDArray[Any]]:
        """Run batches on all threads, including this one; all batches have ended when this returns or raises.

        Each idle thread takes the next batch, so that none waits for a longer batch.
        """
        pending, results = deque(enumerate(feeds)), dict[int, NDArray[Any]]()

        def work() -> None:
            try:
                while (item := _next(pending)) is not None:
                    number, feed = item
                    results[number] = _run(engine, feed, output)
            finally:
                pending.clear()  # after an error the others stop too

        futures: list[Future[None]] = []
        with suppress(RuntimeError):  # at shutdown the pool accepts no more work: this thread runs all batches
            for _ in feeds[1 : self.engine.threads]:
                futures.append(self._pool.get().submit(work))  # noqa: PERF401 - submitted work is waited for even after an error
        try:
            work()
        finally:
            wait(futures)
        for future in futures:
            future.result()
        return [results[number] for number in range(len(feeds))]


def _next(pending: deque[tuple[int, Feed]]) -> tuple[int, Feed] | None:
    """Return the next batch; None if another thread has taken the last."""
    try:
        return pending.popleft()
    except IndexError:
        return None


def _run(engine: Engine, feed: Feed, output: str) -> NDArray[Any]:
    (values,) = engine.run(feed(), outputs=[output])
    return values
