"""Round a matrix to 8-bit integers with GPTQ, to minimize the error of its products instead of its entries.

Rounding each entry to the nearest integer is optimal for inputs with independent channels. Channels are correlated, so later
entries of a column can compensate for the rounding error of earlier ones. The order and the closed form of this correction
are those of GPTQ (arXiv 2210.17323).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_DAMPING = 0.01  # fraction of the mean square of a channel; keeps the inverse stable if there are few samples
_BLOCK = 32


def nearest(weight: Floats, limit: int = 127, axis: int = 0) -> tuple[NDArray[np.int8], Floats]:
    """Round each entry to the nearest integer within +-`limit`, with one scale per slice along `axis`."""
    scale = _scale(weight, limit, axis)
    return np.rint(weight / np.expand_dims(scale, axis)).astype(np.int8), scale


def what_follows(x: Floats) -> Floats:
    """Return the upper Cholesky factor of the inverse Hessian, as in GPTQ.

    Args:
        x: rows of the quantized input, (n, K).

    Returns:
        (K, K), the upper factor of the inverse of x's Gram matrix; layers with the same input share it.
    """
    gram = (x.T @ x).astype(np.float64)
    gram[np.diag_indices_from(gram)] += _DAMPING * gram.trace() / len(gram) + 1e-12
    # With R R' = G, R upper, the factor is the inverse of R, which is computed from the last channel to the first. Inverting G
    # first takes more than twice as long for 3072 channels.
    return _inverse(np.linalg.cholesky(gram[::-1, ::-1]))[::-1, ::-1].astype(np.float32)


def _inverse(lower: NDArray[Any]) -> NDArray[Any]:
    """Invert a lower triangular matrix recursively, by halves."""
    half = len(lower) // 2
    if half < _BLOCK:
        return np.linalg.inv(lower)
    first, last, out = _inverse(lower[:half, :half]), _inverse(lower[half:, half:]), np.zeros_like(lower)
    out[:half, :half], out[half:, half:] = first, last
    out[half:, :half] = -last @ lower[half:, :half] @ first
    return out


def closest(weight: Floats, later: Floats, limit: int) -> tuple[NDArray[np.int8], Floats]:
    """Round a matrix (K, N) with GPTQ, with one scale per column.

    Args:
        weight: (K, N).
        later: GPTQ factor of the input, from `what_follows`.
        limit: the largest integer.
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
