"""`penult embed`: embed the rows of files into one output, in a job that can be resumed.

    find -> open the model -> is there an unfinished job of this identity? -> scan -> shards -> workers -> record -> merge

This module composes the others of this package and decides whether to resume a job, start a new one, or raise.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from penult.bulk import tables
from penult.bulk.input import readers
from penult.bulk.input.input_files import Input
from penult.bulk.input.readers import Scanned
from penult.bulk.job import reuse
from penult.bulk.job.errors import WorkError
from penult.bulk.job.manifest import Identity, Job, Manifest
from penult.bulk.job.parts import Tick
from penult.bulk.job.pool import Pool
from penult.bulk.job.progress import Progress, Totals, announce, say
from penult.bulk.job.record import Record
from penult.bulk.job.worker import Ready, Task
from penult.bulk.options import Columns
from penult.bulk.output import output_files, writers
from penult.bulk.request import EXISTS, Request, Summary, find_inputs, identity_of, open_inputs, stopped

_MANY = 100_000  # rows above which writing the output is slow enough to announce


def embed_files(request: Request) -> Summary:
    """Embed all rows of some files into one output, or resume an unfinished job.

    Raises:
        ValueError: an option, an input or an unfinished job does not match this request; nothing was changed.
        FileNotFoundError: an input or the model does not exist.
        StoppedError: the job started and did not finish; finished work is kept.
    """
    writers.check(request.out)
    paths = find_inputs(request)
    job = Job(request.out)
    try:
        if request.overwrite:
            job.clear()
        manifest = job.manifest
        files = open_inputs(request, job, paths, {} if manifest is None else manifest.hashes())
        if request.engine == "ray":
            from penult.bulk import ray_engine  # noqa: PLC0415 - an extra

            ray_engine.check(files)
        announce(request.shown, f"loading model {request.model.reference}")
        workers = request.workers if request.engine == "local" else 1
        pool = Pool(request.model, request.columns.role, workers, partial(say, json_=request.shown == "json"))
        try:
            return _run(request, job, files, pool)
        finally:
            pool.close()
    finally:
        if job.manifest is None:
            job.remove()
        job.release()


def _run(request: Request, job: Job, files: tuple[Input, ...], pool: Pool) -> Summary:
    identity, manifest = identity_of(request, files, pool.ready.metadata["penult.fingerprint"]), job.manifest
    finished = None if request.overwrite else output_files.metadata(request.out)
    if finished is not None and is_finished(request.out, finished, identity, manifest):
        job.clear()
        totals = Totals(rows=int(finished["penult.rows"]), rejected=int(finished["penult.rejected"]))
        return Summary(totals, pool.ready.max_length, None)
    if request.old is not None:
        reuse.check(request.old, fingerprint=identity.fingerprint, role=identity.role, text_column=identity.text_column)
    if manifest is None:
        if finished is not None:
            raise ValueError(EXISTS.format(out=request.out))
        scanned = _scan(request, files)
        schema = output_schema(request.columns, scanned, pool.ready, identity, Totals())
        check_format(request.out, job.scratch, schema, request.columns.vector)
        manifest = Manifest(identity, scanned, tuple(file.stamp for file in files))
        job.begin(manifest)
    elif reasons := manifest.identity.differences(identity) + _changed(manifest, files):
        raise ValueError(
            f"{job.folder} contains an unfinished job that this command cannot resume: {'; '.join(reasons)}. Pass the earlier "
            "input and options to resume it, or --overwrite to delete it and start again."
        )
    elif request.shard_rows not in (None, manifest.scanned.shard_rows):
        raise ValueError(
            f"--shard-rows is {request.shard_rows}, but the unfinished job in {job.folder} has {manifest.scanned.shard_rows} "
            "rows "
            "per shard. Remove --shard-rows to resume the job, or pass --overwrite to delete it and start again."
        )
    return _carry_out(request, job, files, pool, manifest)


def _carry_out(request: Request, job: Job, files: tuple[Input, ...], pool: Pool, manifest: Manifest) -> Summary:
    identity, scanned = manifest.identity, manifest.scanned
    records = job.recorded(identity)
    totals = Totals()
    for record in records.values():
        totals = totals.plus(record)
    progress = Progress(request.shown, sum(scanned.counts), totals)
    try:
        if request.old is not None:
            reuse.build(request.old, job.shards(identity), identity.text_column)
        for update in _records(request, job, files, pool, manifest, frozenset(records)):
            if isinstance(update, Record):
                job.record(update)
            progress.add(update)
        pool.close()  # free the model's memory for the merge
        for file in files:
            file.check_unchanged()
        if progress.totals.seen > _MANY and request.shown != "off":
            progress.say(f"writing {request.out}")
        schema = output_schema(request.columns, scanned, pool.ready, identity, progress.totals)
        shards = range(readers.count_shards(scanned))
        writers.write(request.out, job.shards(identity), schema, shards, vector_column=request.columns.vector)
    except (OSError, ValueError, WorkError, pa.ArrowException, KeyboardInterrupt) as error:
        raise stopped(request, error, job.folder, progress.kept, sum(scanned.counts)) from error
    finally:
        progress.close()
    job.clear()
    return Summary(progress.totals, pool.ready.max_length, progress.rate)


def _records(
    request: Request, job: Job, files: tuple[Input, ...], pool: Pool, manifest: Manifest, done: frozenset[int]
) -> Iterator[Record | Tick]:
    """Embed the shards that are not done; yield records and progress ticks."""
    missing = [number for number in range(readers.count_shards(manifest.scanned)) if number not in done]
    if not missing:
        return
    folder = job.shards(manifest.identity)
    old = None if request.old is None else folder
    if request.engine == "ray":
        from penult.bulk import ray_engine  # noqa: PLC0415 - an extra

        pool.close()  # it was only needed to describe the model

        setup = ray_engine.Setup(request.model, request.columns, files, manifest.scanned, folder, old)
        yield from ray_engine.run(setup, missing, workers=request.workers, address=request.address)
        return
    tasks = (
        Task(shard, folder, request.columns, old)
        for shard in readers.shards(files, manifest.scanned, missing[0])
        if shard.number not in done
    )
    yield from pool.run(tasks)


def _changed(manifest: Manifest, files: tuple[Input, ...]) -> list[str]:
    """Return the names of the input files whose content has changed."""
    hashes = manifest.identity.inputs
    if len(hashes) != len(files):
        return []
    return [f"{file.name} changed" for file, sha256 in zip(files, hashes, strict=True) if file.sha256 != sha256]


def _scan(request: Request, files: tuple[Input, ...]) -> Scanned:
    if request.shard_rows is not None and request.shard_rows < 1:
        raise ValueError(f"--shard-rows is {request.shard_rows}; it must be at least 1.")
    scanned = readers.scan(files, request.columns.text, request.shard_rows, partial(announce, request.shown))
    names = scanned.schema.names
    if request.columns.vector in names:
        raise ValueError(f"The input already has a column {request.columns.vector!r}. Pass another name with --vector-column.")
    if request.id_column is not None and request.id_column not in names:
        raise ValueError(f"--id-column is {request.id_column!r}, but the columns of the input are {', '.join(names)}.")
    return scanned


def output_schema(columns: Columns, scanned: Scanned, model: Ready, identity: Identity, totals: Totals) -> pa.Schema:
    """Return the schema of the output: all input columns, the vectors, and metadata that identifies their model."""
    id_column = identity.id_column or ("id" if "id" in scanned.schema.names else "")
    metadata = (scanned.schema.metadata or {}) | model.metadata | {
        "penult.text_column": columns.text,
        "penult.vector_column": columns.vector,
        "penult.id_column": id_column,
        "penult.job": identity.digest,
        "penult.rows": str(totals.rows),
        "penult.rejected": str(totals.rejected),
    }  # fmt: skip
    return scanned.schema.append(tables.vector_field(columns.vector, model.dimension)).with_metadata(metadata)


def check_format(out: Path, scratch: Path, schema: pa.Schema, vector_column: str) -> None:
    """Write an empty output to a scratch folder, so that a column that its format cannot store fails before hours of work.

    Raises:
        ValueError: the format cannot store these columns, or the disk is full.
    """
    try:
        writers.write(scratch / f"none{out.suffix}", scratch, schema, (), vector_column=vector_column)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise ValueError(f"{out} cannot be written: {error}") from error


def is_finished(out: Path, metadata: dict[str, str], identity: Identity, manifest: Manifest | None) -> bool:
    """Return whether an output is the complete output of this job.

    1. No unfinished job: it is, if its metadata contain this job's hash.
    2. Unfinished job, metadata in the output's own file: it is; a crash came after the output was renamed into place. (--from
       may name the output that was there before, whose hash is gone.)
    3. Unfinished job, metadata in a separate file: that file is written first, so the output may be an older one.
    """
    if manifest is None:
        return metadata.get("penult.job") == identity.digest
    same = replace(identity, takes_over=manifest.identity.takes_over) == manifest.identity
    return same and output_files.has_own_metadata(out) and metadata.get("penult.job") == manifest.identity.digest
