"""JSON Lines parsed in blocks: exactly the result of row by row, or none."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk.jobs import half_done, rejected
from hypothesis import given
from hypothesis import strategies as st

from penult.bulk.input import columns, input_files, jsonl, readers, sources, streams
from penult.bulk.input.rows import Rejected, Row
from penult.bulk.job.errors import StoppedError
from penult.bulk.options import DEFAULT_READING

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("n", pa.int64()),
        ("x", pa.float64()),
        ("b", pa.bool_()),
        ("o", pa.struct([("k", pa.string()), ("v", pa.float64())])),
        ("l", pa.list_(pa.int64())),
        ("z", pa.null()),
    ]
)


def test_lines_of_a_file(tmp_path):
    """Blank lines are not rows but count as lines, and a UTF-8 byte order mark is not text."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": 2}')
    block = list(streams.lines(path, DEFAULT_READING))
    assert block[0] == b'{"a": 1}\n'
    assert jsonl.row_by_row("here", 1, block) == [Row(1, {"a": 1}), Row(4, {"a": 2})]
    path.write_bytes(b'\xef\xbb\xbf\n\xef\xbb\xbf{"a": 2}')
    assert [row.line for row in jsonl.row_by_row("here", 1, list(streams.lines(path, DEFAULT_READING)))] == [2]
    assert jsonl.table(list(streams.lines(path, DEFAULT_READING))[1:], pa.schema([("a", pa.int64())])) is None
    path.write_bytes(b"")
    assert list(streams.lines(path, DEFAULT_READING)) == []


def one_by_one(block, schema):
    items = jsonl.row_by_row("here", 1, block)
    table, _, misfits = columns.to_table("here", [item for item in items if isinstance(item, Row)], schema)
    return table, [item for item in items if isinstance(item, Rejected)] + misfits


PLAIN = [
    b'{"text": "a cat", "n": 1, "x": 2.5, "b": true, "o": {"k": "y", "v": 1}, "l": [1, 2], "z": null}\n',
    b'{"text": "2020-01-01", "o": null, "l": [null, 1]}\n',
    b'{"l": [], "o": {"v": -1e-10}, "n": null, "text": ""}\n',
    b"{}\n",
    '{"t\\u0065xt": "\\ud83d\\ude00\\u0000}\\n{ 日本"}\n'.encode(),
    b'{"x": 9007199254740991, "n": -0}\n',
    b'{"x": 5e-324, "n": -9223372036854775808, "b": false}\n',
]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_simple_lines_are_parsed_in_one_block(end):
    """Text, numbers, booleans, objects and lists, in any order or missing: each value is exact."""
    block = [line.replace(b"\n", end) for line in PLAIN]
    block[-1] = block[-1].strip()
    whole = jsonl.table(block, SCHEMA)
    expected, bad = one_by_one(block, SCHEMA)
    assert bad == []
    assert repr(whole.to_pylist()) == repr(expected.to_pylist())
    assert whole.schema.equals(SCHEMA)


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": 5}',
        b'{"n": 1.0}',
        b'{"n": 9223372036854775808}',
        b'{"b": 1}',
        b'{"z": 0}',
        b'{"new": 1}',
        b'{"o": {"new": 1}}',
        b'{"o": 1}',
        b'{"n": 1, "n": 2}',
        b'{"text": "half \\ud800"}',
        b'{"text": "\xff"}',
        b'{"text": "a\tb"}',
        b'{"text": "cut',
        b'{"n": 1} ',
        b'{"n": 1}{"n": 2}',
        b'{"n": 1}\0}',
        b"[1]",
        b"null",
        b'{"x": NaN}',
        b'{"x": Inf}',
        b'{"x": -0}',
        b'{"x": 9007199254740993}',
        b'{"o": {"v": 9007199254740993}}',
        b'{"x": 1e400}',
    ],
)
def test_one_line_that_is_not_simple(line):
    """If a line is not an object, or Arrow would read it differently, the block is read row by row."""
    assert jsonl.table([PLAIN[0], line + b"\n", PLAIN[0]], SCHEMA) is None


