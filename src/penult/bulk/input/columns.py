"""Rows as Arrow tables: infer the schema of rows, merge the schemas of files, and reject rows that do not fit."""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from penult.bulk.input.rows import Rejected, Row
from penult.bulk.json_text import dumps

JSON_FIELD = {b"penult.json": b"true"}
"""Field metadata of a column of JSON text: its values had types that do not fit in one Arrow column."""
_MAX_KEYS = 100  # an object with more keys is kept as JSON text; otherwise each key may become a column
_MAX_DEPTH = 40  # of nested objects and lists; Arrow reads 49 nested lists from Parquet, and fails at more
_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def infer(rows: Sequence[Row], text_column: str) -> pa.Schema:
    """Infer the columns of rows with the narrowest type for each; the text column is always text."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.values.items():
            if value is not None:
                columns.setdefault(name, []).append(value)
            else:
                columns.setdefault(name, [])
    head, *path = text_column.split(".")
    if path and head in columns:
        columns[head] = [_only_text(value, path) for value in columns[head]]
    fields = [_text(name) if name == text_column else _field(name, values) for name, values in columns.items()]
    return pa.schema([_with_text(field, text_column) for field in fields])


def merge(fields: Iterable[pa.Field]) -> pa.Field:
    """Return the narrowest field that can store the values of all fields of one name, or else a field of JSON text."""
    merged, *others = fields
    for other in others:
        if other.equals(merged, check_metadata=True):
            continue
        if JSON_FIELD in (merged.metadata, other.metadata):
            return _json(merged.name)
        both = [pa.schema([field]) for field in _same_encoding(merged, other)]
        try:
            merged = pa.unify_schemas(both, promote_options="permissive").field(0)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return _json(merged.name)
    return merged if _fits(merged.type) else _json(merged.name)


def _only_text(value: Any, path: Sequence[str]) -> Any:  # noqa: ANN401 - a value of JSON
    """Return an object with None in place of a text value that is not a string."""
    if not isinstance(value, dict) or path[0] not in value:
        return value
    inner = value[path[0]]
    if len(path) > 1:
        return value | {path[0]: _only_text(inner, path[1:])}
    return value if isinstance(inner, str) else value | {path[0]: None}


def _with_text(field: pa.Field, text_column: str) -> pa.Field:
    """Set the type of a nested text column, `a.b`, to text: rows with another type there are rejected."""
    head, _, rest = text_column.partition(".")
    if field.name != head or not rest or not pa.types.is_struct(field.type):
        return field
    inner = [
        _text(child.name) if child.name == rest and field.metadata != JSON_FIELD else _with_text(child, rest)
        for child in field.type
    ]
    return field.with_type(pa.struct(inner))


def _without_views(kind: pa.DataType) -> pa.DataType:
    """Return a type with strings instead of string views, at any depth: Arrow does not unify views with other types."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_without_views(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_without_views(kind.value_type)))
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _without_views(kind.value_type), kind.ordered)
    return _VIEWS.get(kind, kind)


def _same_encoding(one: pa.Field, other: pa.Field) -> tuple[pa.Field, pa.Field]:
    """Decode the field that is a dictionary or has string views, if only one of the two is: the values are the same."""
    if one.type != other.type:
        one, other = (field.with_type(_without_views(field.type)) for field in (one, other))
    if pa.types.is_dictionary(one.type) == pa.types.is_dictionary(other.type):
        return one, other
    plain = [field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in (one, other)]
    return plain[0], plain[1]


def to_table(file: str, rows: Sequence[Row], schema: pa.Schema) -> tuple[pa.Table, list[int], list[Rejected]]:
    """Convert rows to a table with the given schema.

    Returns:
        The table, the line of each of its rows, and the rows that do not fit the schema.
    """
    rejected: list[Rejected] = []
    try:
        table = _convert(rows, schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError, ValueError, TypeError):
        bad = {row.line: reason for row in rows if (reason := _misfit(row, schema)) is not None}
        rejected = [Rejected(file, row.line, bad[row.line], row.values) for row in rows if row.line in bad]
        rows = [row for row in rows if row.line not in bad]
        table = _convert(rows, schema)
    return table, [row.line for row in rows], rejected


def _convert(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        values = [row.values.get(field.name) for row in rows]
        if field.metadata == JSON_FIELD:
            values = [value if value is None else dumps(value) for value in values]
        arrays.append(pa.array(values, field.type))
    return pa.table(arrays, schema=schema)


def _misfit(row: Row, schema: pa.Schema) -> str | None:
    """Return why a row does not fit the schema; None if it fits."""
    for field in schema:
        try:
            _convert([row], pa.schema([field]))
        except UnicodeError:
            return f"has a {field.name!r} that is not valid Unicode: it contains a lone surrogate or bytes that are not UTF-8"
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, ValueError, TypeError):
            value = row.values.get(field.name)
            return f"has the value {value!r:.40} ({type(value).__name__}) in column {field.name!r}, not {_plain(field.type)}"
    return None


def _plain(type_: pa.DataType) -> str:
    return "text" if pa.types.is_string(type_) else str(type_)


def _field(name: str, values: list[Any]) -> pa.Field:
    try:
        type_ = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return _json(name)
    except UnicodeError:  # a lone surrogate: such a row is rejected when it is read
        return _field(name, [value for value in values if _is_unicode(value)])
    return pa.field(name, type_) if _fits(type_) else _json(name)


def _is_unicode(value: Any) -> bool:  # noqa: ANN401 - a value of JSON
    try:
        dumps(value).encode()
    except UnicodeError:
        return False
    return True


def _fits(type_: pa.DataType, depth: int = 0) -> bool:
    """Return whether a type can be stored: no objects that are empty, have too many keys or are nested too deeply."""
    if depth > _MAX_DEPTH:
        return False
    if pa.types.is_struct(type_):
        return 0 < type_.num_fields <= _MAX_KEYS and all(_fits(field.type, depth + 1) for field in type_)
    return _fits(type_.value_type, depth + 1) if pa.types.is_list(type_) else True


def _text(name: str) -> pa.Field:
    return pa.field(name, pa.string())


def _json(name: str) -> pa.Field:
    return pa.field(name, pa.string(), metadata=JSON_FIELD)
