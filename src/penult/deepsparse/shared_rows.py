"""Token vectors of an open embedder, for texts tokenized as in DeepSparse, so that both share one copy of the weights."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from penult.core.embedder import Embedder
from penult.core.engine import Engine
from penult.core.recipe import Recipe
from penult.core.runner import Runtime
from penult.core.source import Source
from penult.core.text_reader import TextReader
from penult.core.tokenized import Tokenized
from penult.core.tokenizer import Tokenizer


class SharedRows:
    """Token vectors of an open embedder's graph; see `shareable`. Closing does not close the embedder.

    Args:
        embedder: an open embedder. Keep it open.
        recipe: prompts and lengths.
        runtime: padded lengths.
        tokenizer: tokenizer of these texts.
    """

    def __init__(self, embedder: Embedder, recipe: Recipe, runtime: Runtime, tokenizer: Tokenizer) -> None:
        runner = embedder.model.runner
        recipe = replace(recipe, position_offset=runner.recipe.position_offset, graph_sha256=runner.recipe.graph_sha256)
        self._fingerprint = recipe.fingerprint
        self._reader = TextReader(tokenizer, recipe, runtime.truncate, self._fingerprint)
        self._runner = replace(runner, tokenizer=tokenizer, recipe=recipe, runtime=runtime)
        self.dimension = int(self.run_padded(self.tokenize([""])).shape[2])

    @property
    def engine(self) -> Engine:
        """The embedder's session."""
        return self._runner.engine

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """Return N texts as token ids, ready for `run_padded`.

        Raises:
            TextError: some rows are not texts.
        """
        return Tokenized.join([*self._reader.windows(texts, "document", None)])

    def run_padded(self, tokenized: Tokenized) -> NDArray[np.float32]:
        """Return (N, T, H) float32; see `Embedder.run_padded`.

        Raises:
            ValueError: the texts were tokenized by another model.
        """
        tokenized.check(self._fingerprint)
        return self._runner.padded(tokenized)

    def close(self) -> None:
        """Do nothing: the owner of the embedder closes it."""


def shareable(embedder: Embedder, source: Source, recipe: Recipe) -> bool:
    """Return whether an embedder's graph has the token vectors of a recipe.

    Args:
        embedder: an open embedder.
        source: files of the recipe.
        recipe: recipe of the token vectors.
    """
    model, own = embedder.model, embedder.recipe
    plain = own.precision == "fp32" and own.padding and own.batch_invariant
    plain = plain and not (own.token_steps or own.tasks or own.static) and own.output is None and own.query is None
    same = model.source.model == source.model and own.layer == recipe.layer
    frozen = model.runner.frozen
    fits = frozen.rows is None and frozen.length is None and (model.positions is None or recipe.max_length <= model.positions)
    return plain and same and fits and model.runner.has_tokens
