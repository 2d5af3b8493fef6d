"""How far a job is: a bar for a person, a line of JSON for a program, or nothing. All of it on standard error.

Knows numbers of rows, nothing of how they come about.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from penult.bulk.job.shard import Record

Shown: TypeAlias = Literal["auto", "json", "off"]


@dataclass(frozen=True, slots=True)
class Totals:
    """Rows with a vector, without one, of which not all was read, and whose vector was taken over; tokens read."""

    rows: int = 0
    rejected: int = 0
    cut: int = 0
    taken: int = 0
    tokens: int = 0

    def plus(self, record: Record) -> "Totals":
        """Add a shard's."""
        return replace(
            self,
            rows=self.rows + record.rows,
            rejected=self.rejected + record.rejected,
            cut=self.cut + record.cut,
            taken=self.taken + record.taken,
            tokens=self.tokens + record.tokens,
        )

    @property
    def seen(self) -> int:
        """Rows that are done with, one way or the other."""
        return self.rows + self.rejected


class Progress:
    """Shows totals as they grow.

    Args:
        shown: "auto" (a bar on a terminal, else nothing), "json" (a line a shard) or "off".
        count: rows of the whole job.
        before: what an earlier run had done.
    """

    def __init__(self, shown: Shown, count: int, before: Totals) -> None:
        self.totals = before
        self._before, self._count, self._json = before, count, shown == "json"
        self._started = time.monotonic()
        self._bar: Any = None
        if shown == "auto" and sys.stderr.isatty():
            from tqdm.auto import tqdm  # noqa: PLC0415 - only a terminal needs it

            self._bar = tqdm(total=count, initial=before.seen, unit="row", desc="embedding", smoothing=0.05)

    @property
    def rate(self) -> float:
        """Rows a second of this run."""
        return (self.totals.seen - self._before.seen) / max(time.monotonic() - self._started, 1e-9)

    def add(self, record: Record) -> None:
        """Count a shard."""
        self.totals = self.totals.plus(record)
        if self._bar is not None:
            self._bar.set_postfix(cut=self.totals.cut, rejected=self.totals.rejected, refresh=False)
            self._bar.update(record.rows + record.rejected)
        if self._json:
            left = (self._count - self.totals.seen) / self.rate if self.rate else None
            rates = {"of": self._count, "rows_per_second": round(self.rate, 1), "eta_seconds": left and round(left, 1)}
            self.say_json({"event": "progress"} | asdict(self.totals) | rates)

    def say(self, sentence: str) -> None:
        """Say a sentence without tearing the bar."""
        if self._json:
            self.say_json({"event": "note", "message": sentence})
        elif self._bar is not None:
            self._bar.write(f"penult: {sentence}", file=sys.stderr)
        else:
            say(sentence)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    @staticmethod
    def say_json(values: dict[str, Any]) -> None:
        """Print one line of JSON."""
        print(json.dumps(values), file=sys.stderr, flush=True)  # noqa: T201 - what it is for


def say(sentence: str) -> None:
    """Say a sentence on standard error."""
    print(f"penult: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 - what it is for
