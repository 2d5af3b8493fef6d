"""The words every other file shares: letters, literals and the one contract.

Letters for dimensions, here and in every docstring: N texts, B rows of a batch, T tokens of the padded row, H hidden
size, D size of the vector. This file knows no third-party package but numpy, and no other file of penult.
"""

from collections.abc import Iterable
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float32]
"""(N, D) float32, one row a text, in the caller's order."""

Pooling: TypeAlias = Literal["mean", "max", "cls", "last", "weightedmean", "mean_sqrt_len_tokens"]
"""(T, H) -> (H,), as in sentence-transformers: the mean or the maximum over the text's tokens, its first or its last token,
the mean weighted by position (1, 2, ...), or the sum divided by the square root of the number of tokens."""

Role: TypeAlias = Literal["document", "query"]
"""What a text is for. It decides the prompt that is put before it, and the task or the module of models that have several."""

Truncate: TypeAlias = Literal["error", "warn", "right", "left"]
"""What happens to a text over the model's length: refused; cut on the right and said; cut on that side in silence."""

Side: TypeAlias = Literal["right", "left"]

Precision: TypeAlias = Literal["fp32", "int8"]


class TruncationWarning(UserWarning):
    """Some texts were longer than the model takes, and were cut."""


class PromptError(ValueError):
    """A prompt leaves no room for a text."""


class TextError(ValueError):
    """Some texts cannot be embedded; `rows` says which and why, so that a caller can go on with the others."""

    def __init__(self, rows: dict[int, str], total: int) -> None:
        self.rows = rows
        self.total = total
        first = "; ".join(f"texts[{row}] {reason}" for row, reason in list(rows.items())[:5])
        more = f"; and {len(rows) - 5} more" if len(rows) > 5 else ""
        super().__init__(
            f"{len(rows)} of {total} texts cannot be embedded: {first}{more}. Nothing was embedded: take these rows "
            "out (they are in the error's .rows) and call again."
        )

    def __reduce__(self) -> tuple[type["TextError"], tuple[dict[int, str], int]]:
        return type(self), (self.rows, self.total)


def unencodable(text: object) -> str | None:
    """Return why a text cannot be embedded; None where it can."""
    if not isinstance(text, str):
        return f"is a {type(text).__name__}, not a str"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"is not valid Unicode: a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
    return None


def checked_texts(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list, all of which can be embedded.

    Raises:
        TypeError: they are one text, or not an iterable.
        TextError: some are not texts.
    """
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts is a {type(texts).__name__}; give a list of texts, for example [text].")
    if not isinstance(texts, Iterable):
        raise TypeError(f"texts is a {type(texts).__name__}; give a list of texts, or any other iterable of them.")
    listed = list(texts)  # once: an iterator gives its texts only once
    rows = {row: why for row, text in enumerate(listed) if (why := unencodable(text)) is not None}
    if rows:
        raise TextError(rows, len(listed))
    return listed


@runtime_checkable
class TextEmbedder(Protocol):
    """Anything that turns texts into vectors: `Embedder` here, `RemoteEmbedder` over HTTP."""

    @property
    def dimension(self) -> int:
        """D, the number of values in a vector."""

    @property
    def fingerprint(self) -> str:
        """Name of all that decides a vector: equal fingerprints give comparable vectors."""

    def embed(self, texts: Iterable[str], role: Role = "document", *, progress: bool = False) -> Vectors:
        """Return (N, D) float32 vectors of N texts (any iterable of str), in the caller's order."""
