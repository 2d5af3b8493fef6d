"""Native code and the end of the interpreter: who is inside, and who may still go in.

A daemon thread that comes back from native code while the interpreter ends is torn down in the middle of a C++ or Rust
frame, and the process aborts. So the end waits for those inside, one batch of work each, and lets no further daemon in.
This file knows threads; it must not know what runs.
"""

import os
import threading
import weakref

_MOST_SECONDS = 30  # that the end of a process waits; a batch takes milliseconds, a very long one some seconds


class Native:
    """A section of native code that any number of threads may be in, as a context manager."""

    def __init__(self) -> None:
        self._state = _State()
        weakref.finalize(self, _State.end, self._state)  # at the interpreter's end, or when nobody can enter any more

    def __enter__(self) -> None:
        if self._state.pid != os.getpid():  # the threads that a parent had inside do not exist in its forked child
            self._state = _State()
            weakref.finalize(self, _State.end, self._state)
        self._state.enter()

    def __exit__(self, *exc: object) -> None:
        self._state.leave()


class _State:
    """Who is inside; apart from `Native`, so that what runs at the end keeps no engine alive."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._changed = threading.Condition()
        self._inside: set[int] = set()  # threads, so that one that was interrupted on its way in or out is not waited for
        self._ended = False

    def enter(self) -> None:
        with self._changed:
            # Other threads are over when the end begins, but for the main one, which is safe. A daemon's wait lasts until
            # the process is gone.
            while self._ended and threading.current_thread().daemon:
                self._changed.wait()
            self._inside.add(threading.get_ident())

    def leave(self) -> None:
        with self._changed:
            self._inside.discard(threading.get_ident())
            self._changed.notify_all()

    def end(self) -> None:
        if self.pid != os.getpid():
            return
        with self._changed:
            self._ended = True
            self._changed.wait_for(lambda: not self._inside - {threading.get_ident()}, timeout=_MOST_SECONDS)
