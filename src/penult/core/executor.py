"""The sessions of one graph and the gate that all callers pass: which batch runs when, and on how many threads.

A batch that comes alone is divided among all threads of one session. Of many batches, as many as there are threads run side
by side, each on one thread of a second session: threads that share a batch wait for each other at every operator, which costs
11 to 14 % more CPU (all-MiniLM-L6-v2, int8 and fp32, two threads, ONNX Runtime 1.32). It knows no text and no model.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

from numpy.typing import NDArray

from penult.core.engine import Engine

Feed = Callable[[], Mapping[str, NDArray[Any]]]
"""Makes the arrays of one batch, where it runs: no more batches are held than run."""


class Sessions:
    """One graph, opened for lone batches at once and for many batches at the first call that has them.

    Safe to call from several threads: what runs at a time is one lone batch, or as many batches as the engine has threads.

    Args:
        open_engine: opens the graph with so many threads. None: as many as it was asked for.
        second: whether a second session may be opened. It has a copy of the weights.
    """

    def __init__(self, open_engine: Callable[[int | None], Engine], *, second: bool) -> None:
        self.engine = open_engine(None)
        self._open = open_engine
        self._second = second and self.engine.num_cores > 1
        self._single: Engine | None = None
        self._gate = threading.Lock()
        self._pid = os.getpid()

    def run(self, feed: Feed, output: str) -> NDArray[Any]:
        """Run one batch and give one of its outputs.

        Raises:
            ValueError: the graph refused its inputs.
            RuntimeError: the sessions are closed.
        """
        with self._own_gate():
            return _run(self.engine, feed, output)

    def run_many(self, feeds: Sequence[Feed], output: str) -> Iterator[NDArray[Any]]:
        """Run batches, and give one output of each in order. Other callers may come in between; for errors see `run`."""
        team = self.engine.num_cores
        many = len(feeds) >= 2 * team
        for start in range(0, len(feeds), team):
            wave = feeds[start : start + team]
            if many and self._second:
                with self._own_gate():
                    if self._single is None:
                        self._single = self._open(1)
                    found = _side_by_side([_Job(self._single, feed, output) for feed in wave])
                yield from found
            else:
                yield from (self.run(feed, output) for feed in wave)

    def close(self) -> None:
        """Free the sessions. Calling again does nothing; running afterwards raises RuntimeError."""
        self.engine.close()
        self._second = False
        if self._single is not None:
            self._single.close()

    def _own_gate(self) -> threading.Lock:
        if self._pid != os.getpid():  # a fork may have copied a gate that a thread of the parent held
            self._gate, self._pid = threading.Lock(), os.getpid()
        return self._gate


class _Job:
    """One batch of those that run side by side, and its answer."""

    def __init__(self, engine: Engine, feed: Feed, output: str) -> None:
        self._work = engine, feed, output
        self.answer: Future[NDArray[Any]] = Future()

    def start(self) -> None:
        """Begin in a thread of its own; at the interpreter's end, when none can be started, do it at once."""
        try:
            threading.Thread(target=self.do, name="penult-batch", daemon=True).start()
        except RuntimeError:
            self.do()

    def do(self) -> None:
        try:
            self.answer.set_result(_run(*self._work))
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            self.answer.set_exception(error)


def _side_by_side(jobs: Sequence[_Job]) -> list[NDArray[Any]]:
    """Do the first job here and the others in threads; all have ended when this returns or raises."""
    for job in jobs[1:]:
        job.start()
    jobs[0].do()
    answers = [job.answer for job in jobs]
    wait(answers)
    return [answer.result() for answer in answers]


def _run(engine: Engine, feed: Feed, output: str) -> NDArray[Any]:
    (values,) = engine.run(feed(), outputs=[output])
    return values
