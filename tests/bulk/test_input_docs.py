"""The commands and the Python code of docs/input-files.md run, on a tiny model in place of MODEL."""

import gzip
import json
import shlex

import pyarrow.parquet as pq
from bulk.jobs import run
from pages_kit import DOCS, blocks

FILE = DOCS / "input-files.md"
PAGE = FILE.read_text(encoding="utf-8")


def fill(folder):
    """Write the files that the page names."""
    (folder / "texts.jsonl").write_text('{"text": "a cat"}\n')
    (folder / "notes").mkdir()
    for name in ("a.md", "b.md", "c.docx"):
        (folder / "notes" / name).write_text(f"note {name}")
    (folder / "logs" / "deep").mkdir(parents=True)
    (folder / "logs" / "deep" / "a.csv").write_bytes("id;message\n1;f\u00fcr\n".encode("cp1252"))
    (folder / "events.jsonl.gz").write_bytes(gzip.compress(json.dumps({"event": {"body": "the dog"}}).encode()))


def test_the_commands_run(tiny, tmp_path):
    """Each command of the page runs in a folder with the files that it names."""
    fill(tmp_path)
    lines = [shlex.split(line)[1:] for block in blocks(FILE, "console") for line in block.splitlines()]
    assert len(lines) == 4
    for _, *words in lines:
        done = run(*[str(tiny) if word == "MODEL" else word for word in words], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert pq.read_table(tmp_path / words[2]).num_rows >= 1
        if words[1] == "notes":
            assert "notes: skipped 1 file of unsupported types: .docx 1 (c.docx); reading 2 files: a.md, b.md" in done.stderr


def test_the_python_runs(tmp_path, monkeypatch):
    """The block of Python returns the texts of a folder."""
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(FILE, "python")
    names = {}
    exec(code, names)
    assert names["texts"] == ["note a.md", "note b.md"]


def test_the_limits_are_those_of_the_code():
    """The numbers on the page are those of the code, and it lists all file extensions."""
    from penult.bulk.input import csv_rows, input_files, shard_sizes, streams
    from penult.bulk.options import DEFAULT_READING

    assert f"`--max-row-bytes` ({DEFAULT_READING.max_row_bytes:,})" in PAGE
    assert f"at most {csv_rows.MAX_COLUMNS:,} columns" in PAGE
    assert f"about {shard_sizes._MAX_BYTES >> 20} MB of rows" in PAGE
    assert all(f"`{ending}`" in PAGE for ending in (*input_files._ENDINGS, *streams.COMPRESSED))
