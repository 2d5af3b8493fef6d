"""Lines of a text file, each of bounded size: decompressed, and decoded by its byte order mark or the given encoding.

Handles bytes and encodings, not rows. Imports Arrow only for zstd.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from penult.bulk.options import ReadOptions
from penult.extras import install_hint

_MARKS = (  # longest first: the UTF-32 mark starts with the UTF-16 mark
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GIT_LFS = b"version https://git-lfs"
_SIGNATURES = (
    (_GIT_LFS, "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"PAR1", "is a Parquet file; rename it to .parquet"),
    (b"ARROW1", "is an Arrow file; convert it to Parquet"),
    (b"Obj\x01", "is an Avro file; convert it to Parquet"),
    (b"%PDF-", "is a PDF; rename it to .pdf"),
    (b"PK\x03\x04", "is a ZIP archive (.zip, .docx, .xlsx, .epub); unpack it, or export it as text or CSV"),
    (b"\xd0\xcf\x11\xe0", "is an old Office file (.doc, .xls); export it as text or CSV"),
    (b"{\\rtf", "is an RTF document; export it as text"),
    (b"SQLite format 3\0", "is an SQLite database; export its table as CSV"),
    (b"\x89HDF", "is an HDF5 file; export its table as CSV or Parquet"),
    (b"7z\xbc\xaf", "is a 7-Zip archive; unpack it"),
    (b"Rar!\x1a", "is a RAR archive; unpack it"),
    (b"\x89PNG", "is an image"),
    (b"\xff\xd8\xff", "is an image"),
)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_HEAD = 4096  # bytes used to detect the file type
_SHOWN = 1000  # bytes of an overlong row that the rejected rows file keeps
_PART = 1 << 16
_UNDECODABLE = "penult.undecodable"
AnyStr = TypeVar("AnyStr", str, bytes)

# A lone surrogate replaces undecodable bytes: no file can contain it, so its row is rejected.
codecs.register_error(_UNDECODABLE, lambda error: ("\udcff", cast("UnicodeDecodeError", error).end))


def ending(path: Path) -> str:
    """Return a file's extension in lower case, without that of a compression."""
    extension = path.suffix.lower()
    return Path(path.stem).suffix.lower() if extension in COMPRESSED else extension


class LongLine(bytes):
    """The beginning of a line with more bytes than the limit of a row."""


class LongText(str):
    """The decoded beginning of a line with more bytes than the limit of a row."""

    __slots__ = ()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file; a compressed file is decompressed while reading, whatever its name is.

    Raises:
        OSError: compressed data is damaged or truncated.
    """
    with path.open("rb") as file:
        magic = file.read(10)
        file.seek(0)
        stream = _decompressed(file, magic)
        try:
            with stream:
                yield stream
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise OSError(f"its compressed data is damaged or truncated: {error}") from error
        except UnicodeError as error:  # from codecs that do not support error handlers, and from UTF-16 without its mark
            raise OSError(f"it is not in the encoding that --encoding names: {error}") from error


def head(path: Path) -> bytes:
    """Return the first bytes of a file, decompressed."""
    with opened(path) as file:
        return file.read(_HEAD)


def foreign(path: Path) -> str | None:
    """Return what a file is if it is not text, or was not fetched; None if it may be text."""
    with path.open("rb") as file:
        raw = file.read(32)
    first = raw if raw.startswith(_GIT_LFS) else head(path)
    return next((description for signature, description in _SIGNATURES if first.startswith(signature)), None)


def encoding_of(first: bytes, options: ReadOptions) -> str:
    """Return a file's encoding: that of its byte order mark, else that of the options.

    Raises:
        OSError: the file looks like UTF-16, which would decode as UTF-8 full of NUL.
    """
    for mark, encoding in _MARKS:
        if first.startswith(mark):
            return encoding
    even, odd = first[:64:2], first[1:64:2]
    if options.codec == "utf-8" and len(odd) >= 4 and any(even) != any(odd):
        raise OSError(f"it looks like UTF-16 without a byte order mark; pass --encoding utf-16-{'be' if any(odd) else 'le'}")
    return options.codec


def lines(path: Path, options: ReadOptions) -> Iterator[bytes]:
    """Yield each line in UTF-8, with its line end. Undecodable bytes yield invalid UTF-8."""
    encoding = encoding_of(head(path), options)
    with opened(path) as file:
        if encoding == "utf-8":
            bounded = _bounded(file.readline, b"\n", options.max_row_bytes)
            yield from (_without_mark(line) for line in islice(bounded, 1))
            yield from bounded
            return
        with decoded(file, encoding, newline="\n") as text:
            for line in _bounded(text.readline, "\n", options.max_row_bytes):
                encoded = line.encode("utf-8", "surrogatepass")
                too_long = isinstance(line, LongText) or len(encoded) > options.max_row_bytes
                yield LongLine(encoded[:_SHOWN]) if too_long else encoded


def text_lines(path: Path, options: ReadOptions) -> Iterator[str]:
    r"""Yield each line decoded, with its line end: \n, \r\n or \r. Undecodable bytes become lone surrogates."""
    encoding = encoding_of(head(path), options)
    with opened(path) as file, decoded(file, encoding, newline="") as text:
        yield from _bounded(text.readline, ("\n", "\r"), options.max_row_bytes)


def decoded(file: BinaryIO, encoding: str, *, newline: str) -> io.TextIOWrapper:
    """Return a decoded view of a file; undecodable bytes become lone surrogates."""
    if encoding == "utf-8":
        return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=newline)
    return io.TextIOWrapper(file, encoding, errors=_UNDECODABLE, newline=newline)


def not_decoded(line: bytes, error: UnicodeDecodeError, encoding: str) -> str:
    """Return where a line is not valid in its encoding."""
    if encoding == "utf-8":
        return f"is not UTF-8 at byte {error.start}"
    return f"is not {encoding} at character {len(line[: error.start].decode('utf-8'))}"


def _bounded(readline: Callable[[int], AnyStr], ends: AnyStr | tuple[AnyStr, ...], limit: int) -> Iterator[AnyStr]:
    """Yield lines; of a line with more than `limit` bytes (text: characters), yield only the beginning and skip the rest."""
    while line := readline(limit + 1):
        if len(line) <= limit:
            yield line
            continue
        part = line
        while part and not part.endswith(ends):
            part = readline(_PART)
        yield LongLine(line[:_SHOWN]) if isinstance(line, bytes) else LongText(line[:_SHOWN])


def _without_mark(line: bytes) -> bytes:
    return type(line)(line.removeprefix(codecs.BOM_UTF8))


def _decompressed(file: BinaryIO, magic: bytes) -> BinaryIO:
    """Wrap a file in a decompressor, chosen by its first bytes: no text starts with them."""
    if magic.startswith(b"\x1f\x8b"):
        return cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=file))))
    if magic.startswith(b"BZh") and magic[4:] == b"1AY&SY":
        return cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", bz2.BZ2File(file))))
    if magic.startswith(b"\xfd7zXZ\0"):
        return cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", lzma.LZMAFile(file))))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            import pyarrow as pa  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ImportError(f"Files compressed with zstd need {install_hint('parquet')}.") from error
        return cast("BinaryIO", io.BufferedReader(pa.input_stream(file, compression="zstd")))
    return file
