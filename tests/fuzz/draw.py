"""Values drawn from bytes, so that a fuzzer that changes bytes changes values; after the last byte, all are zero."""

import json


class Draw:
    """Draws values from bytes, from the first on."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> bool:
        """Return whether any bytes are left."""
        return self._at < len(self._data)

    def whole(self, most: int) -> int:
        """Draw a number from 0 to `most`."""
        size = max(1, (most.bit_length() + 7) // 8)
        return int.from_bytes(self.take(size), "little") % (most + 1)

    def of(self, choices):
        """Draw one of some items."""
        return choices[self.whole(len(choices) - 1)]

    def take(self, size: int) -> bytes:
        """Draw bytes unchanged."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def json(self, depth: int = 3):
        """Draw a JSON value, with a preference for unusual ones."""
        kind = self.whole(9)
        if kind == 0 and depth:
            return [self.json(depth - 1) for _ in range(self.whole(4))]
        if kind == 1 and depth:
            return {self.text(): self.json(depth - 1) for _ in range(self.whole(4))}
        if kind == 2:
            return self.text()
        return self.of([None, True, False, 0, 1, -1, 7, 1e400, float("nan"), 1.5, 10**30, "", "a", [], {}, [[]], [{}]])

    def text(self) -> str:
        """Draw a short text."""
        return self.take(self.whole(12)).decode("utf-8", "replace")


def altered(draw: Draw, value):
    """Change a JSON value in a few places: replace, remove or duplicate."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.whole(3)):
        at, spots = value, []
        while isinstance(at, dict | list) and at:
            keys = list(at) if isinstance(at, dict) else range(len(at))
            spots.append((at, draw.of(list(keys))))
            at = at[spots[-1][1]]
        if not spots:
            return draw.json()
        inside, key = draw.of(spots)
        what = draw.whole(3)
        if what == 0:
            del inside[key]
        elif what == 1 and isinstance(inside, list):
            inside.append(inside[key])
        else:
            inside[key] = draw.json()
    return value
