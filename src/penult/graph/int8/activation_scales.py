"""Choose the activation scale and quantization scheme of the input of linear layers, from samples of that input.

One scale applies to all tokens and texts, so that vectors are batch-invariant. The difficulty is outlier channels, a few that
are ten times as large as the others (28 against at most 4, in the feed-forward blocks of BERT-like models): they set the scale,
and the others lose resolution. Three methods reduce the error:

    smooth   x f before, W / f after (SmoothQuant): makes all channels about equally wide; costs one product per input value
    center   x - c before, c W in the bias: an outlier channel is often far from 0, but not wider than the others around its
             midpoint; costs one sum per input value
    split    the largest channels stay float32 and have a small matrix of their own; costs about three sums per output value

Errors are measured on the layers' outputs, with ranges from one half of the texts and rows from the other half, to detect
ranges that are too narrow for unseen text. This module works on arrays and is independent of graphs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from penult.graph.int8.gptq import Floats, closest, nearest, what_follows

_LEVELS = 255  # of a uint8 input
# Exponents of SmoothQuant (arXiv 2211.10438): 0.5 and above, because weights have per-column scales. None: no smoothing.
_SMOOTH = (None, 0.5, 0.65, 0.8)
_SPLIT = (0, 2, 8)
_MARGINS = (1.0, 1.15, 0.9, 0.8)  # factors of the observed range: wider, or clipping its rarest values
_MEASURED = 384  # rows of the sample for measuring errors; rounding uses all rows


@dataclass(frozen=True, slots=True)
class Seen:
    """Calibration statistics of one tensor, in two halves of the texts.

    Attributes:
        low: minimum of each channel in each half, (2, K); infinite in the second half if there is a single text.
        high: maximum of each channel in each half, (2, K), likewise.
        sample: rows of the second half in any order, (n, K).
    """

    low: Floats
    high: Floats
    sample: Floats


@dataclass(frozen=True, slots=True)
class Choice:
    """Smoothing exponent (None: no smoothing), number of channels kept in float32, and whether channels are centered."""

    smooth: float | None
    split: int
    center: bool = False


@dataclass(frozen=True, slots=True)
class Packed:
    """One int8 layer: weight (K, N) int8, its per-column scale (N,), bias (N,), and the split channels' rows (k, N)."""

    weight: NDArray[np.int8]
    scale: Floats
    bias: Floats
    rest: Floats


@dataclass(frozen=True, slots=True)
class Treatment:
    """Quantization of one input and of the layers that read it.

    Attributes:
        factor: multiplier of the input, (K,); None: no multiplication.
        offset: added to the product, (K,); None: no addition.
        split: channels that stay in float32.
        scale: activation scale of the input.
        zero: zero point of the input.
        layers: the quantized layers, in the order of the weights.
    """

    factor: Floats | None
    offset: Floats | None
    split: NDArray[np.int64]
    scale: float
    zero: int
    layers: tuple[Packed, ...]


def choices(inputs: int, outputs: int) -> list[list[Choice]]:
    """Return the schemes for an input of `inputs` channels and layers of `outputs` channels, grouped by cost.

    The cheapest come first.
    """
    by_price: dict[int, list[Choice]] = {}
    for smooth, split, center in product(_SMOOTH, _SPLIT, (False, True)):
        if split < inputs // 4 and (smooth is not None or not center):
            price = ((smooth is not None) + center) * inputs + (split > 0) * 3 * outputs + split
            by_price.setdefault(price, []).append(Choice(smooth, split, center))
    return [same for _, same in sorted(by_price.items())]


def error_of(seen: Seen, weights: Sequence[Floats], choice: Choice) -> float:
    """Return the layers' squared error relative to the variance of their outputs, averaged over the layers."""
    return _errors(seen, weights, choice, (1.0,))[0]


def apply(seen: Seen, weights: Sequence[Floats], biases: Sequence[Floats | None], choice: Choice, *, limit: int) -> Treatment:
    """Quantize an input and its layers.

    Args:
        seen: statistics of the input.
        weights: (K, N) of each layer.
        biases: (N,) of each layer, or None.
        choice: the scheme.
        limit: the largest magnitude of an 8-bit weight: 127, or less if the processor's sums would overflow.
    """
    margin = _MARGINS[int(np.argmin(_errors(seen, weights, choice, _MARGINS)))]
    form = _form(seen.low.min(axis=0), seen.high.max(axis=0), weights, choice)
    x, scale, zero = form.rounded(seen.sample, margin)
    later = what_follows(x * form.kept)
    layers = []
    for weight, bias in zip(weights, biases, strict=True):
        packed, scales = closest(weight * (form.kept / form.factor)[:, None], later, limit)
        rest = weight[form.out]
        # The bias corrects the change of a layer's mean by rounding and offset.
        shift = (seen.sample @ weight - (x @ packed.astype(np.float32)) * scales - seen.sample[:, form.out] @ rest).mean(axis=0)
        layers.append(Packed(packed, scales, shift if bias is None else bias + shift, rest))
    factor, offset = form.factor if choice.smooth else None, form.offset if choice.center else None
    return Treatment(factor, offset, form.out, scale, zero, tuple(layers))


def _errors(seen: Seen, weights: Sequence[Floats], choice: Choice, margins: Sequence[float]) -> list[float]:
    """Return the error of a scheme for each margin, with the range of the first half of the texts."""
    form = _form(seen.low[0], seen.high[0], weights, choice)
    sample, rounded = seen.sample[:_MEASURED], []
    for weight in weights:
        packed, scales = nearest(weight * (form.kept / form.factor)[:, None])
        expected = sample @ weight
        rest = sample[:, form.out] @ weight[form.out]
        rounded.append((packed.astype(np.float32) * scales, expected - rest, expected.var(axis=0).sum()))
    means = []
    for margin in margins:
        x, _, _ = form.rounded(sample, margin)
        # The variance of the difference, because the bias corrects its mean.
        errors = [(expected - x @ weight).var(axis=0).sum() / (spread or 1.0) for weight, expected, spread in rounded]
        means.append(float(np.mean(errors)))
    return means


@dataclass(frozen=True, slots=True)
class _Form:
    """The affine transform before rounding: x * factor + offset.

    Attributes:
        factor: (K,), 1 without smoothing.
        offset: (K,), 0 without centering.
        out: the split channels.
        kept: (K,), 0 for split channels, 1 for the others.
        low: the smallest value to round.
        high: the largest value to round.
    """

    factor: Floats
    offset: Floats
    out: NDArray[np.int64]
    kept: Floats
    low: float
    high: float

    def rounded(self, x: Floats, margin: float) -> tuple[Floats, float, int]:
        """Round like QuantizeLinear to a grid that spans the range and 0; return values, scale and zero point."""
        least, most = min(0.0, self.low) * margin, max(0.0, self.high) * margin
        scale = float(np.float32((most - least) / _LEVELS)) or 1.0
        zero = round(-least / scale)
        steps = np.clip(np.rint((x * self.factor + self.offset) / np.float32(scale)) + np.float32(zero), 0, _LEVELS)
        return np.asarray((steps - np.float32(zero)) * np.float32(scale), dtype=np.float32), scale, zero


def _form(low: Floats, high: Floats, weights: Sequence[Floats], choice: Choice) -> _Form:
    """Return factor, offset and split channels for an input whose channels are between `low` and `high`."""
    out = np.sort(np.argsort(-np.maximum(np.abs(low), np.abs(high)), kind="stable")[: choice.split])
    middle = np.asarray((low + high) / 2 if choice.center else np.zeros_like(low), dtype=np.float32)
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
