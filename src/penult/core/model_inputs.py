"""Build a model's input arrays from a padded batch: a pure function of the graph's inputs and three arrays.

Exporters declare different inputs under conventional names and in int64 or int32 (or a float mask). Almost all of them follow
from the ids and the mask; `Meaning` has the rest. This module is independent of models, sessions and tokenizers. `graph.inputs`
renames inputs with unconventional names in the graph.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Ints = NDArray[np.int64]

TASKS = frozenset((
    "task", "tasks", "task_id", "task_ids", "task_idx", "task_index", "task_type", "task_type_id",
    "adapter_mask", "adapter_id", "adapter_ids",
))  # fmt: skip
_LENGTHS = frozenset((
    "length", "lengths", "input_length", "input_lengths", "seq_len", "seq_lens", "seqlens", "seq_lengths",
    "sequence_length", "sequence_lengths", "text_lengths", "token_lengths",
))  # fmt: skip
_KEPT_LOGITS = frozenset(("num_logits_to_keep", "logits_to_keep"))
_TEXT = ("hidden", "embed")
_MEDIA = ("image", "pixel", "video", "audio", "vision", "visual")
# States of convolutions and recurrent layers start as zeros of any size. KV caches start without tokens.
_RECURRENT = ("conv", "ssm", "recurrent", "rnn")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a graph: name, NumPy dtype and shape (a str or None for an axis of any length)."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Padded:
    """One batch, (B, T) int64 each: ids, attention mask (1 = token), segment ids; pooling mask (None: the attention mask)."""

    ids: Ints
    mask: Ints
    types: Ints
    pooling_mask: Ints | None = None


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a graph's inputs mean beyond ids and mask.

    Attributes:
        position_offset: position of a text's first token; the position before it is that of padding.
        task: index of the task's adapter. None: neither a file nor an argument states it.
    """

    position_offset: int = 0
    task: int | None = None


def feed(inputs: Sequence[Tensor], batch: Padded, *, meaning: Meaning = Meaning()) -> dict[str, Array]:
    """Return the array of every input of a graph, in its dtype.

    1. `input_ids`, `attention_mask`, `token_type_ids`, `pooling_mask`: the batch's own. An integer or boolean mask of three or
       four axes is the same mask, broadcast. With an input `offsets`, `input_ids` has one axis, the concatenated ids of all
       texts; `offsets` has the start of each.
    2. `position_ids`: counted over the tokens from `meaning.position_offset`, so that left padding does not shift them.
       `cache_position`: 0 .. T-1. `lengths` and the like: number of tokens of each text.
    3. `task_id` and the like: `meaning.task`. `num_logits_to_keep`: 0. `use_cache_branch` and the like (one boolean): False.
    4. `past_key_values.*` and the like: an empty KV cache, (B, heads, 0, size), or (2, B, heads, 0, size) if keys and values
       are one tensor. States of convolutions and recurrent layers: zeros.
    5. Images, audio and the like, whose first axis is not the batch: empty, (0, ...).

    Raises:
        ValueError: an input does not follow from the ids, or it is a task and `meaning` has none.
    """
    return _Feed(inputs, batch, meaning).arrays()


