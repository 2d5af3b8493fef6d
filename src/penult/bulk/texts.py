"""Embed texts and report those that cannot be embedded. Shared by jobs, Ray actors and Spark tasks. Does not import Arrow."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from penult.core.embedder import Embedder
from penult.types import Role, TextError, Vectors


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of embedding N texts.

    Attributes:
        vectors: (number of good rows, D) float32.
        good: rows that have a vector, in order.
        bad: reason for each row without a vector.
        tokens: number of tokens that the model read.
        cut: number of truncated texts.
    """

    vectors: Vectors
    good: list[int]
    bad: dict[int, str]
    tokens: int
    cut: int


def embed_texts(embedder: Embedder, texts: Sequence[Any], role: Role, done: Callable[[int], object] | None = None) -> Outcome:
    """Embed the texts that can be embedded, with a reason for each of the others. `done` is called as in `Embedder.run`."""
    good = list(range(len(texts)))
    bad: dict[int, str] = {}
    while True:
        try:
            tokenized = embedder.tokenize([texts[row] for row in good], role)
            vectors = embedder.run(tokenized, done)
            break
        except TextError as error:
            failed = {good[row]: reason for row, reason in error.rows.items()}
        except ArithmeticError:
            failed = {row: reason for row in good if (reason := _not_finite(embedder, texts[row], role))}
            if not failed:
                raise
        bad |= failed
        good = [row for row in good if row not in failed]
    return Outcome(vectors, good, bad, int(tokenized.counts.sum()), len(tokenized.truncated))


def metadata_of(embedder: Embedder, model: str, role: Role) -> dict[str, str]:
    """Return the metadata of the vectors: fingerprint, recipe, model and role."""
    recipe = json.dumps(embedder.recipe.as_dict(), sort_keys=True)
    return {
        "penult.fingerprint": embedder.fingerprint,
        "penult.recipe": recipe,
        "penult.model": model,
        "penult.role": role,
    }


def _not_finite(embedder: Embedder, text: str, role: Role) -> str | None:
    try:
        embedder.embed([text], role)
    except ArithmeticError:
        return "produces NaN or infinite values in the model"
    return None
