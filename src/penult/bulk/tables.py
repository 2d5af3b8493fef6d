"""A table of texts to the same table with a column of vectors: what a job, a Ray actor and a Spark task all do.

Knows columns, rows that cannot be embedded and the metadata that names vectors. Knows no files.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penult.core.embedder import Embedder
from penult.types import Role, TextError, Vectors


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of N texts.

    Attributes:
        vectors: (number of good rows, D) float32.
        good: which rows have one, in order.
        bad: why each of the others has none.
        tokens: that the model read.
        cut: texts of which something was cut off.
    """

    vectors: Vectors
    good: list[int]
    bad: dict[int, str]
    tokens: int
    cut: int


def embed_texts(embedder: Embedder, texts: Sequence[Any], role: Role, done: Callable[[int], object] | None = None) -> Outcome:
    """Embed the texts that can be embedded, and say why the others cannot. `done` is called as in `Embedder.run`."""
    good = list(range(len(texts)))
    bad: dict[int, str] = {}
    while True:
        try:
            tokenized = embedder.tokenize([texts[row] for row in good], role)
            vectors = embedder.run(tokenized, done)
            break
        except TextError as error:
            found = {good[row]: why for row, why in error.rows.items()}
        except ArithmeticError:
            found = {row: why for row in good if (why := _not_finite(embedder, texts[row], role))}
            if not found:
                raise
        bad |= found
        good = [row for row in good if row not in found]
    return Outcome(vectors, good, bad, int(tokenized.counts.sum()), len(tokenized.truncated))


def is_text(kind: pa.DataType, *, or_bytes: bool = False) -> bool:
    """Return whether a column holds text; or_bytes: or bytes, which are read as UTF-8."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return True
    return or_bytes and _is_bytes(kind)


def field_of(schema: pa.Schema, name: str) -> pa.Field | None:
    """Return the field of a column; `a.b` is the field b of the objects in the column a, where no column is named so."""
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
    """Return a column by its name, as `field_of` reads it."""
    if name in table.column_names:
        return table.column(name)
    head, *rest = name.split(".")
    return pc.struct_field(table.column(head), rest)


def texts_of(column: pa.ChunkedArray) -> list[Any]:
    """Give a column's values. Bytes that are not UTF-8 come as half surrogate pairs, which no embedder takes."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if _is_bytes(kind):
        return [value if value is None else value.decode("utf-8", "surrogateescape") for value in column.to_pylist()]
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(scalar) for scalar in column]
    return values


def without(table: pa.Table, rows: list[int]) -> pa.Table:
    """Leave out some rows of a table, by slices: Arrow takes rows out of every type so, and by their numbers not."""
    starts, ends = [0, *(row + 1 for row in rows)], [*rows, table.num_rows]
    return pa.concat_tables([table.slice(start, end - start) for start, end in zip(starts, ends, strict=True)])


def with_vectors(
    table: pa.Table, name: str, vectors: Vectors, metadata: dict[str, str], *, null: Sequence[int] = ()
) -> pa.Table:
    """Append a column of fixed-size lists, `null` in some rows, and metadata to the schema."""
    mask = np.zeros(len(vectors), np.bool_)
    mask[list(null)] = True
    array = pa.FixedSizeListArray.from_arrays(flat(vectors), vectors.shape[1], mask=pa.array(mask) if null else None)
    table = table.append_column(vector_field(name, vectors.shape[1]), array)
    return table.replace_schema_metadata((table.schema.metadata or {}) | metadata)


def flat(vectors: Vectors) -> pa.Array:
    """Give (N, D) float32 as one array of N x D values; `pa.array` would import pandas where there is one."""
    return pa.Array.from_buffers(pa.float32(), vectors.size, [None, pa.py_buffer(np.ascontiguousarray(vectors))])


def vector_field(name: str, dimension: int) -> pa.Field:
    """Give the field of the vectors: fixed-size lists of D float32."""
    return pa.field(name, pa.list_(pa.float32(), dimension))


def vectors_of(column: pa.ChunkedArray) -> Vectors:
    """Give a column of vectors as (N, D) float32.

    Raises:
        ValueError: it holds something else.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_fixed_size_list(array.type) or not pa.types.is_float32(array.type.value_type) or array.null_count:
        raise ValueError(f"The column of vectors is {array.type}; it must hold float32 vectors of one size, none of them null.")
    return np.asarray(array.flatten()).reshape(len(array), array.type.list_size)


def metadata_of(embedder: Embedder, model: str, role: Role) -> dict[str, str]:
    """Name what made the vectors: fingerprint, recipe, model and role."""
    recipe = json.dumps(embedder.recipe.as_dict(), sort_keys=True)
    return {
        "penult.fingerprint": embedder.fingerprint,
        "penult.recipe": recipe,
        "penult.model": model,
        "penult.role": role,
    }


def _is_bytes(kind: pa.DataType) -> bool:
    plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bool(plain or pa.types.is_fixed_size_binary(kind))


def _value(scalar: pa.Scalar) -> str | None:
    if not scalar.is_valid:
        return None
    return bytes(scalar.as_buffer()).decode("utf-8", "surrogateescape")


def _not_finite(embedder: Embedder, text: str, role: Role) -> str | None:
    try:
        embedder.embed([text], role)
    except ArithmeticError:
        return "gave NaN or infinite values in the model"
    return None
