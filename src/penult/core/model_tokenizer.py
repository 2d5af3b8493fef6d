"""The tokenizer of a model, opened as its recipe says.

A separate module, because `model` and `int8` both need it, and `model` imports `int8` through `prepare`.
"""

from penult.core.recipe import Recipe
from penult.core.source import Source
from penult.core.tokenizer import Tokenizer


def tokenizer_of(source: Source, recipe: Recipe) -> Tokenizer:
    """Load the tokenizer of a model with the lengths and settings of its recipe."""
    return Tokenizer(
        source.tokenizer,
        max_length=recipe.max_length,
        side=recipe.side,
        settings=recipe.tokenizer,
        lowercase=recipe.lowercase,
        add_special_tokens=recipe.special_tokens,
        alone=recipe.static,
    )
