"""Rows of CSV and TSV. An unclosed quote costs only its own line, and never more memory than a row may have.

Does not import Arrow.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from penult.bulk.input import streams
from penult.bulk.input.rows import Item, Rejected, Row, too_long
from penult.bulk.input.streams import LongText
from penult.bulk.options import DEFAULT_READING, ReadOptions

MAX_COLUMNS = 10_000  # per file; a file with more is not a table, and each column costs memory in every row
_MAX_LINES = 500_000  # per record; each takes about 100 bytes of memory in addition to its text
_DELIMITERS = ",;\t|"
_SEPARATOR = re.compile(r"sep=([,;\t|])\s*", re.IGNORECASE)  # Excel writes and reads it in a line before the header
_QUOTED = re.compile(r'"[^"]*"')
_SHOWN = 1000  # characters of a rejected line that are recorded
_OPEN = "has a quote that is not closed, or that is closed inside a field; only this line is rejected"


def read_csv(path: Path, name: str, options: ReadOptions = DEFAULT_READING, delimiter: str | None = None) -> Iterator[Item]:
    """Read the rows of a file with a header; every value is text, unchanged. A row's line number is that of its last line.

    Args:
        path: the file.
        name: name of the file in messages.
        options: how rows are read.
        delimiter: None: that of a line `sep=` before the header, else the first of comma, semicolon, tab and | in the
            header.

    Raises:
        ValueError: the header has a duplicate column or an unclosed quote.
    """
    lines = _Lines(streams.text_lines(path, options), options.max_row_bytes)
    dialect, header = _header(lines, name, delimiter)
    if not header:
        return
    for record in lines.records(dialect):
        fields = record.fields
        if isinstance(fields, str):
            yield Rejected(name, record.line, fields, record.text[:_SHOWN])
        elif len(fields) == len(header):
            yield Row(record.line, dict(zip(header, fields, strict=True)), record.size)
        else:
            reason = f"has {len(fields)} fields, but the header has {len(header)}"
            yield Rejected(name, record.line, reason, fields)


def read_tsv(path: Path, name: str, options: ReadOptions = DEFAULT_READING) -> Iterator[Item]:
    """Read tab-separated rows, quoted as in CSV."""
    return read_csv(path, name, options, "\t")


def columns_of(path: Path, name: str, options: ReadOptions = DEFAULT_READING, delimiter: str | None = None) -> list[str]:
    """Return the column names in a file's header."""
    return _header(_Lines(streams.text_lines(path, options), options.max_row_bytes), name, delimiter)[1]


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How fields are separated. `blank`: whether a space after a delimiter is not part of the field."""

    delimiter: str
    blank: bool = False


@dataclass(frozen=True, slots=True)
class _Record:
    """One record: number of its last line, its fields (or why it is rejected), and the text of its first line."""

    line: int
    fields: list[str] | str
    text: str
    size: int


class _Lines:
    """Numbered lines, parsed into records. Lines can be put back.

    A record of several lines has a stray quote if the quote is closed inside a field, or not closed before the end of the file
    or the limit of a row. Then its first line is rejected, and reading continues with the next line as a new row. The lines
    in between contain no quote that opens a field, since it would have closed the stray quote. So each of them is read as a
    row of its own, and no line is read more than three times.
    """

    def __init__(self, lines: Iterator[str], limit: int) -> None:
        self._lines, self._limit = enumerate(lines, 1), limit
        self._again: deque[tuple[int, str]] = deque()
        self._alone = 0  # each line up to this one is read as a row of its own

    def next(self) -> tuple[int, str] | None:
        """Return the next line and its number."""
        return self._again.popleft() if self._again else next(self._lines, None)

    def put_back(self, lines: list[tuple[int, str]]) -> None:
        """Put lines back, to be returned next."""
        self._again.extendleft(reversed(lines))

    def records(self, dialect: _Dialect) -> Iterator[_Record]:
        """Yield all remaining records; blank lines are skipped."""
        while (first := self.next()) is not None:
            number, line = first
            if isinstance(line, LongText) or _exceeds(line, self._limit):
                yield _Record(number, too_long(self._limit), line, 0)
            elif '"' not in line:
                bare = line.rstrip("\r\n")
                if bare:
                    yield _Record(number, _split(bare, dialect), line, len(line))
            else:
                yield self._quoted(number, line, dialect)

    def _quoted(self, number: int, line: str, dialect: _Dialect) -> _Record:
        with suppress(csv.Error):  # most records with quotes are one line
            return _Record(number, next(_reader(iter([line]), dialect, strict=True)), line, len(line))
        lines = [(number, line)]
        try:
            fields = next(_reader(self._continued(lines), dialect, strict=True))
        except csv.Error:
            if len(lines) == 1 and (lenient := _lenient(line, dialect)) is not None:
                return _Record(number, lenient, line, len(line))
            self._alone = max(self._alone, lines[-1][0] - 1)
            self.put_back(lines[1:])
            return _Record(number, _OPEN, line, 0)
        size = sum(len(text) for _, text in lines)
        if _exceeds("".join(text for _, text in lines), self._limit):
            return _Record(lines[-1][0], too_long(self._limit), line, 0)
        return _Record(lines[-1][0], fields, line, size)

    def _continued(self, lines: list[tuple[int, str]]) -> Iterator[str]:
        """Yield a record's first line, then the next ones on demand, up to the limits of a row."""
        size = 0
        while True:
            number, line = lines[-1]
            size += len(line)
            yield line
            following = self.next() if number >= self._alone else None
            if following is None:
                return
            full = len(lines) >= _MAX_LINES or size + len(following[1]) > self._limit
            if full or isinstance(following[1], LongText):
                self.put_back([following])
                return
            lines.append(following)


