"""Checkpoints within a shard, so that a crash or SIGINT costs seconds of work, however long the shard takes.

A part is what this process embeds in a few seconds. Each part but the last is written to its own file until the shard is
complete. The clock decides where a part ends; vectors do not depend on it, since they are batch-invariant.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from penult.atomic_files import atomic_write
from penult.bulk.texts import Outcome, embed_texts
from penult.core.embedder import Embedder
from penult.types import Role

PART_SECONDS = 5.0
"""Duration of a part in seconds, and so about the work lost when the process ends."""

_FIRST_CHARS = 4000  # of the first part, while the pace is unknown: about 1 s with a small model, more with a large one
_MAX_GROWTH = 4.0  # factor from one part to the next
_TICK_SECONDS = 0.2  # one tick per batch would be hundreds per second
_CHARS_PER_TOKEN = 8  # upper bound of the average, in any language


@dataclass(frozen=True, slots=True)
class Tick:
    """Progress of an unfinished shard.

    Attributes:
        shard: number of the shard.
        rows: rows done, including rejected ones.
        rejected: rejected rows among them.
        cut: truncated rows among them.
        tokens: number of tokens that the model read.
        kept: rows whose part is on disk.
        earlier: rows among those kept that an earlier run embedded.
    """

    shard: int
    rows: int = 0
    rejected: int = 0
    cut: int = 0
    tokens: int = 0
    kept: int = 0
    earlier: int = 0


Ticked: TypeAlias = Callable[[Tick], object]


class Pace:
    """Number of characters that a process embeds in `PART_SECONDS`, estimated from its parts."""

    def __init__(self) -> None:
        self.chars = float(_FIRST_CHARS)

    def learn(self, chars: int, seconds: float) -> None:
        """Update the estimate with a part's characters and seconds."""
        self.chars = min(max(1.0, chars * PART_SECONDS / max(seconds, 1e-6)), self.chars * _MAX_GROWTH)


def embed_in_parts(
    embedder: Embedder, texts: Sequence[Any], role: Role, stem: Path, number: int, *, pace: Pace, ticked: Ticked | None = None
) -> Outcome:
    """Embed the valid texts of a shard. Parts that an earlier run wrote are not embedded again.

    Args:
        embedder: the model.
        texts: the shard's texts.
        role: role of the texts.
        stem: path prefix of the parts.
        number: number of the shard.
        pace: pace of this process.
        ticked: called with the progress a few times per second.
    """
    order = _group_equal_texts(texts)
    meter = _Meter(Tick(number), ticked)
    parts: list[Outcome] = []
    start = 0
    while (part := _read(stem, start, texts, order, embedder.dimension)) is not None:
        parts.append(part)
        start += len(part.good) + len(part.bad)
        meter.part(part, kept=True, earlier=True)
    max_chars = embedder.recipe.longest(role) * _CHARS_PER_TOKEN
    while start < len(order):
        end, chars = _end(texts, order, start, pace.chars, max_chars) if embedder.recipe.batch_invariant else (len(order), 0)
        rows, began = order[start:end], time.monotonic()
        part = _with_rows(embed_texts(embedder, [texts[row] for row in rows], role, meter.rows), rows)
        if chars:
            pace.learn(chars, time.monotonic() - began)
        if end < len(order):
            _write(stem, start, texts, rows, part)
        meter.part(part, kept=end < len(order))
        parts.append(part)
        start = end
    return _concatenated(parts, embedder.dimension)


def remove_parts(stem: Path) -> None:
    """Remove the parts of a complete shard."""
    start = 0
    while (path := _path(stem, start)).exists():
        with path.open("rb") as file:
            rows = json.loads(file.readline())["rows"]
        path.unlink()
        start += rows


