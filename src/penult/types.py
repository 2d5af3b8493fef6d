"""Shared types: literals, errors and the `TextEmbedder` protocol.

Letters for dimensions, here and in every docstring: N texts, B rows of a batch, T tokens of the padded row, H hidden
size, D size of the vector. This module imports no third-party package but numpy, and no other module of penult.
"""

from collections.abc import Iterable
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float32]
"""(N, D) float32, one row per text, in the caller's order."""

Pooling: TypeAlias = Literal["mean", "max", "cls", "last", "weightedmean", "mean_sqrt_len_tokens"]
"""(T, H) -> (H,), as in sentence-transformers: the mean or the maximum over the text's tokens, its first or its last token,
the mean weighted by position (1, 2, ...), or the sum divided by the square root of the number of tokens."""

Role: TypeAlias = Literal["document", "query"]
"""Role of a text. It selects the prompt put before the text, and the task or the module of models that have several."""

Truncate: TypeAlias = Literal["error", "warn", "right", "left"]
"""Handling of texts longer than the model's limit: an error; truncated on the right with a warning; truncated on that side."""

Side: TypeAlias = Literal["right", "left"]

Precision: TypeAlias = Literal["fp32", "int8"]


class TruncationWarning(UserWarning):
    """Some texts exceeded the model's length and were truncated."""


class PromptError(ValueError):
    """A prompt leaves no room for a text."""


class TextError(ValueError):
    """Some texts cannot be embedded; `rows` maps their indices to reasons, so that a caller can embed the others."""

    def __init__(self, rows: dict[int, str], total: int) -> None:
        self.rows = rows
        self.total = total
        first = "; ".join(f"texts[{row}] {reason}" for row, reason in list(rows.items())[:5])
        more = f"; and {len(rows) - 5} more" if len(rows) > 5 else ""
        super().__init__(
            f"{len(rows)} of {total} texts cannot be embedded: {first}{more}. Nothing was embedded. Remove these rows "
            "(the error's .rows lists them) and call again."
        )

    def __reduce__(self) -> tuple[type["TextError"], tuple[dict[int, str], int]]:
        return type(self), (self.rows, self.total)


def unencodable(text: object) -> str | None:
    """Return why a text cannot be embedded; None if it can."""
    if not isinstance(text, str):
        return f"is a {type(text).__name__}, not a str"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"is not valid Unicode: a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
    return None


def checked_texts(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list, after checking that all of them can be embedded.

    Raises:
        TypeError: `texts` is a str, or not an iterable.
        TextError: some items are not valid text.
    """
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts is a {type(texts).__name__}; pass a list of texts, such as [text].")
    if not isinstance(texts, Iterable):
        raise TypeError(f"texts is a {type(texts).__name__}; pass a list or another iterable of texts.")
    listed = list(texts)  # an iterator can be consumed only once
    rows = {row: why for row, text in enumerate(listed) if (why := unencodable(text)) is not None}
    if rows:
        raise TextError(rows, len(listed))
    return listed


@runtime_checkable
class TextEmbedder(Protocol):
    """Interface of embedders: `Embedder` in this process, `RemoteEmbedder` over HTTP."""

    @property
    def dimension(self) -> int:
        """D, the number of values in a vector."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that affects vectors: equal fingerprints give comparable vectors."""

    def embed(self, texts: Iterable[str], role: Role = "document", *, progress: bool = False) -> Vectors:
        """Return (N, D) float32 vectors of N texts (any iterable of str), in the caller's order."""
