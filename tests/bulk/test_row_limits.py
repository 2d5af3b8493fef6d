"""Rows that are too long or do not fit, in every format: rejected with their line, in bounded memory."""

import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk.jobs import half_done, lance_table, rejected

from penult.bulk.input import input_files, readers, shard_sizes, sources
from penult.bulk.input.shard_sizes import Sizes
from penult.bulk.job.errors import StoppedError
from penult.bulk.options import ReadOptions

LONG = "word " * 4000
TEXTS = ["a cat", LONG, "the dog", "moon", LONG, "fish"]
REASON = "has more than 10,000 bytes, the limit of --max-row-bytes"
SHORT = ReadOptions(max_row_bytes=10_000)


def write(path, texts=TEXTS):
    if path.suffix == ".lance":
        lance = pytest.importorskip("lance", reason="the extra `lance` is not installed")
        lance.write_dataset(pa.table({"text": texts}), str(path))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        content = {
            ".jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts),
            ".json": json.dumps([{"text": text} for text in texts]),
            ".csv": "\n".join(["text", *texts]),
            ".tsv": "\n".join(["text", *texts]),
            ".txt": "\n".join(texts),
        }
        path.write_text(content[path.suffix])
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "txt", "parquet", "lance"])
def test_a_row_that_is_too_long(job, tmp_path, monkeypatch, ending):
    """It is rejected with its line and its beginning, the others are embedded; a resumed job rejects the same rows."""
    source = write(tmp_path / f"in.{ending}")
    with half_done(monkeypatch), pytest.raises(StoppedError, match="4 of 6"):
        job(source, reading=SHORT, shard_rows=2)
    done = job(source, reading=SHORT)
    assert (done.totals.rows, done.totals.rejected) == (4, 2)
    assert pq.read_table(tmp_path / "out.parquet").column("text").to_pylist() == [text for text in TEXTS if text != LONG]
    rows = rejected(tmp_path / "out.parquet")
    first = 3 if ending in ("csv", "tsv") else 2
    assert [(row["line"], row["reason"]) for row in rows] == [(first, REASON), (first + 3, REASON)]
    assert all(500 < len(json.dumps(row["record"])) < 1100 for row in rows)
    assert job(source, out="all.parquet").totals.rows == 6


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.binary(), "dictionary", "object", "list"])
def test_long_rows_of_any_type(tmp_path, kind):
    """The size is that of the row's values, not of the data that a dictionary, a view or a slice refers to."""
    texts = ["a", LONG, *["b"] * 50, LONG]
    array = pa.array(texts) if isinstance(kind, str) else pa.array(texts).cast(kind)
    if kind == "dictionary":
        array = array.dictionary_encode()
    elif kind == "object":
        array = pa.StructArray.from_arrays([array], ["inner"])
    elif kind == "list":
        array = pa.array([[text] for text in texts])
    try:
        pq.write_table(pa.table({"text": ["t"] * 53, "other": array}), tmp_path / "in.parquet")
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"this pyarrow has no such column in Parquet: {error}")
    file = input_files.opened(tmp_path / "in.parquet", options=SHORT)
    shard = next(readers.shards([file], readers.scan([file], "text", 53)))
    assert [row.line for row in shard.rejected] == [2, 53]
    assert shard.table.num_rows == 51
    assert shard.place(1) == (file.name, 3)


@pytest.mark.parametrize("content", [b"x" * 30_000_000, b"\n".join([b"y", b"x" * 30_000_000, b'{"text": "z"}'])])
@pytest.mark.parametrize("format_", ["jsonl", "csv", "text", "json"])
def test_an_endless_line_is_never_fully_in_memory(tmp_path, format_, content):
    """Of 30 MB, some hundred kilobytes are in memory; lines after it are read."""
    path = tmp_path / "in.dat"
    path.write_bytes({"json": b"[%b]", "csv": b"text\n%b"}.get(format_, b"%b") % content)
    file = input_files.opened(path, format_, options=ReadOptions(max_row_bytes=100_000))
    source = sources.opened(file, pa.schema([("text", pa.string())]), 0)
    reasons = []
    tracemalloc.start()
    try:
        while (shard := source.take(10)).table.num_rows or shard.rejected:
            reasons += [row.reason for row in shard.rejected]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert "has more than 100,000 bytes, the limit of --max-row-bytes" in reasons


