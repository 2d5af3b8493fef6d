"""Documents: one row per file with its whole text. Markdown and text unchanged; HTML and PDF with the extra `documents`.

The only module that imports pypdf and lxml. Does not import Arrow.
"""

import codecs
import logging
import re
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

from penult.bulk.input import streams
from penult.bulk.input.rows import Item, Rejected, Row, too_long
from penult.bulk.options import DEFAULT_READING, ReadOptions
from penult.extras import install_hint

COLUMNS = ("id", "text")
WITH_EXTRA = (".html", ".htm", ".xhtml", ".pdf")
# Elements that a browser shows as blocks, as table cells, and not at all.
_BLOCKS = frozenset(
    """address article aside blockquote br caption dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header
    hr li main nav ol p pre section table title tr ul""".split()  # noqa: SIM905 - a list of names
)
_CELLS = frozenset(["td", "th", "option", "img", "input"])
_HIDDEN = frozenset(["script", "style", "noscript", "template", "svg"])
_DECLARED = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)
_BROWSER_ENCODINGS = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}
_NOT_IN_PAGES = ("punycode", "idna", "unicode_escape", "raw_unicode_escape", "utf-7", "utf-16", "utf-32")
_HEAD = 4096  # bytes in which a page declares its encoding
# Exceptions that pypdf raises for damaged files, besides its own.
_PDF_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, RecursionError, NotImplementedError,
    struct.error, zlib.error,
)  # fmt: skip


def read_document(path: Path, name: str, id_: str, options: ReadOptions = DEFAULT_READING) -> Item:
    """Read a file as one row: `id` and its text. An unreadable file is a rejected row, never an exception.

    Args:
        path: the file. A .pdf is read as PDF, .html, .htm and .xhtml as HTML, anything else as text.
        name: name of the file in messages.
        id_: id of the row: the path relative to the input folder.
        options: how the file is read; the limit of a row applies to its text.

    Raises:
        ImportError: the extra is not installed.
    """
    text = text_of(path, options)
    if isinstance(text, Unreadable):
        return Rejected(name, 1, text, {"id": id_})
    return Row(1, {"id": id_, "text": text}, len(text))


class Unreadable(str):
    """The reason why a document has no text to embed."""

    __slots__ = ()


def text_of(path: Path, options: ReadOptions = DEFAULT_READING) -> str | Unreadable:
    """Return the text of a document, or why it has none.

    Raises:
        ImportError: the document is HTML or PDF, and the extra is not installed.
    """
    ending = streams.ending(path)
    if ending in WITH_EXTRA and not has_extra():
        raise ImportError(f"Reading {path} needs {install_hint('documents')}.")
    try:
        if ending == ".pdf":
            text = _pdf(path, options)
        elif ending in WITH_EXTRA:
            text = _html(path, options)
        else:
            text = _plain(path, options)
    except OSError as error:
        return Unreadable(f"cannot be read: {error}")
    if not isinstance(text, Unreadable) and len(text.encode("utf-8", "surrogatepass")) > options.max_row_bytes:
        return Unreadable(too_long(options.max_row_bytes))
    return text


def has_extra() -> bool:
    """Return whether the extra for HTML and PDF is installed."""
    return find_spec("lxml") is not None and find_spec("pypdf") is not None


def is_readable(path: Path) -> bool:
    """Return whether a document can be read with the installed extras: HTML and PDF need one."""
    return streams.ending(path) not in WITH_EXTRA or has_extra()


def _bytes(path: Path, options: ReadOptions) -> bytes | Unreadable:
    if problem := streams.foreign(path):
        return Unreadable(problem)
    with streams.opened(path) as file:
        content = file.read(options.max_row_bytes + 1)
    return content if len(content) <= options.max_row_bytes else Unreadable(too_long(options.max_row_bytes))


def _plain(path: Path, options: ReadOptions) -> str | Unreadable:
    content = _bytes(path, options)
    return content if isinstance(content, Unreadable) else _decoded(content, streams.encoding_of(content[:64], options))


