"""Folders as input: which files are read or skipped, links, and columns in folder names."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk.jobs import half_done, rejected

from penult.bulk.input import folders, input_files
from penult.bulk.job.errors import StoppedError


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}) + "\n" if path.suffix == ".jsonl" else name)


def names(folder, **options):
    return [path.relative_to(folder).as_posix() for path in input_files.find([str(folder)], **options)]


def column(out, name):
    return pq.read_table(out).column(name).to_pylist()


def message_of(folder, **options):
    sentences = []
    input_files.find([str(folder)], say=sentences.append, **options)
    return " ".join(sentences)


def test_documents_of_a_folder(job, tmp_path):
    """Each Markdown file is one row, and its path in the folder is its id; text files too, with --format document."""
    folder = tmp_path / "in"
    fill(folder, "b.md", "deep/a.md", "notes.txt")
    (folder / "b.md").write_text("# Title\n\nTwo lines\nof text\n")
    job(folder)
    assert column(tmp_path / "out.parquet", "id") == ["b.md", "deep/a.md", None]
    assert column(tmp_path / "out.parquet", "text") == ["# Title\n\nTwo lines\nof text\n", "deep/a.md", "notes.txt"]
    job(folder, out="whole.parquet", format="document")
    assert column(tmp_path / "whole.parquet", "id") == ["b.md", "deep/a.md", "notes.txt"]
    job(folder / "b.md", out="one.parquet")
    assert column(tmp_path / "one.parquet", "id") == ["b.md"]
    job(f"{folder}/**/*.md", out="glob.parquet")
    assert column(tmp_path / "glob.parquet", "id") == ["b.md", "deep/a.md"]
    job(folder / "b.md", folder / "deep", out="two.parquet")
    assert column(tmp_path / "two.parquet", "id") == [(folder / "b.md").as_posix(), (folder / "deep/a.md").as_posix()]


def test_skipped_files_are_counted_and_named(tmp_path):
    """Extensions with counts, the most frequent first, and names; no message if nothing is skipped."""
    folder = tmp_path / "in"
    fill(folder, "a.jsonl", *(f"{n}.docx" for n in range(10)), "b.xlsx", "c.XLSX", "LICENSE", ".hidden", "x.npy.about.json")
    sentence = message_of(folder)
    assert sentence.startswith(
        f"{folder}: skipped 13 files of unsupported types: .docx 10, .xlsx 2, no extension 1 (0.docx, 1.docx,"
    )
    assert "and 5 more); reading 1 file: a.jsonl" in sentence
    assert "hidden" not in sentence
    assert "about" not in sentence
    (tmp_path / "plain").mkdir()
    fill(tmp_path / "plain", "a.jsonl", "b.csv")
    assert message_of(tmp_path / "plain") == ""
    (tmp_path / "none").mkdir()
    fill(tmp_path / "none", "a.docx")
    with pytest.raises(
        FileNotFoundError, match=r"No input files at '.*none' \(skipped 1 file of unsupported types: \.docx 1 \(a\.docx\)\)"
    ):
        message_of(tmp_path / "none")


def test_documents_beside_tables(tmp_path):
    """A README beside tables is not a row: it is named as skipped, and read by a glob, by name, or with --format document."""
    folder = tmp_path / "in"
    fill(folder, "README.md", "a.jsonl", "b.txt")
    assert names(folder) == ["a.jsonl", "b.txt"]
    assert (
        "skipped documents in a folder with tables: .md 1 (README.md); pass their names, a glob or --format document to read them"
        in message_of(folder)
    )
    assert names(folder, format_="document") == ["README.md", "a.jsonl", "b.txt"]
    assert input_files.find([f"{folder}/*.md"]) == [folder / "README.md"]


def test_json_files_of_a_folder(tmp_path):
    """An array of objects, or several objects, are rows; a single object is a configuration, and named as skipped."""
    folder = tmp_path / "in"
    fill(folder, "a.jsonl")
    for name, content in (
        ("array.json", '[\n {"text": "a"}]'),
        ("empty.json", "[]"),
        ("lines.json", '{"text": "a"}\n{"text": "b"}\n'),
        ("config.json", '{"text": "a"}'),
        ("numbers.json", "[1, 2]"),
        ("text.json", "text"),
    ):
        (folder / name).write_text(content)
    assert names(folder) == ["a.jsonl", "array.json", "empty.json", "lines.json"]
    assert "skipped .json files that do not contain several objects: config.json, numbers.json, text.json" in message_of(folder)
    assert input_files.find([str(folder / "config.json")]) == [folder / "config.json"]


def test_links(job, tmp_path):
    """Links are followed, also out of the folder, but nothing is read twice, in a circle, or from a parent of the folder."""
    folder, outside = tmp_path / "top" / "in", tmp_path / "outside"
    fill(folder, "b.jsonl", "deep/c.jsonl", "deep/deeper/d.jsonl")
    fill(outside, "blob", "more/e.jsonl")
    (outside / "blob").write_text('{"text": "blob"}\n')
    (outside / "more" / "back").symlink_to(folder)
    links = {
        "a.jsonl": folder / "b.jsonl",
        "e.jsonl": outside / "blob",
        "f": outside / "more",
        "f2": outside / "more",
        "loop": folder,
        "up": tmp_path,
        "deep/again": folder / "deep",
        "root": tmp_path.anchor,
        "gone.jsonl": folder / "nothing",
        "self": folder / "self",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    assert names(folder) == ["b.jsonl", "deep/c.jsonl", "deep/deeper/d.jsonl", "e.jsonl", "f/e.jsonl"]
    sentence = message_of(folder)
    assert "skipped broken or circular links: " in sentence
    for name in ("gone.jsonl", "self", "loop", "up", "root", "f/back"):
        assert name in sentence
    job(folder)
    assert column(tmp_path / "out.parquet", "text") == [
        "b.jsonl",
        "deep/c.jsonl",
        "deep/deeper/d.jsonl",
        "blob",
        "more/e.jsonl",
    ]
    assert input_files.find([f"{folder}/*.jsonl"]) == [folder / "a.jsonl", folder / "e.jsonl"]
    (tmp_path / "link").symlink_to(folder)
    assert len(input_files.find([str(tmp_path / "link")])) == 5


def test_deep_folders(tmp_path):
    """The depth is not limited."""
    folder = tmp_path
    for _ in range(300):
        folder = folder / "d"
    fill(folder, "a.jsonl")
    assert folders.walk(tmp_path).files == [folder / "a.jsonl"]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv", "json", "txt", "md"])
def test_columns_in_folder_names(job, tmp_path, ending):
    """`key=value` folders add a text column: decoded, null for Hive's null name; a row's own value takes precedence."""
    folder = tmp_path / "in"
    for place, text in (("lang=de%2FAT/day=01", "a"), ("lang=__HIVE_DEFAULT_PARTITION__/day=02", "b"), ("lang=en", "c")):
        path = folder / place / f"x.{ending}"
        path.parent.mkdir(parents=True)
        row = {"text": text} | ({"day": "own"} if text == "a" else {})
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist([row]), path)
        elif ending == "csv":
            path.write_text("\n".join([",".join(row), ",".join(row.values())]))
        else:
            path.write_text({"jsonl": json.dumps(row), "json": json.dumps([row])}.get(ending, text))
    job(folder)
    found = {row["text"]: (row["lang"], row["day"]) for row in pq.read_table(tmp_path / "out.parquet").to_pylist()}
    own = "01" if ending in ("txt", "md") else "own"
    assert found == {"a": ("de/AT", own), "b": (None, "02"), "c": ("en", None)}


def test_columns_of_folders_and_of_files(job, tmp_path):
    """A folder's value is converted to the column's type in the files; a value that does not fit is an error that names it."""
    for year, row in (("2020", {"text": "a", "year": None}), ("2021", {"text": "b", "year": 1999})):
        path = tmp_path / "in" / f"year={year}" / "x.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([row], schema=pa.schema([("text", pa.string()), ("year", pa.int64())])), path)
    job(tmp_path / "in")
    assert column(tmp_path / "out.parquet", "year") == [2020, 1999]
    (tmp_path / "in" / "year=2020").rename(tmp_path / "in" / "year=old")
    with pytest.raises((OSError, ValueError), match=r"year=old/x\.parquet"):
        job(tmp_path / "in", out="other.parquet")


def test_a_folder_that_was_renamed_is_another_input(job, tmp_path, monkeypatch):
    """A resumed job must read the same columns, so another folder name or document path is an error."""
    fill(tmp_path / "in" / "k=1", *(f"{n:02}.md" for n in range(40)))
    with half_done(monkeypatch), pytest.raises(StoppedError, match="32 of 40"):
        job(tmp_path / "in", shard_rows=16)
    (tmp_path / "in" / "k=1").rename(tmp_path / "in" / "k=2")
    with pytest.raises(ValueError, match=r"the way rows are read .* folder names"):
        job(tmp_path / "in")
    (tmp_path / "in" / "k=2").rename(tmp_path / "in" / "k=1")
    job(tmp_path / "in")
    assert column(tmp_path / "out.parquet", "id") == [f"k=1/{n:02}.md" for n in range(40)]
    assert column(tmp_path / "out.parquet", "k") == ["1"] * 40


def test_invalid_documents(job, tmp_path):
    """A file that is not UTF-8, too long, or of another type is a rejected row with its reason; an empty one is an empty text."""
    folder = tmp_path / "in"
    fill(folder, "a.md", "empty.md")
    (folder / "empty.md").write_text("")
    (folder / "latin.md").write_bytes("f\u00fcr".encode("latin-1"))
    (folder / "long.md").write_bytes(b"long " * 2_000_000)
    (folder / "zip.md").write_bytes(b"PK\x03\x04")
    job(folder)
    assert column(tmp_path / "out.parquet", "text") == ["a.md", ""]
    reasons = {row["record"]["id"]: row["reason"] for row in rejected(tmp_path / "out.parquet")}
    assert reasons["latin.md"] == "is not UTF-8 at byte 1; pass --encoding"
    assert reasons["long.md"] == "has more than 8,000,000 bytes, the limit of --max-row-bytes"
    assert reasons["zip.md"].startswith("is a ZIP archive")
