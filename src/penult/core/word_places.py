"""Where a text may be cut within a word that the pre-tokenizer leaves whole, as the model's vocabulary shows.

It asks a tokenizer of BPE or Unigram only; whether the tokens agree is for the caller to see.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

_BEFORE = 32  # characters before a place that must be plain
_TRIES = 16  # places that are looked at in one stretch of a text


class WordPlaces:
    """Places within the words of a tokenizer whose model is BPE or Unigram.

    Args:
        vocabulary: its tokens.
        added: the added tokens, as they are found in a text before it is normalized.
        normalize: normalizes a text.
        plain: see `Cuts.plain`.
    """

    def __init__(self, vocabulary: Iterable[str], added: Iterable[str], normalize: Callable[[str], str], plain: str) -> None:
        self._normalize = normalize
        added = list(added)
        self._tokens = sorted({*vocabulary, *added, *map(self._normalized, added)})
        self._long_tokens = [token for token in self._tokens if len(token) > _BEFORE]
        self._run = re.compile(f"[{plain}]{{{_BEFORE}}}(?=[{plain}])")

    def find(self, text: str, start: int, end: int) -> Iterator[tuple[int, list[int]]]:
        """Yield places between two others, and with each the places at which a token that goes across it may begin.

        BPE and Unigram give the text up to the end of one of its tokens the tokens that it has in the whole text: no merge of
        BPE goes across that end, and Unigram's best path to a place does not depend on what follows. In the whole text, a token
        ends at the place, or one goes across it and begins where some token of the vocabulary matches the text. So the tokens
        with which the texts up to all these places begin are those of the whole text. Only the last one of each may still grow,
        if it stands for unknown characters.
        """
        for run in islice(self._run.finditer(text, start, end), _TRIES):
            place = run.end()
            before = text[place - _BEFORE : place]
            forms = (before.replace(" ", "\u2581"), self._normalized(before))
            if not any(form in token[1:] for form in forms for token in self._long_tokens):
                yield place, [i for i in range(place - _BEFORE, place) if self._begins_token(text[i:place])]

    def _begins_token(self, text: str) -> bool:
        """Return whether a token of the vocabulary begins with some text and goes on."""
        for form in (text, self._normalized(text)):
            i = bisect_right(self._tokens, form)
            if i < len(self._tokens) and self._tokens[i].startswith(form):
                return True
        return False

    def _normalized(self, text: str) -> str:
        """Normalize a text of plain characters that stands within another."""
        return self._normalize("a" + text)[len(self._normalize("a")) :].replace(" ", "\u2581")