class _Meter:
    """Counter of finished rows that emits ticks."""

    def __init__(self, tick: Tick, ticked: Ticked | None) -> None:
        self._tick, self._ticked = tick, ticked
        self._running, self._last = 0, 0.0

    def rows(self, count: int) -> None:
        """Count rows of the running part."""
        self._running += count
        if self._ticked is not None and time.monotonic() - self._last >= _TICK_SECONDS:
            self._say(replace(self._tick, rows=self._tick.rows + self._running))

    def part(self, part: Outcome, *, kept: bool, earlier: bool = False) -> None:
        """Count a finished part."""
        tick, rows = self._tick, len(part.good) + len(part.bad)
        self._tick = Tick(
            tick.shard,
            tick.rows + rows,
            tick.rejected + len(part.bad),
            tick.cut + part.cut,
            tick.tokens + part.tokens,
            tick.kept + rows * kept,
            tick.earlier + rows * earlier,
        )
        self._running = 0
        if kept:
            self._say(self._tick)

    def _say(self, tick: Tick) -> None:
        if self._ticked is not None:
            self._last = time.monotonic()
            self._ticked(tick)


def _group_equal_texts(texts: Sequence[Any]) -> list[int]:
    """Return all rows, with equal texts adjacent: the model reads equal texts of a part once."""
    rows: dict[Any, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(text if isinstance(text, str) else row, []).append(row)
    return [row for equal in rows.values() for row in equal]


def _end(texts: Sequence[Any], order: Sequence[int], start: int, wanted: float, most: int) -> tuple[int, int]:
    """Return the end of a part with at least `wanted` characters, and its characters; at most `most` count per text."""
    chars, before = 0, None
    for at in range(start, len(order)):
        text = texts[order[at]]
        if text != before or at == start:
            if chars >= wanted:
                return at, chars
            chars, before = chars + 1 + min(len(text) if isinstance(text, str) else 0, most), text
    return len(order), chars


def _with_rows(outcome: Outcome, rows: Sequence[int]) -> Outcome:
    """Return the outcome of a part's rows, renumbered by their position in the shard."""
    bad = {rows[row]: reason for row, reason in outcome.bad.items()}
    return Outcome(outcome.vectors, [rows[row] for row in outcome.good], bad, outcome.tokens, outcome.cut)


def _concatenated(parts: Sequence[Outcome], dimension: int) -> Outcome:
    """Return all parts merged in row order."""
    good = [row for part in parts for row in part.good]
    vectors = np.concatenate([np.empty((0, dimension), np.float32), *(part.vectors for part in parts)])
    bad = {row: reason for part in parts for row, reason in part.bad.items()}
    tokens, cut = sum(part.tokens for part in parts), sum(part.cut for part in parts)
    if good != sorted(good):
        vectors = vectors[np.argsort(good)]
    return Outcome(vectors, sorted(good), dict(sorted(bad.items())), tokens, cut)


def _path(stem: Path, start: int) -> Path:
    return stem.with_name(f"{stem.name}.part.{start}")


def _write(stem: Path, start: int, texts: Sequence[Any], rows: Sequence[int], part: Outcome) -> None:
    """Write a part to its file: a line of JSON, then the vectors."""
    values = {"rows": len(rows), "good": part.good, "bad": [*part.bad.items()], "tokens": part.tokens, "cut": part.cut}
    with atomic_write(_path(stem, start), f"{os.getpid()}.part") as file:
        file.write(f"{json.dumps(values | {'texts': _hash(texts, rows)})}\n".encode())
        file.write(np.ascontiguousarray(part.vectors, "<f4").tobytes())


def _read(stem: Path, start: int, texts: Sequence[Any], order: Sequence[int], dimension: int) -> Outcome | None:
    """Read the part that starts at a position of the order; None if there is none with exactly these texts."""
    try:
        with _path(stem, start).open("rb") as file:
            values = json.loads(file.readline())
            data = file.read()
    except FileNotFoundError:
        return None
    rows = order[start : start + values["rows"]]
    if values["texts"] != _hash(texts, rows) or len(data) != 4 * dimension * len(values["good"]):
        return None  # written by a dying worker of a job with another shard size
    vectors = np.frombuffer(data, "<f4").reshape(len(values["good"]), dimension)
    return Outcome(vectors, values["good"], dict(values["bad"]), values["tokens"], values["cut"])


def _hash(texts: Sequence[Any], rows: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps([[row, texts[row]] for row in rows]).encode()).hexdigest()
