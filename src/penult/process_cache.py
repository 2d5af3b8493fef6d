"""What an adapter of a framework holds: a model loaded at first use, once in a process, and the threads awaited calls run on.

Knows processes, threads and pickling. Must not know the framework it serves, nor what an embedder does.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any

from penult.types import TextEmbedder

_ASYNC_THREADS = 4
"""Awaited calls that wait in penult at once. Penult runs a bounded number of batches itself, so more threads would
only wait there, and the loop's own executor, which name look-ups need too, stays free."""


class Process:
    """What one process holds."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.embedders: dict[tuple[Any, ...], TextEmbedder] = {}
        self.threads = ThreadPoolExecutor(_ASYNC_THREADS, thread_name_prefix="penult")


class Held:
    """Keep a `Process` per process id: nothing crosses a fork, and a pickle or a deep copy of this is empty."""

    def __init__(self) -> None:
        self._processes: dict[int, Process] = {}

    def __reduce__(self) -> tuple[type["Held"], tuple[()]]:
        return type(self), ()

    def __eq__(self, other: object) -> bool:
        # pydantic compares this as well: adapters of equal options are equal, whether loaded or not
        return isinstance(other, Held)

    __hash__ = None  # type: ignore[assignment]

    def here(self) -> Process:
        """Return what this process holds. A forked parent's part stays untouched: its threads do not exist here."""
        pid = os.getpid()
        return self._processes.get(pid) or self._processes.setdefault(pid, Process())

    def embedder(self, load: partial[Any]) -> TextEmbedder:
        """Return what `load` makes: made once however many threads ask, and again when one of its arguments changed."""
        process = self.here()
        key = (*load.args, *((name, _hashable(value)) for name, value in load.keywords.items()))
        with process.lock:
            if key not in process.embedders:
                process.embedders[key] = load()
            return process.embedders[key]


def _hashable(value: object) -> object:
    """Return an argument as it is now, in a form that two calls can be compared by: options may be dicts and lists."""
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(item)) for key, item in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
