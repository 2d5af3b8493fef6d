"""Round a matrix to 8-bit whole numbers so that its products, not its entries, stay close.

Rounding each entry to the nearest step is best for an input of independent channels. Channels are not independent: what one
entry's rounding does to the products, later entries of its column can take back. The order and the closed form of that
correction are GPTQ's (arXiv 2210.17323); this file knows matrices and nothing else.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_DAMPING = 0.01  # of the mean square of a channel; keeps the inverse of a matrix of few samples tame
_BLOCK = 32


def nearest(weight: Floats, limit: int = 127, axis: int = 0) -> tuple[NDArray[np.int8], Floats]:
    """Round each entry to the nearest of the whole numbers within +-`limit`, with one scale for all along `axis`."""
    scale = _scale(weight, limit, axis)
    return np.rint(weight / np.expand_dims(scale, axis)).astype(np.int8), scale


def what_follows(x: Floats) -> Floats:
    """Say how the rounding of each channel is best made up for by the channels after it.

    Args:
        x: rows of an input as products will see it, (n, K).

    Returns:
        (K, K), the upper factor of the inverse of x's Gram matrix; layers that read the same input share it.
    """
    gram = (x.T @ x).astype(np.float64)
    gram[np.diag_indices_from(gram)] += _DAMPING * gram.trace() / len(gram) + 1e-12
    # With R R' = G, R upper, the factor is R's inverse; R is found from the last channel to the first. Inverting G first takes
    # more than twice as long for 3072 channels.
    return _inverse(np.linalg.cholesky(gram[::-1, ::-1]))[::-1, ::-1].astype(np.float32)


def _inverse(lower: NDArray[Any]) -> NDArray[Any]:
    """Invert a lower triangular matrix by halves."""
    half = len(lower) // 2
    if half < _BLOCK:
        return np.linalg.inv(lower)
    first, last, out = _inverse(lower[:half, :half]), _inverse(lower[half:, half:]), np.zeros_like(lower)
    out[:half, :half], out[half:, half:] = first, last
    out[half:, :half] = -last @ lower[half:, :half] @ first
    return out


def closest(weight: Floats, later: Floats, limit: int) -> tuple[NDArray[np.int8], Floats]:
    """Round a matrix (K, N) so that its product with an input changes little, with one scale a column.

    Args:
        weight: (K, N).
        later: what `what_follows` says of the input.
        limit: the largest whole number.
    """
    scale = _scale(weight, limit, 0)
    left, out = (weight / scale).astype(np.float32), np.empty(weight.shape, dtype=np.int8)
    for start in range(0, len(left), _BLOCK):
        end = min(start + _BLOCK, len(left))
        owed = np.empty((end - start, left.shape[1]), dtype=np.float32)
        for i in range(start, end):
            whole = np.clip(np.rint(left[i]), -limit, limit)
            out[i] = whole
            owed[i - start] = (left[i] - whole) / later[i, i]
            left[i:end] -= np.outer(later[i, i:end], owed[i - start])
        left[end:] -= later[start:end, end:].T @ owed
    return out, scale


def _scale(weight: Floats, limit: int, axis: int) -> Floats:
    scale = np.abs(weight).max(axis=axis) / np.float32(limit)
    return np.where(scale == 0, np.float32(1), scale).astype(np.float32)