def _header(lines: _Lines, name: str, delimiter: str | None) -> tuple[_Dialect, list[str]]:
    first = lines.next()
    if first is not None and delimiter is None and (separator := _SEPARATOR.fullmatch(first[1])):
        delimiter = separator[1]
    elif first is not None:
        plain = _QUOTED.sub("", first[1])
        delimiter = delimiter or next((mark for mark in _DELIMITERS if mark in plain), ",")
        lines.put_back([first])
    record = next(lines.records(_Dialect(delimiter or ",")), None)
    if record is None:
        return _Dialect(","), []
    if isinstance(record.fields, str):
        raise ValueError(  # noqa: TRY004 - about the file's content, not a type
            f"The header of {name} {record.fields.partition(';')[0]}. Fix the header."
        )
    blank = len(record.fields) > 1 and all(field.startswith(" ") for field in record.fields[1:])
    dialect = _Dialect(delimiter or ",", blank)
    if blank:  # quotes after a space are quotes
        record = _Record(record.line, _split_quoted(record, dialect), record.text, record.size)
    header = [field.strip() for field in record.fields]
    if len(set(header)) != len(header):
        raise ValueError(f"The header of {name} has duplicate columns: {header}. Rename them.")
    if len(header) > MAX_COLUMNS:
        raise ValueError(f"{name} has {len(header):,} columns in its header; at most {MAX_COLUMNS:,} are supported.")
    return dialect, header


def _split_quoted(record: _Record, dialect: _Dialect) -> list[str] | str:
    return _lenient(record.text, dialect) or record.fields


def _split(bare: str, dialect: _Dialect) -> list[str]:
    """Split a line that contains no quotes."""
    fields = bare.split(dialect.delimiter)
    return [field.lstrip(" ") for field in fields] if dialect.blank else fields


def _lenient(line: str, dialect: _Dialect) -> list[str] | None:
    """Parse a line with text after a closing quote, as spreadsheets do; return None if a quote is open at its end."""
    continued: list[bool] = []

    def one() -> Iterator[str]:
        yield line
        continued.append(True)

    fields = next(_reader(one(), dialect, strict=False), None)
    return None if continued else fields


def _reader(lines: Iterator[str], dialect: _Dialect, *, strict: bool) -> Iterator[list[str]]:
    return csv.reader(lines, strict=strict, delimiter=dialect.delimiter, skipinitialspace=dialect.blank)


def _exceeds(text: str, limit: int) -> bool:
    """Return whether a text has more bytes than the limit; it is encoded only if its length does not decide."""
    return len(text) * 4 > limit and len(text.encode("utf-8", "surrogatepass")) > limit


csv.field_size_limit(2**31 - 1)  # the maximum on all platforms; the default is 128 KiB, and `max_row_bytes` limits rows already
