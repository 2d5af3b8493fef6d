"""Truncation that tokenizes only as much of a long text as fits, with the same tokens as for the whole text.

A text is tokenized part by part, until it has more tokens than the model's length. Parts end only where `text_cuts` proves that
the tokens stay the same. Within a word without such a place (Japanese, or a tokenizer that does not split at spaces), only the
tokens are kept on which the texts up to several places agree: see `WordPlaces`. A text of more than `MOST_CHARACTERS` without
either is rejected. So the memory of a call is bounded by `max_length` and `MOST_CHARACTERS`, not by the texts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from penult.core.text_cuts import Cuts
from penult.core.word_places import WordPlaces
from penult.types import TextError

MOST_CHARACTERS = 2**20
"""Maximum characters of a text, or of a part of one, that are tokenized at once; peak memory is about 300 MB."""

_CALL_CHARACTERS = 2**18  # per call of the tokenizer: enough for all its threads, and about 70 MB
_LEAST_PART = 2048  # characters
_PART = 8  # characters of the first part per token; English has 4.5
_MOST_PART = 2**17
_GROUP_CHARACTERS = 2**24  # of texts with their prompts that are in memory at the same time


class Encoded(Protocol):
    """One text as token ids, with the attribute names of tokenizers' Encoding."""

    @property
    def ids(self) -> list[int]:
        """Token ids, special tokens included."""

    @property
    def type_ids(self) -> list[int]:
        """Segment ids."""

    @property
    def special_tokens_mask(self) -> list[int]:
        """1 for each special token around the text, else 0."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text as token ids, truncated.

    Attributes:
        ids: (T,) int32, special tokens included.
        types: (T,) int32, segment ids.
        dropped: number of tokens that were cut off; a lower bound if the text was not read completely.
        whole: whether the text was read completely.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.int32]
    dropped: int
    whole: bool


_NONE = Row(np.empty(0, np.int32), np.empty(0, np.int32), 0, whole=True)  # of a rejected text


@dataclass(slots=True)
class _Reading:
    """The progress of reading a text, from its start, or from its end if its start is cut off."""

    row: int
    text: str
    size: int  # characters of the next part
    done: int = 0  # number of characters whose tokens are in `ids`
    ids: list[int] = field(default_factory=list)  # without special tokens
    types: list[int] = field(default_factory=list)
    ends: tuple[list[int], list[int], list[int], list[int]] = field(default_factory=lambda: ([], [], [], []))
    """Ids and segment ids of the special tokens before the text, and those after it."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a text.

    Attributes:
        reading: the text.
        text: the part.
        last: whether the text ends with it.
        in_word: whether it ends within a word; then only the leading tokens that all `rivals` share are kept.
        rivals: the text up to each earlier place; see `WordPlaces`.
    """

    reading: _Reading
    text: str
    last: bool
    in_word: bool = False
    rivals: tuple[str, ...] = ()


class Truncation:
    """Tokenizes texts and truncates them to a number of tokens.

    Args:
        encode: encodes several texts, special tokens included, without truncation.
        cuts: returns the places at which the tokenizer allows a cut.
        word_places: returns the places within words; None for a tokenizer that allows none.
        side: side on which a longer text is truncated, "right" or "left".
        special_tokens: number of special tokens added to each text.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str]], Sequence[Encoded]],
        cuts: Callable[[], Cuts],
        word_places: Callable[[Cuts], WordPlaces | None],
        *,
        side: str,
        special_tokens: int,
    ) -> None:
        self._encode = encode
        self._find_cuts = cuts
        self._find_word_places = word_places
        self._from_end = side == "left"
        self._special_tokens = special_tokens

    def read(self, texts: Iterable[str], most: int) -> list[Row]:
        """Return each text as at most `most` tokens.

        Raises:
            TextError: a text is too long and has no place where it may be cut.
        """
        rows: list[Row] = []
        refused: dict[int, str] = {}
        for group in _groups(texts):
            tokenized_rows = self._read(group, most, len(rows), refused)
            rows += [tokenized_rows.get(row, _NONE) for row in range(len(rows), len(rows) + len(group))]
        if refused:
            raise TextError(refused, len(rows))
        return rows

    def _read(self, texts: Sequence[str], most: int, first: int, refused: dict[int, str]) -> dict[int, Row]:
        """Return rows by text number, counted from `first`; add the reasons of rejected texts to `refused`."""
        rows: dict[int, Row] = {}
        size = min(max(_LEAST_PART, _PART * most), _MOST_PART)
        readings = [_Reading(row, text, size) for row, text in enumerate(texts, first)]
        while readings:
            again: list[_Reading] = []
            for parts in _calls(self._parts(readings, refused)):
                encodings = iter(self._encode([text for part in parts for text in (part.text, *part.rivals)]))
                for part in parts:
                    row = self._row(part, next(encodings), [next(encodings) for _ in part.rivals], most)
                    if row is None:
                        again.append(part.reading)
                    else:
                        rows[part.reading.row] = row
            readings = again
        return rows

    def _row(self, part: _Part, encoding: Encoded, rivals: Sequence[Encoded], most: int) -> Row | None:
        """Return the text of a part as a row; None if more of it has to be read."""
        reading, room = part.reading, most - self._special_tokens
        ids, types = encoding.ids, encoding.type_ids
        if part.last and not reading.ids and len(ids) <= most:
            return Row(np.array(ids, np.int32), np.array(types, np.int32), 0, whole=True)
        before, after = around(encoding.special_tokens_mask)
        end = len(ids) - after
        if before < end:
            reading.ends = (ids[:before], types[:before], ids[end:], types[end:])
        count = _agreeing(ids[before:end], rivals, before, after) if part.in_word else end - before
        new, new_types = ids[before : before + count], types[before : before + count]
        content = new + reading.ids if self._from_end else reading.ids + new
        content_types = new_types + reading.types if self._from_end else reading.types + new_types
        if not part.last and len(content) <= room:
            self._keep(part, content, content_types)
            return None
        start = max(0, len(content) - room) if self._from_end else 0
        kept = slice(start, start + room)
        ids_before, types_before, ids_after, types_after = reading.ends
        return Row(
            np.array([*ids_before, *content[kept], *ids_after], np.int32),
            np.array([*types_before, *content_types[kept], *types_after], np.int32),
            max(0, len(content) - room),
            whole=part.last,
        )

    def _keep(self, part: _Part, content: list[int], types: list[int]) -> None:
        """Keep the tokens of a part if the tokens after it do not depend on it; else enlarge the next part."""
        reading = part.reading
        if self._cuts.apart and not part.in_word:
            reading.done += len(part.text)
            reading.ids, reading.types = content, types
        else:
            reading.size = 2 * len(part.text)

    def _parts(self, readings: Iterable[_Reading], refused: dict[int, str]) -> Iterator[_Part]:
        """Yield the next part of each text; add texts without one to `refused`."""
        for reading in readings:
            part = self._part(reading)
            if part is None:
                refused[reading.row] = (
                    f"has {len(reading.text):,} characters, and the tokenizer cannot process it in parts of at most "
                    f"{MOST_CHARACTERS:,} characters; split it"
                )
            else:
                yield part

    def _part(self, reading: _Reading) -> _Part | None:
        """Return the next part of a text: the shortest of at least `size` characters that ends where a cut is allowed."""
        text, size = reading.text, reading.size
        remaining = len(text) - reading.done
        while remaining > 2 * size and size <= MOST_CHARACTERS // 2:
            part = self._before_end(reading, size) if self._from_end else self._after_start(reading, size)
            if part is not None:
                return part
            size *= 2
        if remaining > MOST_CHARACTERS:
            return None
        return _Part(reading, text[:remaining] if self._from_end else text[reading.done :], last=True)

    def _after_start(self, reading: _Reading, size: int) -> _Part | None:
        text, start = reading.text, reading.done
        cuts = self._cuts
        place = cuts.place and cuts.place.search(text, start + size, start + 2 * size)
        if place is not None:
            return _Part(reading, text[start : place.start()], last=False)
        if self._word_places is None:
            return None
        for end, ends in self._word_places.find(text, start + size, start + 2 * size):
            if (end - start) * (1 + len(ends)) <= MOST_CHARACTERS:
                rivals = tuple(text[start:i] for i in ends)
                return _Part(reading, text[start:end], last=False, in_word=True, rivals=rivals)
        return None

    def _before_end(self, reading: _Reading, size: int) -> _Part | None:
        text, end = reading.text, len(reading.text) - reading.done
        if self._cuts.place is None or not self._cuts.apart:
            return None
        places = [match.start() for match in self._cuts.place.finditer(text, end - 2 * size, end - size)]
        return _Part(reading, text[places[-1] : end], last=False) if places else None

    @cached_property
    def _cuts(self) -> Cuts:
        return self._find_cuts()

    @cached_property
    def _word_places(self) -> WordPlaces | None:
        return self._find_word_places(self._cuts)


def around(mask: Sequence[int]) -> tuple[int, int]:
    """Return the numbers of special tokens before and after a text, from its special-tokens mask; none are within."""
    if 0 not in mask:
        return 0, len(mask)
    return mask.index(0), mask[::-1].index(0)


def _agreeing(ids: list[int], rivals: Sequence[Encoded], before: int, after: int) -> int:
    """Return the length of the common prefix of a text's tokens and those of all its rivals, each without its last token."""
    count = len(ids) - 1
    for rival in rivals:
        other = rival.ids[before : len(rival.ids) - after]
        most = min(count, len(other) - 1)
        count = next((i for i in range(most) if ids[i] != other[i]), most)
    return max(0, count)


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Group an iterable of texts by number of characters, to bound memory."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters > _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _calls(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Group parts into calls of the tokenizer."""
    call: list[_Part] = []
    characters = 0
    for part in parts:
        size = len(part.text) * (1 + len(part.rivals))
        if call and characters + size > _CALL_CHARACTERS:
            yield call
            call, characters = [], 0
        call.append(part)
        characters += size
    if call:
        yield call
