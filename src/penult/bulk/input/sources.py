"""One file of any format as a sequence of rows, from any row on.

Knows formats; what all files have in common, and where shards begin, is for `readers` to say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from penult.bulk.input import jsonl, rows
from penult.bulk.input.input_files import Input
from penult.bulk.input.rows import Rejected

BLOCK = 4096  # rows that are read together


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive rows of the input.

    Attributes:
        number: 0, 1, 2, ...
        table: the rows that could be read, with all columns of the input.
        places: file after file, its name and the lines of those rows of the table that stand in it.
        rejected: the rows that could not.
    """

    number: int
    table: pa.Table
    places: list[tuple[str, Sequence[int]]]
    rejected: list[Rejected]

    def place(self, row: int) -> tuple[str, int]:
        """Give the file and the line of a row of the table."""
        for file, lines in self.places:
            if row < len(lines):
                return file, lines[row]
            row -= len(lines)
        raise IndexError(row)


class Source(Protocol):
    """An open file: gives its next rows."""

    def take(self, count: int) -> Shard:
        """Give at most so many; none only where there are no more."""


def opened(file: Input, schema: pa.Schema, skip: int) -> Source:
    """Open a file at the row `skip`; its rows get the columns of the whole input."""
    if file.format == "parquet":
        return _Batches(file.name, _parquet(file.path, skip), schema, skip)
    if file.format == "lance":
        from penult.bulk import lance_files  # noqa: PLC0415 - an extra

        return _Batches(file.name, lance_files.read(file.path, skip), schema, skip)
    if file.format == "jsonl":
        return _Lines(file.name, jsonl.lines(file.path), schema, skip)
    items = rows.READERS[file.format](file.path, file.name)
    return _Rows(file.name, islice(items, skip, None), schema)


class _Rows:
    """A file that is read row by row."""

    def __init__(self, name: str, items: Iterator[rows.Item], schema: pa.Schema) -> None:
        self._name, self._items, self._schema = name, items, schema

    def take(self, count: int) -> Shard:
        return _shard(self._name, list(islice(self._items, count)), self._schema)


class _Lines:
    """A file of JSON lines."""

    def __init__(self, name: str, lines: Iterator[bytes], schema: pa.Schema, skip: int) -> None:
        self._name, self._lines, self._schema, self._line = name, lines, schema, 1
        while skip and (line := next(lines, b"")):
            skip -= bool(line.strip())
            self._line += 1

    def take(self, count: int) -> Shard:
        while block := list(islice(self._lines, min(count, BLOCK))):
            first, self._line = self._line, self._line + len(block)
            table = jsonl.table(block, self._schema)
            if table is not None:
                return Shard(0, table, [(self._name, range(first, self._line))], [])
            if items := jsonl.row_by_row(self._name, first, block):
                return _shard(self._name, items, self._schema)
        return _shard(self._name, [], self._schema)


class _Batches:
    """A file of Arrow batches."""

    def __init__(self, name: str, batches: Iterator[pa.RecordBatch], schema: pa.Schema, line: int) -> None:
        self._name, self._batches, self._schema, self._line = name, batches, schema, line
        self._left: pa.RecordBatch | None = None

    def take(self, count: int) -> Shard:
        taken: list[pa.RecordBatch] = []
        while count and (batch := self._left or next(self._batches, None)) is not None:
            taken.append(batch.slice(0, count))
            self._left = batch.slice(count) if batch.num_rows > count else None
            count -= taken[-1].num_rows
        table = _cast(pa.Table.from_batches(taken), self._schema) if taken else self._schema.empty_table()
        first, self._line = self._line, self._line + table.num_rows
        return Shard(0, table, [(self._name, range(first + 1, self._line + 1))], [])


def _shard(name: str, items: Sequence[rows.Item], schema: pa.Schema) -> Shard:
    good = [item for item in items if not isinstance(item, Rejected)]
    table, lines, misfits = rows.to_table(name, good, schema)
    rejected = sorted([*(item for item in items if isinstance(item, Rejected)), *misfits], key=lambda row: row.line)
    return Shard(0, table, [(name, lines)], rejected)


def _parquet(path: Path, skip: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        groups: list[int] = []
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if skip >= size and not groups:
                skip -= size
            else:
                groups.append(group)
        for batch in file.iter_batches(batch_size=BLOCK, row_groups=groups) if groups else ():
            if skip < batch.num_rows:
                yield batch.slice(skip)
            skip = max(0, skip - batch.num_rows)


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a table the columns of the whole input; those that its file does not have are null."""
    if table.schema.equals(schema):
        return table
    arrays = [
        table.column(field.name).cast(field.type) if field.name in table.schema.names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)
