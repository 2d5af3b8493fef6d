"""Parquet row groups of bounded size. The groups do not depend on the shards."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_GROUP_ROWS, _GROUP_BYTES = 65_536, 32 << 20  # large enough to read fast, small enough for memory
_OTHER_BYTES = 8  # assumed for a value of a type without a fixed width


def row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield row groups, each as one chunk; a group ends with the row that fills it."""
    waiting: list[pa.Table] = []
    rows = size = 0
    for whole in tables:
        table = whole
        while table.num_rows:
            sizes = np.sum([_cumulative(column.combine_chunks()) for column in table.columns], axis=0)[1:]
            count = min(table.num_rows, _GROUP_ROWS - rows, int(np.searchsorted(sizes, _GROUP_BYTES - size)) + 1)
            waiting.append(table.slice(0, count))
            rows, size = rows + count, size + int(sizes[count - 1])
            table = table.slice(count)
            if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
                yield _concatenated_table(waiting)
                waiting, rows, size = [], 0, 0
    if waiting:
        yield _concatenated_table(waiting)


def _concatenated_table(tables: list[pa.Table]) -> pa.Table:
    """Concatenate tables independent of their boundaries: one chunk, and dictionaries in the order of their values."""
    table = pa.concat_tables(tables)
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = table.column(place).cast(field.type.value_type).combine_chunks()
            encoded = plain.dictionary_encode()
            indices = encoded.indices.cast(field.type.index_type)
            ordered = field.type.ordered
            table = table.set_column(place, field, pa.DictionaryArray.from_arrays(indices, encoded.dictionary, ordered=ordered))
    return table.combine_chunks()


def _cumulative(array: Any) -> "np.ndarray[Any, np.dtype[np.int64]]":  # noqa: ANN401 - an Arrow array
    """Return the cumulative bytes before each value of an array, and after the last: (length + 1,)."""
    type_ = array.type
    if isinstance(type_, pa.BaseExtensionType):
        return _cumulative(array.storage)
    if pa.types.is_dictionary(type_):
        return _cumulative(array.dictionary_decode())
    if pa.types.is_string_view(type_) or pa.types.is_binary_view(type_):
        array = array.cast(pa.large_binary())
    if _has_bytes(array.type):
        lengths = np.asarray(pc.fill_null(pc.binary_length(array), 0))
        return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_map(type_):
        sizes = _cumulative(array.values)[np.asarray(array.offsets)]
        return np.asarray(sizes - sizes[0], np.int64)
    if pa.types.is_struct(type_):
        fields = [np.zeros(len(array) + 1, np.int64), *map(_cumulative, array.flatten())]
        return np.asarray(np.sum(fields, axis=0), np.int64)
    return np.arange(len(array) + 1, dtype=np.int64) * _width(type_)


def _has_bytes(type_: pa.DataType) -> bool:
    return any(
        is_(type_) for is_ in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )


def _width(type_: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(type_):
        return int(type_.list_size) * _width(type_.value_type)
    try:
        return -(-int(type_.bit_width) // 8)
    except ValueError:
        return _OTHER_BYTES
