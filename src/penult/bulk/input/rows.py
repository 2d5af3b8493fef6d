"""Files that are read row by row: JSON lines, CSV, plain text; and rows turned into Arrow tables.

A row that cannot be read is a `Rejected`, never an exception: the rows after it are still good. Knows nothing of vectors.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

JSON_FIELD = {b"penult.json": b"true"}
"""Marks a column of JSON text: its values were of types that no Arrow column holds together."""
_MOST_KEYS = 100  # an object with more keys is kept as JSON text, or a key a row would become a column each


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in its file: its number there (counted from 1), and its values by column."""

    line: int
    values: dict[str, Any]


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

    def as_json(self) -> str:
        """Give it as one line of JSON, whatever its values are."""
        return json.dumps(asdict(self), ensure_ascii=True, default=str)


Item: TypeAlias = Row | Rejected


def parse_json(name: str, number: int, line: bytes) -> Item:
    """Read a line that must be one JSON object. `name` is how the user knows the file."""
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 at its byte {error.start}"
    except (ValueError, RecursionError) as error:
        reason = f"is not JSON: {error}"
    else:
        if isinstance(values, dict):
            return Row(number, values)
        reason = f"is a {type(values).__name__}, not an object"
    return Rejected(name, number, reason, line.decode("utf-8", "backslashreplace").rstrip("\n"))


def read_csv(path: Path, name: str) -> Iterator[Item]:
    """Read comma-separated rows under a header; every value is text, as it stands in the file."""
    csv.field_size_limit(2**31 - 1)  # the most everywhere; the default refuses texts over 128 KiB
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=False)
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise ValueError(f"{name} names a column twice in its header {header}; give each a name of its own.")
        for values in reader:
            if not values:
                continue  # a blank line
            if len(values) == len(header):
                yield Row(reader.line_num, dict(zip(header, values, strict=True)))
            else:
                reason = f"has {len(values)} fields, the header has {len(header)}"
                yield Rejected(name, reader.line_num, reason, values)


def csv_schema(path: Path) -> pa.Schema:
    """Give the columns of a CSV file's header, all of them text."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return pa.schema([(name, pa.string()) for name in next(csv.reader(file), [])])


def read_text(path: Path, name: str) -> Iterator[Item]:
    """Read one text a line; an empty line is an empty text."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            bare = line.removesuffix(b"\n").removesuffix(b"\r")
            try:
                yield Row(number, {"file": name, "line": number, "text": bare.decode("utf-8")})
            except UnicodeDecodeError as error:
                reason = f"is not UTF-8 at its byte {error.start}"
                yield Rejected(name, number, reason, bare.decode("utf-8", "backslashreplace"))


TEXT_SCHEMA = pa.schema([("file", pa.string()), ("line", pa.int64()), ("text", pa.string())])
READERS: dict[str, Callable[[Path, str], Iterator[Item]]] = {"csv": read_csv, "text": read_text}


def infer(rows: Sequence[Row], text_column: str) -> pa.Schema:
    """Find the columns of some rows and the narrowest type that holds each; the text column is text whatever it holds."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.values.items():
            if value is not None:
                columns.setdefault(name, []).append(value)
            else:
                columns.setdefault(name, [])
    return pa.schema([_text(name) if name == text_column else _field(name, values) for name, values in columns.items()])


def merge(fields: Iterable[pa.Field]) -> pa.Field:
    """Give the narrowest field that holds what each of some fields of one name holds, else one of JSON text."""
    merged, *others = fields
    for other in others:
        if JSON_FIELD in (merged.metadata, other.metadata):
            return _json(merged.name)
        both = [pa.schema([field]) for field in _plainer(merged, other)]
        try:
            merged = pa.unify_schemas(both, promote_options="permissive").field(0)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return _json(merged.name)
    return merged if _fits(merged.type) else _json(merged.name)


def _plainer(one: pa.Field, other: pa.Field) -> tuple[pa.Field, pa.Field]:
    """Of two fields of which only one is a dictionary, make that one plain: the values are the same."""
    if pa.types.is_dictionary(one.type) == pa.types.is_dictionary(other.type):
        return one, other
    plain = [field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in (one, other)]
    return plain[0], plain[1]


def to_table(file: str, rows: Sequence[Row], schema: pa.Schema) -> tuple[pa.Table, list[int], list[Rejected]]:
    """Turn rows into a table of the given columns.

    Returns:
        The table, the line of each of its rows, and the rows that do not fit the columns.
    """
    rejected: list[Rejected] = []
    try:
        table = _convert(rows, schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError, ValueError, TypeError):
        bad = {row.line: why for row in rows if (why := _misfit(row, schema)) is not None}
        rejected = [Rejected(file, row.line, bad[row.line], row.values) for row in rows if row.line in bad]
        rows = [row for row in rows if row.line not in bad]
        table = _convert(rows, schema)
    return table, [row.line for row in rows], rejected


def _convert(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        values = [row.values.get(field.name) for row in rows]
        if field.metadata == JSON_FIELD:
            values = [value if value is None else json.dumps(value, ensure_ascii=False) for value in values]
        arrays.append(pa.array(values, field.type))
    return pa.table(arrays, schema=schema)


def _misfit(row: Row, schema: pa.Schema) -> str | None:
    """Say why a row does not fit the columns, None if it does."""
    for field in schema:
        try:
            _convert([row], pa.schema([field]))
        except UnicodeError:
            return f"has a {field.name!r} that is not Unicode: it holds half of a surrogate pair or bytes that are not UTF-8"
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, ValueError, TypeError):
            value = row.values.get(field.name)
            return f"has a {field.name!r} that is {value!r:.40} ({type(value).__name__}), not {_plain(field.type)}"
    return None


def _plain(type_: pa.DataType) -> str:
    return "text" if pa.types.is_string(type_) else str(type_)


def _field(name: str, values: list[Any]) -> pa.Field:
    try:
        type_ = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return _json(name)
    except UnicodeError:  # half of a surrogate pair: such a row is rejected when it is read
        return _field(name, [value for value in values if _is_unicode(value)])
    return pa.field(name, type_) if _fits(type_) else _json(name)


def _is_unicode(value: Any) -> bool:  # noqa: ANN401 - a value of JSON
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        return False
    return True


def _fits(type_: pa.DataType) -> bool:
    """Say whether files can hold a type: no object without keys, or with more than make sense as columns."""
    if pa.types.is_struct(type_):
        return 0 < type_.num_fields <= _MOST_KEYS and all(_fits(field.type) for field in type_)
    return _fits(type_.value_type) if pa.types.is_list(type_) else True


def _text(name: str) -> pa.Field:
    return pa.field(name, pa.string())


def _json(name: str) -> pa.Field:
    return pa.field(name, pa.string(), metadata=JSON_FIELD)
