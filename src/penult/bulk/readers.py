"""Files of any format as one sequence of rows, cut into shards of equal size.

Knows formats and columns, nothing of vectors. A shard is a function of the input and the shard size alone, so a job that
goes on after a crash, or with another number of workers, cuts the very same shards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from penult.bulk import rows
from penult.bulk.inputs import Input
from penult.bulk.rows import Rejected

_SAMPLE = 4096  # rows that are looked at together
_SHARD_CHARS = 1_000_000  # of a shard's texts, on average: a minute or two of work that a crash may cost
_SHARD_ROWS = (64, 4096)  # at most what an Embedder sorts by length together, so that a shard is one window
_SHARDS = 16  # at least, so that a small job has something for each worker


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a first look at all input says: its columns, how many rows each file has, and how many make a shard."""

    schema: pa.Schema
    counts: tuple[int, ...]
    shard_rows: int


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive rows of the input.

    Attributes:
        number: 0, 1, 2, ...
        table: the rows that could be read, with all columns of the input.
        places: (file, line) of each row of the table.
        rejected: the rows that could not.
    """

    number: int
    table: pa.Table
    places: list[tuple[str, int]]
    rejected: list[Rejected]


class _Source(Protocol):
    """An open file: gives its next rows."""

    def take(self, count: int) -> Shard: ...


def scan(inputs: Sequence[Input], text_column: str, shard_rows: int | None = None) -> Scanned:
    """Look at all input once: find the columns of all files together, and count rows.

    Args:
        inputs: the files.
        text_column: the column of the texts.
        shard_rows: None: chosen by the mean length of the first texts.

    Raises:
        ValueError: a column has types in two files that nothing holds together, a file has two columns of one name, or
            there is no column of texts.
    """
    schemas, counts = [], []
    for file in inputs:
        schema, count = _look(file, text_column)
        schemas.append(schema)
        counts.append(count)
    schema = _together(inputs, schemas)
    if not schema.names and not sum(counts):
        raise ValueError("The input is empty: it has no rows, and no columns.")
    _check_text(schema, text_column)
    if shard_rows is None:
        shard_rows = _shard_rows(inputs, Scanned(schema, tuple(counts), _SAMPLE), text_column)
    return Scanned(schema, tuple(counts), shard_rows)


def shards(inputs: Sequence[Input], scanned: Scanned, first: int = 0) -> Iterator[Shard]:
    """Cut the input into shards, from the shard `first` on. Holds one shard at a time.

    Raises:
        OSError: a file cannot be read; the message names it.
        ValueError: a file has other rows than it had when it was scanned.
    """
    skip, number = first * scanned.shard_rows, first
    parts: list[Shard] = []
    wanted = scanned.shard_rows
    for file, count in zip(inputs, scanned.counts, strict=True):
        if skip >= count:
            skip -= count
            continue
        left = count - skip
        try:
            source = _open(file, scanned.schema, skip)
            skip = 0
            while left:
                part = source.take(min(wanted, left))
                taken = len(part.places) + len(part.rejected)
                if not taken:
                    raise ValueError(f"{file.name} ends {left} rows early; it changed while it was read.")
                parts.append(part)
                left, wanted = left - taken, wanted - taken
                if not wanted:
                    yield _join(number, parts)
                    number, parts, wanted = number + 1, [], scanned.shard_rows
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"{file.name} cannot be read: {error}") from error
        file.check_unchanged()
    if parts:
        yield _join(number, parts)


def count_shards(scanned: Scanned) -> int:
    """Count the shards of all input."""
    return -(-sum(scanned.counts) // scanned.shard_rows)


class _Rows:
    """A file that is read row by row."""

    def __init__(self, name: str, items: Iterator[rows.Item], schema: pa.Schema) -> None:
        self._name, self._items, self._schema = name, items, schema

    def take(self, count: int) -> Shard:
        items = list(islice(self._items, count))
        rejected = [item for item in items if isinstance(item, Rejected)]
        good = [item for item in items if not isinstance(item, Rejected)]
        table, lines, misfits = rows.to_table(self._name, good, self._schema)
        rejected = sorted(rejected + misfits, key=lambda row: row.line)
        return Shard(0, table, [(self._name, line) for line in lines], rejected)


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
        places = [(self._name, self._line + row) for row in range(1, table.num_rows + 1)]
        self._line += table.num_rows
        return Shard(0, table, places, [])


def _open(file: Input, schema: pa.Schema, skip: int) -> _Source:
    if file.format == "parquet":
        return _Batches(file.name, _parquet(file.path, skip), schema, skip)
    if file.format == "lance":
        from penult.bulk import lance_files  # noqa: PLC0415 - an extra

        return _Batches(file.name, lance_files.read(file.path, skip), schema, skip)
    items = rows.READERS[file.format](file.path, file.name)
    return _Rows(file.name, islice(items, skip, None), schema)


def _parquet(path: Path, skip: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        groups: list[int] = []
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if skip >= size and not groups:
                skip -= size
            else:
                groups.append(group)
        for batch in file.iter_batches(batch_size=_SAMPLE, row_groups=groups) if groups else ():
            if skip < batch.num_rows:
                yield batch.slice(skip)
            skip = max(0, skip - batch.num_rows)


def _look(file: Input, text_column: str) -> tuple[pa.Schema, int]:
    try:
        if file.format == "parquet":
            with pq.ParquetFile(file.path) as opened:
                return opened.schema_arrow, opened.metadata.num_rows
        if file.format == "lance":
            from penult.bulk import lance_files  # noqa: PLC0415 - an extra

            return lance_files.look(file.path)
    except (pa.ArrowException, OSError) as error:
        raise OSError(f"{file.name} cannot be read: {error}") from error
    items = rows.READERS[file.format](file.path, file.name)
    if file.format != "jsonl":
        return (rows.TEXT_SCHEMA if file.format == "text" else rows.csv_schema(file.path)), sum(1 for _ in items)
    fields: dict[str, pa.Field] = {}
    count = 0
    while chunk := list(islice(items, _SAMPLE)):
        count += len(chunk)
        for field in rows.infer([item for item in chunk if not isinstance(item, Rejected)], text_column):
            fields[field.name] = rows.merge([fields[field.name], field]) if field.name in fields else field
    return pa.schema(fields.values()), count


def _together(inputs: Sequence[Input], schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Give the columns of all files together."""
    columns: dict[str, list[tuple[Input, pa.Field]]] = {}
    for file, schema in zip(inputs, schemas, strict=True):
        if len(set(schema.names)) != len(schema.names):
            raise ValueError(f"{file.name} names a column twice: {', '.join(schema.names)}; give each a name of its own.")
        for field in schema:
            columns.setdefault(field.name, []).append((file, field))
    fields = []
    for name, found in columns.items():
        merged = rows.merge(field for _, field in found)
        fixed = [(file, field) for file, field in found if file.format != "jsonl"]
        if merged.metadata == rows.JSON_FIELD and fixed:
            raise ValueError(
                f"The column {name!r} is {fixed[0][1].type} in {fixed[0][0].name} and something else in other files; "
                "give it one type, or embed the files apart."
            )
        if pa.types.is_null(merged.type):
            merged = pa.field(name, pa.string())
        fields.append(merged if len(found) == len(inputs) else merged.with_nullable(True))  # noqa: FBT003 - Arrow's own
    return pa.schema(fields, metadata=next((schema.metadata for schema in schemas if schema.metadata), None))


