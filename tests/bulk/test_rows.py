"""Rows of JSON, CSV and text as Arrow tables: valid and rejected rows with reasons, and column types."""

import json

import pyarrow as pa
import pytest

from penult.bulk.input.columns import JSON_FIELD, infer, merge, to_table
from penult.bulk.input.csv_rows import columns_of, read_csv
from penult.bulk.input.json_rows import parse_json
from penult.bulk.input.rows import Rejected, Row
from penult.bulk.input.text_rows import read_text


def test_a_line_of_json():
    """A line that is not an object is rejected with its number and reason; its record is as much as could be read."""
    bad = [b'{"a": "\xff"}\n', b"[1]\n", b'{"a"\n', b"[" * 100_000]
    assert parse_json("here", 1, b'{"a": 1}\n') == Row(1, {"a": 1})
    found = [parse_json("here", number, line) for number, line in enumerate(bad, 4)]
    assert [(r.file, r.line) for r in found] == [("here", 4), ("here", 5), ("here", 6), ("here", 7)]
    reasons = [r.reason for r in found]
    assert reasons[:2] == ["is not UTF-8 at byte 7", "is a JSON list, not an object"]
    assert reasons[2].startswith("is not valid JSON: ")
    assert reasons[3].startswith("is not valid JSON: maximum recursion")
    assert found[0].record == '{"a": "\\xff"}'
    assert json.loads(found[0].as_json())["reason"] == reasons[0]
    assert Rejected("here", 1, "\u00e9", {"a": "\ud800", "b": b"x"}).as_json().isascii()


def test_comma_separated_rows(tmp_path):
    """Values are unchanged text; a row of another length is rejected with the number of its last line."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\n1,"x\ny"\n\n1,2,3\n4\n5,\xff\n')
    rows = list(read_csv(path, "here"))
    assert [type(row) for row in rows] == [Row, Rejected, Rejected, Row]
    assert rows[0] == Row(3, {"a": "1", "b": "x\ny"})
    assert (rows[1].line, rows[1].reason, rows[1].record) == (5, "has 3 fields, but the header has 2", ["1", "2", "3"])
    assert (rows[2].line, rows[2].reason) == (6, "has 1 fields, but the header has 2")
    assert columns_of(path, "here") == ["a", "b"]
    path.write_text("a,a\n1,2\n")
    with pytest.raises(ValueError, match=r"The header of here has duplicate columns: \['a', 'a'\]"):
        list(read_csv(path, "here"))
    path.write_text("")
    assert list(read_csv(path, "here")) == []
    assert columns_of(path, "here") == []
    path.write_text('a,b\n"x"y,1\n"2,3\n')
    assert [row.values for row in read_csv(path, "here") if isinstance(row, Row)] == [{"a": "xy", "b": "1"}]
    path.write_text("a\n" + "x" * 200_000)
    assert [len(row.values["a"]) for row in read_csv(path, "here")] == [200_000]


def test_lines_of_text(tmp_path):
    """An empty line is an empty text; line ends of either kind are removed."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"x\r\n\n\xff\ny")
    first, second, third, last = read_text(path, "here")
    assert first == Row(1, {"file": "here", "line": 1, "text": "x"})
    assert (second.values["text"], last.line, last.values["text"]) == ("", 4, "y")
    assert (third.line, third.reason, third.record) == (3, "is not UTF-8 at byte 0", "\\xff")


def types(*rows, text="text"):
    return {f.name: "json" if f.metadata == JSON_FIELD else str(f.type) for f in infer([Row(1, row) for row in rows], text)}


def test_the_type_of_a_column():
    """The narrowest type for all values; JSON text if there is none; the text column is always text."""
    assert types({"text": 7, "a": 1, "b": None}, {"a": 2.5, "b": None}) == {"text": "string", "a": "double", "b": "null"}
    assert types({"a": 1}, {"a": "x"}) == {"a": "json"}
    assert types({"a": 10**30}) == {"a": "json"}
    assert types({"a": "x"}, {"a": "\ud800"}) == {"a": "string"}
    assert types({"a": [1]}, {"a": [2, 3]}) == {"a": "list<item: int64>"}
    assert types({"a": {}}) == {"a": "json"}
    assert types({"a": [{}]}) == {"a": "json"}
    assert types({"a": {"b": 1}}) == {"a": "struct<b: int64>"}
    assert types({"a": {"b": {}}}) == {"a": "json"}
    assert types({"a": {f"k{i}": i for i in range(100)}})["a"].startswith("struct")
    assert types({"a": {f"k{i}": i for i in range(101)}}) == {"a": "json"}


def test_fields_of_several_files():
    """Types of one column are merged to one that fits both, else to JSON text, which absorbs all others."""
    whole, half, text, nothing = (pa.field("a", kind) for kind in (pa.int64(), pa.float64(), pa.string(), pa.null()))
    free = pa.field("a", pa.string(), metadata=JSON_FIELD)
    assert merge([whole]) == whole
    assert merge([nothing, whole]).type == pa.int64()
    assert merge([whole, half]).type == pa.float64()
    assert merge([whole, text]).metadata == JSON_FIELD
    assert merge([whole, free]).metadata == JSON_FIELD
    assert merge([free, whole]).metadata == JSON_FIELD
    words, numbers = (pa.field("a", pa.dictionary(pa.int32(), kind)) for kind in (pa.string(), pa.int64()))
    assert merge([words, words]) == words
    assert merge([words, text]).type == merge([text, words]).type == pa.string()
    assert merge([numbers, half]).type == merge([half, numbers]).type == pa.float64()
    assert merge([numbers, text]).metadata == merge([text, numbers]).metadata == JSON_FIELD
    wide = [pa.field("a", pa.struct([(f"{side}{i}", pa.int64()) for i in range(60)])) for side in "ab"]
    assert merge(wide[:1]) == wide[0]
    assert merge(wide).metadata == JSON_FIELD


def test_rows_that_do_not_fit():
    """They are rejected one by one with their value; the others are in the table, JSON columns as JSON text."""
    schema = pa.schema(
        [pa.field("text", pa.string()), pa.field("n", pa.int64()), pa.field("j", pa.string(), metadata=JSON_FIELD)]
    )
    rows = [
        Row(1, {"text": "a", "n": 1, "j": {"k": "\u00e9"}}),
        Row(2, {"text": 7, "n": 1}),
        Row(3, {"text": "b", "n": "x" * 100}),
        Row(5, {"text": "\ud800"}),
        Row(6, {"n": 10**30}),
        Row(9, {}),
    ]
    table, lines, rejected = to_table("here", rows, schema)
    assert table.to_pylist() == [{"text": "a", "n": 1, "j": '{"k": "\u00e9"}'}, {"text": None, "n": None, "j": None}]
    assert lines == [1, 9]
    assert [(r.file, r.line, r.record) for r in rejected] == [("here", row.line, row.values) for row in rows[1:5]]
    assert [r.reason for r in rejected] == [
        "has the value 7 (int) in column 'text', not text",
        f"has the value '{'x' * 39} (str) in column 'n', not int64",
        "has a 'text' that is not valid Unicode: it contains a lone surrogate or bytes that are not UTF-8",
        f"has the value {10**30} (int) in column 'n', not int64",
    ]
    whole, lines, rejected = to_table("here", rows[:1], schema)
    assert (whole.num_rows, lines, rejected) == (1, [1], [])
