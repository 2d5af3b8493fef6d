"""`TextReader`: tokenize texts with prompts and truncation, for the embedder of one role.

prompt + text -> Tokenizer -> Tokenized, window by window
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from penult.core.recipe import Recipe
from penult.core.runner import WINDOW
from penult.core.tokenized import Tokenized
from penult.core.tokenizer import Tokenizer
from penult.types import Role, TextError, Truncate, TruncationWarning, unencodable

_PACKAGE = str(Path(__file__).parents[1])


class TextReader:
    """Tokenizes texts according to a recipe.

    Args:
        tokenizer: the model's tokenizer.
        recipe: prompts and lengths of each role.
        truncate: handling of texts that exceed the recipe's length.
        fingerprint: fingerprint of each `Tokenized`, so that other models reject it.
    """

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe, truncate: Truncate, fingerprint: str) -> None:
        self._tokenizer = tokenizer
        self._recipe = recipe
        self._truncate = truncate
        self._fingerprint = fingerprint
        self._warned = False

    def check_prompts(self, roles: Iterable[Role]) -> None:
        """Check that the prompts of these roles leave room for a text.

        Raises:
            ValueError: a prompt fills the length of its role, or that length only fits the special tokens.
        """
        for role in roles:
            self._tokenizer.tokenize([], self._recipe.prompts[role], self._recipe.longest(role))

    def windows(self, texts: Sequence[str], role: Role, prompt: str | None) -> Iterator[Tokenized]:
        """Tokenize window by window, and yield at least one; report texts that are too long as an error or a warning.

        Raises:
            TextError: with truncate="error", some texts are too long; raised before the first window.
            TypeError: `prompt` is not a str.
            ValueError: `role` or `prompt` is invalid.
        """
        prompt = self._prompt(role, prompt)
        longest = self._recipe.longest(role)
        limit = longest if longest < self._recipe.max_length else None
        windows = (
            replace(self._tokenize(texts, start, prompt, limit), role=role, fingerprint=self._fingerprint)
            for start in range(0, max(len(texts), 1), WINDOW)
        )
        truncated = 0
        for tokenized in windows if self._truncate != "error" else _untruncated([*windows], longest):
            truncated += len(tokenized.truncated)
            yield tokenized
        if truncated and self._truncate == "warn" and not self._warned:
            self._warned = True
            warnings.warn(
                f"{truncated} of {len(texts)} texts had more than {longest} tokens and were truncated on the "
                f"{self._recipe.side}. Split them, or pass truncate='error', 'right' or 'left'. This warning appears "
                "once per embedder.",
                TruncationWarning,
                stacklevel=_levels(),
            )

    def _tokenize(self, texts: Sequence[str], start: int, prompt: str, limit: int | None) -> Tokenized:
        """Tokenize the window that begins at `start`; an error numbers its rows from the first text."""
        try:
            return self._tokenizer.tokenize(texts[start : start + WINDOW], prompt, limit)
        except TextError as error:
            raise TextError({start + row: why for row, why in error.rows.items()}, len(texts)) from error

    def _prompt(self, role: Role, prompt: str | None) -> str:
        """Return the prompt, which is put before each text."""
        if not isinstance(role, str) or role not in self._recipe.prompts:
            raise ValueError(f"role is {role!r}; it must be 'document' or 'query'.")
        if prompt is None:
            return self._recipe.prompts[role]
        if (reason := unencodable(prompt)) is not None:
            raise TypeError(f"prompt {reason}. Pass a str.")
        if prompt and self._recipe.named_prompts.get(prompt):
            raise ValueError(
                f"prompt={prompt!r} is the name of one of this model's prompts, not its text. Pass "
                f"prompt=embedder.recipe.named_prompts[{prompt!r}]."
            )
        return prompt


def _levels() -> int:
    """Return the `stacklevel` at which a warning names the line that called penult, for any of its methods."""
    levels, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        levels, frame = levels + 1, frame.f_back
    return levels


def _untruncated(windows: list[Tokenized], longest: int) -> list[Tokenized]:
    """Return the windows if none of their texts was truncated.

    Raises:
        TextError: some texts were truncated; its `rows` has all of them.
    """
    joined = Tokenized.join(windows)
    sizes = joined.counts + joined.dropped
    rows = {
        row: f"has {'at least ' if joined.at_least is not None and joined.at_least[row] else ''}{sizes[row]} tokens, the "
        f"model's maximum is {longest}"
        for row in joined.truncated.tolist()
    }
    if rows:
        raise TextError(rows, len(joined))
    return windows