class _Feed:
    """The arrays of one batch."""

    def __init__(self, inputs: Sequence[Tensor], batch: Padded, meaning: Meaning) -> None:
        self._inputs = inputs
        self._batch = batch
        self._meaning = meaning
        self._rows, self._tokens = batch.ids.shape
        by_name = {tensor.name: tensor for tensor in inputs}
        self._packed = "offsets" in by_name
        ids = by_name.get("offsets" if self._packed else "input_ids")
        self._axes = ids.shape if ids is not None else ()
        self._caches = any(_may_be_cache(tensor, self._axes) for tensor in inputs)
        self._known: Mapping[str, Callable[[Tensor], Array | None]] = {
            "input_ids": self._ids,
            "offsets": lambda tensor: self._starts() if len(tensor.shape) == 1 else None,
            "attention_mask": lambda tensor: self._mask(tensor, batch.mask),
            "token_type_ids": lambda tensor: batch.types if len(tensor.shape) == 2 else None,
            "pooling_mask": lambda tensor: self._mask(tensor, batch.mask if batch.pooling_mask is None else batch.pooling_mask),
            "position_ids": self._positions,
            "cache_position": lambda tensor: np.arange(self._tokens) if len(tensor.shape) == 1 else None,
        }
        others = [tensor for tensor in inputs if tensor.name not in self._known and _is_float(tensor)]
        self._absent = {tensor.shape[0] for tensor in others if self._is_optional(tensor)}

    def arrays(self) -> dict[str, Array]:
        return {tensor.name: self._array(tensor) for tensor in self._inputs}

    def _array(self, tensor: Tensor) -> Array:
        name = tensor.name
        value = self._known[name](tensor) if name in self._known else self._other(tensor)
        if value is not None:
            return np.asarray(value, dtype=tensor.dtype, order="C")  # ascontiguousarray would add an axis to a scalar
        raise ValueError(
            f"The graph needs {name!r} {tensor.shape} {tensor.dtype}, which cannot be computed from token ids. Export only "
            "the text encoder, without this input."
        )

    def _other(self, tensor: Tensor) -> Array | None:
        name, rank = tensor.name.lower(), len(tensor.shape)
        if tensor.dtype == np.bool_ and tensor.shape in {(1,), ()}:
            return np.zeros(tensor.shape, dtype=np.bool_)
        if _is_integer(tensor) and rank <= 1:
            return self._numbers(tensor, name)
        if _may_be_cache(tensor, self._axes):
            return self._cache(tensor)
        if self._is_optional(tensor):
            return np.zeros([0, *(axis if isinstance(axis, int) else 0 for axis in tensor.shape[1:])])
        return None

    def _numbers(self, tensor: Tensor, name: str) -> Array | None:
        """Return an integer input of at most one axis."""
        sizes = tuple(axis for axis in tensor.shape if isinstance(axis, int))
        fixed = sizes if len(sizes) == len(tensor.shape) else None
        if name in TASKS and fixed in {None, (), (1,), (self._rows,)}:
            if self._meaning.task is None:
                raise ValueError(f"The graph needs `{tensor.name}`, but no file states a task. Pass task=...")
            return np.full((self._rows,) if fixed is None else fixed, self._meaning.task)
        if name in _KEPT_LOGITS and fixed in {(), (1,)}:  # a dynamic length would be a list of the tokens to keep
            return np.zeros(sizes)
        if name in _LENGTHS and fixed in {None, (self._rows,)}:
            self._check_right(tensor)
            lengths: Ints = self._batch.mask.sum(axis=1)
            return lengths
        return None

    def _check_right(self, tensor: Tensor) -> None:
        """Raise an error for left padding if an input cannot express it."""
        if (np.diff(self._batch.mask, axis=1) > 0).any():
            raise ValueError(
                f"The graph's {tensor.name!r} {tensor.shape} cannot express padding on the left. Pad on the right."
            )

    def _ids(self, tensor: Tensor) -> Array | None:
        if len(tensor.shape) == 1 and self._packed:
            return self._batch.ids[self._batch.mask > 0]
        return self._batch.ids if len(tensor.shape) == 2 else None

    def _starts(self) -> Ints:
        """Return the start of each text in the concatenated ids; an empty text starts where the next one does."""
        return np.cumsum([0, *self._batch.mask.sum(axis=1)[:-1]], dtype=np.int64)

    def _mask(self, tensor: Tensor, mask: Ints) -> Array | None:
        """Return a mask (B, T), or the same one as (B, 1 or T, T) or (B, 1 or heads, 1 or T, T)."""
        rank = len(tensor.shape)
        if rank == 2:
            return mask
        if rank not in {3, 4}:
            return None
        if _is_float(tensor):
            raise ValueError(
                f"The graph needs {tensor.name!r} {tensor.shape} as {tensor.dtype}: which values it adds to the attention "
                "scores is unknown. Export the graph with an attention mask (batch, sequence)."
            )
        queries = 1 if tensor.shape[-2] == 1 else self._tokens
        if queries != 1 and self._caches:
            raise ValueError(
                f"The graph needs {tensor.name!r} {tensor.shape} beside a KV cache: it is a decoder's causal mask. "
                "Export the graph with an attention mask (batch, sequence)."
            )
        heads = [axis if isinstance(axis, int) else 1 for axis in tensor.shape[1:-2]]
        spread = mask.reshape(self._rows, *[1] * (rank - 2), self._tokens)
        return np.broadcast_to(spread, (self._rows, *heads, queries, self._tokens))

    def _positions(self, tensor: Tensor) -> Array | None:
        """Return positions (B, T); (1, T) or (T,) if all texts have the same; (n, B, T) for n equal axes of positions."""
        mask, offset = self._batch.mask, self._meaning.position_offset
        positions = np.where(mask > 0, np.cumsum(mask, axis=1) - 1 + offset, max(offset - 1, 0))
        rank, first = len(tensor.shape), tensor.shape[0] if tensor.shape else None
        if rank == 1 or (rank == 2 and first == 1 < self._rows):
            self._check_right(tensor)
            row = np.arange(self._tokens) + offset
            return row if rank == 1 else row[None]
        if rank == 3 and isinstance(first, int):
            return np.broadcast_to(positions, (first, self._rows, self._tokens))
        return positions if rank == 2 else None

    def _cache(self, tensor: Tensor) -> Array | None:
        """Return an empty KV cache; None if its size is fixed and not 0."""
        shape, rank = tensor.shape, len(tensor.shape)
        batch = self._axes[0] if self._axes else None
        if rank == 4:
            # (B, heads, past, size): the fixed axes are the heads and the size, in the exporter's order.
            sizes = [self._rows, *(axis if isinstance(axis, int) else 0 for axis in shape[1:])]
        elif isinstance(batch, str) and batch in shape:
            sizes = [axis if isinstance(axis, int) else self._rows if axis == batch else 0 for axis in shape]
        elif rank == 3 and not isinstance(shape[0], int):
            sizes = [self._rows, *(axis if isinstance(axis, int) else 0 for axis in shape[1:])]
        else:
            return None
        recurrent = any(word in tensor.name.lower() for word in _RECURRENT)
        return np.zeros(sizes) if 0 in sizes or recurrent else None

    def _is_optional(self, tensor: Tensor) -> bool:
        """Return whether an input is a list of images, audio or the like, which may be empty: its first axis is their number.

        An input named like a hidden state or an embedding, or with the batch axis or the token axis, belongs to the texts.
        """
        name, shape = tensor.name.lower(), tensor.shape
        if len(shape) < 2 or not isinstance(first := shape[0], str) or not self._axes or self._axes[0] in {None, first}:
            return False
        if any(isinstance(axis, str) and axis in shape for axis in self._axes[1:]) or _may_be_cache(tensor, self._axes):
            return False
        if any(word in name for word in _MEDIA):
            return True
        if _is_float(tensor):
            return not any(word in name for word in _TEXT) and "batch" not in first.lower()
        return first in self._absent


def _may_be_cache(tensor: Tensor, ids: tuple[int | str | None, ...]) -> bool:
    """Return whether a float input is a KV cache: by its name, or (batch, heads, past, size) with fixed heads and size."""
    if not _is_float(tensor) or len(tensor.shape) not in {3, 4, 5}:
        return False
    if any(word in tensor.name.lower() for word in ("past", "cache")):
        return True
    if len(tensor.shape) != 4:
        return False
    first, heads, past, size = tensor.shape
    of_batch = not ids or isinstance(first, int) or first in {None, ids[0]} or "batch" in first.lower()
    return of_batch and isinstance(heads, int) and not isinstance(past, int) and isinstance(size, int)


def _is_float(tensor: Tensor) -> bool:
    return np.issubdtype(tensor.dtype, np.floating)


def _is_integer(tensor: Tensor) -> bool:
    return np.issubdtype(tensor.dtype, np.integer)
