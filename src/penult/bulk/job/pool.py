"""A pool of worker processes: spawned, never forked; monitored, and replaced once when they die.

Handles processes and tasks. Independent of rows and vectors.
"""

import multiprocessing
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from typing import Any

from penult.bulk.job.errors import WorkError
from penult.bulk.job.parts import Tick
from penult.bulk.job.record import Record
from penult.bulk.job.worker import AT_ONCE, Failed, Ready, Task, serve
from penult.bulk.options import Model
from penult.types import Role

_TRIES = 2


@contextmanager
def _without_sigint() -> Iterator[None]:
    """Block SIGINT while processes start, so that only this process handles it; a SIGINT received meanwhile is handled after.

    A spawned process inherits the signal mask. Otherwise it would print a traceback until it has imported enough to ignore
    SIGINT, and another one if this process were interrupted before it has sent the new process its data.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing's helper process; starting it unblocks the signal
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: received.append(number))  # other threads do not block SIGINT
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


class _Worker:
    """One process, the parent's end of its pipe, and its assigned tasks."""

    def __init__(self, model: Model, role: Role, share: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(target=serve, args=(child_pipe, model, role, share), name="penult-worker", daemon=True)
        with _without_sigint():
            self.process.start()
        child_pipe.close()  # otherwise a dead worker would not close the pipe
        self.tasks: dict[int, Task] = {}
        self.ready: Ready | None = None

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


class Pool:
    """Workers of one job. The first starts at once and describes the model; the others start when work begins.

    Args:
        model: the model to load.
        role: role of the texts.
        workers: number of workers.
        say: called with messages for the user.

    Raises:
        ValueError: the model cannot be opened; the message says why.
        WorkError: the worker died, or failed because of a bug.
    """

    def __init__(self, model: Model, role: Role, workers: int, say: Callable[[str], None]) -> None:
        if workers < 1:
            raise ValueError(f"--workers is {workers}; it must be at least 1.")
        self._model, self._role, self._count, self._say = model, role, workers, say
        self._deaths: Counter[int | None] = Counter()  # by shard; None: while loading the model
        self._again: deque[Task] = deque()
        self._workers = [self._start()]
        while self._workers[0].ready is None:
            list(self._receive(self._workers[0]))
        self.ready: Ready = self._workers[0].ready

    def run(self, tasks: Iterator[Task]) -> Iterator[Record | Tick]:
        """Run tasks in any order; yield a record of each, after its ticks.

        Raises:
            ValueError: a task failed because of an error that the user can fix, such as a full disk.
            WorkError: a worker died twice in the same task, or a task failed because of a bug.
        """
        self._workers += [self._start() for _ in range(self._count - 1)]
        while True:
            self._assign(tasks)
            if not any(worker.tasks for worker in self._workers) and not self._again:
                return
            for pipe in connection.wait([worker.pipe for worker in self._workers]):
                worker = next(worker for worker in self._workers if worker.pipe is pipe)
                yield from self._receive(worker)

    def close(self) -> None:
        """Stop all workers. The next run repeats unrecorded work."""
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def _start(self) -> _Worker:
        return _Worker(self._model, self._role, self._count)

    def _assign(self, tasks: Iterator[Task]) -> None:
        """Fill every ready worker's task queue, one task each before a second."""
        for load in range(AT_ONCE):
            for worker in list(self._workers):
                if worker.ready is None or len(worker.tasks) > load:
                    continue
                task = self._again.popleft() if self._again else next(tasks, None)
                if task is None:
                    return
                worker.tasks[task.shard.number] = task
                try:
                    worker.pipe.send(task)
                except OSError:
                    self._died(worker)

    def _receive(self, worker: _Worker) -> Iterator[Record | Tick]:
        try:
            answer: Any = worker.pipe.recv()
        except (EOFError, OSError):
            self._died(worker)
            return
        if isinstance(answer, Failed):
            raise (ValueError if answer.user_error else WorkError)(answer.message)
        if isinstance(answer, Ready):
            worker.ready = answer
        else:
            if isinstance(answer, Record):
                del worker.tasks[answer.shard]
            yield answer

    def _died(self, worker: _Worker) -> None:
        worker.stop()
        end = _end(worker.process.exitcode)
        task = f"while embedding shards {', '.join(map(str, worker.tasks))}" if worker.tasks else "while loading the model"
        blamed: list[int | None] = [*worker.tasks] or [None]
        self._deaths.update(blamed)
        if any(self._deaths[shard] >= _TRIES for shard in blamed):
            raise WorkError(
                f"a worker process {end} twice {task}. Provide more memory, or pass fewer --workers or --batch-tokens."
            )
        self._say(f"worker process {worker.process.pid} {end} {task}; a new one tries again")
        self._again.extend(worker.tasks.values())
        self._workers[self._workers.index(worker)] = self._start()


def _end(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        memory = " (perhaps out of memory)" if -exit_code == signal.SIGKILL else ""
        return f"was killed by signal {-exit_code}{memory}"
    return f"exited with status {exit_code}"
