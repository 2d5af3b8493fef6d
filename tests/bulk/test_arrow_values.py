"""Arrow values that Python or JSON do not support: they are kept in every output, and never stop a job."""

import datetime as dt
import json
import math
import sys
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk.jobs import lance_table, rejected

from penult.bulk.arrow_values import rows_of, values_of
from penult.bulk.json_text import dumps

BASE = 1_500_000_000_000_000_000  # 2017-07-14 02:40:00 in nanoseconds
TIMES = [
    (pa.timestamp("ns"), [BASE + 1, BASE + 120, BASE + 1000], ["2017-07-14 02:40:00.000000001", "2017-07-14 02:40:00.000000120", "2017-07-14 02:40:00.000001"]),
    (pa.timestamp("ns", "Europe/Berlin"), [BASE + 1, BASE, -1], ["2017-07-14 04:40:00.000000001+02:00", "2017-07-14 04:40:00+02:00", "1970-01-01 00:59:59.999999999+01:00"]),
    (pa.timestamp("ns", "UTC"), [BASE + 1, BASE, 1], ["2017-07-14 02:40:00.000000001+00:00", "2017-07-14 02:40:00+00:00", "1970-01-01 00:00:00.000000001+00:00"]),
    (pa.time64("ns"), [1, 3_600_000_000_001, 0], ["00:00:00.000000001", "01:00:00.000000001", "00:00:00"]),
    (pa.duration("ns"), [1, 90_000_000_001, -1], ["0:00:00.000000001", "0:01:30.000000001", "-1 day, 23:59:59.999999999"]),
    (pa.timestamp("s"), [253_402_300_800, 0, -(10**11)], ["10000-01-01 00:00:00", "1970-01-01 00:00:00", "-1199-02-15 14:13:20"]),
    (pa.timestamp("us", "Europe/Berlin"), [253_402_300_799_000_000, 0, 1], ["9999-12-31 23:59:59+00:00", "1970-01-01 01:00:00+01:00", "1970-01-01 01:00:00.000001+01:00"]),
    (pa.date32(), [10**7, 0, 1], ["29349-01-26", "1970-01-01", "1970-01-02"]),
    (pa.duration("s"), [2**60, 0, 1], [f"{2**60} s", "0:00:00", "0:00:01"]),
]  # fmt: skip


def integers(values, kind):
    return pa.array(values, pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)


@pytest.mark.parametrize(("kind", "values", "expected"), TIMES, ids=lambda value: str(value).replace("/", "-")[:30])
def test_times_that_python_does_not_support(kind, values, expected):
    """Such times become text with all digits, also nested; other times are unchanged."""
    column = integers(values, kind)
    assert [str(value) for value in values_of(column)] == expected
    nested = pa.StructArray.from_arrays([column, pa.ListArray.from_arrays([0, 1, 2, 3], column)], ["one", "some"])
    assert json.loads(dumps(values_of(nested))) == [{"one": text, "some": [text]} for text in expected]
    maps = pa.MapArray.from_arrays([0, 1, 2, 3], pa.array(["k"] * 3), column)
    assert json.loads(dumps(values_of(maps))) == [[["k", text]] for text in expected]
    if kind.bit_width == 64 and not pa.types.is_duration(kind):
        dictionary = pa.DictionaryArray.from_arrays(pa.array([2, 0, None], pa.int8()), column)
        assert [value and str(value) for value in values_of(dictionary)] == [expected[2], expected[0], None]
    assert values_of(pa.array([None], kind)) == [None]