def test_objects_are_counted_by_lines():
    """Two objects on one line, and one object on two lines, are not mistaken for one object per line."""
    assert jsonl.table([b'{"n":\n', b'1}{"n": 2}\n'], SCHEMA) is None
    assert jsonl.table([b'{"n": 1}{"n": 2}\n', b'{"n": 3}\0}\n', b'{"n": 4}\n'], SCHEMA) is None
    assert jsonl.table([b'{"n": 1}\n', b'{"n": 2} '], SCHEMA).num_rows == 2
    assert jsonl.table([b'{"n": 1}{"n": 2}'], SCHEMA) is None
    assert jsonl.table([b" \n"], SCHEMA) is None


def test_columns_that_arrow_reads_differently():
    """Arrow would parse times from text, accept only text as JSON text, and miscount lists of nulls."""
    assert jsonl.table([b'{"t": "2020-01-01"}\n'], pa.schema([("t", pa.timestamp("s"))])) is None
    assert jsonl.table([b'{"t": "x"}\n'], pa.schema([pa.field("t", pa.string(), metadata=columns.JSON_FIELD)])) is None
    assert jsonl.table([b'{"t": ["2020-01-01"]}\n'], pa.schema([("t", pa.list_(pa.timestamp("s")))])) is None
    assert jsonl.table([b'{"t": [null, null]}\n'], pa.schema([("t", pa.list_(pa.null()))])) is None
    assert jsonl.table([b"{}\n"], pa.schema([])) is None
    assert jsonl.table([b'{"o": {}}\n', b'{"o": {"k": null}}\n', b"{}\n"], SCHEMA) is None  # alone, no column but JSON text
    assert jsonl.table([b'{"o": {}}\n', b'{"o": {"k": "x"}}\n', b"{}\n"], SCHEMA) is not None
    assert jsonl.table([b'{"o": null}\n', b"{}\n"], SCHEMA) is not None


NUMBERS = st.sampled_from(["0", "-0", "-0.0", "7", "2.5", "1e5", "1E400", "9007199254740993", str(10**30), "NaN", "Inf", "01"])
TEXTS = st.sampled_from(['""', '"x"', '"2020-01-01"', '"}\\n{"', '"\\ud83d\\ude00"', '"\\ud800"', '"\t"', '"é"'])
SCALARS = st.one_of(
    st.just("null"), st.sampled_from(["true", "false"]), NUMBERS, TEXTS, st.integers(-9, 9).map(str), st.floats(-9, 9).map(repr)
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
    st.dictionaries(st.sampled_from("kv"), SCALARS).map(lambda some: object_of(some.items())),
)
KEYS = st.sampled_from(["text", "n", "", "é"])


def object_of(pairs):
    return "{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}"


def mostly(values, kind):
    """Blocks of lines whose columns mostly have one type each, with random bytes inserted."""
    column = st.tuples(KEYS, st.sampled_from(kind))
    return st.lists(column, min_size=1, max_size=3, unique_by=lambda pair: pair[0]).flatmap(
        lambda columns: st.lists(
            st.tuples(*(st.tuples(st.just(key), st.one_of(kind, kind, kind, values)) for key, kind in columns)).map(object_of),
            min_size=1,
            max_size=5,
        )
    )


KINDS = [
    TEXTS,
    st.integers(-9, 9).map(str),
    st.floats(-9, 9).map(repr),
    st.dictionaries(st.sampled_from("kv"), st.integers(-9, 9).map(str)).map(lambda some: object_of(some.items())),
    st.lists(st.integers(-9, 9).map(str), max_size=3).map(lambda items: f"[{', '.join(items)}]"),
]
NOISE = st.sampled_from([b"", b"", b"", b"\n", b"\0", b"}", b"{", b"}{", b"}\n{", b",", b"\xff", b"\r", b" ", b"[", b'"'])


def looked(file):
    scan = readers._scan_rows(file, "text", lambda _: None)
    return scan.schema, scan.sizes.rows


