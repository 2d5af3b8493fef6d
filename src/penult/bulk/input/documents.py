"""Documents: one row a file, its whole text. Markdown and text as they stand, HTML and PDF with the extra `documents`.

The only file that imports pypdf and lxml. Imports no Arrow.
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
PLAIN = (".md", ".markdown", ".rst", ".txt")
WITH_EXTRA = (".html", ".htm", ".xhtml", ".pdf")
# What a browser shows on lines of its own, beside other cells, and not at all.
_BLOCKS = frozenset(
    """address article aside blockquote br caption dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header
    hr li main nav ol p pre section table title tr ul""".split()  # noqa: SIM905 - a list of names
)
_CELLS = frozenset(["td", "th", "option", "img", "input"])
_UNSEEN = frozenset(["script", "style", "noscript", "template", "svg"])
_DECLARED = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)
_AS_BROWSERS = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}
_NOT_OF_PAGES = ("punycode", "idna", "unicode_escape", "raw_unicode_escape", "utf-7", "utf-16", "utf-32")
_HEAD = 4096  # bytes in which a page says its encoding
# What pypdf lets out over damaged files, beside its own errors.
_OF_DAMAGED_PDF = (
    ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, RecursionError, NotImplementedError,
    struct.error, zlib.error,
)  # fmt: skip


def read_document(path: Path, name: str, id_: str, options: ReadOptions = DEFAULT_READING) -> Item:
    """Read a file as one row: `id`, and its text. One that cannot be read is a rejected row, never an exception.

    Args:
        path: the file. A .pdf is read as PDF, .html, .htm and .xhtml as HTML, anything else as text.
        name: how the user knows it.
        id_: names the row: the path from the folder that was given.
        options: how it is read; the limit of a row is that of its text.

    Raises:
        ImportError: the extra is not installed.
    """
    text = text_of(path, options)
    if isinstance(text, Refused):
        return Rejected(name, 1, text, {"id": id_})
    return Row(1, {"id": id_, "text": text}, len(text))


class Refused(str):
    """Why a document has no text that can be embedded."""

    __slots__ = ()


def text_of(path: Path, options: ReadOptions = DEFAULT_READING) -> str | Refused:
    """Return the text of a document, or why it has none.

    Raises:
        ImportError: it is HTML or PDF, and the extra is not installed.
    """
    ending = streams.ending(path)
    if ending in WITH_EXTRA and not has_extra():
        raise ImportError(f"{path} is read with {install_hint('documents')}.")
    try:
        if ending == ".pdf":
            text = _pdf(path, options)
        elif ending in WITH_EXTRA:
            text = _html(path, options)
        else:
            text = _plain(path, options)
    except OSError as error:
        return Refused(f"cannot be read: {error}")
    if not isinstance(text, Refused) and len(text.encode("utf-8", "surrogatepass")) > options.max_row_bytes:
        return Refused(too_long(options.max_row_bytes))
    return text


def has_extra() -> bool:
    """Return whether HTML and PDF can be read."""
    return find_spec("lxml") is not None and find_spec("pypdf") is not None


def is_readable(path: Path) -> bool:
    """Return whether a document can be read here: HTML and PDF need the extra."""
    return streams.ending(path) not in WITH_EXTRA or has_extra()


def _bytes(path: Path, options: ReadOptions) -> bytes | Refused:
    if what := streams.foreign(path):
        return Refused(what)
    with streams.opened(path) as file:
        content = file.read(options.max_row_bytes + 1)
    return content if len(content) <= options.max_row_bytes else Refused(too_long(options.max_row_bytes))


def _plain(path: Path, options: ReadOptions) -> str | Refused:
    content = _bytes(path, options)
    return content if isinstance(content, Refused) else _decoded(content, streams.encoding_of(content[:64], options))


def _html(path: Path, options: ReadOptions) -> str | Refused:
    """Return what a browser would show, a line a block. The encoding: as a mark, the options or the file itself say."""
    from lxml import etree  # noqa: PLC0415 - an extra

    content = _bytes(path, options)
    if isinstance(content, Refused):
        return content
    encoding = streams.encoding_of(content[:64], options)
    if encoding == "utf-8" and (declared := _DECLARED.search(content[:_HEAD])):
        encoding = declared[1].decode()
        encoding = "utf-8" if _is_not_of_pages(encoding) else encoding
    text = _decoded(content, _AS_BROWSERS.get(encoding.lower(), encoding))
    if isinstance(text, Refused):
        return text
    shown = _Shown()
    # Its target is called part by part, so that a page of a million open elements costs no more than another.
    parser = etree.HTMLParser(target=shown, encoding="utf-8", no_network=True, huge_tree=True)
    parser.feed(text.replace("\0", "").encode())
    try:
        found: str = parser.close()
    except etree.XMLSyntaxError:  # nothing but blanks
        found = shown.close()
    return found


class _Shown:
    """Takes the parts of a page, and keeps the text that a browser shows."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._unseen = 0

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        """Take the beginning of an element."""
        self._unseen += tag in _UNSEEN
        self._parts.append("\n" if tag in _BLOCKS else " " if tag in _CELLS else "")

    def end(self, tag: str) -> None:
        """Take the end of an element."""
        self._unseen -= tag in _UNSEEN
        self._parts.append("\n" if tag in _BLOCKS else "")

    def data(self, text: str) -> None:
        """Take text."""
        if not self._unseen:
            self._parts.append(" ".join(text.split("\n")))

    def comment(self, text: str) -> None:
        """Leave out a remark."""

    def close(self) -> str:
        """Return the text."""
        lines = (" ".join(line.split()) for line in "".join(self._parts).split("\n"))
        return "\n".join(line for line in lines if line)


def _is_not_of_pages(encoding: str) -> bool:
    """Return whether a page cannot say that it has an encoding: it could not be read so far, or never ends."""
    try:
        return codecs.lookup(encoding).name.startswith(_NOT_OF_PAGES)
    except LookupError:
        return False


def _decoded(content: bytes, encoding: str) -> str | Refused:
    try:
        return content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        return Refused(f"is not {'UTF-8' if encoding == 'utf-8' else encoding} at its byte {error.start}; pass its --encoding")
    except LookupError:
        return Refused(f"says that its encoding is {encoding}, which Python does not know; pass its --encoding")
    except UnicodeError as error:  # of the codec "undefined"
        return Refused(f"is not {encoding}: {error}; pass its --encoding")


def _pdf(path: Path, options: ReadOptions) -> str | Refused:
    """Return the text of all pages."""
    import pypdf  # noqa: PLC0415 - an extra

    if (what := streams.foreign(path)) and not streams.head(path).startswith(b"%PDF-"):
        return Refused(what)
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # of a page it says what it could not read, and goes on
    pages, size = [], 0
    try:
        with pypdf.PdfReader(path) as reader:
            for page in reader.pages:
                pages.append(page.extract_text())
                size += len(pages[-1])
                if size > options.max_row_bytes:
                    return Refused(too_long(options.max_row_bytes))
    except pypdf.errors.FileNotDecryptedError:
        return Refused("is a PDF that is encrypted")
    except (pypdf.errors.PyPdfError, pypdf.errors.DeprecationError, *_OF_DAMAGED_PDF) as error:
        return Refused(f"is not a PDF that can be read: {error}")
    text = "\n\n".join(pages)
    return text if text.strip() else Refused("is a PDF without text: perhaps scanned images")
