"""Values that each process makes for itself, so that nothing is shared across a fork."""

import os
from collections.abc import Callable
from threading import Lock
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that is made at first use, once in each process. Safe to call from several threads.

    A forked child makes its own: a lock may be held, and a thread pool be served, by threads of the parent that do not exist
    in the child. For the same reason the child never frees what it inherited, once it has called a method of this object:
    freeing could wait for those threads for ever.

    A pickle or a copy holds `make` alone. Two objects with equal `make` are equal, whatever they have made.

    Args:
        make: makes the value. It must not refer to the object that this one belongs to, or only the garbage collector frees
            the two.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._slots: dict[int, _Slot[T]] = {}

    def get(self) -> T:
        """Return the value of this process, made at the first call."""
        slot = self._slot()
        value = slot.value
        if value is None:
            with slot.lock:
                value = slot.value
                if value is None:
                    value = slot.value = self._make()
        return value

    def peek(self) -> T | None:
        """Return the value of this process; None where it was not made."""
        return self._slot().value

    def pop(self) -> T | None:
        """Return the value of this process and forget it, so that the next `get` makes another; None where it was not made."""
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
    """Take a reference that is never given back, at the end of the interpreter either."""
    import ctypes  # noqa: PLC0415 - for forked children alone

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
