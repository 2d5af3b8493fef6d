"""Plan padded batches from token counts: a pure function, independent of texts and models.

The cost of a batch is its number of padded tokens, rows x padded length. So texts of similar length are batched together, and a
token budget bounds the memory of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_FREE_PADDING = 4  # tokens of padding that cost less than another run


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one padded batch.

    Attributes:
        indices: indices of the B rows in the caller's list, shortest text first.
        length: T, the padded length.
    """

    indices: tuple[int, ...]
    length: int


def plan(
    lengths: Sequence[int],
    max_batch_tokens: int,
    *,
    max_padding: float = 0.125,
    buckets: Sequence[int] | None = None,
    even_to: int = 0,
    padded: bool = True,
) -> list[Batch]:
    """Group texts of similar length into batches of at most `max_batch_tokens` padded tokens.

    1. Texts are processed from the longest to the shortest. So the largest batch, which determines peak memory, runs first,
       and a job that does not fit into memory fails at once.
    2. A text is added to the current batch if rows x length stays within the budget and at most `max_padding` of its row (or 4
       tokens, whichever is more) is padding. So short texts do not pay for long ones.
    3. A text longer than the budget runs in a batch of its own.

    Args:
        lengths: tokens of each text, special tokens included; 0 counts as 1, since a row must not be empty.
        max_batch_tokens: maximum padded tokens per batch.
        max_padding: maximum fraction of padding in a row. It trades padding for the cost of another run, about ten tokens.
        buckets: the only padded lengths allowed, for static shapes. None: any. A length above the largest is an error.
        even_to: without buckets, odd lengths up to this one are padded by one more token. Matrix kernels sum the last product
            of an odd length in a different order, so that only with even lengths a text's vector is bit-identical in every
            batch.
        padded: whether texts of different lengths may share a batch. If not, nothing is padded.

    Returns:
        Batches that contain every index exactly once. Deterministic.

    Raises:
        ValueError: `max_batch_tokens` below 1, or a length above the largest bucket.
    """
    if max_batch_tokens < 1:
        raise ValueError(f"max_batch_tokens is {max_batch_tokens}; it must be at least 1.")
    rows = [max(length, 1) for length in lengths]
    if not padded:
        max_padding, slack = 0.0, 0
    else:
        slack = _FREE_PADDING
        if buckets is None:
            rows = [length + length % 2 if length < even_to else length for length in rows]
        else:
            rows = [_bucket(length, sorted(buckets)) for length in rows]
    order = sorted(range(len(rows)), key=lambda i: (-rows[i], i))
    batches: list[Batch] = []
    open_rows: list[int] = []
    for i in order:
        if open_rows:
            length = rows[open_rows[0]]
            full = (len(open_rows) + 1) * length > max_batch_tokens
            wasteful = length - rows[i] > max(slack, max_padding * length)
            if full or wasteful:
                batches.append(_close(open_rows, rows))
                open_rows = []
        open_rows.append(i)
    if open_rows:
        batches.append(_close(open_rows, rows))
    return batches


def _close(indices: list[int], lengths: list[int]) -> Batch:
    return Batch(indices=tuple(reversed(indices)), length=lengths[indices[0]])


def _bucket(length: int, buckets: Sequence[int]) -> int:
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise ValueError(f"A text has {length} tokens, more than the longest of the buckets {list(buckets)}. Truncate it first.")
