"""Rows of JSON: one object per line, the objects of an array, or concatenated objects.

An array is never in memory as a whole: the stream is split into elements by their brackets, and each is parsed separately.
Does not import Arrow.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from penult.bulk.input import streams
from penult.bulk.input.rows import Item, Rejected, Row, too_long
from penult.bulk.input.streams import LongLine
from penult.bulk.options import DEFAULT_READING, ReadOptions

_BLANK = b" \t\r\n\x1e"  # in RFC 7464, each text starts with \x1e
_OUTSIDE = re.compile(rb'["{}\[\],]')
_IN_STRING = re.compile(rb'["\\]')
_PART = 1 << 16  # bytes per read
_SHOWN = 1000  # bytes of an overlong value that the rejected rows file keeps


def parse_json(name: str, number: int, line: bytes, options: ReadOptions = DEFAULT_READING) -> Item:
    """Parse a line that must be one JSON object. `name` is the file's name in messages."""
    if isinstance(line, LongLine):
        return Rejected(name, number, too_long(options.max_row_bytes), _shown(line))
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        reason = streams.not_decoded(line, error, options.codec)
    except (ValueError, RecursionError) as error:
        reason = f"is not valid JSON: {error}"
    else:
        if isinstance(values, dict):
            return Row(number, values, len(line))
        reason = f"is a JSON {type(values).__name__}, not an object"
    return Rejected(name, number, reason, _shown(line))


def read_lines(path: Path, name: str, options: ReadOptions = DEFAULT_READING) -> Iterator[Item]:
    """Read one object per line; blank lines are not rows, but count as lines."""
    for number, line in enumerate(streams.lines(path, options), 1):
        if line.strip():
            yield parse_json(name, number, line, options)


def read_values(path: Path, name: str, options: ReadOptions = DEFAULT_READING) -> Iterator[Item]:
    """Read the objects of an array, or concatenated objects; a row's line is then its position, counted from 1.

    Raises:
        OSError: the file ends inside its array, or its JSON is so invalid that rows cannot be located.
    """
    for number, value in enumerate(_values(_parts(path, options), options.max_row_bytes), 1):
        yield parse_json(name, number, value, options)


def contains_objects(path: Path, options: ReadOptions = DEFAULT_READING) -> bool:
    """Return whether a .json file contains rows: an array of objects, or several objects. A single object may be anything."""
    try:
        first = next(_parts(path, options), b"")
    except OSError:
        return True  # its reader reports the error
    bare = first.strip(_BLANK)
    if bare.startswith(b"["):
        return bare[1:].lstrip(_BLANK)[:1] in (b"{", b"]", b"")
    try:
        _, end = json.JSONDecoder().raw_decode(bare.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    return bare.decode("utf-8", "replace")[end:].lstrip()[:1] == "{"


def looks_like(first: bytes) -> str | None:
    """Return what a file is, by its first bytes, if it is not JSON lines; None if they do not show it."""
    bare = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    if bare.startswith(b"["):
        return "looks like a JSON array. Rename it to .json, or pass --format json"
    if bare.startswith(b"{") and bare[1:].lstrip(b" \t\r").startswith(b"\n"):
        return "has an object over several lines, but JSON Lines has one per line. Rename it to .json, or pass --format json"
    if bare[:1] == b"<":
        return "looks like HTML or XML"
    return None


def _shown(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace").rstrip("\n")


def _parts(path: Path, options: ReadOptions) -> Iterator[bytes]:
    """Yield a file's bytes in UTF-8, in blocks."""
    encoding = streams.encoding_of(streams.head(path), options)
    with streams.opened(path) as file:
        if encoding == "utf-8":
            first = file.read(_PART).removeprefix(codecs.BOM_UTF8)
            yield from chain([first], iter(lambda: file.read(_PART), b""))
        else:
            with streams.decoded(file, encoding, newline="\n") as text:
                yield from (part.encode("utf-8", "surrogatepass") for part in iter(lambda: text.read(_PART), ""))


class _Splitter:
    """Splitter of a byte stream into the values of an array, or into concatenated objects.

    It scans brackets and strings only; the parser of a value validates it. Of a value with more than `limit` bytes, it keeps
    only the beginning.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held, self._size = bytearray(), 0
        self._array = self._begun = self._ended = self._quoted = False
        self._depth = self._skip = 0

    def feed(self, part: bytes) -> Iterator[bytes]:
        """Process some bytes; yield the values that end in them."""
        if not self._begun:
            part = part.lstrip(_BLANK)
            self._begun = bool(part)
            self._array = part.startswith(b"[")
            part = part.removeprefix(b"[")
        start, at = 0, self._skip
        while match := (_IN_STRING if self._quoted else _OUTSIDE).search(part, at):
            at, mark = match.end(), match[0]
            if mark == b"\\":
                at += 1  # an escaped character does not end a string
            elif mark == b'"':
                self._quoted = not self._quoted
            elif self._ends(mark):
                closes = mark in b"}]" and not self._array  # otherwise the mark follows the value
                self._hold(part[start : at if closes else at - 1])
                start = at
                yield from self._value()
        self._skip = max(0, at - len(part))
        self._hold(part[start:])

    def finish(self) -> None:
        """Raise OSError if the stream ends inside a value, or continues after its array."""
        rest = bytes(self._held).strip(_BLANK)
        if self._array and not self._ended:
            raise OSError("its JSON array is not closed; the file is damaged or truncated")
        if rest and self._ended:
            raise OSError("there is text after its JSON array. If the file has one JSON object per line, pass --format jsonl")
        if rest:
            raise OSError(
                f"its JSON is damaged or truncated at {rest[:40].decode('utf-8', 'replace')!r}. If the file has one JSON "
                "object per "
                "line, pass --format jsonl, which rejects invalid lines only"
            )

    def _ends(self, mark: bytes) -> bool:
        """Process a bracket or comma; return whether a value ends here."""
        if mark in b"{[":
            self._depth += 1
            return False
        if mark == b",":
            return self._array and not self._depth and not self._ended
        if self._array and not self._depth and mark == b"]" and not self._ended:
            self._ended = True
            return True
        self._depth -= 1
        return not self._array and self._depth <= 0

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        self._held += part
        if self._size > self._limit:
            del self._held[_SHOWN:]

    def _value(self) -> Iterator[bytes]:
        value, size = bytes(self._held), self._size
        self._held, self._size = bytearray(), 0
        bare = value.strip(_BLANK)
        if bare or not self._ended:  # nothing between two commas is an invalid value, but ] may follow a comma or [
            yield LongLine(bare) if size > self._limit else bare


def _values(parts: Iterable[bytes], limit: int) -> Iterator[bytes]:
    splitter = _Splitter(limit)
    for part in parts:
        yield from splitter.feed(part)
    splitter.finish()
