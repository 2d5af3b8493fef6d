"""Which texts travel together: a pure function of their lengths.

It knows numbers of tokens and nothing of texts, models or memory. The cost of a batch is the area of its rectangle,
rows x padded length, so texts of like length go together; a budget on that area bounds the memory of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_FREE_PADDING = 4  # tokens of padding that cost less than one more run


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that run together.

    Attributes:
        indices: positions in the caller's list, B of them, shortest text first.
        length: T, the number of tokens every row is padded to.
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
    """Group texts of like length into batches of at most `max_batch_tokens` padded tokens.

    1. Texts are taken from the longest to the shortest, so the largest batch, which decides the peak of memory, runs
       first, and a job that cannot fit fails at once.
    2. A text joins the open batch while rows x length stays within the budget and the text wastes at most
       `max_padding` of the batch's length on padding (or 4 tokens, whichever is more): no text pays for another's length.
    3. A text longer than the budget runs alone.

    Args:
        lengths: tokens of each text, specials included; 0 is read as 1, for an engine takes no empty row.
        max_batch_tokens: the most padded tokens a batch may have.
        max_padding: the share of a row that may be padding. The cost of one more run, some ten tokens' worth, is
            what it is weighed against.
        buckets: the only padded lengths allowed, for static shapes. None: any. A length over the largest raises.
        even_to: without buckets, odd lengths up to this one are padded by one more token. Matrix kernels add up the last
            product of an odd length in another order than that of an even one, so that with even lengths alone a text's
            vector is the same to the last bit in every batch.
        padded: whether texts of different lengths may share a batch. If not, nothing is padded at all.

    Returns:
        Batches that hold every index exactly once; the same input gives the same batches.

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
    raise ValueError(f"A text of {length} tokens fits none of the buckets {list(buckets)}; truncate it first.")