def test_numbers_that_do_not_fit_the_common_type(job, tmp_path):
    """An integer that no double represents, a time outside the range of nanoseconds: the row is rejected, the job continues."""
    huge, year = 2**53 + 1, 253_402_300_800_000
    one = pa.table({"text": ["a", "b", "c"], "n": [1, huge, 3], "t": pa.array([0, 0, year], pa.timestamp("ms"))})
    other = pa.table({"text": ["d"], "n": [0.5], "t": pa.array([1], pa.timestamp("ns"))})
    pq.write_table(one, tmp_path / "a.parquet")
    pq.write_table(other, tmp_path / "b.parquet")
    job(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert pq.read_table(tmp_path / "out.parquet").column("text").to_pylist() == ["a", "d"]
    rows = rejected(tmp_path / "out.parquet")
    assert [row["line"] for row in rows] == [2, 3]
    assert all(row["reason"].startswith("does not fit the common column types of all files: ") for row in rows)
    assert rows[0]["record"]["n"] == huge


def test_long_texts_that_come_late(tmp_path):
    """They reduce the rows per shard, so that no shard exceeds the maximum bytes."""
    path = tmp_path / "in.jsonl"
    with path.open("w") as file:
        for _ in range(9000):
            file.write('{"text": "short"}\n')
        for _ in range(300):
            file.write('{"text": "%s"}\n' % ("long " * 20_000))
    scanned = readers.scan([input_files.opened(path)], "text")
    assert scanned.shard_rows == 512  # 4096 without the long ones: 30 MB are less than the most, so it is the mean that decides
    sizes = Sizes().add(9000, 9000 * 20).add(3000, 3000 * 1_000_000)
    assert sizes.max_rows() == 128
    assert Sizes().add(64, 64 * 8_000_000).max_rows() == 16
    assert Sizes().add(10, 100).max_rows() >= 4096
    assert Sizes().max_rows() >= 4096
    whole = Sizes()
    for part in (Sizes().add(100, 1000), Sizes().add(30, 10), Sizes().add(0, 0)):
        whole.extend(part)
    assert whole.rows == 130
    assert sum(whole._cells) == 1010


def test_long_rows_that_are_rejected(tmp_path, monkeypatch):
    """They are in memory with their shard, so they count for its size."""
    path = tmp_path / "in.csv"
    path.write_text("text,id\n" + "a,1\n" * 5000 + ("x" * 10_000 + "\n") * 600)
    assert readers.scan([input_files.opened(path)], "text").shard_rows == 256
    monkeypatch.setattr(shard_sizes, "_MAX_BYTES", 1 << 20)
    assert readers.scan([input_files.opened(path)], "text").shard_rows == 64


def test_texts_in_objects_and_bytes(job, tmp_path):
    """--text-column a.b reads a field of an object; bytes are read as UTF-8; all columns are unchanged."""
    texts = ["a cat", None, "moon"]
    struct = pa.array([{"b": {"c": text}} for text in texts])
    pq.write_table(pa.table({"a": struct}), tmp_path / "in.parquet")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"a": {"b": {"c": text}}}) + "\n" for text in [*texts, 5]))
    job(tmp_path / "in.parquet", tmp_path / "in.jsonl", text="a.b.c")
    assert pq.read_table(tmp_path / "out.parquet").column("a").to_pylist() == [
        {"b": {"c": text}} for text in ["a cat", "moon"] * 2
    ]
    assert [row["line"] for row in rejected(tmp_path / "out.parquet")] == [2, 4, 2]
    assert job(tmp_path / "in.parquet", text="a.b.c", out="again.parquet", old=tmp_path / "out.parquet").totals.taken == 2
    with pytest.raises(ValueError, match=r"The input has no column 'a\.c'\. Pass a text column with --text-column: a\.b\.c"):
        job(tmp_path / "in.parquet", text="a.c", out="none.parquet")
    pq.write_table(pa.table({"raw": pa.array([b"a cat", b"\xff", None], pa.binary())}), tmp_path / "raw.parquet")
    job(tmp_path / "raw.parquet", text="raw", out="raw_out.parquet")
    assert pq.read_table(tmp_path / "raw_out.parquet").column("raw").to_pylist() == [b"a cat"]
    assert len(rejected(tmp_path / "raw_out.parquet")) == 2
    (tmp_path / "dotted.csv").write_text("a.b,a\nthe text,x\n")
    job(tmp_path / "dotted.csv", text="a.b", out="dotted.parquet")
    assert pq.read_table(tmp_path / "dotted.parquet").num_rows == 1


def test_a_text_in_an_object_of_a_lance_dataset(job, tmp_path):
    """It is found and reused there too."""
    lance = pytest.importorskip("lance", reason="the extra `lance` is not installed")
    lance.write_dataset(pa.table({"a": [{"b": "a cat"}, {"b": "moon"}]}), str(tmp_path / "in.lance"))
    job(tmp_path / "in.lance", text="a.b", out="out.lance")
    assert lance_table(tmp_path / "out.lance").column("a").to_pylist() == [{"b": "a cat"}, {"b": "moon"}]
    assert job(tmp_path / "in.lance", text="a.b", old=tmp_path / "out.lance").totals.taken == 2


@pytest.mark.parametrize("other", [pa.string(), pa.large_string(), pa.binary()], ids=str)
def test_views_beside_other_strings(job, tmp_path, other):
    """A column with string views in one file and strings in another is merged, also in lists and objects."""
    try:
        for name, kind in (("a", pa.string_view()), ("b", other)):
            texts = pa.array(["a cat", "moon"]).cast(kind)
            nested = pa.StructArray.from_arrays([texts, pa.ListArray.from_arrays([0, 1, 2], texts)], ["one", "some"])
            pq.write_table(pa.table({"text": texts, "nested": nested}), tmp_path / f"{name}.parquet")
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"this pyarrow has no string views in Parquet: {error}")
    job(tmp_path / "a.parquet", tmp_path / "b.parquet")
    found = pq.read_table(tmp_path / "out.parquet").column("text").cast(pa.binary()).to_pylist()
    assert found == [b"a cat", b"moon"] * 2
