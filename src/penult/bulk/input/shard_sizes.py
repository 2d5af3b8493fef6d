"""Sizes of rows in bytes, by groups of rows, to bound the size of every shard: long texts may come late in the input."""

from array import array

_CELL = 64  # rows per group
_ANY = 1 << 20  # more rows than any shard can have
_MAX_BYTES = 128 << 20  # per shard; a worker holds two shards


class Sizes:
    """Sizes of consecutive rows; takes 8 bytes per 64 rows."""

    def __init__(self) -> None:
        self.rows = 0
        self._cells = array("Q")

    def add(self, count: int, size: int) -> "Sizes":
        """Add `count` rows with a total of `size` bytes."""
        left = size
        while count:
            if self.rows % _CELL == 0:
                self._cells.append(0)
            some = min(count, _CELL - self.rows % _CELL)
            part = left * some // count
            self._cells[-1] += part
            self.rows, count, left = self.rows + some, count - some, left - part
        return self

    def extend(self, other: "Sizes") -> None:
        """Append the rows of another file."""
        rows = other.rows
        for size in other._cells:
            self.add(min(rows, _CELL), size)
            rows -= _CELL

    def max_rows(self) -> int:
        """Return the maximum rows per shard, a power of two, so that no shard exceeds the maximum bytes."""
        cells, rows = list(self._cells), _CELL
        largest = max(cells, default=0)
        if largest > _MAX_BYTES:
            return 1 << max(1, _CELL * _MAX_BYTES // largest).bit_length() - 1
        while rows < _ANY and max(cells, default=0) <= _MAX_BYTES:
            rows *= 2
            cells = [sum(cells[at : at + 2]) for at in range(0, len(cells), 2)]
        return rows if rows == _ANY else rows // 2
