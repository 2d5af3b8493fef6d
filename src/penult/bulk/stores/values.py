"""Arrow values as every store takes them: JSON values, and floats that are finite or null."""

import datetime as dt
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penult.bulk.output.writers import as_text

_Temporal = dt.datetime | dt.time | dt.timedelta | dt.date


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """Return a column's Python values. Times that Python cannot hold come as text, whether pandas is installed or not."""
    if not _contains(column.type, _has_nanoseconds):  # Arrow asks pandas for those
        try:
            values: list[Any] = column.to_pylist()
        except (ValueError, OverflowError):  # a year after 9999
            pass
        else:
            return values
    return [_value(scalar) for scalar in column]


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table as `values_of` gives their values."""
    columns = [values_of(column) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table as JSON values: what JSON does not have becomes text, and NaN and infinity null."""
    rows = rows_of(table)
    try:
        encoded = json.dumps(rows, default=as_text, allow_nan=False)
    except ValueError:  # NaN or infinity
        encoded = json.dumps(_finite_value(rows), default=as_text, allow_nan=False)
    plain: list[dict[str, Any]] = json.loads(encoded)
    return plain


def finite(table: pa.Table) -> pa.Table:
    """Return a table whose floats, those in lists and structs too, are finite or null."""
    return pa.table([_finite_column(column) for column in table.columns], schema=table.schema)


def _finite_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not _contains(column.type, pa.types.is_floating):
        return column
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
    values = column.to_pylist()
    if not _has_not_finite(values):
        return column
    return pa.chunked_array([pa.array(_finite_value(values), column.type)], column.type)


def _contains(kind: pa.DataType, check: Callable[[pa.DataType], bool]) -> bool:
    """Return whether a type or a type inside it fulfils the check."""
    if pa.types.is_dictionary(kind):
        return _contains(kind.value_type, check)
    return bool(check(kind)) or any(_contains(kind.field(index).type, check) for index in range(kind.num_fields))


def _has_nanoseconds(kind: pa.DataType) -> bool:
    return pa.types.is_temporal(kind) and getattr(kind, "unit", None) == "ns"


def _has_not_finite(value: Any) -> bool:  # noqa: ANN401 - whatever Arrow holds
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_not_finite, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_not_finite, value))


def _finite_value(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite_value(inner) for key, inner in value.items()}
    return type(value)(map(_finite_value, value)) if isinstance(value, list | tuple) else value


def _value(scalar: pa.Scalar) -> Any:  # noqa: ANN401
    if not scalar.is_valid:
        return None
    kind = scalar.type
    if pa.types.is_temporal(kind):
        return _time(scalar)
    if pa.types.is_dictionary(kind):
        return _value(scalar.value)
    if pa.types.is_struct(kind):
        return {name: _value(inner) for name, inner in scalar.items()}
    if pa.types.is_map(kind):
        return [tuple(_value(inner) for inner in entry.values()) for entry in scalar.values]
    if kind.num_fields:
        return [_value(inner) for inner in scalar.values]
    return scalar.as_py()


def _time(scalar: pa.Scalar) -> _Temporal | str:
    """Return a time as Python has it, else as text: with its nanoseconds, or as Arrow writes a year after 9999."""
    unit: Any = getattr(scalar.type, "unit", "us")
    nanoseconds = scalar.value % 1000 if unit == "ns" else 0
    try:
        value = _microseconds(scalar)
    except (ValueError, OverflowError):
        if pa.types.is_timestamp(scalar.type):
            return str(np.datetime64(scalar.value, unit))
        return str(scalar.cast(pa.string()).as_py())
    if not nanoseconds:
        return value
    zone = str(value)[len(str(value.replace(tzinfo=None))) :] if isinstance(value, dt.datetime) else ""
    text = str(value).removesuffix(zone)
    return f"{text if '.' in text else f'{text}.000000'}{nanoseconds:03d}{zone}"


def _microseconds(scalar: pa.Scalar) -> _Temporal:
    kind = scalar.type
    if getattr(kind, "unit", None) == "ns":
        whole = pa.scalar(scalar.value // 1000, pa.int64())
        if pa.types.is_timestamp(kind):
            scalar = whole.cast(pa.timestamp("us", kind.tz))
        else:
            scalar = whole.cast(pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us"))
    value: _Temporal = scalar.as_py()
    return value


def without_nul(row: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return a row of JSON values with U+2400 for U+0000, and the row as JSON text where that changes it."""
    encoded = json.dumps(row, ensure_ascii=False)
    shown = _without_nul(row) if r"\u0000" in encoded else row
    return shown, encoded if shown != row else None


def _without_nul(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, str):
        return value.replace("\x00", "\u2400")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(inner) for key, inner in value.items()}
    return [_without_nul(inner) for inner in value] if isinstance(value, list) else value
