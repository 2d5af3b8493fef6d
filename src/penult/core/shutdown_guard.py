"""A guard for calls of native code at the interpreter's shutdown.

A daemon thread that returns from native code during the shutdown is ended in the middle of a C++ or Rust frame, and the process
aborts. So the shutdown waits for the threads inside, which takes one batch each, and holds back daemon threads that come later.
"""

import threading
import weakref

from penult.fork import PerProcess

_MOST_SECONDS = 30  # that the shutdown waits; a batch takes milliseconds, a very long one some seconds


class ShutdownGuard:
    """A context manager around a section of native code, which any number of threads may be in."""

    def __init__(self) -> None:
        self._state = PerProcess(_State)  # threads that were inside in a parent do not exist in its forked child
        weakref.finalize(self, _end, self._state)  # at the shutdown, or when nobody can enter any more

    def __enter__(self) -> None:
        self._state.get().enter()

    def __exit__(self, *exc: object) -> None:
        self._state.get().leave()


class _State:
    """The threads inside. It is apart from `ShutdownGuard`, so that the finalizer does not keep the guard's owner alive."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: set[int] = set()  # threads, so that one that was interrupted on its way in or out is not waited for
        self._ended = False

    def enter(self) -> None:
        with self._changed:
            # Of the other threads only daemons still run, and the main thread, which is safe. A daemon waits here until the
            # process is gone.
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
