"""`batching.plan`: every text once, within the budget, or one error for invalid arguments."""

import struct

from draw import Draw

from penult.core.batching import plan

SEEDS = [struct.pack("<BHHBH", 3, 512, 64, 0, 9) + bytes(range(0, 200, 3))]


def one(data: bytes) -> None:
    """Plan for lengths, a budget, a limit of padding, buckets and an even limit drawn from the bytes."""
    draw = Draw(data)
    budget, even, padding = draw.whole(3000), draw.whole(600), draw.whole(100) / 50
    buckets = [draw.whole(600) for _ in range(draw.whole(4))] or None
    lengths = []
    while draw.left:
        lengths.append(draw.whole(700))
    try:
        batches = plan(lengths, budget, max_padding=padding, buckets=buckets, even_to=even)
    except ValueError as error:
        assert "max_batch_tokens is" in str(error) or "longest of the buckets" in str(error)
        return
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(lengths)))
    for batch in batches:
        assert batch.length >= max(lengths[i] for i in batch.indices)
        assert len(batch.indices) == 1 or len(batch.indices) * batch.length <= budget
    assert [b.length for b in batches] == sorted((b.length for b in batches), reverse=True)
