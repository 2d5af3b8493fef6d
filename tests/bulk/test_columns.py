"""Columns of unusual types, in one file or differing between files: kept with their values, or an error before any work."""

from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk.jobs import lance_table, rejected

TEXTS = ["a cat", "the dog", None, "moon", "fish"]
LETTERS = ["x", "y", "x", None, "z"]


def write(path, **columns):
    try:
        pq.write_table(pa.table({"text": TEXTS} | columns), path)
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"this pyarrow has no such column in Parquet: {error}")
    return path


@pytest.mark.parametrize("ending", ["parquet", "lance"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array([Decimal("1.10"), None, Decimal("-2.25"), Decimal(10) ** 30, Decimal(0)], pa.decimal128(38, 2)),
        pa.array(LETTERS).dictionary_encode(),
        pa.array([{"x": [{"y": Decimal("1.5")}]}, None, {"x": None}, {"x": []}, {"x": [None]}]),
        pa.array([1, 2, None, 4, 5], pa.timestamp("us", "Europe/Berlin")),
        pa.array(LETTERS, pa.string_view()),
        pa.array([b"\xff", None, b"", b"x", b"y"], pa.large_binary()),
        pa.array([[("k", 1)], None, [], [("a", 2), ("b", None)], []], pa.map_(pa.string(), pa.int64())),
    ],
    ids=lambda column: str(column.type).partition("<")[0] if isinstance(column, pa.Array) else column,
)
def test_a_rejected_row_leaves_the_others_unchanged(job, tmp_path, ending, column):
    """Whatever type a column has, Parquet and Lance get all values except those of rejected rows."""
    if ending == "lance":
        pytest.importorskip("lance", reason="the extra `lance` is not installed")
    out = tmp_path / f"out.{ending}"
    job(write(tmp_path / "in.parquet", column=column), out=out.name, shard_rows=2)
    table = lance_table(out) if ending == "lance" else pq.read_table(out)
    expected = column.to_pylist()
    del expected[2]
    assert table.column("column").to_pylist() == expected
    assert table.column("text").to_pylist() == ["a cat", "the dog", "moon", "fish"]
    assert [row["line"] for row in rejected(out)] == [3]


def test_a_dictionary_and_plain_values_of_one_column(job, tmp_path):
    """Files with the same column as a dictionary and as plain text can be combined, also for the text column."""
    write(tmp_path / "a.parquet", kind=LETTERS)
    texts = pa.array(TEXTS).dictionary_encode()
    pq.write_table(pa.table({"text": texts, "kind": pa.array(LETTERS).dictionary_encode()}), tmp_path / "b.parquet")
    job(tmp_path / "a.parquet", tmp_path / "b.parquet", shard_rows=3)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("kind").to_pylist() == ["x", "y", None, "z"] * 2
    assert table.column("text").to_pylist() == ["a cat", "the dog", "moon", "fish"] * 2


def test_a_column_without_nulls_that_another_file_lacks(job, tmp_path):
    """A column that is declared not nullable gets nulls for the rows of a file that lacks it."""
    schema = pa.schema([pa.field("text", pa.string()), pa.field("n", pa.int64(), nullable=False)])
    pq.write_table(pa.table([TEXTS, range(5)], schema=schema), tmp_path / "a.parquet")
    write(tmp_path / "b.parquet")
    job(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert pq.read_table(tmp_path / "out.parquet").column("n").to_pylist() == [0, 1, 3, 4] + [None] * 4
    job(tmp_path / "a.parquet", out="one.parquet")
    assert not pq.read_schema(tmp_path / "one.parquet").field("n").nullable


@pytest.mark.parametrize("opening", ['{"a":', "["])
def test_deeply_nested_values_become_json_text(job, tmp_path, opening):
    """Arrow writes a column of 200 levels but cannot read it."""
    closing = "}" if opening == '{"a":' else "]"
    value = f"{opening * 200}1{closing * 200}"
    (tmp_path / "in.jsonl").write_text(f'{{"text": "cat", "d": {value}}}\n{{"text": "dog"}}\n')
    assert job(tmp_path / "in.jsonl").totals.rows == 2
    assert pq.read_table(tmp_path / "out.parquet")["d"].to_pylist() == [value.replace(":", ": "), None]


def test_unsupported_columns_are_an_early_error(job, tmp_path):
    """Duplicate columns, a name that Lance does not support and empty input are errors before any work."""
    twice = pa.Table.from_arrays([pa.array(TEXTS), pa.array(TEXTS)], ["text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match=r"twice\.parquet has duplicate columns"):
        job(tmp_path / "twice.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="The input is empty"):
        job(tmp_path / "empty.jsonl")
    pytest.importorskip("lance", reason="the extra `lance` is not installed")
    write(tmp_path / "in.parquet", **{"a.b": LETTERS})
    with pytest.raises(ValueError, match=r"out\.lance cannot be written: .*a\.b"):
        job(tmp_path / "in.parquet", out="out.lance")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.jsonl", "in.parquet", "twice.parquet"]
