"""`Tokenized`: N texts as token ids, the only form of texts after `Embedder.tokenize`.

The server queues these, merges those of several requests and splits them again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.types import Role


@dataclass(frozen=True, slots=True, eq=False)
class Tokenized:
    """N texts as token ids: the result of `Embedder.tokenize` and the argument of `Embedder.run`.

        first, second = embedder.tokenize(["a cat", "a dog"]), embedder.tokenize(["a fish"])
        first.counts  # array([4, 4]): prompt and special tokens included
        len(first.truncated)  # 0: no text was too long
        vectors = embedder.run(Tokenized.join([first, second]))  # (3, D)

    The ids of all texts are in one array: 8 bytes per token with the segment ids, compared to 50 for lists of Python integers.

    Attributes:
        flat_ids: (sum of `counts`,) int32, concatenated token ids of all texts, special tokens included.
        flat_types: (sum of `counts`,) int32, segment ids.
        starts: (N + 1,) int64, index of each text's first token in both arrays; the last entry is their length.
        dropped: (N,) int64, tokens of each text that exceeded the limit and were cut off; see `at_least`.
        prompt_tokens: (N,) int64, leading tokens of each text that belong to the prompt.
        role: role of the texts.
        fingerprint: fingerprint of the embedder that tokenized them; `run` of any other raises a ValueError.
        at_least: (N,) bool, whether more than `dropped` tokens of a text may have been cut off, since long texts are tokenized
            only as far as needed. None: False for all texts.
    """

    flat_ids: NDArray[np.int32]
    flat_types: NDArray[np.int32]
    starts: NDArray[np.int64]
    dropped: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    role: Role = "document"
    fingerprint: str = ""
    at_least: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls,
        ids: Sequence[Sequence[int] | NDArray[np.int32]],
        types: Sequence[Sequence[int] | NDArray[np.int32]] | None,
        dropped: Sequence[int],
        prompt_tokens: int,
        at_least: Sequence[bool] = (),
    ) -> "Tokenized":
        """Return N texts with the same prompt from their token ids and segment ids (None: all 0)."""
        starts = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(row) for row in ids], out=starts[1:])
        return cls(
            _flat(ids),
            np.zeros(starts[-1], np.int32) if types is None else _flat(types),
            starts,
            np.asarray(dropped, np.int64),
            np.full(len(ids), prompt_tokens, np.int64),
            at_least=np.asarray(at_least, np.bool_) if any(at_least) else None,
        )

    @classmethod
    def join(cls, parts: Sequence["Tokenized"]) -> "Tokenized":
        """Return the texts of all parts, in order.

        Raises:
            ValueError: there are no parts, or they differ in role or fingerprint.
        """
        if len({(part.role, part.fingerprint) for part in parts}) != 1:
            raise ValueError("Tokenized.join needs at least one part; all parts must have one embedder and one role.")
        if len(parts) == 1:
            return parts[0]
        counts = np.concatenate([part.counts for part in parts])
        return cls(
            np.concatenate([part.flat_ids for part in parts]),
            np.concatenate([part.flat_types for part in parts]),
            np.concatenate([[0], np.cumsum(counts)]),
            np.concatenate([part.dropped for part in parts]),
            np.concatenate([part.prompt_tokens for part in parts]),
            parts[0].role,
            parts[0].fingerprint,
            None if all(part.at_least is None for part in parts) else np.concatenate([part._lower_bounds() for part in parts]),
        )

    def select(self, rows: Sequence[int]) -> "Tokenized":
        """Return the texts of these rows, in the order of `rows`; negative ones count from the end, as in a list.

        Raises:
            IndexError: a row is out of range.
        """
        index = np.arange(len(self))[np.asarray(rows, np.int64)]
        places = [slice(self.starts[row], self.starts[row + 1]) for row in index]
        empty = np.empty(0, np.int32)
        return Tokenized(
            np.concatenate([self.flat_ids[place] for place in places] or [empty]),
            np.concatenate([self.flat_types[place] for place in places] or [empty]),
            np.concatenate([[0], np.cumsum(self.counts[index])]),
            self.dropped[index],
            self.prompt_tokens[index],
            self.role,
            self.fingerprint,
            None if self.at_least is None else self.at_least[index],
        )

    def check(self, fingerprint: str) -> None:
        """Check that the embedder with this fingerprint may run the texts.

        Raises:
            ValueError: an embedder with another fingerprint tokenized them.
        """
        if self.fingerprint != fingerprint:
            raise ValueError(
                f"These texts were tokenized by an embedder with the fingerprint {self.fingerprint!r}, but this one has "
                f"{fingerprint!r}: the ids may be other tokens. Pass the result of this embedder's tokenize()."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenized):
            return NotImplemented
        names = ("starts", "flat_ids", "flat_types", "dropped", "prompt_tokens")
        same = all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)
        same = same and np.array_equal(self._lower_bounds(), other._lower_bounds())
        return same and (self.role, self.fingerprint) == (other.role, other.fingerprint)

    __hash__ = None  # type: ignore[assignment] # arrays are not hashable

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def ids(self) -> list[list[int]]:
        """Token ids of each text, as lists."""
        return [self.flat_ids[start:end].tolist() for start, end in zip(self.starts, self.starts[1:], strict=False)]

    @property
    def types(self) -> list[list[int]]:
        """Segment ids of each text, as lists."""
        return [self.flat_types[start:end].tolist() for start, end in zip(self.starts, self.starts[1:], strict=False)]

    @property
    def counts(self) -> NDArray[np.int64]:
        """(N,) int64, tokens of each text after truncation, prompt and special tokens included."""
        return np.diff(self.starts)

    @property
    def truncated(self) -> NDArray[np.int64]:
        """Rows of the truncated texts, int64."""
        return np.flatnonzero(self.dropped)

    def _lower_bounds(self) -> NDArray[np.bool_]:
        return np.zeros(len(self), np.bool_) if self.at_least is None else self.at_least


def _flat(rows: Sequence[Sequence[int] | NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([np.empty(0, np.int32), *(np.asarray(row, np.int32) for row in rows)])
