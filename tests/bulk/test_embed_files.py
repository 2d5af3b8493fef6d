"""`penult embed`: input and output formats, columns that are kept, rejected rows, and errors."""

import datetime as dt
import decimal
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk.jobs import corpus, half_done, lance_table, rejected, run, vectors
from models import tiny_model

from penult import Embedder
from penult.bulk import embed, lance_files, ray_engine
from penult.bulk.input import input_files, readers
from penult.bulk.job.errors import StoppedError
from penult.bulk.output import output_files, writers


def test_columns_vectors_and_metadata(job, embedder, tmp_path):
    """All columns keep their types; vectors equal those of Embedder.embed; the schema identifies the model."""
    source = corpus(tmp_path / "in.jsonl", 50)
    done = job(source, shard_rows=16)
    table = pq.read_table(tmp_path / "out.parquet")
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    assert table.drop_columns(["embedding"]).to_pylist() == rows
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    assert np.abs(vectors(table) - embedder.embed([row["text"] for row in rows])).max() <= 1e-6
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert metadata["penult.fingerprint"] == embedder.fingerprint
    assert json.loads(metadata["penult.recipe"])["pooling"] == "mean"
    assert metadata["penult.role"] == "document"
    assert (done.totals.rows, done.totals.rejected, done.totals.taken) == (50, 0, 0)
    assert done.totals.tokens == embedder.count_tokens([row["text"] for row in rows]).sum()


@pytest.mark.parametrize(
    ("mean", "count", "rows"),
    [(20, 1_000_000, 4096), (1000, 1_000_000, 512), (1e6, 1_000_000, 64), (180, 3000, 128), (20, 10, 64), (0, 0, 64)],
)
def test_rows_of_a_shard(mean, count, rows):
    """Some thousand short texts or some hundred long ones; fewer in a small job, so that every worker has work."""
    assert readers.rows_of_a_shard(mean, count) == rows


def test_every_format_in(job, embedder, tmp_path):
    """Parquet, JSON Lines, CSV and text, by name, folder or glob: the same texts, unchanged."""
    texts = ["  two  spaces ", 'a "quoted", text', "日本 é", "tab\there", "", "nul \x00"]
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    pq.write_table(pa.table({"text": texts}), folder / "a.parquet")
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    quoted = "".join('"' + text.replace('"', '""') + '"\n' for text in texts)
    (folder / "c.csv").write_bytes(b"\xef\xbb\xbftext\n" + quoted.encode())
    (folder / "deep" / "d.txt").write_text("\n".join(texts) + "\n")
    (folder / "notes.md").write_text("no input")
    job(folder, shard_rows=7)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("text").to_pylist() == texts * 4
    assert table.column("line").to_pylist()[-6:] == [1, 2, 3, 4, 5, 6]
    assert np.abs(vectors(table) - np.tile(embedder.embed(texts), (4, 1))).max() <= 1e-6
    assert job(folder / "*.jsonl", out="glob.parquet").totals.rows == 6
    with pytest.raises(ValueError, match="is in the input twice"):
        job(folder, folder / "a.parquet", out="twice.parquet")


def texts_of(out):
    return pq.read_table(out).column("text").to_pylist()


def line(path, text=None):
    """Write one row, whose text is the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"text": text or path.name}) + "\n")


def test_files_in_a_folder_that_are_not_input(job, tmp_path):
    """The job's own output, files beside outputs, hidden files and unfinished jobs are skipped; other files are read."""
    folder = tmp_path / "in"
    line(folder / "a.jsonl")
    line(folder / "b.jsonl" / "c.jsonl")
    line(folder / "old.npy.rows.jsonl")
    line(folder / "old.rejected.jsonl")
    line(folder / ".hidden.jsonl")
    line(folder / "old.parquet.job" / "done.jsonl")
    (folder / "old.parquet.job" / "lock").touch()
    (folder / "lock").touch()
    given, out, before = f"{folder}/**/*.jsonl", "in/glob.jsonl", sorted(folder.iterdir())
    assert job(given, out=out).totals.rows == 2
    assert job(given, out=out).rows_per_second is None
    for path in {*folder.iterdir()} - {*before}:
        path.unlink()
    job(folder, out="before.parquet")
    assert texts_of(tmp_path / "before.parquet") == ["a.jsonl", "c.jsonl"]
    line(folder / "nightly.job" / "d.jsonl")
    for given, out in ((folder, "folder.parquet"), (f"{folder}/**/*.jsonl", "glob.parquet")):
        job(given, out=out)
        assert texts_of(tmp_path / out) == ["a.jsonl", "c.jsonl", "d.jsonl"]
    assert input_files.find([f"{folder}/*.rejected.jsonl", f"{folder}/*.npy.rows.jsonl"]) == [
        folder / "old.rejected.jsonl",
        folder / "old.npy.rows.jsonl",
    ]


