"""How far a job is: a bar on a terminal, a line now and then elsewhere, lines of JSON for a program, or nothing.

All of it on standard error. Knows numbers of rows, nothing of how they come about.
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
    """Rows with a vector, without one, of which not all was read, and whose vector was taken over; tokens read."""

    rows: int = 0
    rejected: int = 0
    cut: int = 0
    taken: int = 0
    tokens: int = 0

    def plus(self, record: Record | Tick) -> "Totals":
        """Add a shard's, or what is done of it."""
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
        """Rows that are done with, one way or the other."""
        return self.rows + self.rejected


class Progress:
    """Shows totals as they grow.

    Args:
        shown: "auto" (a bar on a terminal, else a line every 10 seconds), "json" (a line a shard, and every 10 seconds) or
            "off".
        count: rows of the whole job.
        before: what an earlier run had done.
    """

    def __init__(self, shown: Shown, count: int, before: Totals) -> None:
        self.totals = before
        self._before, self._count, self._shown = before, count, shown
        self._started = self._last_line = time.monotonic()
        self._ticks: dict[int, Tick] = {}  # of the shards that are not whole
        self._earlier: dict[int, Tick] = {}  # what an earlier run had done of shards that it did not finish
        self._bar: Any = None
        if shown == "auto" and sys.stderr.isatty():
            from tqdm.auto import tqdm  # noqa: PLC0415 - only a terminal needs it

            columns, rows = screen()
            self._bar = tqdm(
                total=count, initial=before.seen, unit="row", desc="embedding", smoothing=0.05, ncols=columns, nrows=rows
            )

    @property
    def rate(self) -> float:
        """Rows a second of this run."""
        return self._a_second(self.totals.seen - self._before.seen - sum(tick.rows for tick in self._earlier.values()))

    @property
    def kept(self) -> int:
        """Rows that are done and on the disk."""
        return self.totals.seen + sum(tick.kept for tick in self._ticks.values())

    def add(self, news: Record | Tick) -> None:
        """Count a shard, or what is done of one."""
        if isinstance(news, Record):
            self.totals = self.totals.plus(news)
            self._ticks.pop(news.shard, None)
        else:
            self._ticks[news.shard] = news
            if news.rows == news.earlier:
                self._earlier[news.shard] = news
        if self._shown != "off":
            self._show(whole=isinstance(news, Record))

    def say(self, sentence: str) -> None:
        """Say a sentence without tearing the bar."""
        if self._bar is not None:
            self._bar.write(f"penult: {sentence}", file=sys.stderr)
        else:
            say(sentence, json_=self._shown == "json")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _a_second(self, count: float) -> float:
        return count / max(time.monotonic() - self._started, 1e-9)

    def _show(self, *, whole: bool) -> None:
        """Show what is done by now, unfinished shards included. `whole`: whether a shard was finished."""
        now, earlier = self.totals, Totals(rows=self._before.seen, tokens=self._before.tokens)
        for tick in self._ticks.values():
            now = now.plus(tick)
        for tick in self._earlier.values():
            earlier = earlier.plus(tick)
        rows, tokens = self._a_second(now.seen - earlier.seen), self._a_second(now.tokens - earlier.tokens)
        left = (self._count - now.seen) / rows if rows else None
        if self._bar is not None:
            self._bar.set_postfix_str(f"{tokens:,.0f} tokens/s, cut={now.cut}, rejected={now.rejected}", refresh=False)
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
    """Say what takes a while and begins now; a finished job, and one that is to be quiet, need no such words."""
    if shown != "off":
        say(sentence, json_=shown == "json")


def say(sentence: str, *, json_: bool = False) -> None:
    """Say a sentence on standard error."""
    if json_:
        say_json({"event": "note", "message": sentence})
    else:
        print(f"penult: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 - what it is for


def say_json(values: dict[str, Any]) -> None:
    """Print one line of JSON on standard error."""
    print(json.dumps(values), file=sys.stderr, flush=True)  # noqa: T201 - what it is for