def _html(path: Path, options: ReadOptions) -> str | Unreadable:
    """Return the visible text, one line per block. Encoding: from the byte order mark, the options or the file itself."""
    from lxml import etree  # noqa: PLC0415 - an extra

    content = _bytes(path, options)
    if isinstance(content, Unreadable):
        return content
    encoding = streams.encoding_of(content[:64], options)
    if encoding == "utf-8" and (declared := _DECLARED.search(content[:_HEAD])):
        encoding = declared[1].decode()
        encoding = "utf-8" if _is_invalid_in_pages(encoding) else encoding
    text = _decoded(content, _BROWSER_ENCODINGS.get(encoding.lower(), encoding))
    if isinstance(text, Unreadable):
        return text
    collector = _Shown()
    # With a target, lxml builds no tree, so a page with a million open elements costs no more memory than another.
    parser = etree.HTMLParser(target=collector, encoding="utf-8", no_network=True, huge_tree=True)
    parser.feed(text.replace("\0", "").encode())
    try:
        visible: str = parser.close()
    except etree.XMLSyntaxError:  # only whitespace
        visible = collector.close()
    return visible


class _Shown:
    """Parser target that collects the visible text of a page."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._hidden = 0

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        """Handle the start of an element."""
        self._hidden += tag in _HIDDEN
        self._parts.append("\n" if tag in _BLOCKS else " " if tag in _CELLS else "")

    def end(self, tag: str) -> None:
        """Handle the end of an element."""
        self._hidden -= tag in _HIDDEN
        self._parts.append("\n" if tag in _BLOCKS else "")

    def data(self, text: str) -> None:
        """Handle text."""
        if not self._hidden:
            self._parts.append(" ".join(text.split("\n")))

    def comment(self, text: str) -> None:
        """Ignore a comment."""

    def close(self) -> str:
        """Return the text."""
        lines = (" ".join(line.split()) for line in "".join(self._parts).split("\n"))
        return "\n".join(line for line in lines if line)


def _is_invalid_in_pages(encoding: str) -> bool:
    """Return whether a page cannot be in the encoding that it declares: its declaration would be unreadable, or endless."""
    try:
        return codecs.lookup(encoding).name.startswith(_NOT_IN_PAGES)
    except LookupError:
        return False


def _decoded(content: bytes, encoding: str) -> str | Unreadable:
    try:
        return content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        return Unreadable(f"is not {'UTF-8' if encoding == 'utf-8' else encoding} at byte {error.start}; pass --encoding")
    except LookupError:
        return Unreadable(f"declares the encoding {encoding}, which Python does not support; pass --encoding")
    except UnicodeError as error:  # of the codec "undefined"
        return Unreadable(f"is not {encoding}: {error}; pass --encoding")


def _pdf(path: Path, options: ReadOptions) -> str | Unreadable:
    """Return the text of all pages of a PDF."""
    import pypdf  # noqa: PLC0415 - an extra

    if (problem := streams.foreign(path)) and not streams.head(path).startswith(b"%PDF-"):
        return Unreadable(problem)
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # pypdf logs what it cannot read of a page, and continues
    pages, size = [], 0
    try:
        with pypdf.PdfReader(path) as reader:
            for page in reader.pages:
                pages.append(page.extract_text())
                size += len(pages[-1])
                if size > options.max_row_bytes:
                    return Unreadable(too_long(options.max_row_bytes))
    except pypdf.errors.FileNotDecryptedError:
        return Unreadable("is an encrypted PDF")
    except (pypdf.errors.PyPdfError, pypdf.errors.DeprecationError, *_PDF_ERRORS) as error:
        return Unreadable(f"is a PDF that cannot be read: {error}")
    text = "\n\n".join(pages)
    return text if text.strip() else Unreadable("is a PDF without text, perhaps a scan")
