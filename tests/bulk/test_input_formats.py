"""Input files in practice: compressed, in other encodings, JSON that is not JSON Lines, and files of other types."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk.jobs import half_done, rejected, run
from hypothesis import given
from hypothesis import strategies as st

from penult.bulk.input import json_rows, streams
from penult.bulk.input.rows import Row
from penult.bulk.job.errors import StoppedError
from penult.bulk.options import ReadOptions

ROWS = [{"id": number, "text": f"the cat {number}"} for number in range(40)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = ("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in ROWS)).encode()


def texts(out):
    return pq.read_table(out).column("text").to_pylist()


def compressed(data, how):
    compress = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    }[how]
    return compress(data[:100]) + compress(data[100:])  # in two parts, as tools that append or run in parallel write them


@pytest.mark.parametrize("how", streams.COMPRESSED)
@pytest.mark.parametrize(("ending", "data"), [(".jsonl", LINES), (".csv", CSV), (".json", json.dumps(ROWS).encode())])
def test_compressed_files(job, tmp_path, monkeypatch, how, ending, data):
    """They are read directly, from the start or the middle; a truncated one is an error before any work."""
    source = tmp_path / f"in{ending}{how}"
    source.write_bytes(compressed(data, how))
    with half_done(monkeypatch), pytest.raises(StoppedError, match="32 of 40 rows"):
        job(source, shard_rows=16)
    job(source)
    assert texts(tmp_path / "out.parquet") == [row["text"] for row in ROWS]
    source.write_bytes(source.read_bytes()[:-6])
    with pytest.raises(OSError, match=rf"in{ending}{how} cannot be read: .*(damaged|Truncated)"):
        job(source, out="other.parquet")


def test_a_compressed_file_under_another_name(job, tmp_path):
    """Compression is detected by the first bytes: with --format, and with the extension of the uncompressed file."""
    for name, format_ in (("rows", "jsonl"), ("rows.jsonl", None), ("rows.data.gz", "jsonl")):
        (tmp_path / name).write_bytes(gzip.compress(LINES))
        job(tmp_path / name, out=f"{name}.parquet", format=format_)
        assert texts(tmp_path / f"{name}.parquet") == [row["text"] for row in ROWS]
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(ValueError, match=r"has an unknown file extension\. Pass --format"):
        job(tmp_path / "a.parquet.gz")


TEXT = "f\u00fcr Elise"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.txt", f"{TEXT}\n"),
        ("in.csv", f"text\n{TEXT}\n"),
        ("in.tsv", f"id\ttext\n1\t{TEXT}\n"),
        ("in.jsonl", json.dumps({"text": TEXT}, ensure_ascii=False) + "\n"),
        ("in.json", json.dumps([{"text": TEXT}], ensure_ascii=False)),
        ("in.md", TEXT),
    ],
)
def test_encodings(job, tmp_path, name, content):
    """--encoding applies to files without a byte order mark. By default a file is UTF-8, or its rows are rejected."""
    for encoding in ("latin-1", "cp1252", "utf-16-le", "utf-8"):
        (tmp_path / name).write_bytes(content.encode(encoding))
        job(tmp_path / name, out=f"{encoding}.parquet", reading=ReadOptions(encoding))
        assert texts(tmp_path / f"{encoding}.parquet")[-1].strip() == TEXT
    for marked in ("utf-16", "utf-32", "utf-8-sig"):
        (tmp_path / name).write_bytes(content.encode(marked))
        job(tmp_path / name, out=f"{marked}.parquet", reading=ReadOptions("latin-1"))
        assert texts(tmp_path / f"{marked}.parquet")[-1].strip() == TEXT
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    (tmp_path / "good.txt").write_text("good")
    done = job(tmp_path / name, tmp_path / "good.txt", out="bad.parquet")
    assert (done.totals.rows, done.totals.rejected) == (1, 1)
    assert "UTF-8" in rejected(tmp_path / "bad.parquet")[0]["reason"]


@pytest.mark.parametrize("name", ["in.txt", "in.csv", "in.jsonl", "in.json"])
def test_invalid_bytes_in_an_encoding(job, tmp_path, name):
    """Only their own row is rejected, and the reason names the encoding."""
    good, bad = "\u65e5\u672c".encode("shift_jis"), b"\x81\xff\xa0\xfd"
    content = {
        "in.txt": good + b"\n" + bad + b"\n" + good,
        "in.csv": b"text\n" + good + b"\n" + bad + b"\n" + good,
        "in.jsonl": b'{"text": "' + good + b'"}\n{"text": "' + bad + b'"}\n{"text": "' + good + b'"}',
        "in.json": b'[{"text": "' + good + b'"}, {"text": "' + bad + b'"}, {"text": "' + good + b'"}]',
    }[name]
    (tmp_path / name).write_bytes(content)
    done = job(tmp_path / name, reading=ReadOptions("shift_jis"))
    assert texts(tmp_path / "out.parquet") == ["\u65e5\u672c"] * 2
    assert done.totals.rejected == 1
    reason = rejected(tmp_path / "out.parquet")[0]["reason"]
    assert "is not shift_jis at character" in reason or "is not valid Unicode" in reason


def test_invalid_encodings():
    """An unknown name, an encoding that is not for text, and a row limit of zero are errors."""
    for name in ("klingon", "base64", "rot13", "zlib"):
        with pytest.raises(ValueError, match=f"--encoding is '{name}', which is not a text encoding of Python. Pass utf-8"):
            ReadOptions(name)
    with pytest.raises(ValueError, match="--max-row-bytes is 0"):
        ReadOptions(max_row_bytes=0)
    assert ReadOptions("UTF8").codec == ReadOptions("utf-8-sig").codec == "utf-8"


def test_an_unfinished_job_of_another_encoding(job, tmp_path, monkeypatch):
    """Options that change the rows make another job; the error for a finished output says so too."""
    (tmp_path / "in.csv").write_bytes(CSV)
    with half_done(monkeypatch), pytest.raises(StoppedError):
        job(tmp_path / "in.csv", shard_rows=16, reading=ReadOptions("latin-1"))
    for options in (ReadOptions(), ReadOptions("latin-1", 100)):
        with pytest.raises(
            ValueError, match=r"the way rows are read \(--format, --encoding, --max-row-bytes, folder names\) was"
        ):
            job(tmp_path / "in.csv", reading=options)
    job(tmp_path / "in.csv", reading=ReadOptions("iso-8859-1"))
    assert job(tmp_path / "in.csv", reading=ReadOptions("latin-1")).rows_per_second is None
    with pytest.raises(ValueError, match="exists, but was created from other input"):
        job(tmp_path / "in.csv")


def test_a_job_of_another_format(job, tmp_path, monkeypatch):
    """The same file in another format is another job, whether the first one is finished or not."""
    (tmp_path / "in.dat").write_text("text\ncat,1\n")
    job(tmp_path / "in.dat", format="text")
    assert job(tmp_path / "in.dat", format="text").rows_per_second is None
    with pytest.raises(ValueError, match="exists, but was created from other input"):
        job(tmp_path / "in.dat", format="csv")
    lines = "".join(f'{{"text": "cat {i}"}}\n' for i in range(40))
    (tmp_path / "in.json").write_text(lines)
    with half_done(monkeypatch), pytest.raises(StoppedError):
        job(tmp_path / "in.json", out="o.parquet", shard_rows=16)
    with pytest.raises(ValueError, match=r'the way rows are read .* and is now \'{"format": "jsonl"}\''):
        job(tmp_path / "in.json", out="o.parquet", format="jsonl")


def test_the_command_suggests_an_encoding(tiny, tmp_path):
    """Rows that are not UTF-8 are counted before the work, with the option to pass; rows that are too long are not counted."""
    (tmp_path / "in.csv").write_bytes(f"text\n{TEXT}\n{'long ' * 40}\n".encode("latin-1"))
    arguments = ("embed", tmp_path / "in.csv", tmp_path / "out.parquet", "--model", tiny)
    done = run(*arguments)
    assert done.returncode == 3
    assert "in.csv: 1 row is not UTF-8. If the file has another encoding, pass it" in done.stderr
    done = run(*arguments, "--overwrite", "--encoding", "latin-1", "--max-row-bytes", 150)
    assert done.returncode == 3
    assert "UTF-8" not in done.stderr
    assert texts(tmp_path / "out.parquet") == [TEXT]
    assert rejected(tmp_path / "out.parquet")[0]["reason"] == "has more than 150 bytes, the limit of --max-row-bytes"


ODD = ["", 'a"b', "\\", '\\"', "]", "}{", "[,", "\u00e9\n"]
VALUES = st.sampled_from([None, True, 5, -0.5, *ODD, ODD, [], {}, [[ODD], {"}": ODD}], {'"': {"]": [5, "\\"]}}])
OBJECTS = st.lists(st.dictionaries(st.sampled_from(["text", "}", "n"]), VALUES, max_size=3), max_size=5)


@given(OBJECTS, st.sampled_from([None, 1, "\t"]), st.integers(1, 9), st.booleans())
def test_json_that_is_not_json_lines(tmp_path_factory, objects, indent, together, array):
    """An array, or concatenated objects, in any layout and with any block boundaries."""
    path = tmp_path_factory.getbasetemp() / "any.json"
    dumped = [json.dumps(value, indent=indent, ensure_ascii=False) for value in objects]
    path.write_text(f" [{','.join(dumped)}\n]\n" if array else "\n".join(dumped))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_rows, "_PART", together)
        items = list(json_rows.read_values(path, "here"))
    assert [(item.line, item.values) for item in items] == list(enumerate(objects, 1))


def test_elements_that_are_not_rows(tmp_path):
    """Each is rejected by position: not an object, invalid JSON, too long; later elements are read."""
    path = tmp_path / "in.json"
    path.write_text('[{"a": 1}, 5, {"a": }, {"b": "' + "x" * 100 + '"}, ["a"], {"a": 2}]')
    items = list(json_rows.read_values(path, "here", ReadOptions(max_row_bytes=50)))
    assert [item.values if isinstance(item, Row) else item.reason.partition(":")[0] for item in items] == [
        {"a": 1},
        "is a JSON int, not an object",
        "is not valid JSON",
        "has more than 50 bytes, the limit of --max-row-bytes",
        "is a JSON list, not an object",
        {"a": 2},
    ]


@pytest.mark.parametrize(
    "content", ['[{"a": 1}', '[{"a": 1}, {"a": 2', '[{"a": 1}] x', '{"a": 1} x', '{"a": {', "text", '[{"a": "x}]']
)
def test_truncated_json(tmp_path, content):
    """Rows would be missing, so all of the file is an error."""
    path = tmp_path / "in.json"
    path.write_text(content)
    with pytest.raises(OSError, match="JSON"):
        list(json_rows.read_values(path, "here"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        ("in.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        ("in.csv", b"PAR1 and so on", "a Parquet file; rename it to .parquet"),
        ("in.txt", b"%PDF-1.4 and so on", "a PDF"),
        ("in.csv", b"PK\x03\x04 and so on", r"a ZIP archive \(.zip, .docx, .xlsx"),
        ("in.csv", gzip.compress(b"PK\x03\x04 and so on", mtime=0), "a ZIP archive"),
        ("in.parquet", b"%PDF-1.4", "a PDF"),
        ("in.txt", "text without a mark".encode("utf-16-le"), "--encoding utf-16-le"),
        ("in.csv", "text without a mark".encode("utf-16-be"), "--encoding utf-16-be"),
        ("in.jsonl", b'[{"text": "a"}]', "looks like a JSON array. Rename it to .json"),
        ("in.jsonl", b'{\n"text": "a"\n}', "has an object over several lines"),
        ("in.jsonl", b"<!DOCTYPE html>", "looks like HTML or XML"),
    ],
)
def test_a_file_of_another_type(job, tmp_path, name, content, message):
    """The message names the file and its type, before any work."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises((OSError, ValueError), match=message) as raised:
        job(tmp_path / name)
    assert name in str(raised.value)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_an_indented_array_by_its_format(job, tmp_path):
    """--format json reads an array in a file with the extension of JSON Lines."""
    (tmp_path / "in.jsonl").write_text(json.dumps(ROWS, indent=2))
    job(tmp_path / "in.jsonl", format="json")
    assert texts(tmp_path / "out.parquet") == [row["text"] for row in ROWS]


def test_too_many_different_keys(job, tmp_path):
    """Objects with ever new keys would add a column each: an error above the maximum number of columns."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": "a", f"k{n}": n}) + "\n" for n in range(10_001)))
    with pytest.raises(OSError, match=r"in\.jsonl cannot be read: its objects have more than 10,000 different keys"):
        job(tmp_path / "in.jsonl")
