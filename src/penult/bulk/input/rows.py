"""What a reader of rows gives: rows, and those that it could not read. Imports no Arrow.

A row that cannot be read is a `Rejected`, never an exception: the rows after it are still good.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from penult.bulk.json_text import finite


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in its file.

    Attributes:
        line: its number there, counted from 1.
        values: by column.
        size: about so many bytes, so that no more rows are held at once than there is room for.
    """

    line: int
    values: dict[str, Any]
    size: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that gets no vector.

    Attributes:
        file: where it stands.
        line: its number there, counted from 1.
        reason: why it gets none.
        record: its values by column, or what could be read of it.
    """

    file: str
    line: int
    reason: str
    record: Any

    @property
    def size(self) -> int:
        """About so many bytes, as of a `Row`."""
        fields = self.record if isinstance(self.record, list) else [self.record]
        return sum(len(field) for field in fields if isinstance(field, str))

    def as_json(self) -> str:
        """Give it as one line of JSON, whatever its values are."""
        try:
            return json.dumps(asdict(self), ensure_ascii=True, default=str, allow_nan=False)
        except ValueError:
            return json.dumps(finite(asdict(self)), ensure_ascii=True, default=str, allow_nan=False)


class UnreadableError(OSError):
    """A file cannot be read; the message names it."""


Item: TypeAlias = Row | Rejected


def too_long(limit: int) -> str:
    """Say why a row is rejected that has more bytes than a row may have."""
    return f"has more than {limit:,} bytes, the limit of --max-row-bytes"
