"""Places where a text may be cut within a word that the pre-tokenizer does not split, from the model's vocabulary.

For BPE and Unigram tokenizers only. The caller checks whether the tokens agree.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

_BEFORE = 32  # number of characters before a place that must be plain
_TRIES = 16  # maximum places that are tried in one range of a text


class WordPlaces:
    """Places within the words of a tokenizer whose model is BPE or Unigram.

    Args:
        vocabulary: its tokens.
        added: the added tokens, as they are matched in a text before normalization.
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
        """Yield places between `start` and `end`, each with the places at which a token that crosses it may begin.

        In BPE and Unigram, the text up to the end of one of its tokens has the same tokens on its own as in the whole text: no
        BPE merge crosses that end, and Unigram's best path to a place does not depend on what follows. In the whole text,
        either a token ends at the place, or a token crosses it and begins where some token of the vocabulary matches the text.
        So the common leading tokens of the texts up to all these places are those of the whole text. Only the last token of
        each may still grow, if it covers unknown characters.
        """
        for run in islice(self._run.finditer(text, start, end), _TRIES):
            place = run.end()
            before = text[place - _BEFORE : place]
            forms = (before.replace(" ", "\u2581"), self._normalized(before))
            if not any(form in token[1:] for form in forms for token in self._long_tokens):
                yield place, [i for i in range(place - _BEFORE, place) if self._begins_token(text[i:place])]

    def _begins_token(self, text: str) -> bool:
        """Return whether a longer token of the vocabulary begins with this text."""
        for form in (text, self._normalized(text)):
            i = bisect_right(self._tokens, form)
            if i < len(self._tokens) and self._tokens[i].startswith(form):
                return True
        return False

    def _normalized(self, text: str) -> str:
        """Normalize a text of plain characters from within another text."""
        return self._normalize("a" + text)[len(self._normalize("a")) :].replace(" ", "\u2581")
