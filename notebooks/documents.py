"""Read the documents of a folder: plain text in any common encoding, Markdown, HTML, and PDF if pypdf is installed.

Notes name the files that were skipped and those whose encoding was guessed.
"""

import codecs
import importlib.util
import re
from collections import Counter
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

PLAIN, HTML, PDF = {".txt", ".md", ".markdown", ".rst"}, {".html", ".htm", ".xhtml"}, {".pdf"}
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_HIDDEN = {"script", "style", "template", "noscript"}
_BLOCKS = {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article", "table", "pre", "blockquote"}


def read_folder(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Return the documents below a folder by relative path, and notes on skipped files and guessed encodings."""
    documents: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    guessed, failed = [], []
    pdf = importlib.util.find_spec("pypdf") is not None
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, kind = path.relative_to(folder).as_posix(), path.suffix.lower()
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if kind not in PLAIN | HTML | (PDF if pdf else set()):
            skipped[kind or "no extension"] += 1
            continue
        try:
            documents[name], certain = (_pdf(path), True) if kind in PDF else _decoded(path)
        except ValueError as error:
            failed.append(f"{name} ({error})")
            continue
        if kind in HTML:
            documents[name] = visible_text(documents[name])
        if not certain:
            guessed.append(name)
    notes = []
    if skipped:
        kinds = ", ".join(f"{kind} {count}" for kind, count in skipped.most_common())
        advice = " To read PDF: .venv/bin/python -m pip install pypdf." if skipped[".pdf"] and not pdf else ""
        notes.append(f"{skipped.total()} files of other types skipped: {kinds}.{advice}")
    if guessed:
        notes.append(f"Not UTF-8, read as Windows-1252: {_some(guessed)}. Save them as UTF-8 if that is wrong.")
    if failed:
        notes.append(f"Not readable, skipped: {_some(failed)}.")
    return documents, notes


def visible_text(html: str) -> str:
    """Return the visible text of a page, one paragraph per line."""
    page = _Page()
    page.feed(html)
    page.close()
    lines = (" ".join(line.split()) for line in "".join(page.parts).splitlines())
    return "\n\n".join(line for line in lines if line)


def _decoded(path: Path) -> tuple[str, bool]:
    """Return a file's text and whether its encoding is certain."""
    content = path.read_bytes()
    stated = re.search(rb"charset=[\"']?([\w-]+)", content[:2048]) if path.suffix.lower() in HTML else None
    encodings = [name for bom, name in _BOMS.items() if content.startswith(bom)] or ["utf-8"]
    for encoding in [*encodings, *([stated[1].decode("ascii")] if stated else [])]:
        with suppress(UnicodeDecodeError, LookupError):
            return content.decode(encoding), True
    if b"\0" in content:
        raise ValueError("not text")
    return content.decode("cp1252" if _is_cp1252(content) else "latin-1"), False


def _is_cp1252(content: bytes) -> bool:
    return not any(byte in content for byte in b"\x81\x8d\x8f\x90\x9d")


def _pdf(path: Path) -> str:
    import pypdf

    try:
        text = "\n\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages)
    except pypdf.errors.PyPdfError as error:
        raise ValueError(str(error)) from error
    if not text.strip():
        raise ValueError("no text; perhaps only scanned pages")
    return text


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class _Page(HTMLParser):
    """Collects the text of a page, without scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._hidden += tag in _HIDDEN
        self.parts.append("\n" if tag in _BLOCKS else "")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in _HIDDEN and self._hidden > 0
        self.parts.append("\n" if tag in _BLOCKS else "")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            # A line break in the source is not one on the page.
            self.parts.append(data.replace("\n", " "))
