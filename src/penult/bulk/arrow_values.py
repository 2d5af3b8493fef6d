"""Conversion of every Arrow value to Python. Arrow's own conversion fails for some values, truncates others or needs pandas.

1. Times with nanoseconds: `to_pylist` needs pandas for them, and silently drops the nanoseconds of a time of day.
2. Dates and times in years that Python does not support, such as 10000.
3. Text whose bytes are not UTF-8.
"""

import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

_Temporal = dt.datetime | dt.time | dt.timedelta | dt.date


def values_of(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """Return a column's values. A time that Python cannot represent is text, whether pandas is installed or not."""
    if not contains(column.type, _has_nanoseconds):
        try:
            values: list[Any] = column.to_pylist()
        except (ValueError, OverflowError):  # UnicodeDecodeError is a ValueError
            pass
        else:
            return values
    return [_value(scalar) for scalar in column]


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table, with values converted by `values_of`."""
    if not table.num_columns:
        return [{} for _ in range(table.num_rows)]
    columns = [values_of(column) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def contains(kind: pa.DataType, check: Callable[[pa.DataType], bool]) -> bool:
    """Return whether a type, or a type nested in it, passes the check."""
    if isinstance(kind, pa.BaseExtensionType):
        return contains(kind.storage_type, check)
    if pa.types.is_dictionary(kind):
        return contains(kind.value_type, check)
    return bool(check(kind)) or any(contains(kind.field(index).type, check) for index in range(kind.num_fields))


def _has_nanoseconds(kind: pa.DataType) -> bool:
    return pa.types.is_temporal(kind) and getattr(kind, "unit", None) == "ns"


def _value(scalar: pa.Scalar) -> Any:  # noqa: ANN401 - any Arrow value
    if not scalar.is_valid:
        return None
    kind = scalar.type
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        return _value(scalar.value)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return _time(scalar)
    if pa.types.is_struct(kind):
        return {name: _value(inner) for name, inner in scalar.items()}
    if pa.types.is_map(kind):
        return [tuple(_value(inner) for inner in entry.values()) for entry in scalar.values]
    if kind.num_fields:
        return [_value(inner) for inner in scalar.values]
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return bytes(scalar.as_buffer()).decode("utf-8", "backslashreplace")


def _time(scalar: pa.Scalar) -> _Temporal | str:
    """Return a Python time, or text if nanoseconds or the year do not fit."""
    kind = scalar.type
    unit: Any = getattr(kind, "unit", "us")
    try:
        value = _microseconds(scalar)
    except (ValueError, OverflowError, pa.ArrowException):
        if pa.types.is_duration(kind):
            return f"{scalar.value} {unit}"
        if pa.types.is_date(kind):
            return str(np.datetime64(scalar.value, "D" if pa.types.is_date32(kind) else "ms"))
        text = str(np.datetime64(scalar.value, unit)).replace("T", " ")
        text = text.rstrip("0").removesuffix(".") if "." in text else text
        return f"{text}+00:00" if kind.tz else text
    nanoseconds = scalar.value % 1000 if unit == "ns" else 0
    if not nanoseconds:
        return value
    zone = str(value)[len(str(value.replace(tzinfo=None))) :] if isinstance(value, dt.datetime) else ""
    text = str(value).removesuffix(zone)
    return f"{text if '.' in text else f'{text}.000000'}{nanoseconds:03d}{zone}"


def _microseconds(scalar: pa.Scalar) -> _Temporal:
    kind = scalar.type
    if getattr(kind, "unit", None) == "ns":
        truncated = pa.scalar(scalar.value // 1000, pa.int64())
        if pa.types.is_timestamp(kind):
            scalar = truncated.cast(pa.timestamp("us", kind.tz))
        else:
            scalar = truncated.cast(pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us"))
    value: _Temporal = scalar.as_py()
    return value
