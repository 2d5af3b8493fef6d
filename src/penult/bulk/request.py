"""What `penult embed` is asked for, and what every way of doing it has in common. Imports no Arrow."""

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
from penult.bulk.output.output_files import OTHER_FINGERPRINT

EXISTS = (
    f"{{out}} exists and was made from other input, or was {OTHER_FINGERPRINT}; --overwrite replaces it, and "
    "--overwrite --from {out} keeps the vectors of texts that did not change."
)
"""Why an output that is there is left as it is."""

_LARGE = 1 << 30  # bytes of input that take more than a moment to hash


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for; the options of `penult embed`.

    Attributes:
        inputs: files, folders, globs, or "-" for standard input.
        out: the output; its ending says the format.
        model: which, and how it is opened.
        columns: of the texts and of the vectors, and the role.
        id_column: names a row in a vector store. None: `id` where there is such a column.
        format: of inputs whose ending says nothing. None: that is an error (standard input: JSON lines).
        old: an older output whose vectors are taken over where the text is the same.
        shard_rows: rows of a shard. None: chosen by the length of the texts, or as an unfinished job has it.
        workers: processes.
        overwrite: whether to throw away an unfinished job and replace a finished output.
        shown: how progress is shown.
        engine: who carries the shards out: processes here, or Ray.
        address: of a Ray cluster. None: one of this machine's own.
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
    """What became of a job.

    Attributes:
        totals: of all rows, those of earlier runs included.
        max_length: the tokens at which longer texts were cut.
        rows_per_second: of this run; 0 if only the output was left to write. None: there was nothing left to do.
    """

    totals: Totals
    max_length: int
    rows_per_second: float | None


def find_inputs(request: Request) -> list[Path]:
    """List the files behind the names of the input, and check that the output is none of them.

    Raises:
        FileNotFoundError: a name that matches nothing.
        ValueError: a file cannot be an input, or the output cannot be written there.
    """
    given = [name for name in request.inputs if name != STDIN]
    ours = not request.out.exists() or output_files.is_own(request.out)  # else a glob that matches it means it as input
    own = output_files.files_of(request.out) if ours else []
    paths = input_files.find(given, request.format, without=own, say=partial(announce, request.shown)) if given else []
    output_files.check_place(request.out, request.inputs, paths)
    return paths


def open_inputs(request: Request, job: Job, found: list[Path], known: Mapping[Any, str]) -> tuple[Input, ...]:
    """Open the files of a request, those of standard input among them; `known`: hashes of an earlier run.

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
    """Return all that decides what the job of a request writes."""
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
        raise FileNotFoundError(f"No file at {old}, which --from names.")
    return input_files.opened(old, "parquet").sha256


def stopped(request: Request, error: BaseException, folder: Path, kept: int, count: int) -> StoppedError:
    """Return what is said of a job that stopped."""
    why = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error).rstrip(".")
    again = " without --overwrite" if request.overwrite else ""
    return StoppedError(
        f"{why}. {kept:,} of {count:,} rows are done and kept in {folder}; the same command{again} goes on from there."
    )
