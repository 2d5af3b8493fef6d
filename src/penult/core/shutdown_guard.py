"""Guard for native code, so that the interpreter does not exit while a thread is in it.

A daemon thread that returns from native code during shutdown is terminated in a C++ or Rust frame, and the process aborts. So
the shutdown waits for the threads in native code, at most one batch each, and blocks daemon threads that enter later.
"""

import threading
import weakref

from penult.fork import PerProcess

_MOST_SECONDS = 30  # maximum wait at shutdown; a batch takes milliseconds, a very long one some seconds


class ShutdownGuard:
    """A context manager for native code, which any number of threads may enter at the same time."""

    def __init__(self) -> None:
        self._state = PerProcess(_State)  # a forked child does not have the parent's threads
        weakref.finalize(self, _end, self._state)  # at shutdown, or when the guard is no longer referenced

    def __enter__(self) -> None:
        self._state.get().enter()

    def __exit__(self, *exc: object) -> None:
        self._state.get().leave()


class _State:
    """Threads in native code; separate from `ShutdownGuard`, so that the finalizer does not keep the guard's owner alive."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: set[int] = set()  # thread ids, so that a thread interrupted while entering or leaving is not waited for
        self._ended = False

    def enter(self) -> None:
        with self._changed:
            # Only daemon threads still run, and the main thread, which is safe. A daemon thread waits here until the process
            # has exited.
            while self._ended and threading.current_thread().daemon:
                self._changed.wait()
            self._inside.add(threading.get_ident())

    def leave(self) -> None:
        with self._changed:
            self._inside.discard(threading.get_ident())
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.wait_for(lambda: not self._inside - {threading.get_ident()}, timeout=_MOST_SECONDS)


def _end(state: PerProcess[_State]) -> None:
    state.get().end()
