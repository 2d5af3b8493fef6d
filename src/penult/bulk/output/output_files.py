"""The output of a job before and after it is written: its columns, whether its format holds them, whether it is there.

Knows identities and schemas, nothing of shards or workers.
"""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from penult.bulk import tables
from penult.bulk.input.readers import Scanned
from penult.bulk.job.manifest import Identity, Manifest
from penult.bulk.job.progress import Totals
from penult.bulk.job.worker import Ready
from penult.bulk.options import Columns
from penult.bulk.output import model_metadata, writers


def schema(columns: Columns, scanned: Scanned, facts: Ready, identity: Identity, totals: Totals) -> pa.Schema:
    """Give the schema of the output: all columns of the input, the vectors, and in its metadata what made them."""
    id_column = identity.id_column or ("id" if "id" in scanned.schema.names else "")
    metadata = (scanned.schema.metadata or {}) | facts.metadata | {
        "penult.text_column": columns.text,
        "penult.vector_column": columns.vector,
        "penult.id_column": id_column,
        "penult.job": identity.digest,
        "penult.rows": str(totals.rows),
        "penult.rejected": str(totals.rejected),
    }  # fmt: skip
    return scanned.schema.append(tables.vector_field(columns.vector, facts.dimension)).with_metadata(metadata)


def try_out(out: Path, folder: Path, made: pa.Schema, vector_column: str) -> None:
    """Write an output of no rows to another folder, so that what its format cannot hold is said before hours of work.

    Raises:
        ValueError: it cannot hold these columns, or the disk is full.
    """
    try:
        writers.write(folder / f"none{out.suffix}", folder, made, (), vector_column=vector_column)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise ValueError(f"{out} cannot be written: {error}") from error


def is_there(out: Path, said: dict[str, str], identity: Identity, manifest: Manifest | None) -> bool:
    """Say whether an output is that of this job, to its last byte.

    1. No job is under way: it is, if it says so.
    2. One is, and the output says itself what made it: a crash came after it was put in place. (--from may name the output
       that was there before, whose hash is gone.)
    3. One is, and a file beside the output says it: that was written first, so the output may be an older one.
    """
    if manifest is None:
        return said.get("penult.job") == identity.digest
    same = replace(identity, takes_over=manifest.identity.takes_over) == manifest.identity
    return same and model_metadata.says_itself(out) and said.get("penult.job") == manifest.identity.digest
