"""Several worker processes on the same sockets, with a supervisor that starts, restarts and ends them.

Each worker loads the models and accepts connections from the sockets that the first process bound. Their metrics are files in a
temporary folder; the worker that answers /metrics adds them up.
"""

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING

from penult.core.threads import default_threads
from penult.server.config import ConfigError, ServerConfig
from penult.server.config_file import override
from penult.server.log_format import start_log

if TYPE_CHECKING:
    from penult.server.app import Extend

_LOGGER = logging.getLogger(__name__)
_METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it at import
_PAUSE_SECONDS = 1.0  # before an ended worker is restarted
_READY = ""  # message of a worker that is ready; any other message is the reason why it cannot start

Answer = Callable[[ServerConfig, "Extend | None", Sequence[socket.socket], Callable[[], None]], None]


@dataclass(slots=True)
class _Worker:
    """A process, and the pipe on which it reports that it is ready. The worker ends when this process closes the pipe."""

    process: SpawnProcess
    pipe: Connection
    ready: bool = False


def run(
    config: ServerConfig,
    extend: "Extend | None",
    sockets: Sequence[socket.socket],
    answer: Answer,
    ready: Callable[[], None],
    ending_seconds: float,
) -> None:
    """Start the workers, restart those that end until SIGTERM or Ctrl-C, and finish the requests in progress.

    Args:
        config: the configuration of the server.
        extend: see `create_app`; the workers import it.
        sockets: bound sockets.
        answer: function that a worker runs.
        ready: called when every worker is ready.
        ending_seconds: seconds that shutdown waits for requests.

    Raises:
        ConfigError: a worker cannot start; the message is the worker's.
    """
    config = with_threads(config)
    _LOGGER.info("Starting %d workers with %d threads each", config.workers, config.threads)
    with tempfile.TemporaryDirectory(prefix="penult-metrics-") as folder, _environment(folder), _signals() as stop:
        _Supervisor(config, extend, sockets, answer).run(stop, ready, ending_seconds)


def with_threads(config: ServerConfig) -> ServerConfig:
    """Return the configuration with the threads of each worker: its share of the cores, unless `threads` is set."""
    return override(config, {"threads": config.threads or max(1, default_threads() // config.workers)})


class _Supervisor:
    """Supervisor of the workers of a server."""

    def __init__(self, config: ServerConfig, extend: "Extend | None", sockets: Sequence[socket.socket], answer: Answer) -> None:
        self._sockets = list(sockets)
        self._arguments = (config, extend, self._sockets, answer)
        self._count = config.workers
        self._context = multiprocessing.get_context("spawn")  # a fork would copy locks held by threads that it lacks
        self._workers: list[_Worker] = []
        self._complete = False  # all workers have been ready once

    def run(self, stop: Connection, ready: Callable[[], None], ending_seconds: float) -> None:
        """Start the workers, and restart ended ones until `stop` is readable."""
        try:
            self._workers = [self._start()]  # one first: it prepares the graphs in the cache, which the others then open
            while stop not in wait([stop, *self._events()]):
                for worker in list(self._workers):
                    self._check_worker(worker)
                answering = sum(worker.ready for worker in self._workers)
                if answering and len(self._workers) < self._count:
                    self._workers += [self._start() for _ in range(self._count - len(self._workers))]
                if answering == self._count and not self._complete:
                    self._complete = True
                    ready()
        finally:
            self._end(ending_seconds)

    def _start(self) -> _Worker:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(*self._arguments, theirs), name="penult worker")
        process.start()
        theirs.close()
        return _Worker(process, mine)

    def _events(self) -> Iterator[Connection | int]:
        for worker in self._workers:
            yield worker.process.sentinel
            if not worker.ready:
                yield worker.pipe

    def _check_worker(self, worker: _Worker) -> None:
        """Mark a worker as ready, or replace one that has ended.

        Raises:
            ConfigError: it cannot start, and no other worker is ready or they have not all been ready yet.
        """
        reason = ""
        if not worker.ready and worker.pipe.poll():
            try:
                reason = worker.pipe.recv()
            except EOFError:
                pass
            else:
                worker.ready = reason == _READY and worker.process.is_alive()
            if reason:  # it would end by itself, but waiting would take time
                worker.process.kill()
            if not worker.ready:
                worker.process.join()
        if worker.process.is_alive():
            return
        status = worker.process.exitcode
        if not worker.ready:
            reason = reason or f"A worker ended with exit status {status} before it was ready. Its log states the reason."
            if not (self._complete and any(one.ready and one.process.is_alive() for one in self._workers)):
                raise ConfigError(reason)
            _LOGGER.error("A worker cannot start; the others continue: %s", reason)
        else:
            _LOGGER.error("Worker %s ended with exit status %s. Starting another one.", worker.process.pid, status)
        self._forget(worker)
        time.sleep(_PAUSE_SECONDS)
        self._workers[self._workers.index(worker)] = self._start()

    def _forget(self, worker: _Worker) -> None:
        from penult.server import metrics  # noqa: PLC0415 - imported after the variable of its folder is set

        worker.pipe.close()
        if worker.process.pid is not None:
            metrics.forget(worker.process.pid)

    def _end(self, seconds: float) -> None:
        """Send SIGTERM to the workers, and wait for them."""
        for worker in self._workers:
            worker.process.terminate()
        for one in self._sockets:  # else new clients connect, wait for a worker that has ended, and get a reset
            one.close()
        until = time.monotonic() + seconds + 5
        for worker in self._workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
            worker.pipe.close()


def _work(
    config: ServerConfig, extend: "Extend | None", sockets: list[socket.socket], answer: Answer, pipe: Connection
) -> None:
    """Answer requests in this process; report through the pipe that it is ready, or why it cannot start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the supervisor ends this one
    start_log(as_json=config.log_json)
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    try:
        answer(config, extend, sockets, lambda: pipe.send(_READY))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        pipe.send(str(error) or type(error).__name__)
    finally:
        for one in sockets:
            one.close()


def _end_with_parent(pipe: Connection) -> None:
    """Send SIGTERM to this process when its parent has ended."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    before = os.environ.get(_METRICS_FOLDER)
    os.environ[_METRICS_FOLDER] = folder
    try:
        yield
    finally:
        del os.environ[_METRICS_FOLDER]
        if before is not None:
            os.environ[_METRICS_FOLDER] = before


@contextmanager
def _signals() -> Iterator[Connection]:
    """Yield a pipe that becomes readable on SIGTERM or SIGINT."""
    stop, send = multiprocessing.Pipe(duplex=False)
    before = {number: signal.signal(number, lambda *_: send.send(None)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        send.close()
        stop.close()
