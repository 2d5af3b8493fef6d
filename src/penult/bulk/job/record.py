"""The record of a finished shard, and the names of its files. Does not import Arrow."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Record:
    """Result of one shard.

    Attributes:
        shard: number of the shard.
        rows: rows with a vector.
        rejected: rows without a vector.
        cut: truncated rows.
        taken: rows whose vector was reused from an older output.
        tokens: number of tokens that the model read.
        size: size of the shard's file in bytes, to detect an incomplete one.
    """

    shard: int
    rows: int
    rejected: int
    cut: int
    taken: int
    tokens: int
    size: int


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of a shard's file."""
    return folder / f"{number:08}.arrow"


def rejected_path(folder: Path, number: int) -> Path:
    """Return the path of a shard's rejected rows; the file exists only if there are any."""
    return folder / f"{number:08}.rejected.jsonl"
