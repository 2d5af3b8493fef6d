"""JSON lines, some thousand at once: in one go where all of them are plain, else row by row.

Arrow reads a block of lines some ten times faster than Python reads them one by one, but takes it or refuses it as a whole,
and would take what is no JSON line. `table` gives only what reading row by row gives, and None wherever that is not certain:
then `row_by_row` finds the reason, or the column that was not known.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from penult.bulk.input import json_rows
from penult.bulk.input.columns import JSON_FIELD
from penult.bulk.input.rows import Item
from penult.bulk.input.streams import LongLine
from penult.bulk.options import DEFAULT_READING, ReadOptions

_SIMPLE = (pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.null())
_WHOLE = 2**53  # below it, a double holds every whole number


def row_by_row(name: str, first: int, block: Sequence[bytes], options: ReadOptions = DEFAULT_READING) -> list[Item]:
    """Read lines, the first of which is the `first` of its file. `name` is how the user knows the file."""
    return [json_rows.parse_json(name, number, line, options) for number, line in enumerate(block, first) if line.strip()]


def table(block: Sequence[bytes], schema: pa.Schema) -> pa.Table | None:
    """Turn lines into a table of the given columns, a row each. None: read them row by row; some may be blank."""
    whole = b"".join(block)
    simple = all(map(_is_simple, schema)) and LongLine not in set(map(type, block))
    if not simple or not _is_one_object_a_line(whole, len(block)):
        return None
    try:
        whole.decode("utf-8")  # Arrow does not look
        parsing = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        reading = pj.ReadOptions(use_threads=False, block_size=len(whole))  # threads only parse several blocks side by side
        found = pa.table(pj.read_json(pa.BufferReader(whole), reading, parsing).columns, schema=schema)
    except (pa.ArrowException, ValueError, OverflowError):
        return None
    if found.num_rows != len(block) or not all(_is_exact(chunk) for column in found.columns for chunk in column.chunks):
        return None
    return found


def _is_one_object_a_line(whole: bytes, count: int) -> bool:
    """Say whether lines hold an object each, if Arrow finds nothing but objects and as many as there are lines.

    To Arrow, a line's end is a blank, and objects may follow each other in a line. But after a } that does not end its object,
    no { may come: so where lines end with } and the next begin with {, no object goes on from one line to the next.
    """
    ends = whole.count(b"}\n{") + whole.count(b"}\r\n{")
    odd = not whole.startswith(b"{") or b"\0" in whole  # Arrow leaves out a mark of UTF-8, and at a NUL takes the input to end
    return ends == count - 1 and not odd


def _is_simple(field: pa.Field) -> bool:
    """Say whether Arrow takes for a column exactly the values that JSON has for it: it would read a time from text, say."""
    if pa.types.is_struct(field.type):
        return all(map(_is_simple, field.type))
    if pa.types.is_list(field.type):  # of nulls, Arrow's own count is off
        return not pa.types.is_null(field.type.value_type) and _is_simple(field.type.value_field)
    return field.type in _SIMPLE and field.metadata != JSON_FIELD


def _is_exact(array: pa.Array) -> bool:
    """Say whether row by row all values would be the same, and their type no other.

    1. Objects of which no key has a value may have no keys: such a column is one of JSON text.
    2. A double may come from a whole number that is too large for one, from Inf, which is no JSON, or from a whole -0.
    """
    if pa.types.is_struct(array.type):
        values = array.flatten()
        empty = array.null_count < len(array) and all(value.null_count == len(value) for value in values)
        return not empty and all(map(_is_exact, values))
    if pa.types.is_list(array.type):
        return _is_exact(array.flatten())
    if not pa.types.is_float64(array.type):
        return True
    values = np.asarray(array.drop_null())
    return bool(((np.abs(values) < _WHOLE) & ((values != 0) | ~np.signbit(values))).all())
