"""`penult embed` without Arrow: CSV, JSON, text and documents to .npy or .jsonl, in one process.

Works as `embed`, but without tables: shards of consecutive rows are stored in OUT.job and merged at the end, so a stopped job
can resume. Vectors are the same. Each row keeps its own columns; with Arrow, all rows get the same columns.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from penult.atomic_files import atomic_write
from penult.bulk.input import row_files
from penult.bulk.input.input_files import Input
from penult.bulk.input.rows import Item, Rejected, Row
from penult.bulk.job.manifest import Identity, Job
from penult.bulk.job.parts import Pace, embed_in_parts, remove_parts
from penult.bulk.job.progress import Progress, Totals, announce
from penult.bulk.job.record import Record, rejected_path, shard_path
from penult.bulk.json_text import dumps
from penult.bulk.output import output_files
from penult.bulk.request import EXISTS, Request, Summary, find_inputs, identity_of, open_inputs, stopped
from penult.bulk.texts import metadata_of
from penult.core.embedder import Embedder
from penult.extras import install_hint
from penult.types import TruncationWarning, Vectors

_OUTPUTS = (".npy", ".jsonl")
_INPUTS = ("csv", "tsv", "jsonl", "json", "text", "document")
_STATE = "rows.json"
_ROWS, _BYTES = 1024, 4 << 20  # maximum of a shard, which is held in memory


@dataclass(frozen=True, slots=True)
class _Shard:
    """Consecutive rows, each with its file and the row or rejection that was read."""

    number: int
    items: list[tuple[str, Item]]


def embed_files(request: Request) -> Summary:
    """Embed all rows of some files into one output, or resume an unfinished job.

    Raises:
        ImportError: the request needs Arrow; the message names the extra.
        ValueError: an option, an input or an unfinished job does not match this request; nothing was changed.
        FileNotFoundError: an input or the model does not exist.
        StoppedError: the job started and did not finish; finished work is kept.
    """
    _check(request)
    paths = find_inputs(request)
    job = Job(request.out)
    try:
        if request.overwrite:
            job.clear()
        if job.is_begun:
            raise ValueError(
                f"{job.folder} contains an unfinished job of an installation with pyarrow. Install "
                f"{install_hint('parquet')} to resume it, or pass --overwrite to delete it and start again."
            )
        files = open_inputs(request, job, paths, {})
        for file in files:
            _require(file.format in _INPUTS, f"reading {file.name}", "lance" if file.format == "lance" else "parquet")
        announce(request.shown, f"loading model {request.model.reference}")
        warnings.simplefilter("ignore", TruncationWarning)  # counted instead
        with request.model.load(threads=None) as embedder:
            return _run(request, job, files, embedder)
    finally:
        if not (job.folder / _STATE).exists() and not job.is_begun:
            job.remove()
        job.release()


def _check(request: Request) -> None:
    if request.out.suffix not in (".parquet", ".lance", *_OUTPUTS):
        raise ValueError(output_files.UNKNOWN_EXTENSION.format(out=request.out))
    lance = request.out.suffix == ".lance"
    _require(request.out.suffix in _OUTPUTS, f"writing {request.out}", "lance" if lance else "parquet")
    _require(request.old is None, "--from")
    _require(request.workers == 1, "--workers")
    _require(request.engine == "local", "--engine ray", "ray")


def _require(is_met: bool, what: str, extra: str = "parquet") -> None:  # noqa: FBT001 - a condition
    if not is_met:
        raise ImportError(f"{what[:1].upper()}{what[1:]} needs {install_hint(extra)}.")


def _run(request: Request, job: Job, files: tuple[Input, ...], embedder: Embedder) -> Summary:
    identity, state = identity_of(request, files, embedder.fingerprint), job.folder / _STATE
    longest = embedder.recipe.longest(request.columns.role)
    finished = None if request.overwrite else output_files.metadata(request.out)
    if not state.exists():
        if finished is not None and finished.get("penult.job") == identity.digest:
            totals = Totals(rows=int(finished["penult.rows"]), rejected=int(finished["penult.rejected"]))
            return Summary(totals, longest, None)
        if finished is not None:
            raise ValueError(EXISTS.format(out=request.out))
        count, names = _scan(request, files)
        job.shards(_kept(identity)).mkdir(exist_ok=True)
        with atomic_write(state) as file:
            file.write(json.dumps({"digest": identity.digest, "count": count, "names": names}).encode())
    values = json.loads(state.read_text())
    if values["digest"] != identity.digest:
        raise ValueError(
            f"{job.folder} contains an unfinished job with other input, another model or other options. Pass the earlier ones "
            "to "
            "resume it, or --overwrite to delete it and start again."
        )
    metadata = metadata_of(embedder, request.model.reference, request.columns.role) | {
        "penult.text_column": request.columns.text,
        "penult.vector_column": request.columns.vector,
        "penult.id_column": request.id_column or ("id" if "id" in values["names"] else ""),
        "penult.job": identity.digest,
    }
    return _carry_out(request, job, files, embedder, identity, metadata, values["count"])


def _carry_out(
    request: Request,
    job: Job,
    files: tuple[Input, ...],
    embedder: Embedder,
    identity: Identity,
    metadata: dict[str, str],
    count: int,
) -> Summary:
    kept = _kept(identity)
    records, folder, pace = job.recorded(kept), job.shards(kept), Pace()
    before = Totals()
    for record in records.values():
        before = before.plus(record)
    progress = Progress(request.shown, count, before)
    try:
        for shard in _shards(files):
            if shard.number not in records:
                record = _make(request, shard, folder, embedder, pace, progress)
                job.record(record)
                progress.add(record)
                records[shard.number] = record
        for file in files:
            file.check_unchanged()
        totals = progress.totals
        metadata |= {"penult.rows": str(totals.rows), "penult.rejected": str(totals.rejected)}
        _write(request, folder, [records[number] for number in sorted(records)], embedder.dimension, metadata)
    except (OSError, ValueError, KeyboardInterrupt) as error:
        raise stopped(request, error, job.folder, progress.kept, count) from error
    finally:
        progress.close()
    job.clear()
    return Summary(progress.totals, embedder.recipe.longest(request.columns.role), progress.rate)


def _kept(identity: Identity) -> Identity:
    """Return the identity for stored shards. It differs from that of a job with Arrow, whose shards have another format."""
    return replace(identity, reading=f"{identity.reading} row by row")


def _scan(request: Request, files: Sequence[Input]) -> tuple[int, list[str]]:
    """Return the number of rows, and their columns."""
    count, names = 0, dict.fromkeys(name for file in files if file.format in ("csv", "tsv") for name in row_files.columns(file))
    has_text = request.columns.text in names
    for _, item in _items(files):
        count += 1
        if isinstance(item, Row):
            names |= dict.fromkeys(item.values)
            has_text = has_text or _value(item.values, request.columns.text) is not None
    if not has_text:
        raise ValueError(
            f"The input has no text column {request.columns.text!r}. Pass the name of one with --text-column; the columns are: "
            f"{', '.join(names) or 'none'}."
        )
    if request.columns.vector in names:
        raise ValueError(f"The input already has a column {request.columns.vector!r}. Pass another name with --vector-column.")
    if request.id_column is not None and request.id_column not in names:
        raise ValueError(f"--id-column is {request.id_column!r}, but the columns of the input are {', '.join(names)}.")
    return count, [*names]


def _items(files: Iterable[Input]) -> Iterator[tuple[str, Item]]:
    return ((file.name, item) for file in files for item in row_files.items(file))


def _shards(files: Iterable[Input]) -> Iterator[_Shard]:
    """Split the rows into shards. The split depends on the input only."""
    number, size, items = 0, 0, list[tuple[str, Item]]()
    for name, item in _items(files):
        items.append((name, item))
        size += item.size if isinstance(item, Row) else 0
        if len(items) >= _ROWS or size >= _BYTES:
            yield _Shard(number, items)
            number, size, items = number + 1, 0, []
    if items:
        yield _Shard(number, items)


def _make(request: Request, shard: _Shard, folder: Path, embedder: Embedder, pace: Pace, progress: Progress) -> Record:
    """Embed a shard and write its files atomically: one line per row, then the vectors."""
    lines: list[str] = []
    texts: list[Any] = []
    rows: list[tuple[str, Row]] = []
    rejected = [item for _, item in shard.items if isinstance(item, Rejected)]
    for name, item in shard.items:
        if isinstance(item, Row):
            line = dumps(item.values)
            if _is_unicode(line):
                lines.append(line)
                texts.append(_value(item.values, request.columns.text))
                rows.append((name, item))
            else:
                reason = "is not valid Unicode: it contains a lone surrogate or bytes that are not UTF-8"
                rejected.append(Rejected(name, item.line, reason, item.values))
    path = shard_path(folder, shard.number)
    outcome = embed_in_parts(embedder, texts, request.columns.role, path, shard.number, pace=pace, ticked=progress.add)
    rejected += [Rejected(rows[row][0], rows[row][1].line, reason, rows[row][1].values) for row, reason in outcome.bad.items()]
    if rejected:
        with atomic_write(rejected_path(folder, shard.number)) as file:
            file.writelines(f"{row.as_json()}\n".encode() for row in sorted(rejected, key=lambda row: (row.file, row.line)))
    with atomic_write(path) as file:
        file.writelines(f"{lines[row]}\n".encode() for row in outcome.good)
        file.write(np.ascontiguousarray(outcome.vectors, "<f4").tobytes())
    remove_parts(path)
    return Record(shard.number, len(outcome.good), len(rejected), outcome.cut, 0, outcome.tokens, path.stat().st_size)


def _value(values: dict[str, Any], name: str) -> Any:  # noqa: ANN401 - a JSON value
    """Return the value of a column; `a.b` is the value b of the object a, unless a column has that name."""
    if name in values:
        return values[name]
    value: Any = values
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_unicode(line: str) -> bool:
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write(request: Request, folder: Path, records: Sequence[Record], dimension: int, metadata: dict[str, str]) -> None:
    """Merge the shards. The output itself appears last."""
    out, column = request.out, json.dumps(request.columns.vector)
    rejected = [path for record in records if (path := rejected_path(folder, record.shard)).exists()]
    if rejected:
        with atomic_write(output_files.rejected_file(out)) as file:
            file.writelines(path.read_bytes() for path in rejected)
    else:
        output_files.rejected_file(out).unlink(missing_ok=True)
    with atomic_write(output_files.metadata_file(out)) as file:
        file.write(json.dumps(metadata, indent=1).encode())
    if out.suffix == ".npy":
        with atomic_write(output_files.rows_file(out)) as rows, atomic_write(out) as file:
            shape = (sum(record.rows for record in records), dimension)
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for lines, vectors in _read(folder, records, dimension):
                rows.writelines(lines)
                file.write(vectors.tobytes())
        return
    with atomic_write(out) as file:
        for lines, vectors in _read(folder, records, dimension):
            for line, vector in zip(lines, vectors, strict=True):
                bare = line.rstrip(b"\n")[:-1]
                values = ", ".join(map(str, vector))  # the fewest digits that read back as the same float32
                file.write(bare + f"{', ' * (bare != b'{')}{column}: [{values}]}}\n".encode())


def _read(folder: Path, records: Sequence[Record], dimension: int) -> Iterator[tuple[list[bytes], Vectors]]:
    """Yield the lines and the vectors of each shard."""
    for record in records:
        data = shard_path(folder, record.shard).read_bytes()
        end = len(data) - 4 * dimension * record.rows
        lines = data[:end].splitlines(keepends=True)
        yield lines, np.frombuffer(data, "<f4", offset=end).reshape(record.rows, dimension)