def is_text(type_: pa.DataType) -> bool:
    """Say whether a column holds text."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _check_text(schema: pa.Schema, text_column: str) -> None:
    texts = [field.name for field in schema if is_text(field.type)]
    if text_column not in texts:
        held = f"holds {schema.field(text_column).type}" if text_column in schema.names else "is not in the input"
        raise ValueError(
            f"The column {text_column!r} {held}; name one of text with --text-column: {', '.join(texts) or 'there is none'}."
        )


def _shard_rows(inputs: Sequence[Input], scanned: Scanned, text_column: str) -> int:
    sample = next(shards(inputs, scanned), None)
    texts = [] if sample is None else sample.table.column(text_column).combine_chunks()
    mean = sum(len(text) for text in pa.array(texts).cast(pa.large_binary()).to_pylist() if text is not None) / max(
        len(texts), 1
    )
    return rows_of_a_shard(mean, sum(scanned.counts))


def rows_of_a_shard(mean: float, count: int) -> int:
    """Choose how many rows make a shard, by the mean length of their texts in bytes and the number of all rows."""
    least, most = _SHARD_ROWS
    wanted = max(1, int(min(_SHARD_CHARS / max(mean, 1), count / _SHARDS)))
    return max(least, min(most, 1 << wanted.bit_length() - 1))


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a table the columns of the whole input; those that its file does not have are null."""
    if table.schema.equals(schema):
        return table
    arrays = [
        table.column(field.name).cast(field.type) if field.name in table.schema.names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _join(number: int, parts: Sequence[Shard]) -> Shard:
    table = parts[0].table if len(parts) == 1 else pa.concat_tables([part.table for part in parts])
    places = [place for part in parts for place in part.places]
    return Shard(number, table, places, [row for part in parts for row in part.rejected])
