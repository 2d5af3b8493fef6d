"""Options of `penult embed`, and the code that all engines share. Does not import Arrow."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from penult.bulk.input import input_files
from penult.bulk.input.input_files import STDIN, Format, Input
from penult.bulk.job.errors import StoppedError
from penult.bulk.job.manifest import Identity, Job
from penult.bulk.job.progress import Shown, Totals, announce
from penult.bulk.options import DEFAULT_READING, Columns, Model, ReadOptions
from penult.bulk.output import output_files

EXISTS = (
    "{out} exists, but was created from other input, with another model or other options, or by another version of penult. "
    "Pass --overwrite to replace it, or --overwrite --from {out} to reuse the vectors of unchanged texts."
)
"""Why an existing output is not overwritten."""

_LARGE = 1 << 30  # bytes of input above which hashing is slow enough to announce


@dataclass(frozen=True, slots=True)
class Request:
    """The options of `penult embed`.

    Attributes:
        inputs: files, folders, globs, or "-" for standard input.
        out: the output; its file extension selects the format.
        model: the model and its load options.
        columns: text column, vector column and role.
        id_column: column of row ids for vector stores. None: `id` if there is such a column.
        format: format of inputs whose file extension is unknown. None: an error (standard input: JSON lines).
        old: an older output whose vectors are reused for equal texts.
        shard_rows: rows per shard. None: chosen by the length of the texts, or as in the unfinished job.
        workers: number of processes.
        overwrite: whether to delete an unfinished job and replace a finished output.
        shown: how progress is shown.
        engine: processes on this machine, or Ray.
        address: address of a Ray cluster. None: start a cluster on this machine.
        reading: how the rows of text files are read.
    """

    inputs: tuple[str, ...]
    out: Path
    model: Model
    columns: Columns
    id_column: str | None = None
    format: Format | None = None
    old: Path | None = None
    shard_rows: int | None = None
    workers: int = 1
    overwrite: bool = False
    shown: Shown = "auto"
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    reading: ReadOptions = DEFAULT_READING


@dataclass(frozen=True, slots=True)
class Summary:
    """Result of a job.

    Attributes:
        totals: totals of all rows, including those of earlier runs.
        max_length: number of tokens to which longer texts were truncated.
        rows_per_second: rate of this run; 0 if only the output was left to write. None: there was nothing left to do.
    """

    totals: Totals
    max_length: int
    rows_per_second: float | None


def find_inputs(request: Request) -> list[Path]:
    """List the input files, and check that the output is not one of them.

    Raises:
        FileNotFoundError: a name or glob matches nothing.
        ValueError: a file cannot be an input, or the output cannot be written to its path.
    """
    names = [name for name in request.inputs if name != STDIN]
    # A file that penult did not write is input, if a glob matches it.
    is_replaceable = not request.out.exists() or output_files.is_own(request.out)
    outputs = output_files.files_of(request.out) if is_replaceable else []
    paths = input_files.find(names, request.format, without=outputs, say=partial(announce, request.shown)) if names else []
    output_files.check_place(request.out, request.inputs, paths)
    return paths


def open_inputs(request: Request, job: Job, found: list[Path], known: Mapping[Any, str]) -> tuple[Input, ...]:
    """Open the files of a request, including standard input. `known`: hashes from an earlier run.

    Raises:
        OSError: a file cannot be read, or the disk is full.
    """
    if (size := sum(path.stat().st_size for path in found)) > _LARGE:
        announce(request.shown, f"reading {len(found):,} files, {size / 1e9:,.1f} GB")
    if STDIN in request.inputs:
        try:
            found.append(input_files.spool(job.folder))
        except OSError as error:
            raise OSError(f"Standard input cannot be copied to {job.folder}: {error}") from error
    return tuple(
        input_files.opened(
            path,
            request.format or ("jsonl" if input_files.is_spooled(path) else None),
            known=known,
            options=request.reading,
            root=input_files.root_of(request.inputs),
        )
        for path in found
    )


def identity_of(request: Request, files: tuple[Input, ...], fingerprint: str) -> Identity:
    """Return the identity of a request's job: everything that determines its output."""
    return Identity(
        inputs=tuple(file.sha256 for file in files),
        fingerprint=fingerprint,
        role=request.columns.role,
        text_column=request.columns.text,
        vector_column=request.columns.vector,
        id_column=request.id_column,
        too_long="rejected" if request.model.truncate == "error" else "cut",
        takes_over=None if request.old is None else _hash(request.old),
        reading=input_files.reading(files),
    )


def _hash(old: Path) -> str:
    if not old.exists():
        raise FileNotFoundError(
            f"--from is {old}, which does not exist. Pass an earlier .parquet or .lance output, or remove --from."
        )
    return input_files.opened(old, "parquet").sha256


def stopped(request: Request, error: BaseException, folder: Path, kept: int, count: int) -> StoppedError:
    """Return the error for a job that stopped."""
    reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error).rstrip(".")
    suffix = " without --overwrite" if request.overwrite else ""
    return StoppedError(
        f"{reason}. {kept:,} of {count:,} rows are done and kept in {folder}. Run the same command{suffix} to resume."
    )
