"""From padded ids to what a graph asks for: a pure function of the graph's inputs and three arrays.

Exporters ask for different inputs under conventional names and in int64 or int32 (or a float mask); all of them follow from the
ids and the mask. Nothing here knows a model, a session or a tokenizer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a graph: name, NumPy dtype and shape (a str or None for an axis of any length)."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Padded:
    """One batch, (B, T) int64 each: ids, attention mask (1 = token), segment ids; pooling mask (None: the attention mask)."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    types: NDArray[np.int64]
    pooling_mask: NDArray[np.int64] | None = None


def feed(inputs: Sequence[Tensor], batch: Padded) -> dict[str, Array]:
    """Give every input of a graph its array, in the dtype it asks for.

    1. `input_ids`, `attention_mask`, `token_type_ids`, `pooling_mask`: the batch's own.
    2. `position_ids`: 0, 1, ... counted over the tokens, so that left padding does not shift them; 0 on padding.
    3. `past_key_values.*` and the like: a cache of no tokens, (B, heads, 0, size), or (2, B, heads, 0, size) where keys and
       values are one tensor.
    4. `use_cache_branch` and the like (a bool of one value): False. `cache_position`: 0 .. T-1.

    Raises:
        ValueError: the graph asks for an input that does not follow from the ids.
    """
    known: Mapping[str, Callable[[], Array]] = {
        "input_ids": lambda: batch.ids,
        "attention_mask": lambda: batch.mask,
        "token_type_ids": lambda: batch.types,
        "pooling_mask": lambda: batch.mask if batch.pooling_mask is None else batch.pooling_mask,
        "position_ids": lambda: np.maximum(np.cumsum(batch.mask, axis=1) - 1, 0),
        "cache_position": lambda: np.arange(batch.ids.shape[1]),
    }
    batch_axis = next((t.shape[0] for t in inputs if t.name == "input_ids" and t.shape), None)
    return {tensor.name: _value(tensor, known, batch.ids.shape[0], batch_axis) for tensor in inputs}


def _value(tensor: Tensor, known: Mapping[str, Callable[[], Array]], rows: int, batch_axis: int | str | None) -> Array:
    if tensor.name in known:
        return np.ascontiguousarray(known[tensor.name](), dtype=tensor.dtype)
    if tensor.dtype == np.bool_ and tensor.shape in {(1,), ()}:
        return np.zeros(tensor.shape, dtype=np.bool_)
    if len(tensor.shape) == 4 and np.issubdtype(tensor.dtype, np.floating):
        # (B, heads, past, size): the fixed axes are the heads and the size, whichever the exporter named.
        fixed = [axis if isinstance(axis, int) else 0 for axis in tensor.shape[1:]]
        return np.zeros((rows, *fixed), dtype=tensor.dtype)
    if len(tensor.shape) in {3, 5} and isinstance(batch_axis, str) and batch_axis in tensor.shape and "past" in tensor.name:
        sizes = [axis if isinstance(axis, int) else rows if axis == batch_axis else 0 for axis in tensor.shape]
        return np.zeros(sizes, dtype=tensor.dtype)
    raise ValueError(
        f"The graph asks for an input {tensor.name!r} of shape {tensor.shape}, which does not follow from token ids; "
        f"known are {', '.join(known)} and empty caches. Export the model without it."
    )
