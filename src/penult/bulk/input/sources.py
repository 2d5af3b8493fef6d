"""One file of any format as a sequence of rows, starting at any row.

Handles formats. The common schema of all files and the bounds of shards come from `readers`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from penult.bulk import tables
from penult.bulk.arrow_values import rows_of
from penult.bulk.input import columns, jsonl, row_files, streams
from penult.bulk.input.input_files import Input
from penult.bulk.input.rows import Item, Rejected, too_long
from penult.bulk.json_text import dumps

BLOCK = 4096  # maximum rows per read
READ_BYTES = 32 << 20  # a read stops after this many bytes
_SHOWN = 1000  # characters of each value of an overlong row that the rejected rows file keeps


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive rows of the input.

    Attributes:
        number: 0, 1, 2, ...
        table: the rows that could be read, with all columns of the input.
        places: for each file, its name and the line numbers of its rows in the table.
        rejected: the rows that could not be read.
    """

    number: int
    table: pa.Table
    places: list[tuple[str, Sequence[int]]]
    rejected: list[Rejected]

    def place(self, row: int) -> tuple[str, int]:
        """Return the file and the line of a row of the table."""
        for file, lines in self.places:
            if row < len(lines):
                return file, lines[row]
            row -= len(lines)
        raise IndexError(row)


class Source(Protocol):
    """An open file."""

    def take(self, count: int) -> Shard:
        """Return the next rows, at most `count`; none only at the end of the file."""


def opened(file: Input, schema: pa.Schema, skip: int) -> Source:
    """Open a file at row `skip`; its rows get the schema of the whole input."""
    if file.format in ("parquet", "lance"):
        return _Batches(file, batches(file, skip), schema, skip)
    if file.format == "jsonl":
        return _Lines(file, schema, skip)
    return _Rows(file, islice(row_files.items(replace(file, partitions=())), skip, None), schema)


def batches(file: Input, skip: int) -> Iterator[pa.RecordBatch]:
    """Read a Parquet file or a Lance dataset, starting at row `skip`."""
    if file.format == "parquet":
        return _parquet(file.path, skip)
    from penult.bulk import lance_files  # noqa: PLC0415 - an extra

    return lance_files.read(file.path, skip)


class _Rows:
    """A file that is read row by row."""

    def __init__(self, file: Input, items: Iterator[Item], schema: pa.Schema) -> None:
        self._file, self._items, self._schema = file, items, schema

    def take(self, count: int) -> Shard:
        items: list[Item] = []
        size = 0
        for item in islice(self._items, count):
            items.append(item)
            size += item.size
            if size > READ_BYTES:
                break
        return _shard(self._file, items, self._schema)


class _Lines:
    """A file of JSON lines."""

    def __init__(self, file: Input, schema: pa.Schema, skip: int) -> None:
        self._file, self._schema, self._line = file, schema, 1
        self._lines = streams.lines(file.path, file.options)
        while skip and (line := next(self._lines, b"")):
            skip -= bool(line.strip())
            self._line += 1

    def take(self, count: int) -> Shard:
        name, options = self._file.name, self._file.options
        while block := next_lines(self._lines, min(count, BLOCK)):
            first, self._line = self._line, self._line + len(block)
            table = jsonl.table(block, self._schema)
            if table is not None:
                return Shard(0, with_partitions(table, self._file), [(name, range(first, self._line))], [])
            if items := jsonl.row_by_row(name, first, block, options):
                return _shard(self._file, items, self._schema)
        return _shard(self._file, [], self._schema)


