"""JSON lines in blocks of some thousand: parsed by Arrow if all of them are simple, otherwise row by row.

Arrow parses a block about ten times faster than Python parses its lines, but it accepts or rejects the block as a whole, and
also accepts what is not JSON lines. `table` returns exactly what parsing row by row would return, and None if that is not
certain: then `row_by_row` finds the reason, or the new column.
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
_WHOLE = 2**53  # a double represents every integer below it


def row_by_row(name: str, first: int, block: Sequence[bytes], options: ReadOptions = DEFAULT_READING) -> list[Item]:
    """Parse lines, starting at line number `first` of the file. `name` is the file's name in messages."""
    return [json_rows.parse_json(name, number, line, options) for number, line in enumerate(block, first) if line.strip()]


def table(block: Sequence[bytes], schema: pa.Schema) -> pa.Table | None:
    """Parse lines into a table with the given schema, one row per line. None: parse them row by row; some may be blank."""
    content = b"".join(block)
    simple = all(map(_is_simple, schema)) and LongLine not in set(map(type, block))
    if not simple or not _is_one_object_a_line(content, len(block)):
        return None
    try:
        content.decode("utf-8")  # Arrow does not check it
        parsing = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        reading = pj.ReadOptions(use_threads=False, block_size=len(content))  # threads only parse several blocks in parallel
        parsed = pa.table(pj.read_json(pa.BufferReader(content), reading, parsing).columns, schema=schema)
    except (pa.ArrowException, ValueError, OverflowError):
        return None
    if parsed.num_rows != len(block) or not all(_is_exact(chunk) for column in parsed.columns for chunk in column.chunks):
        return None
    return parsed


def _is_one_object_a_line(content: bytes, count: int) -> bool:
    """Return whether each line is one object, given that Arrow finds only objects, and as many as lines.

    To Arrow, a line end is whitespace, and a line may contain several objects. But a { cannot follow a } that does not end its
    object. So if each line ends with } and each next line starts with {, no object spans two lines.
    """
    ends = content.count(b"}\n{") + content.count(b"}\r\n{")
    # Arrow skips a UTF-8 byte order mark, and treats NUL as end of input
    odd = not content.startswith(b"{") or b"\0" in content
    return ends == count - 1 and not odd


def _is_simple(field: pa.Field) -> bool:
    """Return whether Arrow accepts exactly the JSON values of a column's type. For times, for example, it would parse text."""
    if pa.types.is_struct(field.type):
        return all(map(_is_simple, field.type))
    if pa.types.is_list(field.type):  # for lists of nulls, Arrow's own count is wrong
        return not pa.types.is_null(field.type.value_type) and _is_simple(field.type.value_field)
    return field.type in _SIMPLE and field.metadata != JSON_FIELD


def _is_exact(array: pa.Array) -> bool:
    """Return whether parsing row by row would return the same values and types.

    1. Objects without any value may have no keys: such a column is one of JSON text.
    2. A double may come from an integer that is too large for it, from Inf, which is not JSON, or from the integer -0.
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
