"""Outputs: rows as JSON lines with bit-exact vectors, Parquet row groups, and empty outputs."""

import datetime as dt
import decimal
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penult.bulk import lance_files, tables
from penult.bulk.job.record import rejected_path, shard_path
from penult.bulk.output import output_files, row_groups, writers


@pytest.mark.parametrize("together", [3, 1024])
def test_vectors_round_trip(monkeypatch, together):
    """Any finite float32 is bit-exact, also -0 and the smallest and largest, in any number of rows."""
    monkeypatch.setattr(writers, "_LINES", together)
    special = [0.0, -0.0, 1, -1, 0.1, 1e-5, 1e-45, 16_777_216, 1e15, 3.4028235e38, -1e-7, 1e21]
    bits = np.random.default_rng(0).integers(0, 2**32, 4_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([np.array(special, np.float32), bits[np.isfinite(bits)]])
    vectors = values[: len(values) // 4 * 4].reshape(-1, 4)
    table = tables.with_vectors(pa.table({"é": range(len(vectors))}), "v", vectors, {})
    rows = [json.loads(line) for line in writers._lines(table, "v")]
    assert [row["é"] for row in rows] == list(range(len(vectors)))
    assert np.array([row["v"] for row in rows], np.float32).tobytes() == vectors.tobytes()


def test_a_line_of_json():
    """Values in the fewest digits, after the other columns; without a vector column, those alone."""
    vectors = np.array([[0.1, -0.0, 1]], np.float32)
    table = tables.with_vectors(pa.table({"text": ["日本"]}), "v", vectors, {})
    assert list(writers._lines(table, "v")) == ['{"text": "日本", "v": [0.1, -0.0, 1]}\n'.encode()]
    assert list(writers._lines(table.drop_columns(["text"]), "v")) == [b'{"v": [0.1, -0.0, 1]}\n']
    assert list(writers._lines(table.drop_columns(["v"]))) == ['{"text": "日本"}\n'.encode()]
    assert list(writers._lines(table.slice(0, 0), "v")) == []
    narrow = tables.with_vectors(pa.table({"n": [1, 2]}), "v", np.array([[0.5], [2]], np.float32), {})
    assert list(writers._lines(narrow, "v")) == [b'{"n": 1, "v": [0.5]}\n', b'{"n": 2, "v": [2]}\n']


SIZES = [4, 4, 4, 9, 1, 20, 3]


def shards(folder, sizes, columns=("text", "vector")):
    """Write shards of these numbers of rows; return the schema and the whole table."""
    written = []
    for number, size in enumerate(sizes):
        vectors = np.random.default_rng(number).standard_normal((size, 3)).astype(np.float32)
        table = tables.with_vectors(
            pa.table({"text": pa.array([f"of shard {number}"] * size, pa.string())}), "vector", vectors, {"k": "v"}
        )
        table = table.select(list(columns))
        with pa.ipc.new_file(str(shard_path(folder, number)), table.schema) as writer:
            writer.write_table(table)
        written.append(table)
    return written[0].schema, pa.concat_tables(written)


def groups_of(path):
    """Return the rows of each group of a Parquet file."""
    with pq.ParquetFile(path) as file:
        return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]


@pytest.mark.parametrize(("most", "groups"), [(1, [1] * 45), (8, [8] * 5 + [5]), (44, [44, 1]), (45, [45]), (46, [45])])
def test_row_groups(tmp_path, monkeypatch, most, groups):
    """Each group has the maximum number of rows, independent of shards; the rest is a group too."""
    monkeypatch.setattr(row_groups, "_GROUP_ROWS", most)
    schema, whole = shards(tmp_path, SIZES)
    writers.write(tmp_path / "out.parquet", tmp_path, schema, range(len(SIZES)), vector_column="vector")
    assert groups_of(tmp_path / "out.parquet") == groups
    assert pq.read_table(tmp_path / "out.parquet").equals(whole)
    assert pq.read_schema(tmp_path / "out.parquet").metadata[b"k"] == b"v"


ROW = len("of shard 0") + 3 * 4  # bytes


@pytest.mark.parametrize(
    ("most", "groups"), [(1, [1] * 45), (20 * ROW, [20, 20, 5]), (20 * ROW - 1, [20, 20, 5]), (20 * ROW + 1, [21, 21, 3])]
)
def test_row_groups_of_long_rows(tmp_path, monkeypatch, most, groups):
    """A group ends with the row that fills its bytes, however few rows it has."""
    schema, _ = shards(tmp_path, SIZES)
    monkeypatch.setattr(row_groups, "_GROUP_BYTES", most)
    writers.write(tmp_path / "out.parquet", tmp_path, schema, range(len(SIZES)), vector_column="vector")
    assert groups_of(tmp_path / "out.parquet") == groups


def columns_of_every_kind(count):
    """Return a table with a column of every kind of type: some values null, the longer ones later."""
    texts = [None if row % 7 == 3 else "x" * (row + 1) for row in range(count)]
    dictionary = pa.array([text and text[:3] for text in texts]).dictionary_encode()
    # Parquet takes views of strings from Arrow 21 on; the readers of input make strings of them.
    views = pa.string_view() if int(pa.__version__.partition(".")[0]) >= 21 else pa.string()
    return pa.table({
        "text": texts, "large": pa.array(texts, pa.large_string()), "view": pa.array(texts, views),
        "bytes": pa.array([text and text.encode() for text in texts], pa.binary()),
        "list": pa.array([text and list(text) for text in texts]), "lists": pa.array([text and [[text], []] for text in texts]),
        "struct": pa.array([text and {"a": text, "b": row} for row, text in enumerate(texts)]),
        "map": pa.array([text and [(text, 1)] for text in texts], pa.map_(pa.string(), pa.int64())),
        "kind": dictionary, "few": dictionary.cast(pa.dictionary(pa.int8(), pa.string())), "flag": [row % 2 == 0 for row in range(count)],
        "nothing": pa.nulls(count), "when": pa.array(range(count), pa.timestamp("us")), "fixed": pa.array([b"ab"] * count, pa.binary(2)),
    })  # fmt: skip


@pytest.mark.parametrize("most", [2000, 1 << 25])
def test_parquet_does_not_depend_on_shards(tmp_path, monkeypatch, most):
    """The bytes are the same, however the rows were split into shards."""
    monkeypatch.setattr(row_groups, "_GROUP_BYTES", most)
    table = tables.with_vectors(
        columns_of_every_kind(60), "vector", np.arange(180, dtype=np.float32).reshape(60, 3), {"k": "v"}
    )
    written = set()
    for sizes in ([60], [1] * 60, [7, 20, 3, 30], [59, 1]):
        start = 0
        for number, size in enumerate(sizes):
            part = pa.concat_tables([table.slice(start, size)]).unify_dictionaries().combine_chunks()
            with pa.ipc.new_file(str(shard_path(tmp_path, number)), table.schema) as writer:
                writer.write_table(part)
            start += size
        writers.write(tmp_path / "out.parquet", tmp_path, table.schema, range(len(sizes)), vector_column="vector")
        written.add((tmp_path / "out.parquet").read_bytes())
    assert len(written) == 1
    assert pq.read_table(tmp_path / "out.parquet").column("text").equals(table.column("text"))
    assert len(groups_of(tmp_path / "out.parquet")) == (1 if most > 2000 else 8)


@pytest.mark.parametrize("columns", [("text", "vector"), ("vector",)])
def test_vectors_have_no_dictionary(tmp_path, columns):
    """Repeated texts are stored once; vectors have no dictionary, since they all differ."""
    schema, whole = shards(tmp_path, [40], columns)
    writers.write(tmp_path / "out.parquet", tmp_path, schema, [0], vector_column="vector")
    with pq.ParquetFile(tmp_path / "out.parquet") as file:
        group = file.metadata.row_group(0)
        found = {group.column(i).path_in_schema: group.column(i) for i in range(len(columns))}
        assert file.read().equals(whole)
    assert {name.partition(".")[0]: "RLE_DICTIONARY" in column.encodings for name, column in found.items()} == (
        {"text": True, "vector": False} if "text" in columns else {"vector": False}
    )
    assert {column.compression for column in found.values()} == {"ZSTD"}


@pytest.mark.parametrize("ending", writers.ENDINGS)
def test_every_format_contains_the_rows(tmp_path, ending):
    """In order, with their vectors, and the rejected rows of all shards in a second file."""
    if ending == ".lance":
        pytest.importorskip("lance", reason="the extra `lance` is not installed")
    schema, whole = shards(tmp_path, [4, 0, 2100])
    for number in (0, 2):
        rejected_path(tmp_path, number).write_text(f"of shard {number}\n")
    out = tmp_path / f"out{ending}"
    writers.check(out)
    writers.write(out, tmp_path, schema, range(3), vector_column="vector")
    rows = whole.to_pylist()
    if ending == ".npy":
        found = json_lines(output_files.rows_file(out))
        np.testing.assert_array_equal(np.load(out), tables.vectors_of(whole.column("vector")))
        rows = [{"text": row["text"]} for row in rows]
    elif ending == ".jsonl":
        found = json_lines(out)
        for row in found:
            row["vector"] = np.array(row["vector"], np.float32).tolist()
    else:
        found = (pq.read_table(out) if ending == ".parquet" else table_of_dataset(out)).to_pylist()
    assert found == rows
    assert output_files.rejected_file(out).read_text() == "of shard 0\nof shard 2\n"


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def table_of_dataset(path):
    return pa.Table.from_batches(lance_files.read(path))


def test_types_that_json_does_not_have():
    """Bytes become base64; dates and decimals become text as in Python."""
    values = {"bytes": [b"\xff\x00"], "day": [dt.date(2026, 11, 26)], "price": [decimal.Decimal("1.50")]}
    [line] = writers._lines(pa.table(values))
    assert json.loads(line) == {"bytes": "/wA=", "day": "2026-11-26", "price": "1.50"}


def test_an_unknown_extension(tmp_path, monkeypatch):
    """The error lists the known ones; for .lance without its extra, it says what to install."""
    with pytest.raises(
        ValueError,
        match=r"out\.csv has an unknown file extension\. Pass an output that ends in \.parquet, \.lance, \.npy or \.jsonl",
    ):
        writers.check(tmp_path / "out.csv")
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(ImportError, match="lance"):
        writers.check(tmp_path / "out.lance")
    writers.check(tmp_path / "out.parquet")


@pytest.mark.parametrize("ending", writers.ENDINGS)
def test_an_empty_output(tmp_path, ending):
    """In every format, it exists and identifies the model; older rejected rows are deleted."""
    if ending == ".lance":
        pytest.importorskip("lance", reason="the extra `lance` is not installed")
    schema, _ = shards(tmp_path, [0])
    out = tmp_path / f"out{ending}"
    output_files.rejected_file(out).write_text("of an older output")
    writers.write(out, tmp_path, schema.with_metadata({"penult.role": "query"}), [0], vector_column="vector")
    assert output_files.metadata(out) == {"penult.role": "query"}
    assert not output_files.rejected_file(out).exists()
    if ending == ".npy":
        assert np.load(out).shape == (0, 3)
