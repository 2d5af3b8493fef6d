"""Measure whether padding changes a graph's output for real tokens.

A graph may lack an attention mask, ignore it, or have convolutions that read the padding (ConvBERT). Then a text's vector
depends on the lengths of the other texts in its batch. The structure does not show this for every graph, so the graph is run.
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
"""(tokens, padding) -> output of the graph for a text of `tokens` tokens with `padding` tokens of padding; None if too long."""

# Tokens of each test text and its padding: short texts, which are smaller than the window of a convolution, and longer ones,
# for layers that process long rows in blocks.
_TRIED = ((3, 1), (8, 7), (11, 21), (45, 19), (140, 116))
# Maximum difference, relative to the largest value, that rounding explains. Sums of another length differ by about 1e-6 in
# fp32, and by about 1e-3 in half precision and with fixed 8-bit scales. If padding is read, they differ by 1e-2 or more.
_ROUNDING = 2e-3
_COARSE = 1e-2
# With 8-bit scales that are computed per batch, single values change by several percent, but the direction stays: the cosine is
# 0.9999 if padding is masked, and 0.86 if it is read.
_TURNED = 1e-2


def reaches_tokens(graph: Path, states: States, *, longest: int, exact: bool, dynamic: bool = False) -> bool:
    """Return whether padding affects real tokens; cached beside the prepared graph, for rows up to the tested lengths.

    Args:
        graph: the prepared graph.
        states: runs it.
        longest: maximum tokens of a row in use.
        exact: whether the graph computes in fp32 throughout.
        dynamic: whether its 8-bit scales are computed per batch.
    """
    tried = [(length, padding) for length, padding in _TRIED if length + padding <= longest]
    memo = graph.with_name("padding")
    if (text := read_note(memo)) is not None:
        known, _, count = text.partition(" ")
        number = int(count) if count.isascii() and count.isdecimal() and len(count) < 4 else -1
        if known == "reaches" and 0 <= number < len(tried):
            return True
        if known in ("reaches", "none") and number >= len(tried):  # all of these were tried without effect
            return False
    differ = _turned if dynamic else partial(_moved, tolerance=_ROUNDING if exact else _COARSE)
    first = next((i for i, (length, padding) in enumerate(tried) if _tells(differ, states, length, padding)), None)
    with suppress(OSError):  # if the cache is not writable, the next process runs the check again
        write_note(memo, f"none {len(tried)}" if first is None else f"reaches {first}")
    return first is not None


def _tells(differ: Callable[[NDArray[Any], NDArray[Any]], bool], states: States, length: int, padding: int) -> bool:
    """Return whether padding changes a text's output; False if it cannot be run or compared."""
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