def test_a_lance_dataset_is_one_input(tmp_path):
    """By name, in a folder or by a glob it is one file of rows, and a change in any of its files is a change of it."""
    dataset = tmp_path / "in" / "a.lance"
    for name in ("data", "versions"):
        line(dataset / name / "x.txt")
    for given in (dataset, tmp_path / "in", f"{tmp_path}/in/*"):
        assert input_files.find([str(given)]) == [dataset]
    hashes = {input_files.opened(dataset).sha256}
    for name in ("data", "versions"):
        line(dataset / name / "x.txt", "another")
        hashes.add(input_files.opened(dataset).sha256)
    assert len(hashes) == 3
    file = dataset / "data" / "x.txt"
    assert input_files.opened(file).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_csv_with_line_breaks_in_texts(job, tmp_path):
    """A quoted text may contain line breaks and exceed the csv module's default limit; ids keep leading zeros."""
    long = "cat " * 50_000
    (tmp_path / "in.csv").write_text(f'id,text\n007,"the\ncat"\n008,"{long}"\n')
    job(tmp_path / "in.csv")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("id").to_pylist() == ["007", "008"]
    assert table.column("text").to_pylist() == ["the\ncat", long]


@pytest.mark.parametrize("ending", ["parquet", "lance", "npy", "jsonl"])
def test_every_format_out(job, embedder, tmp_path, ending):
    """Each output has every row, bit-exact vectors and the model's identity; the next run finds it finished."""
    if ending == "lance":
        pytest.importorskip("lance", reason="the extra `lance` is not installed")
    source = corpus(tmp_path / "in.jsonl", 40)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    expected = job(source, out="expected.parquet", shard_rows=16) and pq.read_table(tmp_path / "expected.parquet")
    out = tmp_path / f"out.{ending}"
    job(source, out=out.name, shard_rows=16)
    if ending == "npy":
        found = np.load(out)
        kept = [json.loads(line) for line in (tmp_path / "out.npy.rows.jsonl").read_text().splitlines()]
    elif ending == "jsonl":
        kept = [json.loads(line) for line in out.read_text().splitlines()]
        found = np.array([row.pop("embedding") for row in kept], np.float32)
    else:
        table = lance_table(out) if ending == "lance" else pq.read_table(out)
        found, kept = vectors(table), table.drop_columns(["embedding"]).to_pylist()
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors(expected))
    assert kept == rows
    assert output_files.metadata(out) == output_files.metadata(tmp_path / "expected.parquet")
    assert job(source, out=out.name).rows_per_second is None


def test_lance_in(job, tmp_path):
    """A Lance dataset is read in row order, also from the middle."""
    lance = pytest.importorskip("lance", reason="the extra `lance` is not installed")
    source = corpus(tmp_path / "in.jsonl", 40)
    table = pa.Table.from_pylist([json.loads(line) for line in source.read_text().splitlines()])
    lance.write_dataset(table, str(tmp_path / "in.lance"), max_rows_per_file=15)
    job(tmp_path / "in.lance", shard_rows=16)
    job(source, out="expected.parquet", shard_rows=16)
    assert np.array_equal(vectors(tmp_path / "out.parquet"), vectors(tmp_path / "expected.parquet"))


