"""Add a column of vectors to a table of texts. Shared by jobs, Ray actors and Spark tasks.

Handles columns, rows that cannot be embedded, and the metadata that identifies the model. Does not handle files.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penult.types import Vectors


def is_text(kind: pa.DataType, *, or_bytes: bool = False) -> bool:
    """Return whether a column contains text or, with `or_bytes`, bytes that are decoded as UTF-8."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return True
    return or_bytes and _is_bytes(kind)


def field_of(schema: pa.Schema, name: str) -> pa.Field | None:
    """Return the field of a column; `a.b` is the field b of the struct column a, unless a column has that name."""
    if name in schema.names:
        return schema.field(name)
    head, *rest = name.split(".")
    field = schema.field(head) if head in schema.names else None
    for part in rest:
        if field is None or not pa.types.is_struct(field.type):
            return None
        at = field.type.get_field_index(part)
        field = field.type.field(at) if at >= 0 else None
    return field


def column_of(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column by its name, resolved as in `field_of`."""
    if name in table.column_names:
        return table.column(name)
    head, *rest = name.split(".")
    return pc.struct_field(table.column(head), rest)


def texts_of(column: pa.ChunkedArray) -> list[Any]:
    """Return a column's values. Bytes that are not UTF-8 become lone surrogates, which every embedder rejects."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if _is_bytes(kind):
        return [value if value is None else value.decode("utf-8", "surrogateescape") for value in column.to_pylist()]
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(scalar) for scalar in column]
    return values


def without(table: pa.Table, rows: list[int]) -> pa.Table:
    """Return a table without some rows. Uses slices, which Arrow supports for every type; `take` does not."""
    starts, ends = [0, *(row + 1 for row in rows)], [*rows, table.num_rows]
    return pa.concat_tables([table.slice(start, end - start) for start, end in zip(starts, ends, strict=True)])


def with_vectors(
    table: pa.Table, name: str, vectors: Vectors, metadata: dict[str, str], *, null: Sequence[int] = ()
) -> pa.Table:
    """Append a column of fixed-size lists, with nulls in the rows `null`, and add metadata to the schema."""
    mask = np.zeros(len(vectors), np.bool_)
    mask[list(null)] = True
    array = pa.FixedSizeListArray.from_arrays(flat(vectors), vectors.shape[1], mask=pa.array(mask) if null else None)
    table = table.append_column(vector_field(name, vectors.shape[1]), array)
    return table.replace_schema_metadata((table.schema.metadata or {}) | metadata)


def flat(vectors: Vectors) -> pa.Array:
    """Return (N, D) float32 as one array of N x D values; `pa.array` would import pandas if it is installed."""
    return pa.Array.from_buffers(pa.float32(), vectors.size, [None, pa.py_buffer(np.ascontiguousarray(vectors))])


def vector_field(name: str, dimension: int) -> pa.Field:
    """Return the field of the vectors: fixed-size lists of D float32."""
    return pa.field(name, pa.list_(pa.float32(), dimension))


def vectors_of(column: pa.ChunkedArray) -> Vectors:
    """Return a column of vectors as (N, D) float32.

    Raises:
        ValueError: the column does not contain such vectors.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_fixed_size_list(array.type) or not pa.types.is_float32(array.type.value_type) or array.null_count:
        raise ValueError(f"The vector column is {array.type}; it must contain float32 vectors of one size, without nulls.")
    return np.asarray(array.flatten()).reshape(len(array), array.type.list_size)


def _is_bytes(kind: pa.DataType) -> bool:
    plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bool(plain or pa.types.is_fixed_size_binary(kind))


def _value(scalar: pa.Scalar) -> str | None:
    if not scalar.is_valid:
        return None
    return bytes(scalar.as_buffer()).decode("utf-8", "surrogateescape")
