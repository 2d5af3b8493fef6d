"""Conversion of Arrow tables for all stores: JSON values, and floats that are finite or null."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penult.bulk import json_text
from penult.bulk.arrow_values import contains, rows_of


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table as JSON values: types not in JSON become text, NaN and infinity null."""
    plain: list[dict[str, Any]] = json.loads(json_text.dumps(rows_of(table)))
    return plain


def finite(table: pa.Table) -> pa.Table:
    """Return a table with null for NaN and infinity, also in nested lists and structs."""
    return pa.table([_finite_column(column) for column in table.columns], schema=table.schema)


def _finite_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not contains(column.type, pa.types.is_floating):
        return column
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
    return pa.chunked_array([pa.array(_finite_value(column.to_pylist()), column.type)], column.type)


def _finite_value(value: Any) -> Any:  # noqa: ANN401 - any Arrow value
    """Return a value with None for NaN and infinity; tuples (the entries of a map) stay tuples."""
    if isinstance(value, tuple):
        return tuple(map(_finite_value, value))
    if isinstance(value, list):
        return list(map(_finite_value, value))
    if isinstance(value, dict):
        return {key: _finite_value(inner) for key, inner in value.items()}
    return json_text.finite(value)


def without_nul(row: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return a row of JSON values with U+2400 for U+0000, and, if that changes it, the original row as JSON text."""
    encoded = json.dumps(row, ensure_ascii=False)
    replaced = _without_nul(row) if r"\u0000" in encoded else row
    return replaced, encoded if replaced != row else None


def _without_nul(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return value.replace("\x00", "\u2400")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(inner) for key, inner in value.items()}
    return [_without_nul(inner) for inner in value] if isinstance(value, list) else value
