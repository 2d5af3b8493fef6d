"""Whether padding changes what a graph gives for real tokens: found out by running it.

A graph may take no attention mask, not use the one it takes, or have convolutions that read the padding (ConvBERT). Then a
text's vector depends on the lengths of the other texts in its batch, and no structure tells all such graphs apart.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

States = Callable[[int, int], NDArray[Any] | None]
"""(tokens, padding) -> what the graph gives for a text of so many tokens with so much padding; None if that is too long."""

# Tokens of the texts tried, and tokens of padding: short texts, which the window of a convolution reaches beyond, and longer
# ones, for layers that treat long rows in blocks.
_TRIED = ((3, 1), (8, 7), (11, 21), (45, 19), (140, 116))
# The largest difference, relative to the largest value, that rounding explains: sums of another length in fp32 differ by some
# 1e-6, in half precision and with 8-bit activations by up to 1e-2; padding that is read differs by 1e-1 and more.
_ROUNDING = 2e-3
_COARSE = 5e-2


def reaches_tokens(graph: Path, states: States, *, exact: bool) -> bool:
    """Return whether padding reaches real tokens; remembered beside the prepared graph.

    Args:
        graph: the prepared graph.
        states: runs it.
        exact: whether the graph computes in fp32 throughout.
    """
    memo = graph.with_name("padding")
    with suppress(FileNotFoundError):
        if (known := memo.read_text()) in ("none", "reaches"):
            return known == "reaches"
    reaches = any(_differ(states, length, padding, _ROUNDING if exact else _COARSE) for length, padding in _TRIED)
    with suppress(OSError):  # a cache that cannot be written costs the same runs again
        aside = memo.with_name(f".padding.{id(states)}")
        aside.write_text("reaches" if reaches else "none")
        aside.replace(memo)
    return reaches


def _differ(states: States, length: int, padding: int, tolerance: float) -> bool:
    bare, padded = states(length, 0), states(length, padding)
    if bare is None or padded is None or bare.shape != padded.shape or not bare.size:
        return False
    scale = max(float(np.abs(bare).max()), 1e-30)
    return float(np.abs(bare - padded).max()) > tolerance * scale
