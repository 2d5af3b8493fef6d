"""Rows of plain text: one text per line. Does not import Arrow."""

from collections.abc import Iterator
from pathlib import Path

from penult.bulk.input import streams
from penult.bulk.input.rows import Item, Rejected, Row, too_long
from penult.bulk.input.streams import LongLine
from penult.bulk.options import DEFAULT_READING, ReadOptions

COLUMNS = ("file", "line", "text")


def read_text(path: Path, name: str, options: ReadOptions = DEFAULT_READING) -> Iterator[Item]:
    """Read one text per line; an empty line is an empty text."""
    for number, line in enumerate(streams.lines(path, options), 1):
        bare = line.removesuffix(b"\n").removesuffix(b"\r")
        if isinstance(line, LongLine):
            yield Rejected(name, number, too_long(options.max_row_bytes), bare.decode("utf-8", "backslashreplace"))
            continue
        try:
            yield Row(number, {"file": name, "line": number, "text": bare.decode("utf-8")}, len(line))
        except UnicodeDecodeError as error:
            reason = streams.not_decoded(line, error, options.codec)
            yield Rejected(name, number, reason, bare.decode("utf-8", "backslashreplace"))
