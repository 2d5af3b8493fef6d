"""Choose how the input of linear layers becomes 8 bits wide: pure arithmetic on samples of that input.

One scale holds for every token and every text, so a vector cannot depend on what else is in its batch. What makes one scale
hard is a few channels that are ten times as large as the rest (28 where the others stay within 4, in the feed-forward blocks
of BERT-like models): they decide the scale, and the rest drowns in its steps. Two remedies, each with its price:

    smooth   x f before, W / f after: every channel about as wide as the next; costs one product per input value
    split    the largest channels stay float32 and pass a small matrix of their own; costs two sums per output value

Errors are measured on the layers' own outputs, with ranges from one half of the texts and rows from the other: a range that
is too narrow for unseen text shows. This file knows arrays and no graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penult.graph.rounding import Floats, closest, nearest, what_follows

_LEVELS = 255  # of an input: uint8
# The exponents of SmoothQuant, arXiv 2211.10438: a half and above, since weights have a scale a column. None: not at all.
_SMOOTH = (None, 0.5, 0.65, 0.8)
_SPLIT = (0, 2, 4, 8)
_MARGINS = (1.0, 1.15, 0.9, 0.8)  # a range may be wider than what was seen, or cut its rarest values
_EXACT = 127  # the largest 8-bit weight
_MEASURED = 384  # rows of the sample that errors are measured on; all of them take part in rounding


@dataclass(frozen=True, slots=True)
class Seen:
    """What calibration saw of one tensor, in two halves of the texts.

    Attributes:
        low: the smallest value of each channel in each half, (2, K).
        high: the largest, (2, K).
        sample: rows of the second half in any order, (n, K).
    """

    low: Floats
    high: Floats
    sample: Floats


@dataclass(frozen=True, slots=True)
class Choice:
    """The exponent of smoothing (None: not smoothed) and the number of channels that stay float32."""

    smooth: float | None
    split: int


@dataclass(frozen=True, slots=True)
class Packed:
    """One layer in 8 bits: weight (K, N) int8, its scale a column (N,), bias (N,), and the split channels' rows (k, N)."""

    weight: NDArray[np.int8]
    scale: Floats
    bias: Floats
    rest: Floats


@dataclass(frozen=True, slots=True)
class Treatment:
    """How one input and the layers that read it are carried out.

    Attributes:
        factor: what the input is multiplied by first, (K,); None: nothing.
        split: the channels that pass in float32.
        scale: the width of one step of the input.
        zero: the step that stands for 0.
        layers: the layers, in the order given.
    """

    factor: Floats | None
    split: NDArray[np.int64]
    scale: float
    zero: int
    layers: tuple[Packed, ...]


def choices(inputs: int, outputs: int) -> list[Choice]:
    """List the ways to treat an input of `inputs` channels whose layers have `outputs` channels, cheapest first."""
    found = [Choice(smooth, split) for smooth in _SMOOTH for split in _SPLIT if split < inputs // 4]
    return sorted(found, key=lambda c: (c.smooth is not None) * inputs + (c.split > 0) * 2 * outputs + c.split)


def error_of(seen: Seen, weights: Sequence[Floats], choice: Choice) -> float:
    """Measure the layers' squared error relative to the variance of their outputs, the mean over the layers."""
    return _errors(seen, weights, choice, (1.0,))[0]


def apply(seen: Seen, weights: Sequence[Floats], biases: Sequence[Floats | None], choice: Choice, *, limit: int) -> Treatment:
    """Treat an input and its layers.

    Args:
        seen: of the input the layers share.
        weights: (K, N) of each layer.
        biases: (N,) of each layer, or None.
        choice: how.
        limit: the largest magnitude of an 8-bit weight: 127, or less where the processor's sums would overflow; then the
            coarser rounding is made up for by `rounding.closest`, which takes seconds.
    """
    margin = _MARGINS[int(np.argmin(_errors(seen, weights, choice, _MARGINS)))]
    factor, out = _shape(seen.low.min(axis=0), seen.high.max(axis=0), weights, choice)
    kept = _kept(len(factor), out)
    scale, zero = _grid(seen.low.min(axis=0) * factor * kept, seen.high.max(axis=0) * factor * kept, margin)
    x = _steps(seen.sample * factor, scale, zero) * np.float32(scale)
    later = None if limit == _EXACT else what_follows(x * kept)
    layers = []
    for weight, bias in zip(weights, biases, strict=True):
        spread = weight * (kept / factor)[:, None]
        packed, scales = nearest(spread, limit) if later is None else closest(spread, later, limit)
        rest = weight[out]
        # Rounding shifts a layer's mean a little; the bias takes that back.
        shift = (seen.sample @ weight - (x @ packed.astype(np.float32)) * scales - seen.sample[:, out] @ rest).mean(axis=0)
        layers.append(Packed(packed, scales, shift if bias is None else bias + shift, rest))
    return Treatment(None if choice.smooth is None else factor, out, scale, zero, tuple(layers))


def _errors(seen: Seen, weights: Sequence[Floats], choice: Choice, margins: Sequence[float]) -> list[float]:
    """Measure the error of a choice for each margin, the range taken from the first half of the texts."""
    factor, out = _shape(seen.low[0], seen.high[0], weights, choice)
    kept = _kept(len(factor), out)
    sample, rounded = seen.sample[:_MEASURED], []
    for weight in weights:
        packed, scales = nearest(weight * (kept / factor)[:, None], _EXACT)
        wanted = sample @ weight
        rounded.append((packed.astype(np.float32) * scales, wanted - sample[:, out] @ weight[out], wanted.var(axis=0).sum()))
    found = []
    for margin in margins:
        scale, zero = _grid(seen.low[0] * factor * kept, seen.high[0] * factor * kept, margin)
        x = _steps(sample * factor, scale, zero) * np.float32(scale)
        # The variance of the difference, since the bias takes its mean back.
        errors = [(wanted - x @ weight).var(axis=0).sum() / (spread or 1.0) for weight, wanted, spread in rounded]
        found.append(float(np.mean(errors)))
    return found


def _shape(low: Floats, high: Floats, weights: Sequence[Floats], choice: Choice) -> tuple[Floats, NDArray[np.int64]]:
    """Give the factor of each channel (1 where nothing is smoothed) and the channels that are split off."""
    largest = np.maximum(np.abs(low), np.abs(high))
    out = np.sort(np.argsort(-largest, kind="stable")[: choice.split])
    if choice.smooth is None:
        return np.ones_like(largest), out
    rows = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    factor = np.maximum(rows, 1e-5) ** (1 - choice.smooth) / np.maximum(largest, 1e-5) ** choice.smooth
    return (factor / factor.mean()).astype(np.float32), out


def _kept(channels: int, out: NDArray[np.int64]) -> Floats:
    kept = np.ones(channels, dtype=np.float32)
    kept[out] = 0
    return kept


def _grid(low: Floats, high: Floats, margin: float) -> tuple[float, int]:
    """Give scale and zero of the grid that spans the range of all channels and 0."""
    least, most = min(0.0, float(low.min())) * margin, max(0.0, float(high.max())) * margin
    scale = float(np.float32((most - least) / _LEVELS)) or 1.0
    return scale, round(-least / scale)


def _steps(x: Floats, scale: float, zero: int) -> Floats:
    """Round to the grid as QuantizeLinear does; 0 is the zero."""
    steps = np.clip(np.rint(x / np.float32(scale)) + np.float32(zero), 0, _LEVELS) - np.float32(zero)
    return np.asarray(steps, dtype=np.float32)
