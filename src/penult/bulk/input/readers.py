"""Files of any format as one sequence of rows, split into shards of equal size.

Handles formats and columns, not vectors. Shards depend only on the input and the shard size, so a job that resumes after a
crash, or with another number of workers, has the same shards.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from penult.bulk import tables
from penult.bulk.input import columns, json_rows, jsonl, row_files, sources, streams
from penult.bulk.input.csv_rows import MAX_COLUMNS
from penult.bulk.input.input_files import Input
from penult.bulk.input.rows import Item, Rejected, Row, UnreadableError
from penult.bulk.input.shard_sizes import Sizes
from penult.bulk.input.sources import BLOCK, Shard

_SHARD_CHARS = 1_000_000  # average characters of a shard's texts: 1 or 2 minutes of work
_SHARD_ROWS = (64, 4096)  # the maximum is the window that an Embedder sorts by length, so a shard is one window
_SAMPLE = 8 << 20  # bytes of texts that suffice to estimate their mean length
_FEW = 64  # elements of a JSON array per batch of the scan
_SHARDS = 16  # minimum, so that a small job has work for each worker


@dataclass(frozen=True, slots=True)
class Scanned:
    """Result of scanning all input: its columns, the number of rows per file, and the rows per shard."""

    schema: pa.Schema
    counts: tuple[int, ...]
    shard_rows: int


@dataclass(frozen=True, slots=True)
class FileScan:
    """Result of scanning one file: its columns, and the sizes of its rows."""

    schema: pa.Schema
    sizes: Sizes


def scan(
    inputs: Sequence[Input],
    text_column: str,
    shard_rows: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Scanned:
    """Scan all input once: merge the columns of all files, and count rows.

    Args:
        inputs: the files.
        text_column: the column of the texts.
        shard_rows: rows per shard. None: chosen by the mean length of the first texts and the maximum bytes of a shard.
        say: called with messages for the user about files with rows that cannot be decoded.

    Raises:
        ValueError: a column has incompatible types in two files, a file has a duplicate column, or the text column is
            missing.
    """
    schemas, counts, sizes = [], [], Sizes()
    for file in inputs:
        result = _scan_file(file, text_column, say)
        schemas.append(result.schema)
        counts.append(result.sizes.rows)
        sizes.extend(result.sizes)
    schema = _merged_schema(inputs, schemas)
    if not schema.names and not sum(counts):
        raise ValueError("The input is empty: it has no rows, and no columns.")
    _check_text(inputs, schema, text_column)
    if shard_rows is None:
        shard_rows = _shard_rows(inputs, Scanned(schema, tuple(counts), BLOCK), text_column, sizes)
    return Scanned(schema, tuple(counts), shard_rows)


def shards(inputs: Sequence[Input], scanned: Scanned, first: int = 0) -> Iterator[Shard]:
    """Yield the shards of the input, starting at shard `first`. One shard is in memory at a time.

    Raises:
        OSError: a file cannot be read; the message names it.
        ValueError: the rows of a file have changed since the scan.
    """
    skip, number = first * scanned.shard_rows, first
    parts: list[Shard] = []
    missing = scanned.shard_rows
    for file, count in zip(inputs, scanned.counts, strict=True):
        if skip >= count:
            skip -= count
            continue
        left = count - skip
        try:
            source = sources.opened(file, scanned.schema, skip)
            skip = 0
            while left:
                part = source.take(min(missing, left))
                count_read = part.table.num_rows + len(part.rejected)
                if not count_read:
                    raise ValueError(f"{file.name} ends {left} rows early; it changed while it was being read.")
                parts.append(part)
                left, missing = left - count_read, missing - count_read
                if not missing:
                    yield _join(number, parts)
                    number, parts, missing = number + 1, [], scanned.shard_rows
        except UnreadableError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"{file.name} cannot be read: {error}") from error
        file.check_unchanged()
    if parts:
        yield _join(number, parts)


def count_shards(scanned: Scanned) -> int:
    """Return the number of shards of all input."""
    return -(-sum(scanned.counts) // scanned.shard_rows)


def _scan_file(file: Input, text_column: str, say: Callable[[str], None]) -> FileScan:
    """Scan a file: return its columns, and the sizes of its rows as far as they are known."""
    problem = None
    try:
        problem = None if file.format == "lance" else streams.foreign(file.path)
        if problem and file.format not in ("parquet", "document"):
            raise OSError(f"it {problem}")
        if file.format == "parquet":
            return _scan_parquet(file)
        if file.format == "lance":
            from penult.bulk import lance_files  # noqa: PLC0415 - an extra

            schema, count = lance_files.look(file.path)
            return FileScan(schema, Sizes().add(count, 0))
        if file.format == "document":
            return FileScan(_texts(row_files.columns(file), file), Sizes().add(1, file.stamp[0][1]))
        return _scan_rows(file, text_column, say)
    except UnreadableError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = f"it {problem}" if problem else error
        raise OSError(f"{file.name} cannot be read: {reason}") from error


def _scan_parquet(file: Input) -> FileScan:
    with pq.ParquetFile(file.path) as opened:
        sizes = Sizes()
        for number in range(opened.num_row_groups):
            group = opened.metadata.row_group(number)
            sizes.add(group.num_rows, group.total_byte_size)
        return FileScan(_partitioned(opened.schema_arrow, file), sizes)


def _scan_rows(file: Input, text_column: str, say: Callable[[str], None]) -> FileScan:
    sizes, undecoded, rejected = Sizes(), 0, 0
    if file.format in ("jsonl", "json"):
        fields: dict[str, pa.Field] = {}
        for items in _json_items(file, fields, sizes):
            undecoded += sum(isinstance(item, Rejected) and item.reason.startswith("is not UTF-8") for item in items)
            rejected += sum(isinstance(item, Rejected) for item in items)
            _add_fields(fields, items, text_column)
        schema = pa.schema(fields.values())
    else:
        schema = _texts(row_files.columns(file), file)
        for item in row_files.items(file):
            sizes.add(1, item.size)
            undecoded += _is_undecoded(item)
    if rejected and sizes.rows > rejected and file.format == "jsonl" and (hint := json_rows.looks_like(_head(file))):
        say(f"{file.name} {hint}")
    if undecoded:
        rows = f"{undecoded:,} row{'s are' if undecoded != 1 else ' is'}"
        say(f"{file.name}: {rows} not UTF-8. If the file has another encoding, pass it, such as --encoding cp1252")
    return FileScan(_partitioned(schema, file), sizes)


def _json_items(file: Input, fields: Mapping[str, pa.Field], sizes: Sizes) -> Iterator[list[Item]]:
    """Yield rows that may extend the schema. Rows with only known columns and types are skipped."""
    if file.format == "json":
        rows = row_files.items(replace(file, partitions=()))
        while items := list(islice(rows, _FEW)):
            for item in items:
                sizes.add(1, item.size)
            yield items
        return
    lines = streams.lines(file.path, file.options)
    while block := sources.next_lines(lines, BLOCK):
        if jsonl.table(block, pa.schema(fields.values())) is not None:
            sizes.add(len(block), sum(map(len, block)))
        else:
            for line in filter(bytes.strip, block):
                sizes.add(1, len(line))
            yield jsonl.row_by_row(file.name, 1, block, file.options)


def _add_fields(fields: dict[str, pa.Field], items: Sequence[Item], text_column: str) -> None:
    for field in columns.infer([item for item in items if isinstance(item, Row)], text_column):
        fields[field.name] = columns.merge([fields[field.name], field]) if field.name in fields else field
    if len(fields) > MAX_COLUMNS:
        raise OSError(
            f"its objects have more than {MAX_COLUMNS:,} different keys. Move the varying keys into one nested object"
        )


def _is_undecoded(item: Item) -> bool:
    """Return whether a row of text contains bytes that are not UTF-8."""
    if isinstance(item, Rejected):
        return item.reason.startswith("is not UTF-8")
    try:
        "".join(value for value in item.values.values() if isinstance(value, str)).encode()
    except UnicodeEncodeError:
        return True
    return False


def _texts(names: Sequence[str], file: Input) -> pa.Schema:
    return _partitioned(pa.schema([(name, pa.int64() if name == "line" else pa.string()) for name in names]), file)


def _partitioned(schema: pa.Schema, file: Input) -> pa.Schema:
    """Append the columns from a file's folder names that the file itself lacks."""
    for name, _ in file.partitions:
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.string()))
    return schema


