"""What an output is called, what lies beside it, and what it says of the model that made it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OTHER_FINGERPRINT = "made by another version of penult, or with another model or other options"
"""Why two fingerprints differ. A version changes them too, once, where it learns what else decides a vector."""


def beside(out: Path) -> list[Path]:
    """Name all files that an output may consist of, itself first."""
    return [out, rejected_file(out), about_file(out), rows_file(out)]


def rejected_file(out: Path) -> Path:
    """Name the file of the rows without a vector."""
    return out.with_name(f"{out.name}.rejected.jsonl")


def about_file(out: Path) -> Path:
    """Name the file that says of .npy and .jsonl what the schema of the other formats says."""
    return out.with_name(f"{out.name}.about.json")


def rows_file(out: Path) -> Path:
    """Name the file that holds all other columns of the rows of a .npy."""
    return out.with_name(f"{out.name}.rows.jsonl")


def metadata(out: Path) -> dict[str, str] | None:
    """Read what an output says of itself; None where there is none.

    Raises:
        OSError: it cannot be read.
    """
    if not out.exists():
        return None
    if not says_itself(out):
        file = about_file(out)
        found: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return found
    try:
        return named(schema(out))
    except (pa.ArrowException, OSError) as error:
        raise OSError(f"{out} cannot be read: {error}") from error


def says_itself(out: Path) -> bool:
    """Say whether an output's own file says what made it, and not one beside it."""
    return out.suffix not in (".npy", ".jsonl")


def named(columns: pa.Schema) -> dict[str, str]:
    """Give penult's own entries of a schema's metadata."""
    found = columns.metadata or {}
    return {key.decode(): value.decode() for key, value in found.items() if key.startswith(b"penult.")}


def schema(out: Path) -> pa.Schema:
    """Read the columns of a .parquet or .lance output."""
    if out.suffix == ".lance":
        from penult.bulk import lance_files  # noqa: PLC0415 - an extra

        return lance_files.look(out)[0]
    return pq.read_schema(out)
