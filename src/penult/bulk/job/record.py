"""What is recorded of a shard, and the names of its files. Imports no Arrow."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one shard.

    Attributes:
        shard: its number.
        rows: rows with a vector.
        rejected: rows without.
        cut: rows of which the model did not read all.
        taken: rows whose vector was taken over from an older output.
        tokens: that the model read.
        size: bytes of its file, to tell a whole one.
    """

    shard: int
    rows: int
    rejected: int
    cut: int
    taken: int
    tokens: int
    size: int


def shard_path(folder: Path, number: int) -> Path:
    """Name the file of a shard."""
    return folder / f"{number:08}.arrow"


def rejected_path(folder: Path, number: int) -> Path:
    """Name the file of a shard's rejected rows; it is there only if there are any."""
    return folder / f"{number:08}.rejected.jsonl"
