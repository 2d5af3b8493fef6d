"""Progress of a job: a bar on a terminal, otherwise a line every few seconds, JSON lines for programs, or nothing.

Everything is written to standard error. Handles row counts only, independent of how rows are embedded.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from penult.bulk.job.parts import Tick
from penult.bulk.job.record import Record
from penult.progress_bar import LINE_SECONDS, duration, screen

Shown: TypeAlias = Literal["auto", "json", "off"]


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of embedded, rejected, truncated and reused rows, and of tokens read."""

    rows: int = 0
    rejected: int = 0
    cut: int = 0
    taken: int = 0
    tokens: int = 0

    def plus(self, record: Record | Tick) -> "Totals":
        """Add the counts of a shard, or of its finished part."""
        rows, taken = (record.rows, record.taken) if isinstance(record, Record) else (record.rows - record.rejected, 0)
        return Totals(
            self.rows + rows,
            self.rejected + record.rejected,
            self.cut + record.cut,
            self.taken + taken,
            self.tokens + record.tokens,
        )

    @property
    def seen(self) -> int:
        """Number of finished rows, embedded or rejected."""
        return self.rows + self.rejected


class Progress:
    """Display of the totals of a running job.

    Args:
        shown: "auto" (a bar on a terminal, otherwise a line every 10 seconds), "json" (a line per shard, and every 10
            seconds) or "off".
        count: rows of the whole job.
        before: totals of earlier runs.
    """

    def __init__(self, shown: Shown, count: int, before: Totals) -> None:
        self.totals = before
        self._before, self._count, self._shown = before, count, shown
        self._started = self._last_line = time.monotonic()
        self._ticks: dict[int, Tick] = {}  # of unfinished shards
        self._earlier: dict[int, Tick] = {}  # of unfinished shards, the part done by an earlier run
        self._bar: Any = None
        if shown == "auto" and sys.stderr.isatty():
            from tqdm.auto import tqdm  # noqa: PLC0415 - only a terminal needs it

            columns, rows = screen()
            self._bar = tqdm(
                total=count, initial=before.seen, unit="row", desc="embedding", smoothing=0.05, ncols=columns, nrows=rows
            )

    @property
    def rate(self) -> float:
        """Rows per second of this run."""
        return self._per_second(self.totals.seen - self._before.seen - sum(tick.rows for tick in self._earlier.values()))

    @property
    def kept(self) -> int:
        """Number of rows that are done and on disk."""
        return self.totals.seen + sum(tick.kept for tick in self._ticks.values())

    def add(self, update: Record | Tick) -> None:
        """Add a shard, or the finished part of one."""
        if isinstance(update, Record):
            self.totals = self.totals.plus(update)
            self._ticks.pop(update.shard, None)
        else:
            self._ticks[update.shard] = update
            if update.rows == update.earlier:
                self._earlier[update.shard] = update
        if self._shown != "off":
            self._show(whole=isinstance(update, Record))

    def say(self, sentence: str) -> None:
        """Print a message above the progress bar."""
        if self._bar is not None:
            self._bar.write(f"penult: {sentence}", file=sys.stderr)
        else:
            say(sentence, json_=self._shown == "json")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _per_second(self, count: float) -> float:
        return count / max(time.monotonic() - self._started, 1e-9)

    def _show(self, *, whole: bool) -> None:
        """Show current progress, including unfinished shards. `whole`: whether a shard was finished."""
        now, earlier = self.totals, Totals(rows=self._before.seen, tokens=self._before.tokens)
        for tick in self._ticks.values():
            now = now.plus(tick)
        for tick in self._earlier.values():
            earlier = earlier.plus(tick)
        rows, tokens = self._per_second(now.seen - earlier.seen), self._per_second(now.tokens - earlier.tokens)
        left = (self._count - now.seen) / rows if rows else None
        if self._bar is not None:
            self._bar.set_postfix_str(f"{tokens:,.0f} tokens/s, truncated={now.cut}, rejected={now.rejected}", refresh=False)
            self._bar.update(now.seen - self._bar.n)
            return
        if time.monotonic() - self._last_line < LINE_SECONDS and not (whole and self._shown == "json"):
            return
        self._last_line = time.monotonic()
        if self._shown == "json":
            rates = {"of": self._count, "rows_per_second": round(rows, 1), "eta_seconds": left and round(left, 1)}
            say_json({"event": "progress"} | asdict(now) | rates | {"tokens_per_second": round(tokens)})
            return
        share = 100 * now.seen // max(self._count, 1)
        parts = [f"{now.seen:,} of {self._count:,} rows ({share} %)", f"{rows:,.0f} rows/s, {tokens:,.0f} tokens/s"]
        parts += [] if left is None else [f"{duration(left)} left"]
        say("; ".join([*parts, f"{now.cut:,} truncated, {now.rejected:,} rejected"]))


def announce(shown: Shown, sentence: str) -> None:
    """Print that a long step starts. Print nothing if the job is finished or quiet."""
    if shown != "off":
        say(sentence, json_=shown == "json")


def say(sentence: str, *, json_: bool = False) -> None:
    """Print a message on standard error."""
    if json_:
        say_json({"event": "note", "message": sentence})
    else:
        print(f"penult: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 - what it is for


def say_json(values: dict[str, Any]) -> None:
    """Print one line of JSON on standard error."""
    print(json.dumps(values), file=sys.stderr, flush=True)  # noqa: T201 - what it is for
