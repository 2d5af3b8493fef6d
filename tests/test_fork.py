"""Per-process values: created once, created again after a fork, and not pickled."""

import copy
import os
import pickle
import threading
import time
import weakref

import pytest

from penult.fork import PerProcess


class Slow:
    """A value that takes a while to create, and counts its creations."""

    made = 0

    def __init__(self):
        time.sleep(0.05)
        Slow.made += 1


def in_child(check):
    """Fork, run a check there, and return whether it held."""
    if (pid := os.fork()) == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_threads_share_one_value(monkeypatch):
    """The value is created once for all threads; `pop` returns it, and another may be created."""
    monkeypatch.setattr(Slow, "made", 0)
    own, got = PerProcess(Slow), []
    assert own.peek() is None
    assert own.pop() is None
    threads = [threading.Thread(target=lambda: got.append(own.get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Slow.made == 1
    assert {id(value) for value in got} == {id(own.peek())}
    assert own.pop() is got[0]
    assert own.get() is not got[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_creates_its_own():
    """A child has none of its parent's values and no held lock, and a grandchild has none of the child's."""
    own = PerProcess(threading.Lock)
    own.get().acquire()

    def free():
        return own.peek() is None and own.get().acquire(blocking=False)

    assert in_child(lambda: free() and in_child(free))
    assert own.peek().locked()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_never_frees_what_it_inherited():
    """In the child, the parent's value outlives its holder; in the parent it is freed with its holder."""

    def freed(own):
        own.get()
        return weakref.ref(own.pop())() is None

    holder = [PerProcess(Slow)]
    inherited = weakref.ref(holder[0].get())

    def kept():
        holder[0].get()
        holder.clear()
        return inherited() is not None

    assert in_child(kept)
    assert in_child(lambda: freed(PerProcess(Slow)))
    holder.clear()
    assert inherited() is None


def test_a_pickle_is_empty():
    """A copy and a pickle create their own value; holders with the same factory are equal."""
    own = PerProcess(Slow)
    first = own.get()
    for other in (pickle.loads(pickle.dumps(own)), copy.deepcopy(own)):
        assert other.peek() is None
        assert other.get() is not first
        assert other == own
    assert own != PerProcess(threading.Lock)
    assert own != Slow