@given(mostly(VALUES, KINDS), NOISE, st.floats(0, 1), st.sampled_from([1, 2, 4096]))
def test_blocks_equal_row_by_row(tmp_path_factory, lines, noise, place, together):
    """Whatever a file contains, its columns and rows are those of reading row by row."""
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    data = "\n".join(lines).encode()
    at = int(place * len(data))
    path.write_bytes(data[:at] + noise + data[at:])
    file = input_files.opened(path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(readers, "BLOCK", together)
        found = looked(file)
        patched.setattr(jsonl, "table", lambda *_: None)
        expected = looked(file)
    assert found[0].equals(expected[0], check_metadata=True)
    assert found[1] == expected[1]
    schema = readers._merged_schema([file], [found[0]])
    block = list(streams.lines(path, DEFAULT_READING))
    whole = jsonl.table(block, schema) if block else None
    if whole is not None:
        rows_, bad = one_by_one(block, schema)
        assert bad == []
        assert repr(whole.to_pylist()) == repr(rows_.to_pylist())


def test_late_columns_and_types(job, tmp_path, monkeypatch):
    """A column that starts late, a changed type and invalid lines have the same effect as at the start."""
    monkeypatch.setattr(readers, "BLOCK", 4)
    monkeypatch.setattr(sources, "BLOCK", 4)
    lines = [json.dumps({"text": f"cat {n}", "n": n, "any": n}) for n in range(40)]
    lines[17] = json.dumps({"text": "late", "new": {"k": [1]}})
    lines[22] = json.dumps({"text": "half", "n": 0.5})
    lines[26] = "{"
    lines[30] = json.dumps({"text": "mixed", "any": "x", "new": {"j": 1}})
    lines[33] = json.dumps({"text": None})
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    job(tmp_path / "in.jsonl", shard_rows=6)
    table = pq.read_table(tmp_path / "out.parquet").drop_columns(["embedding"])
    good = [json.loads(line) for number, line in enumerate(lines) if number not in (26, 33)]
    new = pa.struct([("k", pa.list_(pa.int64())), ("j", pa.int64())])
    assert table.schema.types == [pa.string(), pa.float64(), pa.string(), new]
    assert table.column("text").to_pylist() == [row["text"] for row in good]
    assert table.column("n").to_pylist() == [row.get("n") for row in good]
    assert table.column("any").to_pylist() == [json.dumps(row["any"]) if "any" in row else None for row in good]
    assert [row for row in table.column("new").to_pylist() if row] == [{"k": [1], "j": None}, {"k": None, "j": 1}]
    assert [(row["line"], row["reason"].partition(":")[0]) for row in rejected(tmp_path / "out.parquet")] == [
        (27, "is not valid JSON"),
        (34, "is a NoneType, not a str"),
    ]


def test_blank_lines_among_the_rows(job, tmp_path, monkeypatch):
    """They are not rows but count as lines, also when a job resumes from the middle."""
    monkeypatch.setattr(sources, "BLOCK", 4)
    lines = [json.dumps({"text": f"cat {n}" if n % 10 else None}) + "\n" * (1 + n % 3) for n in range(60)]
    (tmp_path / "in.jsonl").write_text("\n" * 9 + "".join(lines) + " \n")
    with half_done(monkeypatch), pytest.raises(StoppedError, match="32 of 60 rows"):
        job(tmp_path / "in.jsonl", shard_rows=16)
    job(tmp_path / "in.jsonl")
    texts = pq.read_table(tmp_path / "out.parquet").column("text").to_pylist()
    assert texts == [f"cat {n}" for n in range(60) if n % 10]
    numbers = [n for n, line in enumerate((tmp_path / "in.jsonl").read_text().splitlines(), 1) if "null" in line]
    assert [row["line"] for row in rejected(tmp_path / "out.parquet")] == numbers


def test_a_file_that_ends_before_the_row_to_resume_from(tmp_path):
    """It returns no rows, and its reader raises an error."""
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    file = input_files.opened(tmp_path / "in.jsonl")
    assert sources.opened(file, pa.schema([("text", pa.string())]), 2).take(4).table.num_rows == 0
    assert sources.opened(file, pa.schema([("text", pa.string())]), 3).take(4).table.num_rows == 0
