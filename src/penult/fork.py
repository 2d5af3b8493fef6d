"""Values per process, for objects that must not be shared across a fork."""

import os
from collections.abc import Callable
from threading import Lock
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that each process creates at first use. Thread-safe and fork-safe.

    A forked child creates its own value: threads of the parent that hold a lock or serve a pool do not exist in the child.
    For the same reason, a child that has called a method of this object never frees the inherited value: that could wait
    forever for those threads.

    A pickle or a copy contains only `make`. Two objects with equal `make` are equal.

    Args:
        make: creates the value. It must not refer to the owner of this object: that would be a reference cycle.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._slots: dict[int, _Slot[T]] = {}

    def get(self) -> T:
        """Return the value of this process; the first call creates it."""
        slot = self._slot()
        value = slot.value
        if value is None:
            with slot.lock:
                value = slot.value
                if value is None:
                    value = slot.value = self._make()
        return value

    def peek(self) -> T | None:
        """Return the value of this process; None before the first `get`."""
        return self._slot().value

    def pop(self) -> T | None:
        """Remove and return the value of this process, so that the next `get` creates another; None if there is none."""
        slot = self._slot()
        with slot.lock:
            value, slot.value = slot.value, None
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._make,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PerProcess) and self._make == other._make

    __hash__ = None  # type: ignore[assignment]

    def _slot(self) -> "_Slot[T]":
        pid = os.getpid()
        if pid not in self._slots:
            if self._slots:
                _never_free(self._slots.copy())
            self._slots.setdefault(pid, _Slot())
        return self._slots[pid]


class _Slot(Generic[T]):
    def __init__(self) -> None:
        self.lock = Lock()
        self.value: T | None = None


def _never_free(inherited: object) -> None:
    """Add a reference that is never released, not even at shutdown."""
    import ctypes  # noqa: PLC0415 - only forked children need it

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