class _Batches:
    """A file of Arrow batches."""

    def __init__(self, file: Input, batches: Iterator[pa.RecordBatch], schema: pa.Schema, line: int) -> None:
        self._file, self._batches, self._schema, self._line = file, batches, schema, line
        self._left: pa.RecordBatch | None = None

    def take(self, count: int) -> Shard:
        parts: list[pa.RecordBatch] = []
        size = 0
        while count and size <= READ_BYTES and (batch := self._left or next(self._batches, None)) is not None:
            parts.append(batch.slice(0, count))
            self._left = batch.slice(count) if batch.num_rows > count else None
            count -= parts[-1].num_rows
            size += parts[-1].nbytes
        table = pa.Table.from_batches(parts) if parts else self._schema.empty_table()
        first, self._line = self._line, self._line + table.num_rows
        return self._fitting(table, range(first + 1, self._line + 1))

    def _fitting(self, table: pa.Table, lines: range) -> Shard:
        """Convert rows to the schema of the whole input; reject those that do not fit it, or are too long."""
        name, limit = self._file.name, self._file.options.max_row_bytes
        bad = dict.fromkeys(_long(table, limit), too_long(limit))
        try:
            cast = _cast(tables.without(table, sorted(bad)), self._schema)
        except pa.ArrowInvalid:  # a number or time in one file that does not fit in the common type
            bad |= {
                row: reason for row in range(table.num_rows) if row not in bad and (reason := self._misfit(table.slice(row, 1)))
            }
            cast = _cast(tables.without(table, sorted(bad)), self._schema)
        rejected = [Rejected(name, lines[row], reason, _shown(table, row)) for row, reason in sorted(bad.items())]
        numbers = [line for row, line in enumerate(lines) if row not in bad] if bad else lines
        return Shard(0, with_partitions(cast, self._file), [(name, numbers)], rejected)

    def _misfit(self, row: pa.Table) -> str | None:
        try:
            _cast(row, self._schema)
        except pa.ArrowInvalid as error:
            return f"does not fit the common column types of all files: {error}"
        return None


def next_lines(lines: Iterator[bytes], count: int) -> list[bytes]:
    """Return the next lines, at most `count`; stop after `READ_BYTES` bytes."""
    block: list[bytes] = []
    size = 0
    for line in islice(lines, count):
        block.append(line)
        size += len(line)
        if size > READ_BYTES:
            break
    return block


def with_partitions(table: pa.Table, file: Input) -> pa.Table:
    """Fill missing columns with values from the file's folder names."""
    for name, value in file.partitions:
        at = table.schema.get_field_index(name)
        field, column = table.schema.field(at), table.column(at)
        if value is not None and column.null_count:
            text = dumps(value) if field.metadata == columns.JSON_FIELD else value
            table = table.set_column(at, field, column.fill_null(pa.scalar(text, pa.string()).cast(field.type)))
    return table


def _long(table: pa.Table, limit: int, first: int = 0) -> Iterator[int]:
    """Yield the rows with more bytes than the limit, by halving the table until it is within the limit or a single row."""
    if table.nbytes <= limit:
        return
    if table.num_rows > 1:
        half = table.num_rows // 2
        yield from _long(table.slice(0, half), limit, first)
        yield from _long(table.slice(half), limit, first + half)
    elif len(dumps(rows_of(table)[0])) > limit:  # the size of a dictionary or view counts all data that it may refer to
        yield first


def _shown(table: pa.Table, row: int) -> dict[str, Any]:
    """Return a row's values, with long ones truncated."""
    values = rows_of(table.slice(row, 1))[0]
    return {name: value[:_SHOWN] if isinstance(value, str | bytes) else value for name, value in values.items()}


def _shard(file: Input, items: Sequence[Item], schema: pa.Schema) -> Shard:
    good = [item for item in items if not isinstance(item, Rejected)]
    table, lines, misfits = columns.to_table(file.name, good, schema)
    rejected = sorted([*(item for item in items if isinstance(item, Rejected)), *misfits], key=lambda row: row.line)
    return Shard(0, with_partitions(table, file), [(file.name, lines)], rejected)


def _parquet(path: Path, skip: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        groups: list[int] = []
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if skip >= size and not groups:
                skip -= size
            else:
                groups.append(group)
        for batch in file.iter_batches(batch_size=_batch_rows(file, groups), row_groups=groups) if groups else ():
            if skip < batch.num_rows:
                yield batch.slice(skip)
            skip = max(0, skip - batch.num_rows)


def _batch_rows(file: pq.ParquetFile, groups: Sequence[int]) -> int:
    """Return how many rows to decode at once: fewer if rows are large."""
    metadata = [file.metadata.row_group(group) for group in groups]
    mean = max((group.total_byte_size / max(group.num_rows, 1) for group in metadata), default=0)
    return max(16, min(BLOCK, int(READ_BYTES / max(mean, 1))))


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Convert a table to the schema of the whole input; columns that its file lacks are null."""
    if table.schema.equals(schema):
        return table
    arrays = [
        table.column(field.name).cast(field.type) if field.name in table.schema.names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)
