"""Documents: one row a file, its whole text. Markdown and text as they stand, HTML and PDF with the extra `documents`.

The only file that imports pypdf and bs4. Imports no Arrow.
"""

import logging
from importlib.util import find_spec
from pathlib import Path

from penult.bulk.input import streams
from penult.bulk.input.rows import Item, Rejected, Row, too_long
from penult.bulk.options import DEFAULT_READING, ReadOptions

COLUMNS = ("id", "text")
PLAIN = (".md", ".markdown", ".txt")
WITH_EXTRA = (".html", ".htm", ".pdf")
EXTRA = "pip install 'penult[documents]'"
_BLOCKS = """
address article aside blockquote br caption dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr li
main nav ol p pre section table title tr ul
""".split()  # noqa: SIM905 - what a browser shows on lines of its own
_OF_DAMAGED_PDF = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, NotImplementedError)
_UNSEEN = ["script", "style", "noscript", "template", "svg"]


def read_document(path: Path, name: str, id_: str, options: ReadOptions = DEFAULT_READING) -> Item:
    """Read a file as one row: `id`, and its text. One that cannot be read is a rejected row, never an exception.

    Args:
        path: the file. A .pdf is read as PDF, .html and .htm as HTML, anything else as text.
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
        raise ImportError(f"{path} is read with an extra: {EXTRA}.")
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
    return find_spec("bs4") is not None and find_spec("pypdf") is not None


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
    if isinstance(content, Refused):
        return content
    encoding = streams.encoding_of(content[:64], options)
    try:
        return content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        return Refused(f"is not {'UTF-8' if encoding == 'utf-8' else encoding} at its byte {error.start}; pass its --encoding")


def _html(path: Path, options: ReadOptions) -> str | Refused:
    """Return what a browser would show, a line a block. The encoding: as a mark, the options or the file itself say."""
    from bs4 import BeautifulSoup  # noqa: PLC0415 - an extra

    content = _bytes(path, options)
    if isinstance(content, Refused):
        return content
    said = None if options.codec == "utf-8" else options.codec
    try:
        page = BeautifulSoup(content, "html.parser", from_encoding=said)
        for tag in page(_UNSEEN):
            tag.decompose()
        for tag in page(_BLOCKS):
            tag.insert_before("\n")
            tag.insert_after("\n")
        found = page.get_text()
    except (RecursionError, ValueError, AssertionError) as error:
        return Refused(f"is not HTML that can be read: {error}")
    lines = (" ".join(line.split()) for line in found.split("\n"))
    return "\n".join(line for line in lines if line)


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
    except (pypdf.errors.PyPdfError, *_OF_DAMAGED_PDF) as error:
        return Refused(f"is not a PDF that can be read: {error}")
    text = "\n\n".join(pages)
    return text if text.strip() else Refused("is a PDF without text: perhaps scanned images")
