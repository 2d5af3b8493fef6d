"""The files of an output: their names, their rows, and the metadata that identifies the model of the vectors."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

UNKNOWN_EXTENSION = "{out} has an unknown file extension. Pass an output that ends in .parquet, .lance, .npy or .jsonl."
"""Why an output's format is unknown."""

OTHER_FINGERPRINT = "created by another version of penult, or with another model or other options"
"""Why two fingerprints differ. A new version changes them too if it includes another setting that affects vectors."""


def files_of(out: Path) -> list[Path]:
    """Return the paths of all files that an output may consist of, the output itself first."""
    return [out, rejected_file(out), metadata_file(out), rows_file(out)]


def rejected_file(out: Path) -> Path:
    """Return the path of the rejected rows file."""
    return out.with_name(f"{out.name}.rejected.jsonl")


def metadata_file(out: Path) -> Path:
    """Return the path of the metadata of a .npy or .jsonl; other formats store them in the schema."""
    return out.with_name(f"{out.name}.about.json")


def rows_file(out: Path) -> Path:
    """Return the path of the other columns of a .npy."""
    return out.with_name(f"{out.name}.rows.jsonl")


def check_place(out: Path, given: Sequence[str], inputs: Sequence[Path]) -> None:
    """Check that an output can be written to its path, and does not overwrite its input.

    Args:
        out: the output.
        given: the input as the user specified it: files, folders, globs, "-".
        inputs: the files that these names match.

    Raises:
        ValueError: the parent folder is missing, the path exists as another type of file, or output and input are the same
            file or contain each other. Symbolic and hard links count as the file that they refer to.
    """
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent} is not a folder. Create it, or pass another path for {out.name}.")
    if out.exists() and out.is_dir() != (out.suffix == ".lance"):
        raise ValueError(f"{out} is a {'folder' if out.is_dir() else 'file'}. Pass another output.")
    written = {file.resolve(): file for file in (*files_of(out), job_folder(out))}
    inodes = {_inode(file): file for file in written if file.exists()}
    for path in inputs:
        resolved = path.resolve()
        same = [written[file] for file in (resolved, *resolved.parents) if file in written]
        if same or (same := [written[inodes[inode]] for inode in (_inode(path),) if inode in inodes]):
            problem = (
                "is also the output" if same[0] == out else f"has the name of a file written with the output ({same[0].name})"
            )
            raise ValueError(f"The input {path} {problem}, and would be overwritten. Pass another output than {out}.")
    for folder in {*filter(Path.is_dir, map(Path, given)), *filter(Path.is_dir, inputs)}:
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"The output {out} is inside the input folder {folder}. Pass an output outside it.")
    if "-" in given and out.exists() and os.path.samestat(os.fstat(0), out.stat()):
        raise ValueError(f"Standard input is read from the output {out}, which would be overwritten. Pass another output.")


def job_folder(out: Path) -> Path:
    """Return the folder of an output's unfinished job."""
    return out.with_name(f"{out.name}.job")


def is_own(out: Path) -> bool:
    """Return whether penult wrote the existing file; any other file may be a user's input."""
    try:
        return bool(metadata(out))
    except (OSError, ValueError):
        return False


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def metadata(out: Path) -> dict[str, str] | None:
    """Return the metadata of an output; None if there is no output.

    Raises:
        OSError: the output cannot be read.
    """
    if not out.exists():
        return None
    if not has_own_metadata(out):
        file = metadata_file(out)
        values: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return values
    import pyarrow as pa  # noqa: PLC0415 - an extra, here and below

    try:
        return named(schema(out))
    except (pa.ArrowException, OSError) as error:
        raise OSError(f"{out} cannot be read: {error}") from error


def has_own_metadata(out: Path) -> bool:
    """Return whether the metadata are in the output's own file and not in a separate one."""
    return out.suffix not in (".npy", ".jsonl")


def named(columns: "pa.Schema") -> dict[str, str]:
    """Return penult's own entries of a schema's metadata."""
    values = columns.metadata or {}
    return {key.decode(): value.decode() for key, value in values.items() if key.startswith(b"penult.")}


def schema(out: Path) -> "pa.Schema":
    """Return the schema of a .parquet or .lance output."""
    if out.suffix == ".lance":
        from penult.bulk import lance_files  # noqa: PLC0415 - an extra

        return lance_files.look(out)[0]
    import pyarrow.parquet as pq  # noqa: PLC0415

    return pq.read_schema(out)


def count(out: Path) -> int:
    """Return the number of rows of a .parquet or .lance output."""
    if out.suffix == ".lance":
        from penult.bulk import lance_files  # noqa: PLC0415 - an extra

        return lance_files.look(out)[1]
    import pyarrow.parquet as pq  # noqa: PLC0415

    return int(pq.read_metadata(out).num_rows)


def batches(out: Path, *, rows: int = 4096, columns: Sequence[str] | None = None) -> "Iterator[pa.RecordBatch]":
    """Yield the rows of a .parquet or .lance output in order.

    Args:
        out: the output.
        rows: maximum rows per batch.
        columns: columns to read. None: all.
    """
    names = None if columns is None else list(columns)
    if out.suffix == ".lance":
        from penult.bulk import lance_files  # noqa: PLC0415 - an extra

        yield from lance_files.read(out, columns=names, batch_rows=rows)
        return
    import pyarrow.parquet as pq  # noqa: PLC0415

    with pq.ParquetFile(out) as file:
        yield from file.iter_batches(rows, columns=names)
