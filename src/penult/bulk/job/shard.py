"""Embed one shard: read its rows, write a file of rows with vectors. Shared by worker processes and Ray actors.

Defines the layout of a shard's files. Independent of the list of shards and of their records.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from penult.atomic_files import atomic_write
from penult.bulk import tables
from penult.bulk.arrow_values import rows_of
from penult.bulk.input.rows import Rejected
from penult.bulk.input.sources import Shard
from penult.bulk.job.parts import Pace, Ticked, embed_in_parts, remove_parts
from penult.bulk.job.record import Record, rejected_path, shard_path
from penult.bulk.job.reuse import Old
from penult.bulk.options import Columns
from penult.core.embedder import Embedder


def make_shard(
    embedder: Embedder,
    shard: Shard,
    folder: Path,
    columns: Columns,
    old: Old | None = None,
    *,
    pace: Pace | None = None,
    ticked: Ticked | None = None,
) -> Record:
    """Embed a shard and write its files atomically. `pace` and `ticked` are as in `embed_in_parts`.

    Raises:
        OSError: the disk is full or not writable.
    """
    texts = tables.texts_of(tables.column_of(shard.table, columns.text))
    taken = {} if old is None else old.find(texts)
    left = [row for row in range(len(texts)) if row not in taken]
    path = shard_path(folder, shard.number)
    outcome = embed_in_parts(
        embedder, [texts[row] for row in left], columns.role, path, shard.number, pace=pace or Pace(), ticked=ticked
    )
    bad = {left[row]: reason for row, reason in outcome.bad.items()}
    good = [row for row in range(len(texts)) if row not in bad]
    vectors = outcome.vectors
    if old is not None:
        vectors = old.merge(good, taken, outcome.vectors)
    table = shard.table if not bad else tables.without(shard.table, sorted(bad))
    result = tables.with_vectors(table, columns.vector, vectors, {})
    rejected = [_rejected(shard, row, reason) for row, reason in bad.items()] + shard.rejected
    suffix = f"{os.getpid()}.part"  # a dying worker may write the same shard
    if rejected:
        with atomic_write(rejected_path(folder, shard.number), suffix) as file:
            order = sorted(rejected, key=lambda row: (row.file, row.line))
            file.writelines(f"{row.as_json()}\n".encode() for row in order)
    with atomic_write(path, suffix) as file, pa.ipc.new_file(file, result.schema) as writer:
        writer.write_table(result.unify_dictionaries().combine_chunks())
    remove_parts(path)
    return Record(shard.number, len(good), len(rejected), outcome.cut, len(taken), outcome.tokens, path.stat().st_size)


@contextmanager
def opened_shard(folder: Path, number: int) -> Iterator[pa.Table]:
    """Yield a shard's file as a memory-mapped table."""
    with pa.memory_map(str(shard_path(folder, number))) as mapped:
        yield pa.ipc.open_file(mapped).read_all()


def _rejected(shard: Shard, row: int, reason: str) -> Rejected:
    file, line = shard.place(row)
    return Rejected(file, line, reason, rows_of(shard.table.slice(row, 1))[0])
