"""HTML and PDF documents, with the extra `documents`: their text, or why they have none."""

import re

import pytest
from bulk.jobs import rejected

from penult.bulk.input import documents, input_files, row_files
from penult.bulk.input.documents import Unreadable, text_of
from penult.bulk.options import ReadOptions

EXTRA = r"the extra penult\[documents\] \(pip install .*\)"
PAGE = """<!DOCTYPE html><html><head><title>The cat</title><style>p {color: red}</style><script>var x = "<p>no</p>";</script></head>
<body><h1>A  cat</h1><p>sat on <b>the</b> mat &amp; slept.<br>Then it<!-- a remark --> woke.</p>
<ul><li>one<li>two</ul><table><tr><td>a</td> <td>b</td></tr></table></body></html>"""
SHOWN = "The cat\nA cat\nsat on the mat & slept.\nThen it woke.\none\ntwo\na b"


def pdf(*pages):
    """Return a PDF whose pages each show one line of text."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    bodies = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(pages):
        content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        resources = "/Resources << /Font << /F1 3 0 R >> >> /MediaBox [0 0 612 792]"
        bodies.append(f"<< /Type /Page /Parent 2 0 R {resources} /Contents {5 + 2 * n} 0 R >>")
        bodies.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 {len(places) + 1}\n0000000000 65535 f \n{table}trailer << /Size {len(places) + 1} /Root 1 0 R >>\n"
    return data + f"{end}startxref\n{len(data)}\n%%EOF\n".encode()


@pytest.fixture
def installed():
    pytest.importorskip("lxml", reason="the extra `documents` is not installed")
    return pytest.importorskip("pypdf", reason="the extra `documents` is not installed")


def test_html(installed, tmp_path):
    """The visible text, one line per block; the encoding comes from the file, a byte order mark or --encoding."""
    path = tmp_path / "a.html"
    path.write_text(PAGE)
    assert text_of(path) == SHOWN
    for content, options in (
        ('<meta charset="latin-1"><p>f\u00fcr'.encode("latin-1"), ReadOptions()),
        ("<p>f\u00fcr".encode("utf-16"), ReadOptions()),
        ("<p>f\u00fcr".encode("cp1252"), ReadOptions("cp1252")),
        ("<p>f\u00fcr".encode(), ReadOptions()),
    ):
        path.write_bytes(content)
        assert text_of(path, options) == "f\u00fcr"
    (tmp_path / "a.xhtml").write_text('<?xml version="1.0"?><html><script src="a.js"/><body><p>f&#252;r</p></body></html>')
    assert text_of(tmp_path / "a.xhtml") == "f\u00fcr"
    path.write_bytes(b"<p>f\xfcr")
    assert text_of(path) == "is not UTF-8 at byte 4; pass --encoding"
    path.write_bytes(b'<meta charset="utf-16"><p>f\xc3\xbcr')
    assert text_of(path) == "f\u00fcr"
    path.write_bytes(b'<meta charset="punycode"><p>' + b"x" * 1_000_000)  # to decode it so takes minutes
    assert len(text_of(path)) == 1_000_000
    path.write_bytes(b'<meta charset="klingon"><p>x')
    assert text_of(path) == "declares the encoding klingon, which Python does not support; pass --encoding"
    path.write_bytes(b'<meta charset="undefined"><p>x')  # a codec of Python's that has no text
    assert "pass --encoding" in text_of(path)
    for content in ("", "  ", "<!-- a remark -->", "<script>x</script>"):
        path.write_text(content)
        assert text_of(path) == ""


def test_pages_with_unclosed_elements(installed, tmp_path):
    """Unclosed elements, comments and unusual markup take time linear in the length of the page."""
    path = tmp_path / "a.html"
    for part in ("<div>", "<b>", "<p><table>", "<!--", "<", "<!", "<?", "</", "<![CDATA[", "<a b='", "&"):
        path.write_text(part * 100_000 + "the end")
        assert isinstance(text_of(path), str)  # minutes each, were it quadratic
    path.write_text("<div>" * 100_000 + "the end")
    assert text_of(path) == "the end"


def test_pdf(installed, tmp_path):
    """The text of all pages; a PDF that is empty, damaged or encrypted has a reason."""
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("the cat sat", "on the mat"))
    assert text_of(path).split() == "the cat sat on the mat".split()
    assert text_of(path, ReadOptions(max_row_bytes=15)) == "has more than 15 bytes, the limit of --max-row-bytes"
    path.write_bytes(pdf(""))
    assert text_of(path) == "is a PDF without text, perhaps a scan"
    for content in (b"%PDF-1.4", b"", pdf("x")[:300], pdf("x").replace(b"/Kids", b"/Dogs")):
        path.write_bytes(content)
        assert isinstance(text_of(path), Unreadable)
    # The second is /FlateDecode cut off: an old name that pypdf refuses, with an error of another class.
    for content in (
        pdf("x").replace(b"/Contents", b"/Contents []", 1),
        pdf("x").replace(b"<< /Length", b"<< /Filter /Fl /Length"),
    ):
        path.write_bytes(content)
        assert isinstance(text_of(path), str)
    path.write_bytes(pdf("secret"))
    writer = installed.PdfWriter(clone_from=path)
    writer.encrypt("word", algorithm="RC4-128")
    writer.write(path)
    assert text_of(path) == "is an encrypted PDF"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert text_of(path).startswith("is a Git LFS pointer")


def test_a_folder_of_documents(installed, job, tmp_path):
    """Documents of all kinds are rows, sorted by name; those without text are rejected rows."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(pdf("the cat"))
    (folder / "b.html").write_text("<p>the dog</p>")
    (folder / "c.md").write_text("the moon")
    (folder / "d.htm").write_text("the fish")
    (folder / "e.pdf").write_bytes(b"%PDF-1.4")
    (folder / "f.docx").write_bytes(b"PK\x03\x04")
    sentences = []
    paths = input_files.find([str(folder)], say=sentences.append)
    assert "skipped 1 file of unsupported types: .docx 1 (f.docx)" in sentences[0]
    items = [item for path in paths for item in row_files.items(input_files.opened(path, root=folder))]
    assert [item.values["text"] for item in items[:4]] == ["the cat", "the dog", "the moon", "the fish"]
    done = job(folder)
    assert (done.totals.rows, done.totals.rejected) == (4, 1)
    assert rejected(tmp_path / "out.parquet")[0]["record"] == {"id": "e.pdf"}


def test_without_the_extra(job, tmp_path, monkeypatch):
    """In a folder, HTML and PDF are skipped, counted and named with the extra to install; named explicitly, they are an error."""
    monkeypatch.setattr(documents, "has_extra", lambda: False)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.pdf", "b.html", "c.md"):
        (folder / name).write_text(name)
    sentences = []
    assert input_files.find([str(folder)], say=sentences.append) == [folder / "c.md"]
    assert "skipped 2 files of unsupported types: .html 1, .pdf 1 (a.pdf, b.html)" in sentences[0]
    assert re.search(rf"HTML and PDF files need {EXTRA}", sentences[0])
    for name in ("a.pdf", "b.html"):
        with pytest.raises(ImportError, match=rf"Reading .*{name} needs {EXTRA}\."):
            job(folder / name)
        with pytest.raises(ImportError, match=rf"Reading .*{name} needs {EXTRA}\."):
            text_of(folder / name)
    assert text_of(folder / "c.md") == "c.md"
