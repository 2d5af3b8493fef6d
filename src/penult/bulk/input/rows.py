"""The output of row readers: rows and rejected rows. Does not import Arrow.

A row that cannot be read is a `Rejected`, never an exception: the rows after it are still valid.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from penult.bulk.json_text import finite


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        line: line number in the file, counted from 1.
        values: values by column.
        size: approximate size in bytes, to bound the rows in memory.
    """

    line: int
    values: dict[str, Any]
    size: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row without a vector.

    Attributes:
        file: name of its file.
        line: line number in the file, counted from 1.
        reason: why the row was rejected.
        record: its values by column, or as much of it as could be read.
    """

    file: str
    line: int
    reason: str
    record: Any

    @property
    def size(self) -> int:
        """Approximate size in bytes, as in `Row`."""
        fields = self.record if isinstance(self.record, list) else [self.record]
        return sum(len(field) for field in fields if isinstance(field, str))

    def as_json(self) -> str:
        """Return the row as one line of JSON. Supports values of any type."""
        try:
            return json.dumps(asdict(self), ensure_ascii=True, default=str, allow_nan=False)
        except ValueError:
            return json.dumps(finite(asdict(self)), ensure_ascii=True, default=str, allow_nan=False)


class UnreadableError(OSError):
    """A file cannot be read; the message names it."""


Item: TypeAlias = Row | Rejected


def too_long(limit: int) -> str:
    """Return the reason for rejecting a row with more bytes than the limit."""
    return f"has more than {limit:,} bytes, the limit of --max-row-bytes"
