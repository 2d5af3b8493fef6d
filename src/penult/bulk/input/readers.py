"""Files of any format as one sequence of rows, cut into shards of equal size.

Knows formats and columns, nothing of vectors. A shard is a function of the input and the shard size alone, so a job that
goes on after a crash, or with another number of workers, cuts the very same shards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from penult.bulk.input import jsonl, rows, sources
from penult.bulk.input.input_files import Input
from penult.bulk.input.rows import Rejected
from penult.bulk.input.sources import BLOCK, Shard

_SHARD_CHARS = 1_000_000  # of a shard's texts, on average: a minute or two of work that a crash may cost
_SHARD_ROWS = (64, 4096)  # at most what an Embedder sorts by length together, so that a shard is one window
_SHARDS = 16  # at least, so that a small job has something for each worker


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a first look at all input says: its columns, how many rows each file has, and how many make a shard."""

    schema: pa.Schema
    counts: tuple[int, ...]
    shard_rows: int


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
        shard_rows = _shard_rows(inputs, Scanned(schema, tuple(counts), BLOCK), text_column)
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
            source = sources.opened(file, scanned.schema, skip)
            skip = 0
            while left:
                part = source.take(min(wanted, left))
                taken = part.table.num_rows + len(part.rejected)
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
    if file.format == "jsonl":
        return _look_at_lines(file, text_column)
    items = rows.READERS[file.format](file.path, file.name)
    return (rows.TEXT_SCHEMA if file.format == "text" else rows.csv_schema(file.path)), sum(1 for _ in items)


def _look_at_lines(file: Input, text_column: str) -> tuple[pa.Schema, int]:
    """Find the columns of JSON lines. Of lines that hold no more than what was found before, nothing is to be learnt."""
    fields: dict[str, pa.Field] = {}
    lines, count = jsonl.lines(file.path), 0
    while block := list(islice(lines, BLOCK)):
        if jsonl.table(block, pa.schema(fields.values())) is not None:
            count += len(block)
            continue
        items = jsonl.row_by_row(file.name, 1, block)
        count += len(items)
        for field in rows.infer([item for item in items if not isinstance(item, Rejected)], text_column):
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


def _join(number: int, parts: Sequence[Shard]) -> Shard:
    table = parts[0].table if len(parts) == 1 else pa.concat_tables([part.table for part in parts])
    places = [place for part in parts for place in part.places]
    return Shard(number, table, places, [row for part in parts for row in part.rejected])
