"""How many bytes rows have, some together, so that no shard is larger than memory allows: long texts may come late."""

from array import array

_CELL = 64  # rows that are counted together
_ANY = 1 << 20  # more rows than any shard has
_MOST_BYTES = 128 << 20  # of a shard; a worker has two of them in hand


class Sizes:
    """Sizes of consecutive rows: 8 bytes for each 64 of them."""

    def __init__(self) -> None:
        self.rows = 0
        self._cells = array("Q")

    def add(self, count: int, size: int) -> "Sizes":
        """Count rows that have so many bytes together."""
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
        """Count the rows of another file behind these."""
        rows = other.rows
        for size in other._cells:
            self.add(min(rows, _CELL), size)
            rows -= _CELL

    def most_rows(self) -> int:
        """Return how many rows, a power of two, a shard may have so that none has more bytes than are to be held."""
        cells, rows = list(self._cells), _CELL
        largest = max(cells, default=0)
        if largest > _MOST_BYTES:
            return 1 << max(1, _CELL * _MOST_BYTES // largest).bit_length() - 1
        while rows < _ANY and max(cells, default=0) <= _MOST_BYTES:
            rows *= 2
            cells = [sum(cells[at : at + 2]) for at in range(0, len(cells), 2)]
        return rows if rows == _ANY else rows // 2
