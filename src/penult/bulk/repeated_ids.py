"""Find repeated ids among any number of rows in bounded memory.

Rows are compared by 64-bit hashes, stored as sorted runs in a temporary file. Equal hashes are confirmed by comparing values.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.bulk.json_text import as_text

_RUN = 4 << 20  # hashes per run: 32 MB in memory, at most three times that during a merge
_BIN_BITS = 10
_BINS = 1 << _BIN_BITS  # bins per run, by the leading bits of the hashes
_NONE = np.empty(0, np.uint64)
_CANDIDATES = 1000  # repeated hashes that are confirmed by value: two examples never need more
_ODD = np.uint64(0x9E3779B97F4A7C15)  # spreads hashes of successive numbers over all 64 bits; odd, so that no two become equal
_ENCODE = json.JSONEncoder(sort_keys=True, default=as_text).encode


@dataclass(frozen=True, slots=True)
class Repeated:
    """Ids that occur in several rows.

    Attributes:
        rows: number of rows whose id occurs in an earlier row.
        examples: up to two of the ids, each with the first two rows that contain it, counted from 1.
    """

    rows: int
    examples: list[tuple[Any, int, int]]

    def __str__(self) -> str:
        """Return the examples for an error message."""
        return ", ".join(f"{_short(value)} in rows {first:,} and {second:,}" for value, first, second in self.examples)


class HashRuns:
    """Counter of repeated hashes. The temporary file takes 8 bytes per row.

    Args:
        run: maximum hashes in memory.
    """

    def __init__(self, run: int = _RUN) -> None:
        self._buffer = np.empty(run, np.uint64)
        self._filled = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._starts: list[NDArray[np.int64]] = []  # start offsets of a run's bins in the file, and its end
        self._repeats = 0
        self._candidates: set[int] = set()

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Add the hashes of some rows.

        Raises:
            OSError: the temporary folder's disk is full.
        """
        while len(hashes):
            part, hashes = np.split(hashes, [len(self._buffer) - self._filled])
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            if self._filled == len(self._buffer):
                self._write_run()

    def repeated(self) -> tuple[int, NDArray[np.uint64]]:
        """Return how many rows repeat an earlier hash, and up to a thousand such hashes. Do not call `add` afterwards."""
        self._write_run()
        # A run contains each hash once and hashes are uniform, so `step` bins of all runs have about the size of one run.
        step = max(1, _BINS // max(1, len(self._starts)))
        for low in range(0, _BINS, step):
            self._unique(
                np.concatenate([self._read(starts, low, min(low + step, _BINS)) for starts in self._starts] or [_NONE])
            )
        return self._repeats, np.array(sorted(self._candidates), np.uint64)

    def close(self) -> None:
        """Delete the temporary file."""
        self._file.close()

    def _write_run(self) -> None:
        if self._filled:
            run = self._unique(self._buffer[: self._filled])
            bins = np.searchsorted(run, np.arange(_BINS, dtype=np.uint64) << np.uint64(64 - _BIN_BITS))
            self._starts.append(self._file.tell() // 8 + np.append(bins, len(run)))
            self._file.write(run.data)
            self._filled = 0

    def _read(self, starts: NDArray[np.int64], low: int, high: int) -> NDArray[np.uint64]:
        self._file.seek(int(starts[low]) * 8)
        return np.frombuffer(self._file.read(int(starts[high] - starts[low]) * 8), np.uint64)

    def _unique(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Sort hashes in place and return each once; count the others."""
        hashes.sort()
        repeats = hashes[1:] == hashes[:-1]
        count = int(np.count_nonzero(repeats))
        if not count:
            return hashes
        self._repeats += count
        self._candidates.update(hashes[1:][repeats][: _CANDIDATES - len(self._candidates)].tolist())
        once: NDArray[np.uint64] = hashes[np.concatenate([[True], ~repeats])]
        return once


def find_repeated(batches: Callable[[], Iterable[Sequence[Any]]]) -> Repeated | None:
    """Return the repeated ids; None if all ids are distinct.

    Args:
        batches: returns the ids of all rows in row order, in batches; called a second time if ids are repeated.
    """
    runs = HashRuns()
    try:
        for values in batches():
            runs.add(hashes_of(values))
        rows, candidates = runs.repeated()
    finally:
        runs.close()
    examples = _examples(batches(), candidates) if rows else []
    return Repeated(rows, examples) if examples else None


def hashes_of(values: Sequence[Any]) -> NDArray[np.uint64]:
    """Return the hashes of ids. They are comparable within this process only."""
    keys = (hash(value if isinstance(value, str | int | bytes) else _ENCODE(value)) for value in values)
    return np.fromiter(keys, np.int64, len(values)).view(np.uint64) * _ODD


def _examples(batches: Iterable[Sequence[Any]], candidates: NDArray[np.uint64]) -> list[tuple[Any, int, int]]:
    """Return up to two repeated ids, confirmed by their values and not only by their hashes."""
    examples: dict[str, tuple[Any, int, int]] = {}
    rows: dict[str, int] = {}
    before = 0
    for values in batches:
        for index in np.flatnonzero(np.isin(hashes_of(values), candidates)).tolist():
            key = _ENCODE(values[index])
            first = rows.setdefault(key, before + index + 1)
            if first <= before + index and key not in examples:
                examples[key] = values[index], first, before + index + 1
            if len(examples) == min(2, len(candidates)):
                return list(examples.values())
        before += len(values)
    return list(examples.values())


def _short(value: Any) -> str:  # noqa: ANN401 - any type of id
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
