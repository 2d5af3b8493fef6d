"""Whether padding changes what a graph gives for real tokens: found out by running it.

A graph may take no attention mask, not use the one it takes, or have convolutions that read the padding (ConvBERT). Then a
text's vector depends on the lengths of the other texts in its batch, and no structure tells all such graphs apart.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.core.cache import read_note, write_note

States = Callable[[int, int], NDArray[Any] | None]
"""(tokens, padding) -> what the graph gives for a text of so many tokens with so much padding; None if that is too long."""

# Tokens of the texts tried, and tokens of padding: short texts, which the window of a convolution reaches beyond, and longer
# ones, for layers that treat long rows in blocks.
_TRIED = ((3, 1), (8, 7), (11, 21), (45, 19), (140, 116))
# The largest difference, relative to the largest value, that rounding explains: sums of another length in fp32 differ by some
# 1e-6, in half precision and with fixed 8-bit scales by some 1e-3; padding that is read differs by 1e-2 and more.
_ROUNDING = 2e-3
_COARSE = 1e-2
# With 8-bit scales that are measured on each batch, single values move by several per cent, and the whole keeps its direction:
# a cosine of 0.9999 where padding is masked, 0.86 where it is read.
_TURNED = 1e-2


def reaches_tokens(graph: Path, states: States, *, longest: int, exact: bool, dynamic: bool = False) -> bool:
    """Return whether padding reaches real tokens; remembered beside the prepared graph, for rows as long as were tried.

    Args:
        graph: the prepared graph.
        states: runs it.
        longest: the most tokens of a row that will run.
        exact: whether the graph computes in fp32 throughout.
        dynamic: whether its 8-bit scales are measured on each batch.
    """
    tried = [(length, padding) for length, padding in _TRIED if length + padding <= longest]
    memo = graph.with_name("padding")
    if (text := read_note(memo)) is not None:
        known, _, count = text.partition(" ")
        number = int(count) if count.isascii() and count.isdecimal() and len(count) < 4 else -1
        if known == "reaches" and 0 <= number < len(tried):
            return True
        if known in ("reaches", "none") and number >= len(tried):  # all of these were tried, and it was not they
            return False
    differ = _turned if dynamic else partial(_moved, tolerance=_ROUNDING if exact else _COARSE)
    first = next((i for i, (length, padding) in enumerate(tried) if _tells(differ, states, length, padding)), None)
    with suppress(OSError):  # a cache that cannot be written costs the same runs again
        write_note(memo, f"none {len(tried)}" if first is None else f"reaches {first}")
    return first is not None


def _tells(differ: Callable[[NDArray[Any], NDArray[Any]], bool], states: States, length: int, padding: int) -> bool:
    """Return whether a text differs with padding; what cannot be run or compared tells nothing."""
    bare, padded = states(length, 0), states(length, padding)
    if bare is None or padded is None or bare.shape != padded.shape or not bare.size:
        return False
    return differ(bare, padded)


def _moved(bare: NDArray[Any], padded: NDArray[Any], tolerance: float) -> bool:
    scale = max(float(np.abs(bare).max()), 1e-30)
    return float(np.abs(bare - padded).max()) > tolerance * scale


def _turned(bare: NDArray[Any], padded: NDArray[Any]) -> bool:
    lengths = float(np.linalg.norm(bare)) * float(np.linalg.norm(padded))
    return float((bare * padded).sum()) < (1 - _TURNED) * lengths