@pytest.mark.parametrize("pandas", [True, False])
@pytest.mark.parametrize("ending", ["parquet", "lance", "jsonl", "npy"])
def test_nanoseconds_in_every_output(job, tmp_path, monkeypatch, ending, pandas):
    """Rows with nanoseconds are written or rejected as usual, with pandas installed or not."""
    if ending == "lance":
        pytest.importorskip("lance", reason="the extra `lance` is not installed")
    if not pandas:
        monkeypatch.setitem(sys.modules, "pandas", None)
    columns = {f"c{n}": integers(values, kind) for n, (kind, values, _) in enumerate(TIMES)}
    if ending == "lance":
        columns = {name: column for name, column in columns.items() if not pa.types.is_date(column.type)}
    table = pa.table({"text": ["a cat", None, "moon"], **columns})
    pq.write_table(table, tmp_path / "in.parquet")
    done = job(tmp_path / "in.parquet", out=f"out.{ending}")
    assert (done.totals.rows, done.totals.rejected) == (2, 1)
    expected = {f"c{n}": texts for n, (_, _, texts) in enumerate(TIMES)}
    assert {name: rejected(tmp_path / f"out.{ending}")[0]["record"][name] for name in columns} == {
        name: expected[name][1] for name in columns
    }
    if ending in ("jsonl", "npy"):
        rows = tmp_path / {"jsonl": "out.jsonl", "npy": "out.npy.rows.jsonl"}[ending]
        found = [json.loads(line) for line in rows.read_text().splitlines()]
        assert [[row[name] for row in found] for name in columns] == [
            [expected[name][0], expected[name][2]] for name in columns
        ]
    else:
        found = lance_table(tmp_path / "out.lance") if ending == "lance" else pq.read_table(tmp_path / "out.parquet")
        kept = pa.concat_tables([table.slice(0, 1), table.slice(2, 1)])
        assert all(found.column(name).cast(kept.column(name).type).equals(kept.column(name)) for name in columns)


def strict(path):
    """Parse JSON lines as strict parsers do: NaN and Infinity are errors."""

    def refuse(constant):
        raise ValueError(constant)

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_nan_and_infinity_are_null_in_json(job, tmp_path):
    """In a column, a list, an object, JSON text and a rejected row; Parquet keeps them where it can."""
    nan, inf = math.nan, math.inf
    table = pa.table(
        {
            "text": ["a", "b", None],
            "x": [nan, 1.5, -inf],
            "half": pa.array(np.array([nan, 1, inf], np.float16)),
            "list": [[nan, 1.0], None, [inf]],
            "object": [{"v": inf, "w": [{"z": nan}]}, None, {"v": nan, "w": []}],
            "map": pa.array([[("k", nan)], [], [("k", inf)]], pa.map_(pa.string(), pa.float64())),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    for out, rows in (("out.jsonl", "out.jsonl"), ("out.npy", "out.npy.rows.jsonl")):
        job(tmp_path / "in.parquet", out=out)
        first, second = strict(tmp_path / rows)
        assert [first[name] for name in ("x", "half", "list", "object")] == [
            None,
            None,
            [None, 1.0],
            {"v": None, "w": [{"z": None}]},
        ]
        assert first["map"] == [["k", None]]
        assert (second["x"], second["half"]) == (1.5, 1.0)
        (record,) = strict(tmp_path / f"{out}.rejected.jsonl")
        assert record["record"]["list"] == [None]
    job(tmp_path / "in.parquet")
    assert str(pq.read_table(tmp_path / "out.parquet").column("x").to_pylist()) == "[nan, 1.5]"


def test_json_input_with_nan(job, tmp_path):
    """Python reads NaN from JSON; the output, JSON text included, is strict JSON."""
    (tmp_path / "in.jsonl").write_text(
        '{"text": "a", "x": NaN, "mixed": {"v": [Infinity]}}\n{"text": "b", "x": 1.5, "mixed": 5}\n'
    )
    job(tmp_path / "in.jsonl", out="out.jsonl")
    first = strict(tmp_path / "out.jsonl")[0]
    assert (first["x"], first["mixed"]) == (None, '{"v": [null]}')


def test_json_values():
    """JSON values are unchanged; values of other types become text, NaN and infinity null."""
    assert dumps({"a": [1, "\u00e9", None, True, 1e300]}) == '{"a": [1, "\u00e9", null, true, 1e+300]}'
    assert dumps([math.nan, (math.inf, b"\x00"), {"k": -math.inf}]) == '[null, [null, "AA=="], {"k": null}]'
    assert dumps([dt.date(2020, 1, 2), Decimal("1.10"), Decimal("NaN")]) == '["2020-01-02", "1.10", "NaN"]'


def test_text_that_is_not_utf_8(job, tmp_path):
    """In columns other than the text column, invalid bytes are escaped, and the job continues."""
    binary = pa.array([b"caf\xe9", b"good"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 2, binary.buffers())
    assert rows_of(pa.table({"a": broken})) == [{"a": "caf\\xe9"}, {"a": "good"}]
    pq.write_table(pa.table({"text": ["a", "b"], "a": broken}), tmp_path / "in.parquet")
    job(tmp_path / "in.parquet", out="out.jsonl")
    assert [row["a"] for row in strict(tmp_path / "out.jsonl")] == ["caf\\xe9", "good"]
