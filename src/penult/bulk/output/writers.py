"""Merge finished shards into one output, written atomically: Parquet, Lance, .npy or JSON lines.

Handles formats, not jobs. One shard is in memory at a time (for Parquet, as many as fill a row group).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penult.atomic_files import atomic_write
from penult.bulk import tables
from penult.bulk.arrow_values import rows_of
from penult.bulk.job.record import rejected_path
from penult.bulk.job.shard import opened_shard
from penult.bulk.json_text import dumps
from penult.bulk.output import output_files
from penult.bulk.output.row_groups import row_groups
from penult.types import Vectors

_LINES = 1024  # JSON lines per write
ENDINGS = (".parquet", ".lance", ".npy", ".jsonl")


def check(out: Path) -> None:
    """Raise ValueError for an output of unknown format, ImportError if its extra is not installed."""
    if out.suffix not in ENDINGS:
        raise ValueError(output_files.UNKNOWN_EXTENSION.format(out=out))
    if out.suffix == ".lance":
        from penult.bulk import lance_files  # noqa: PLC0415 - an extra

        lance_files.check()


def write(out: Path, folder: Path, schema: pa.Schema, shards: Sequence[int], *, vector_column: str) -> None:
    """Write the rows of all shards in order, and the rejected rows file. The output itself appears last.

    Args:
        out: the file or, for Lance, folder.
        folder: folder of the shards.
        schema: schema of the rows with vectors, including metadata.
        shards: numbers of the shards, in order.
        vector_column: the column of the vectors.
    """
    rejected = [path for shard in shards if (path := rejected_path(folder, shard)).exists()]
    if rejected:
        with atomic_write(output_files.rejected_file(out)) as file:
            file.writelines(path.read_bytes() for path in rejected)
    else:
        output_files.rejected_file(out).unlink(missing_ok=True)
    if not output_files.has_own_metadata(out):
        with atomic_write(output_files.metadata_file(out)) as file:
            file.write(json.dumps(output_files.named(schema), indent=1).encode())
    if out.suffix == ".parquet":
        _write_parquet(out, folder, schema, shards, vector_column)
    elif out.suffix == ".lance":
        from penult.bulk import lance_files  # noqa: PLC0415 - an extra

        lance_files.write(out, schema, (batch for table in _tables(folder, shards) for batch in table.to_batches()))
    elif out.suffix == ".npy":
        _write_npy(out, folder, schema, shards, vector_column)
    else:
        with atomic_write(out) as file:
            for table in _tables(folder, shards):
                file.writelines(_lines(table, vector_column))


def _write_parquet(out: Path, folder: Path, schema: pa.Schema, shards: Sequence[int], vector_column: str) -> None:
    plain = [name for name in schema.names if name != vector_column]  # vector values do not repeat: no use for a dictionary
    with (
        atomic_write(out) as file,
        pq.ParquetWriter(file, schema, compression="zstd", compression_level=1, use_dictionary=plain or False) as writer,
    ):
        for group in row_groups(_tables(folder, shards)):
            writer.write_table(group.replace_schema_metadata(schema.metadata), row_group_size=group.num_rows)


def _write_npy(out: Path, folder: Path, schema: pa.Schema, shards: Sequence[int], vector_column: str) -> None:
    """Write (N, D) float32, and all other columns as JSON lines in a second file, one line per row of the array."""
    dimension = schema.field(vector_column).type.list_size
    count = sum(table.num_rows for table in _tables(folder, shards))
    with atomic_write(output_files.rows_file(out)) as rows, atomic_write(out) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        for table in _tables(folder, shards):
            file.write(np.ascontiguousarray(tables.vectors_of(table.column(vector_column)), "<f4").tobytes())
            rows.writelines(_lines(table.drop_columns([vector_column])))


def _lines(table: pa.Table, vector_column: str | None = None) -> Iterator[bytes]:
    """Yield each row as a line of JSON, its vector in the fewest digits that parse to the same float32."""
    for start in range(0, table.num_rows, _LINES):
        part = table.slice(start, _LINES)
        plain = part if vector_column is None else part.drop_columns([vector_column])
        lines = [dumps(row) for row in rows_of(plain)]
        if vector_column is not None:
            key = f"{', ' if plain.num_columns else ''}{json.dumps(vector_column)}"
            vectors = _written(tables.vectors_of(part.column(vector_column)))
            lines = [f"{line[:-1]}{key}: [{vector}]}}" for line, vector in zip(lines, vectors, strict=True)]
        yield from (f"{line}\n".encode() for line in lines)


def _written(vectors: Vectors) -> list[str]:
    """Return each vector of (N, D) float32 as comma-separated text. Arrow does it five times as fast as NumPy."""
    values = tables.flat(vectors).cast(pa.string())
    values = pc.if_else(pc.equal(values, "-0"), "-0.0", values)  # "-0" would parse to the integer 0
    ends = pa.array(np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32))
    written: list[str] = pc.binary_join(pa.ListArray.from_arrays(ends, values), ", ").to_pylist()
    return written


def _tables(folder: Path, shards: Sequence[int]) -> Iterator[pa.Table]:
    for shard in shards:
        with opened_shard(folder, shard) as table:
            yield table
