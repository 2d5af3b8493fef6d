"""The files of an output: their names, their rows, and the metadata that names the model behind the vectors."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OTHER_FINGERPRINT = "made by another version of penult, or with another model or other options"
"""Why two fingerprints differ. A version changes them too, once, where it learns what else decides a vector."""


def files_of(out: Path) -> list[Path]:
    """Return the paths of all files that an output may consist of, itself first."""
    return [out, rejected_file(out), metadata_file(out), rows_file(out)]


def rejected_file(out: Path) -> Path:
    """Return the path of the rejected rows."""
    return out.with_name(f"{out.name}.rejected.jsonl")


def metadata_file(out: Path) -> Path:
    """Return the path of the metadata of a .npy or .jsonl; the other formats have them in their schema."""
    return out.with_name(f"{out.name}.about.json")


def rows_file(out: Path) -> Path:
    """Return the path of the other columns of a .npy."""
    return out.with_name(f"{out.name}.rows.jsonl")


def metadata(out: Path) -> dict[str, str] | None:
    """Read the metadata of an output; None where there is no output.

    Raises:
        OSError: it cannot be read.
    """
    if not out.exists():
        return None
    if not has_own_metadata(out):
        file = metadata_file(out)
        found: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return found
    try:
        return named(schema(out))
    except (pa.ArrowException, OSError) as error:
        raise OSError(f"{out} cannot be read: {error}") from error


def has_own_metadata(out: Path) -> bool:
    """Return whether the metadata are in the output's own file, and not in one beside it."""
    return out.suffix not in (".npy", ".jsonl")


def named(columns: pa.Schema) -> dict[str, str]:
    """Return penult's own entries of a schema's metadata."""
    found = columns.metadata or {}
    return {key.decode(): value.decode() for key, value in found.items() if key.startswith(b"penult.")}


def schema(out: Path) -> pa.Schema:
    """Read the columns of a .parquet or .lance output."""
    if out.suffix == ".lance":
        from penult.bulk import lance_files  # noqa: PLC0415 - an extra

        return lance_files.look(out)[0]
    return pq.read_schema(out)


def count(out: Path) -> int:
    """Count the rows of a .parquet or .lance output."""
    if out.suffix == ".lance":
        from penult.bulk import lance_files  # noqa: PLC0415 - an extra

        return lance_files.look(out)[1]
    return int(pq.read_metadata(out).num_rows)


def batches(out: Path, *, rows: int = 4096, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read the rows of a .parquet or .lance output in their order.

    Args:
        out: the output.
        rows: at most so many at once.
        columns: their columns. None: all.
    """
    names = None if columns is None else list(columns)
    if out.suffix == ".lance":
        from penult.bulk import lance_files  # noqa: PLC0415 - an extra

        yield from lance_files.read(out, columns=names, batch_rows=rows)
        return
    with pq.ParquetFile(out) as file:
        yield from file.iter_batches(rows, columns=names)
