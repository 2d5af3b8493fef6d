"""Choose how the input of linear layers becomes 8 bits wide: pure arithmetic on samples of that input.

One scale holds for every token and every text, so a vector cannot depend on what else is in its batch. What makes one scale
hard is a few channels that are ten times as large as the rest (28 where the others stay within 4, in the feed-forward blocks
of BERT-like models): they decide the scale, and the rest drowns in its steps. Three remedies, each with its price:

    smooth   x f before, W / f after: every channel about as wide as the next; costs one product per input value
    centre   x - c before, c W in the bias: a large channel often stays far from 0, and is no wider than the rest around its
             middle; costs one sum per input value
    split    the largest channels stay float32 and pass a small matrix of their own; costs about three sums per output value

Errors are measured on the layers' own outputs, with ranges from one half of the texts and rows from the other: a range that
is too narrow for unseen text shows. This file knows arrays and no graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from penult.graph.int8.gptq import Floats, closest, nearest, what_follows

_LEVELS = 255  # of an input: uint8
# The exponents of SmoothQuant, arXiv 2211.10438: a half and above, since weights have a scale a column. None: not at all.
_SMOOTH = (None, 0.5, 0.65, 0.8)
_SPLIT = (0, 2, 8)
_MARGINS = (1.0, 1.15, 0.9, 0.8)  # a range may be wider than what was seen, or cut its rarest values
_MEASURED = 384  # rows of the sample that errors are measured on; all of them take part in rounding


@dataclass(frozen=True, slots=True)
class Seen:
    """What calibration saw of one tensor, in two halves of the texts.

    Attributes:
        low: the smallest value of each channel in each half, (2, K); infinite in the second one where there is a single text.
        high: the largest, (2, K), likewise.
        sample: rows of the second half in any order, (n, K).
    """

    low: Floats
    high: Floats
    sample: Floats


@dataclass(frozen=True, slots=True)
class Choice:
    """The exponent of smoothing (None: not smoothed), the number of channels that stay float32, and whether all are centred."""

    smooth: float | None
    split: int
    centre: bool = False


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
        offset: what is added to that, (K,); None: nothing.
        split: the channels that pass in float32.
        scale: the width of one step of the input.
        zero: the step that stands for 0.
        layers: the layers, in the order given.
    """

    factor: Floats | None
    offset: Floats | None
    split: NDArray[np.int64]
    scale: float
    zero: int
    layers: tuple[Packed, ...]


def choices(inputs: int, outputs: int) -> list[list[Choice]]:
    """List the ways to treat an input of `inputs` channels whose layers have `outputs` channels, those of one price together.

    The cheapest come first.
    """
    found: dict[int, list[Choice]] = {}
    for smooth, split, centre in product(_SMOOTH, _SPLIT, (False, True)):
        if split < inputs // 4 and (smooth is not None or not centre):
            price = ((smooth is not None) + centre) * inputs + (split > 0) * 3 * outputs + split
            found.setdefault(price, []).append(Choice(smooth, split, centre))
    return [same for _, same in sorted(found.items())]


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
        limit: the largest magnitude of an 8-bit weight: 127, or less where the processor's sums would overflow.
    """
    margin = _MARGINS[int(np.argmin(_errors(seen, weights, choice, _MARGINS)))]
    form = _form(seen.low.min(axis=0), seen.high.max(axis=0), weights, choice)
    x, scale, zero = form.rounded(seen.sample, margin)
    later = what_follows(x * form.kept)
    layers = []
    for weight, bias in zip(weights, biases, strict=True):
        packed, scales = closest(weight * (form.kept / form.factor)[:, None], later, limit)
        rest = weight[form.out]
        # What the rounding and the offset do to a layer's mean, the bias takes back.
        shift = (seen.sample @ weight - (x @ packed.astype(np.float32)) * scales - seen.sample[:, form.out] @ rest).mean(axis=0)
        layers.append(Packed(packed, scales, shift if bias is None else bias + shift, rest))
    factor, offset = form.factor if choice.smooth else None, form.offset if choice.centre else None
    return Treatment(factor, offset, form.out, scale, zero, tuple(layers))


def _errors(seen: Seen, weights: Sequence[Floats], choice: Choice, margins: Sequence[float]) -> list[float]:
    """Measure the error of a choice for each margin, the range taken from the first half of the texts."""
    form = _form(seen.low[0], seen.high[0], weights, choice)
    sample, rounded = seen.sample[:_MEASURED], []
    for weight in weights:
        packed, scales = nearest(weight * (form.kept / form.factor)[:, None])
        wanted = sample @ weight
        rest = sample[:, form.out] @ weight[form.out]
        rounded.append((packed.astype(np.float32) * scales, wanted - rest, wanted.var(axis=0).sum()))
    found = []
    for margin in margins:
        x, _, _ = form.rounded(sample, margin)
        # The variance of the difference, since the bias takes its mean back.
        errors = [(wanted - x @ weight).var(axis=0).sum() / (spread or 1.0) for weight, wanted, spread in rounded]
        found.append(float(np.mean(errors)))
    return found


@dataclass(frozen=True, slots=True)
class _Form:
    """What is rounded: x * factor + offset.

    Attributes:
        factor: (K,), 1 where nothing is smoothed.
        offset: (K,), 0 where nothing is centred.
        out: the channels that are split off.
        kept: (K,), 1 and for those 0.
        low: the smallest value that is to be rounded.
        high: the largest.
    """

    factor: Floats
    offset: Floats
    out: NDArray[np.int64]
    kept: Floats
    low: float
    high: float

    def rounded(self, x: Floats, margin: float) -> tuple[Floats, float, int]:
        """Round as QuantizeLinear does to a grid that spans the range and 0; give the values, the scale and the zero."""
        least, most = min(0.0, self.low) * margin, max(0.0, self.high) * margin
        scale = float(np.float32((most - least) / _LEVELS)) or 1.0
        zero = round(-least / scale)
        steps = np.clip(np.rint((x * self.factor + self.offset) / np.float32(scale)) + np.float32(zero), 0, _LEVELS)
        return np.asarray((steps - np.float32(zero)) * np.float32(scale), dtype=np.float32), scale, zero


def _form(low: Floats, high: Floats, weights: Sequence[Floats], choice: Choice) -> _Form:
    """Find factor, offset and split channels for an input whose channels lie between `low` and `high`."""
    out = np.sort(np.argsort(-np.maximum(np.abs(low), np.abs(high)), kind="stable")[: choice.split])
    middle = np.asarray((low + high) / 2 if choice.centre else np.zeros_like(low), dtype=np.float32)
    low, high = (low - middle).astype(np.float32), (high - middle).astype(np.float32)
    largest = np.maximum(np.abs(low), np.abs(high))
    factor = np.ones_like(largest)
    if choice.smooth is not None:
        rows = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
        factor = np.maximum(rows, 1e-5) ** (1 - choice.smooth) / np.maximum(largest, 1e-5) ** choice.smooth
        factor = (factor / factor.mean()).astype(np.float32)
    kept = np.ones_like(largest)
    kept[out] = 0
    return _Form(factor, -middle * factor, out, kept, float((low * factor * kept).min()), float((high * factor * kept).max()))