def test_parquet_types_are_kept(job, tmp_path):
    """Dictionaries, timestamps, binary, decimals and nested columns are kept; large strings are text too."""
    table = pa.table(
        {
            "text": pa.array(["a cat", "the dog", "a cat"], pa.large_string()),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "when": pa.array([dt.datetime(2020, 1, n, tzinfo=dt.UTC) for n in (1, 2, 3)]),
            "raw": pa.array([b"\x00\xff", None, b""]),
            "cost": pa.array([decimal.Decimal("1.10")] * 3),
            "nested": pa.array([{"a": [1, 2]}, None, {"a": []}]),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    job(tmp_path / "in.parquet", shard_rows=2)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.drop_columns(["embedding"]).to_pylist() == table.to_pylist()
    assert found.schema.field("when").type == table.schema.field("when").type
    assert found.schema.field("cost").type == table.schema.field("cost").type
    job(tmp_path / "in.parquet", out="out.jsonl", shard_rows=2)
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert (first["raw"], first["cost"], first["when"]) == ("AP8=", "1.10", "2020-01-01 00:00:00+00:00")


def test_files_with_different_columns(job, tmp_path):
    """A column of some files is null in the others; incompatible types are an error or JSON text."""
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1, "m": {"x": 1}, "mixed": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b", "n": 2.5, "m": {"y": [2]}, "mixed": "one", "e": {}}\n')
    job(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("n").to_pylist() == [1.0, 2.5]
    assert table.column("m").to_pylist() == [{"x": 1, "y": None}, {"x": None, "y": [2]}]
    assert table.column("mixed").to_pylist() == ["1", '"one"']
    assert table.schema.field("mixed").metadata[b"penult.json"] == b"true"
    assert table.column("e").to_pylist() == [None, "{}"]
    pq.write_table(pa.table({"text": ["c"], "n": ["three"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"'n' is string in .*c\.parquet and has another type"):
        job(tmp_path / "a.jsonl", tmp_path / "c.parquet", out="other.parquet")


def test_bad_rows_are_rejected_with_their_reason(tiny, tmp_path):
    """Every row without a vector is in OUT.rejected.jsonl; the others are embedded; the exit status is 3."""
    lines = [
        b'{"id": 1, "text": "the cat"}',
        b'{"id": 2, "text": null}',
        b'{"id": 3}',
        b'{"id": 4, "text": 5}',
        b'{"id": 5, "text": "half \\ud800"}',
        b'{"id": 6, "text": "broken',
        b"[7]",
        b'{"id": 8, "text": "\xff"}',
        b"   ",
        b'{"id": 9, "text": "' + b"a " * 70 + b'"}',
        b'{"id": "ten", "text": "the dog"}',
        b'{"id": 11, "text": ""}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    out = tmp_path / "out.parquet"
    done = run("embed", tmp_path / "in.jsonl", out, "--model", tiny, "--truncate", "error", "--shard-rows", 4)
    assert done.returncode == 3
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith(f"penult: 3 rows in {out}; 8 rejected, reasons in {out}.rejected.jsonl; ")
    )
    assert pq.read_table(out).column("text").to_pylist() == ["the cat", "the dog", ""]
    assert pq.read_table(out).column("id").to_pylist() == ["1", '"ten"', "11"]
    reasons = {row["line"]: row["reason"] for row in rejected(out)}
    assert list(reasons) == [2, 3, 4, 5, 6, 7, 8, 10]
    expected = {
        2: "is a NoneType, not a str",
        4: "has the value 5 (int) in column 'text', not text",
        5: "has a 'text' that is not valid Unicode",
        6: "is not valid JSON",
        7: "is a JSON list, not an object",
        8: "is not UTF-8 at byte 19",
        10: "has 72 tokens, the model's maximum is 64",
    }
    for line, reason in expected.items():
        assert reason in reasons[line]
    assert rejected(out)[-1]["record"]["id"] == "9"
    assert rejected(out)[-1]["file"] == str(tmp_path / "in.jsonl")
    again = run("embed", tmp_path / "in.jsonl", out, "--model", tiny, "--truncate", "error")
    assert again.returncode == 3
    assert "already finished" in again.stderr
    assert run("embed", tmp_path / "in.jsonl", out, "--model", tiny).returncode == 1


def test_bad_rows_of_csv_text_and_parquet(job, tmp_path):
    """Too many fields, bytes that are not UTF-8 and a null in Parquet are rejected with file and line."""
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,ok\n2,too,many\n3,\xff\n")
    (tmp_path / "b.txt").write_bytes(b"fine\r\n\xffbad\nlast")
    pq.write_table(pa.table({"text": [None, "yes", None]}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"text": ["and", None]}), tmp_path / "d.parquet")
    done = job(*(tmp_path / name for name in ("a.csv", "b.txt", "c.parquet", "d.parquet")), shard_rows=4)
    assert (done.totals.rows, done.totals.rejected) == (5, 6)
    assert texts_of(tmp_path / "out.parquet") == ["ok", "fine", "last", "yes", "and"]
    found = [(Path(row["file"]).name, row["line"], row["reason"]) for row in rejected(tmp_path / "out.parquet")]
    assert found[0] == ("a.csv", 3, "has 3 fields, but the header has 2")
    assert found[1][:2] == ("a.csv", 4)
    assert "not valid Unicode" in found[1][2]
    assert found[2] == ("b.txt", 2, "is not UTF-8 at byte 0")
    nulls = [("c.parquet", 1), ("c.parquet", 3), ("d.parquet", 2)]
    assert found[3:] == [(name, line, "is a NoneType, not a str") for name, line in nulls]


def test_truncated_texts_are_counted(tiny, tmp_path):
    """Texts over the model's maximum length are embedded, counted over all shards, and reported once at the end."""
    (tmp_path / "in.txt").write_text(("a " * 70 + "\n" + "short\n") * 3)
    done = run("embed", tmp_path / "in.txt", tmp_path / "out.parquet", "--model", tiny, "--shard-rows", 2)
    assert done.returncode == 0
    assert "6 rows" in done.stderr
    assert "3 truncated to 64 tokens" in done.stderr
    assert [line.partition(" /")[0] for line in done.stderr.splitlines()[:-1]] == ["penult: loading model"]


def test_standard_input_and_json_progress(tiny, tmp_path):
    """A pipe is JSON Lines; --progress json prints one object per shard and one at the end; no bar is drawn in a file."""
    source = corpus(tmp_path / "in.jsonl", 40)
    arguments = ("embed", "-", tmp_path / "out.parquet", "--model", tiny, "--shard-rows", 16)
    with source.open() as pipe:
        done = run(*arguments, "--progress", "json", stdin=pipe)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events] == ["note", "progress", "progress", "progress", "done"]
    assert events.pop(0)["message"] == f"loading model {tiny}"
    assert events[-2]["rows"] == events[-2]["of"] == events[-1]["rows"] == 40
    assert events[0]["eta_seconds"] >= events[-2]["eta_seconds"] == 0
    assert events[0]["rows_per_second"] > 0
    assert done.stdout == ""
    with source.open() as pipe:
        assert "already finished" in run(*arguments, stdin=pipe).stderr
    other = run(*arguments, input='{"text": "another"}\n')
    assert other.returncode == 1
    assert "created from other input" in other.stderr


def test_unchanged_rows_are_reused(job, embedder, tmp_path, monkeypatch):
    """--from OLD: rows whose text is in OLD keep its vector bit for bit, in any order; the others are embedded."""
    old = corpus(tmp_path / "old.jsonl", 60)
    job(old, out="old.parquet")
    rows = [json.loads(line) for line in old.read_text().splitlines()][::-2]
    rows[5:5] = [{"id": "new", "text": "a new text", "n": 0, "tags": []}]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = job(tmp_path / "new.jsonl", old=tmp_path / "old.parquet", shard_rows=8)
    assert done.totals.taken == 30
    assert done.totals.tokens == embedder.count_tokens(["a new text"]).sum()
    before = dict(
        zip(pq.read_table(tmp_path / "old.parquet").column("text").to_pylist(), vectors(tmp_path / "old.parquet"), strict=True)
    )
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("id").to_pylist() == [row["id"] for row in rows]
    for text, vector in zip(table.column("text").to_pylist(), vectors(table), strict=True):
        expected = before.get(text)
        assert (
            np.array_equal(vector, expected)
            if expected is not None
            else np.abs(vector - embedder.embed([text])[0]).max() < 1e-6
        )


def test_vectors_are_reused_from_a_lance_dataset(job, tmp_path):
    """--from reads a Lance dataset, and --overwrite replaces an older dataset by a new one."""
    pytest.importorskip("lance", reason="the extra `lance` is not installed")
    source = corpus(tmp_path / "in.jsonl", 40)
    job(source, out="out.lance")
    before = vectors(lance_table(tmp_path / "out.lance"))
    done = job(source, old=tmp_path / "out.lance")
    assert (done.totals.taken, done.totals.rows) == (40, 40)
    assert np.array_equal(vectors(tmp_path / "out.parquet"), before)
    job(source, out="out.lance", dimensions=8, overwrite=True)
    assert vectors(lance_table(tmp_path / "out.lance")).shape == (40, 8)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_lance_dataset_that_cannot_be_written(job, tmp_path):
    """The previous output is unchanged, and nothing is left beside it; leftovers of a crash do no harm."""
    pytest.importorskip("lance", reason="the extra `lance` is not installed")
    out = tmp_path / "out.lance"
    job(corpus(tmp_path / "in.jsonl", 40), out=out.name)
    before = lance_table(out)
    batches = before.to_batches()
    for good in ([], batches):
        with pytest.raises(OSError, match="No space left on device"):
            lance_files.write(out, before.schema, full_after(good))
        assert lance_table(out).equals(before)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.lance"]
    for left in (".out.lance.part", ".out.lance.before"):
        shutil.copytree(out, tmp_path / left)
    lance_files.write(out, before.schema, [batches[0].slice(0, 7)])
    assert lance_table(out).equals(before.slice(0, 7))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.lance"]


def full_after(batches):
    yield from batches
    raise OSError("No space left on device")


def test_lance_is_not_installed(job, tmp_path, monkeypatch):
    """The message names the extra before the model is loaded, and when a dataset is read."""
    monkeypatch.setitem(sys.modules, "lance", None)
    line(tmp_path / "in.jsonl")
    (tmp_path / "in.lance").mkdir()
    for given, out in (("in.jsonl", "out.lance"), ("in.lance", "out.parquet")):
        with pytest.raises(ImportError, match=r"Lance files need the extra penult\[lance\] \(pip install .*\[lance\]\"\)\."):
            job(tmp_path / given, out=out, **({"model": tmp_path / "none"} if out == "out.lance" else {}))


def test_an_older_output_that_cannot_be_read(job, tmp_path):
    """An output that is not readable, and an unreadable --from, are named in the error and not changed."""
    source = corpus(tmp_path / "in.jsonl", 3)
    (tmp_path / "out.parquet").write_bytes(b"PAR1 and no more")
    for options in ({}, {"out": "other.parquet", "old": tmp_path / "out.parquet"}):
        with pytest.raises(OSError, match=r"out\.parquet cannot be read: "):
            job(source, **options)
    assert (tmp_path / "out.parquet").read_bytes() == b"PAR1 and no more"


def test_a_shard_is_the_same_wherever_reading_starts(tmp_path):
    """Shards read from the middle of Parquet files, with small or large row groups, equal those read from the start."""
    paths = []
    for name, rows, group in (("a", 5000, 6000), ("b", 900, 100), ("c", 4500, 4300)):
        paths.append(tmp_path / f"{name}.parquet")
        pq.write_table(pa.table({"text": [f"{name}{i}" for i in range(rows)]}), paths[-1], row_group_size=group)
    files = [input_files.opened(path) for path in paths]
    scanned = readers.scan(files, "text", 700)
    whole = list(readers.shards(files, scanned))
    texts = [text for shard in whole for text in shard.table.column("text").to_pylist()]
    assert texts == [f"{name}{i}" for name, rows in (("a", 5000), ("b", 900), ("c", 4500)) for i in range(rows)]
    for first in (1, 6, 7, 8, 9, 14):
        for ours, theirs in zip(readers.shards(files, scanned, first), whole[first:], strict=True):
            assert (ours.number, ours.places) == (theirs.number, theirs.places)
            assert ours.table.equals(theirs.table)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    """A file that is written to, or has fewer rows than before, is an error at its own end, not after all files."""
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n' * 6)
    files = [input_files.opened(tmp_path / f"{name}.jsonl") for name in "ab"]
    scanned = readers.scan(files, "text", 2)
    reading, read = readers.shards(files, scanned), []
    files[0].path.write_text('{"text": "b"}\n' * 6)
    with pytest.raises(ValueError, match=r"a\.jsonl changed while it was being read"):
        read.extend(shard.number for shard in reading)
    assert read == [0, 1, 2]
    files[0].path.write_text('{"text": "a"}\n' * 4)
    with pytest.raises(ValueError, match=r"a\.jsonl ends 2 rows early"):
        list(readers.shards(files, scanned))


def test_the_length_of_texts_determines_rows_per_shard(tmp_path, monkeypatch):
    """By their mean in bytes, over rows without a text too; without rows there is no shard."""
    monkeypatch.setattr(readers, "_SHARD_CHARS", 10_000)
    monkeypatch.setattr(readers, "_SHARD_ROWS", (1, 4096))
    for texts, rows in ((["é" * 1250] * 128, 4), (["é" * 1250, None] * 64, 8), ([], 1)):
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), tmp_path / "in.parquet")
        assert readers.scan([input_files.opened(tmp_path / "in.parquet")], "text").shard_rows == rows


def test_columns_without_rows(job, tmp_path):
    """Input with columns but no rows produces output with columns but no rows."""
    (tmp_path / "in.csv").write_text("id,text\n")
    assert job(tmp_path / "in.csv").totals.rows == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert (table.num_rows, table.column_names) == (0, ["id", "text", "embedding"])


@pytest.mark.parametrize("ending", ["parquet", "lance"])
def test_a_file_with_the_wrong_extension(job, tmp_path, ending):
    """The error names the file and the problem."""
    path = tmp_path / f"in.{ending}"
    if ending == "lance":
        pytest.importorskip("lance", reason="the extra `lance` is not installed")
        path.mkdir()
    else:
        path.write_text("no Parquet")
    with pytest.raises(OSError, match=rf"in\.{ending} cannot be read: \w+"):
        job(path)
    assert list(tmp_path.iterdir()) == [path]


def test_vectors_of_another_model_are_not_reused(job, tmp_path):
    """--from rejects an output with another fingerprint or role, and a file without vectors."""
    source = corpus(tmp_path / "in.jsonl", 5)
    job(source, out="cls.parquet", model=tiny_model(tmp_path / "cls", pooling="cls"))
    job(source, out="queries.parquet", role="query")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="whose fingerprint is"):
        job(source, old=tmp_path / "cls.parquet")
    with pytest.raises(ValueError, match="whose role is 'query', but the role of this job is 'document'"):
        job(source, old=tmp_path / "queries.parquet")
    with pytest.raises(ValueError, match=r"Pass a \.parquet file or a \.lance folder"):
        job(source, old=source)
    with pytest.raises(FileNotFoundError, match=r"--from is none\.parquet, which does not exist"):
        job(source, old=Path("none.parquet"))
    assert sorted(tmp_path.iterdir()) == before


def test_the_prompt_of_a_job(job, tmp_path, tiny):
    """The prompt of the job's role is put before its texts; the fingerprint equals that of an embedder with the same prompts."""
    source = corpus(tmp_path / "in.jsonl", 20)
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    prompts = {"document": "passage of ", "query": "query: "}
    with Embedder.load(tiny, prompts=prompts, threads=1) as local:
        for role in ("document", "query"):
            job(source, out=f"{role}.parquet", role=role, document_prompt="passage of ", query_prompt="query: ")
            table = pq.read_table(tmp_path / f"{role}.parquet")
            np.testing.assert_allclose(vectors(table), local.embed(texts, role), atol=1e-6)
            assert table.schema.metadata[b"penult.fingerprint"].decode() == local.fingerprint
            assert np.abs(vectors(table) - local.embed(texts, role, prompt="")).max() > 0.01


def test_another_prompt_is_another_job(job, tmp_path, monkeypatch):
    """An unfinished job, a finished output and --from with other prompts are errors that say why, and what to do."""
    source = corpus(tmp_path / "in.jsonl", 60)
    why = "created by another version of penult, or with another model or other options"
    with half_done(monkeypatch), pytest.raises(StoppedError):
        job(source, shard_rows=16, document_prompt="a")
    with pytest.raises(ValueError, match=rf"fingerprint was '\w+' and is now '\w+' \({why}\)\. Pass the earlier"):
        job(source, document_prompt="b")
    assert job(source, document_prompt="a").totals.rows == 60
    with pytest.raises(
        ValueError, match="created from other input, with another model or other options, or by another version of penult"
    ):
        job(source, document_prompt="b")
    with pytest.raises(ValueError, match=rf"reused \({why}\)\. Remove --from"):
        job(source, out="new.parquet", old=tmp_path / "out.parquet")


def test_an_unfinished_job_with_other_input_or_options(job, tmp_path, monkeypatch):
    """Changed input, another model, role or column is an error that names it; --overwrite starts again."""
    source = corpus(tmp_path / "in.jsonl", 60)
    job(source, out="old.parquet")
    stopped = pytest.raises(StoppedError, match=r"No space left on device\. 32 of 60 rows are done and kept")
    with half_done(monkeypatch), stopped:
        job(source, shard_rows=16)
    other = tiny_model(tmp_path / "cls", pooling="cls")
    with pytest.raises(ValueError, match=r"the model's fingerprint was '[0-9a-f]{32}' and is now"):
        job(source, model=other)
    with pytest.raises(ValueError, match="--role was 'document' and is now 'query'"):
        job(source, role="query")
    with pytest.raises(ValueError, match=r"the handling of long texts \(--truncate\) was 'cut' and is now 'rejected'"):
        job(source, truncate="error")
    with pytest.raises(ValueError, match=r"the content hash of --from was None and is now '[0-9a-f]{64}'"):
        job(source, old=tmp_path / "old.parquet")
    with pytest.raises(ValueError, match="--shard-rows is 8"):
        job(source, shard_rows=8)
    before = source.read_text()
    source.write_text(before.replace("the", "eht", 1))
    with pytest.raises(ValueError, match=r"in\.jsonl changed"):
        job(source)
    with pytest.raises(ValueError, match="the number of input files was 1 and is now 2"):
        job(source, corpus(tmp_path / "more.jsonl", 1))
    source.write_text(before)
    assert job(source).totals.rows == 60
    with pytest.raises(ValueError, match="Pass --overwrite to replace it"):
        job(source, model=other)
    assert job(source, model=other, overwrite=True).totals.rows == 60


def test_input_that_changes_during_the_job(job, tmp_path, monkeypatch):
    """A file that is written to while it is read ends the job, so that no output mixes two states."""
    source = corpus(tmp_path / "in.jsonl", 60)
    carry_out = embed._records

    def records(*arguments):
        for record in carry_out(*arguments):
            source.write_text(source.read_text() + "\n")
            yield record

    monkeypatch.setattr(embed, "_records", records)
    with pytest.raises(StoppedError, match="changed while it was being read"):
        job(source, shard_rows=16)
    assert not (tmp_path / "out.parquet").exists()


def test_input_that_changes_at_the_end(job, tmp_path, monkeypatch):
    """A file that is written to after its rows were read, but before the output is written, ends the job too."""
    source, other = corpus(tmp_path / "a.jsonl", 20), corpus(tmp_path / "b.jsonl", 20)
    carry_out = embed._records

    def records(*arguments):
        yield from carry_out(*arguments)
        source.write_text(source.read_text() + "\n")

    monkeypatch.setattr(embed, "_records", records)
    with pytest.raises(StoppedError, match=r"a\.jsonl changed while it was being read"):
        job(source, other)
    assert not (tmp_path / "out.parquet").exists()


@pytest.fixture
def pools(job, monkeypatch):
    """The pools of a test's jobs: number of workers, whether closed, and whether closed when output was written."""
    made = []

    class Watched(embed.Pool):
        def __init__(self, model, role, workers, say):
            super().__init__(model, role, workers, say)
            self.workers, self.closed, self.while_written = workers, False, []
            made.append(self)

        def close(self):
            super().close()
            self.closed = True

    def write(*arguments, **options):
        made[-1].while_written.append(made[-1].closed)
        write_(*arguments, **options)

    write_ = writers.write
    monkeypatch.setattr(writers, "write", write)
    monkeypatch.setattr(embed, "Pool", Watched)
    return made


def test_workers_are_closed_before_the_output_is_written(job, pools, tmp_path):
    """There are as many as requested, by default one; their memory is freed before the merge, and after an error."""
    source = corpus(tmp_path / "in.jsonl", 3)
    job(source)
    job(source, out="two.parquet", workers=2, shard_rows=1)
    with pytest.raises(ValueError, match="already has a column 'tags'"):
        job(source, out="three.parquet", vector="tags")
    assert [pool.workers for pool in pools] == [1, 2, 1]
    assert all(pool.closed for pool in pools)
    assert [pool.while_written for pool in pools] == [[False, True], [False, True], []]


def test_another_engine_makes_the_shards(job, pools, tmp_path, monkeypatch):
    """This process loads the model once to describe it, and frees its memory before the engine starts."""
    rows = [json.loads(line) for line in corpus(tmp_path / "in.jsonl", 40).read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    job(tmp_path / "in.parquet", out="expected.parquet", shard_rows=16)

    def make(setup, numbers, *, workers, address):
        assert (list(numbers), workers, address, pools[-1].closed) == ([0, 1, 2], 5, "auto", True)
        actor = ray_engine.ShardActor(setup, 1)
        for answer in actor({"shard": numbers})["answer"]:
            yield ray_engine._record(json.loads(answer))

    monkeypatch.setattr(ray_engine, "_ray", lambda: None)
    monkeypatch.setattr(ray_engine, "run", make)
    job(tmp_path / "in.parquet", shard_rows=16, engine="ray", workers=5, address="auto")
    assert pools[-1].workers == 1
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()


def test_unreadable_input(tiny, tmp_path):
    """A damaged Parquet file ends the job with its name; the work before it is kept."""
    for name in ("a", "b"):
        rows = [json.loads(line) for line in corpus(tmp_path / "x.jsonl", 64, seed=ord(name)).read_text().splitlines()]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet", compression="zstd")
    data = bytearray((tmp_path / "b.parquet").read_bytes())
    whole = bytes(data)
    for at in range(40, len(data) - 2000, 7):
        data[at] ^= 0xFF
    (tmp_path / "b.parquet").write_bytes(data)
    arguments = ("embed", tmp_path / "a.parquet", tmp_path / "b.parquet", tmp_path / "out.parquet", "--model", tiny)
    done = run(*arguments, "--shard-rows", 16)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "b.parquet cannot be read" in last
    assert "are done and kept" in last
    assert "Traceback" not in done.stderr
    (tmp_path / "b.parquet").write_bytes(whole)
    assert "b.parquet changed" in run(*arguments).stderr
    assert run(*arguments, "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (["nothing.jsonl"], {}, "No input files at"),
        (
            ["in.jsonl"],
            {"out": "out.xls"},
            "has an unknown file extension. Pass an output that ends in .parquet, .lance, .npy or .jsonl",
        ),
        (
            ["in.jsonl"],
            {"text": "body"},
            "The input has no column 'body'. Pass a text column with --text-column: id, text",
        ),
        (["in.jsonl"], {"vector": "tags"}, "already has a column 'tags'"),
        (["in.jsonl"], {"id_column": "key"}, "--id-column is 'key', but the columns of the input are"),
        (["in.jsonl"], {"shard_rows": 0}, "--shard-rows is 0"),
        (["in.dat"], {}, "has an unknown file extension. Pass --format"),
        (["in.jsonl"], {"engine": "ray"}, "does not read .*in.jsonl|needs the extra"),
    ],
)
def test_errors_come_before_any_work(job, tmp_path, monkeypatch, given, options, message):
    """A wrong name, column or number is an error before anything is written."""
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path / "in.jsonl", 3)
    (tmp_path / "in.dat").write_text("text")
    before = sorted(tmp_path.iterdir())
    with pytest.raises((ValueError, OSError, ImportError, StoppedError), match=message):
        job(*given, **options)
    assert sorted(tmp_path.iterdir()) == before