def _merged_schema(inputs: Sequence[Input], schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the merged columns of all files."""
    fields_by_name: dict[str, list[tuple[Input, pa.Field]]] = {}
    for file, schema in zip(inputs, schemas, strict=True):
        if len(set(schema.names)) != len(schema.names):
            raise ValueError(f"{file.name} has duplicate columns: {', '.join(schema.names)}. Rename them.")
        for field in schema:
            fields_by_name.setdefault(field.name, []).append((file, field))
    fields = []
    for name, origins in fields_by_name.items():
        merged = columns.merge(field for _, field in origins)
        fixed = [(file, field) for file, field in origins if file.format not in ("jsonl", "json")]
        if merged.metadata == columns.JSON_FIELD and fixed:
            raise ValueError(
                f"The column {name!r} is {fixed[0][1].type} in {fixed[0][0].name} and has another type in other files. Give it "
                "one "
                "type, or embed the files separately."
            )
        if pa.types.is_null(merged.type):
            merged = pa.field(name, pa.string())
        fields.append(merged if len(origins) == len(inputs) else merged.with_nullable(True))  # noqa: FBT003 - Arrow's signature
    return pa.schema(fields, metadata=next((schema.metadata for schema in schemas if schema.metadata), None))


def _check_text(inputs: Sequence[Input], schema: pa.Schema, text_column: str) -> None:
    field = tables.field_of(schema, text_column)
    if field is not None and field.metadata != columns.JSON_FIELD and tables.is_text(field.type, or_bytes=True):
        return
    texts = list(_text_columns(schema))
    problem = (
        f"The input has no column {text_column!r}" if field is None else f"The column {text_column!r} is {field.type}, not text"
    )
    advice = f"Pass a text column with --text-column: {', '.join(texts)}." if texts else "The input has no text column."
    hints = [f"{file.name} {hint}" for file in inputs if file.format == "jsonl" if (hint := json_rows.looks_like(_head(file)))]
    raise ValueError(f"{problem}. {advice}" + "".join(f" {hint}." for hint in hints[:1]))


def _text_columns(fields: Iterable[pa.Field], prefix: str = "") -> Iterator[str]:
    """Yield the names of all text columns, nested ones as `a.b`."""
    for field in fields:
        if tables.is_text(field.type):
            yield f"{prefix}{field.name}"
        elif pa.types.is_struct(field.type):
            yield from _text_columns(field.type, f"{prefix}{field.name}.")


def _head(file: Input) -> bytes:
    return next(streams.lines(file.path, file.options), b"")


def _shard_rows(inputs: Sequence[Input], scanned: Scanned, text_column: str, sizes: Sizes) -> int:
    count = lengths = 0
    for file in inputs:
        try:
            source = sources.opened(file, scanned.schema, 0)
            while count < BLOCK and lengths < _SAMPLE:
                shard = source.take(BLOCK - count)
                if not shard.table.num_rows and not shard.rejected:
                    break
                count += shard.table.num_rows
                lengths += sum(_lengths(tables.column_of(shard.table, text_column)))
        except UnreadableError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"{file.name} cannot be read: {error}") from error
        if count >= BLOCK or lengths >= _SAMPLE:
            break
    return min(rows_of_a_shard(lengths / max(count, 1), sum(scanned.counts)), sizes.max_rows())


def _lengths(texts: pa.ChunkedArray) -> Iterator[int]:
    """Yield the lengths of texts in bytes."""
    for text in tables.texts_of(texts):
        yield 0 if text is None else len(text.encode("utf-8", "surrogateescape"))


def rows_of_a_shard(mean: float, count: int) -> int:
    """Return the rows per shard, by the mean length of texts in bytes and the total number of rows."""
    minimum, maximum = _SHARD_ROWS
    rows = max(1, int(min(_SHARD_CHARS / max(mean, 1), count / _SHARDS)))
    return max(minimum, min(maximum, 1 << rows.bit_length() - 1))


def _join(number: int, parts: Sequence[Shard]) -> Shard:
    table = parts[0].table if len(parts) == 1 else pa.concat_tables([part.table for part in parts])
    places = [place for part in parts for place in part.places]
    return Shard(number, table, places, [row for part in parts for row in part.rejected])
