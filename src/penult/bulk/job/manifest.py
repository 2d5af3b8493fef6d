"""Durable state of a job: OUT.job contains the manifest, the finished shards, and their records.

A shard is recorded only after its files are complete and synced, and only a recorded shard counts. So after a crash at any
moment, each row is either recorded once or embedded again. Independent of models and formats.
"""

import base64
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from penult.atomic_files import atomic_write, sync_folder
from penult.bulk.job.record import Record, shard_path
from penult.bulk.output.output_files import OTHER_FINGERPRINT, job_folder

if TYPE_CHECKING:
    from penult.bulk.input.readers import Scanned

_FORMAT = 1  # increase when jobs of an older penult must not be resumed
_JOB, _RECORDS, _LOCK = "job.json", "done.jsonl", "lock"


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that determines a job's output: jobs of equal identity write equal rows and vectors.

    Execution options (workers, token budget) are not included, so that a job can resume with other values.
    """

    inputs: tuple[str, ...]
    fingerprint: str
    role: str
    text_column: str
    vector_column: str
    id_column: str | None
    too_long: str
    takes_over: str | None
    format: int = _FORMAT
    reading: str = ""  # `input_files.reading`

    @property
    def digest(self) -> str:
        """Hash of the identity, stored in the finished output."""
        values = asdict(self)
        if not self.reading:  # so that the output of a version without such options still counts as finished
            del values["reading"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]

    def differences(self, other: "Identity") -> list[str]:
        """Return the differences from `other`, the identity of this run."""
        changes = []
        old, new = asdict(self), asdict(other)
        for key, label in _LABELS.items():
            if old[key] != new[key]:
                note = f" ({OTHER_FINGERPRINT})" if key == "fingerprint" else ""
                changes.append(f"{label} was {old[key]!r} and is now {new[key]!r}{note}")
        if len(self.inputs) != len(other.inputs):
            changes.append(f"the number of input files was {len(self.inputs)} and is now {len(other.inputs)}")
        return changes


_LABELS = {
    "fingerprint": "the model's fingerprint",
    "role": "--role",
    "text_column": "--text-column",
    "vector_column": "--vector-column",
    "id_column": "--id-column",
    "too_long": "the handling of long texts (--truncate)",
    "takes_over": "the content hash of --from",
    "format": "the format of unfinished jobs",
    "reading": "the way rows are read (--format, --encoding, --max-row-bytes, folder names)",
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """Manifest of a job: its identity, the scan of its input, and its input files at the start."""

    identity: Identity
    scanned: "Scanned"
    stamps: tuple[Any, ...]

    def as_json(self) -> str:
        """Return the manifest as JSON."""
        schema = base64.b64encode(self.scanned.schema.serialize().to_pybytes()).decode()
        values = {"schema": schema, "counts": self.scanned.counts, "shard_rows": self.scanned.shard_rows}
        return json.dumps({"identity": asdict(self.identity), "scanned": values, "stamps": self.stamps}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the output of `as_json`."""
        import pyarrow as pa  # noqa: PLC0415 - an extra

        from penult.bulk.input.readers import Scanned  # noqa: PLC0415

        values = json.loads(text)
        scanned = values["scanned"]
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(scanned["schema"])))
        identity = values["identity"] | {"inputs": tuple(values["identity"]["inputs"])}
        stamps = tuple(tuple((name, size, time) for name, size, time in stamp) for stamp in values["stamps"])
        return cls(Identity(**identity), Scanned(schema, tuple(scanned["counts"]), scanned["shard_rows"]), stamps)

    def hashes(self) -> Mapping[Any, str]:
        """Return the hash of each input by its stamp."""
        return dict(zip(self.stamps, self.identity.inputs, strict=True))


class Job:
    """The folder of one unfinished job, locked by one process at a time.

    Raises:
        ValueError: another process has locked it, or the folder belongs to the user.
    """

    def __init__(self, out: Path) -> None:
        self.folder = job_folder(out)
        if self.folder.is_dir() and not (self.folder / _LOCK).exists() and any(self.folder.iterdir()):
            raise ValueError(
                f"{self.folder} contains files that are not part of a penult job. Pass another output, or move the files."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder / _LOCK)
        self._records: BinaryIO | None = None

    @property
    def is_begun(self) -> bool:
        """True if the folder contains an unfinished job."""
        return (self.folder / _JOB).exists()

    @property
    def manifest(self) -> Manifest | None:
        """The job's manifest; None if no job has started."""
        try:
            return Manifest.from_json((self.folder / _JOB).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def shards(self, identity: Identity) -> Path:
        """Return the folder of shards, named by the job's hash, so that a dying worker of an older job writes elsewhere."""
        return self.folder / identity.digest

    @property
    def scratch(self) -> Path:
        """The folder for temporary files, created if missing."""
        folder = self.folder / "scratch"
        folder.mkdir(exist_ok=True)
        return folder

    def begin(self, manifest: Manifest) -> None:
        """Write the manifest."""
        self.shards(manifest.identity).mkdir(exist_ok=True)
        with atomic_write(self.folder / _JOB) as file:
            file.write(manifest.as_json().encode())

    def recorded(self, identity: Identity) -> dict[int, Record]:
        """Return the records of finished shards; a shard whose file does not match its record is not finished."""
        path = self.folder / _RECORDS
        if not path.exists():
            return {}
        content = path.read_bytes()
        content = content[: content.rfind(b"\n") + 1]  # a crash during a write leaves a partial line
        with path.open("r+b") as file:
            file.truncate(len(content))
        records = [Record(**json.loads(line)) for line in content.splitlines()]
        folder = self.shards(identity)
        return {record.shard: record for record in records if _size(shard_path(folder, record.shard)) == record.size}

    def record(self, record: Record) -> None:
        """Record a finished shard; the record is synced when this returns.

        Raises:
            OSError: the disk is full; nothing is recorded.
        """
        if self._records is None:
            self._records = (self.folder / _RECORDS).open("ab", buffering=0)
            sync_folder(self.folder)
        line = f"{json.dumps(asdict(record))}\n".encode()
        written = self._records.write(line)
        if written != len(line):  # a full disk accepts the first bytes without an error
            self._records.truncate(self._records.seek(0, os.SEEK_END) - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._records.fileno())

    def clear(self) -> None:
        """Delete the job's files, manifest first, so that a crash midway leaves nothing resumable."""
        self._close()
        (self.folder / _JOB).unlink(missing_ok=True)
        sync_folder(self.folder)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)  # a dying worker of an older job may still write there
            elif path.name != _LOCK:
                path.unlink()

    def remove(self) -> None:
        """Remove the folder of a finished job."""
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Release the lock, so that another process can resume the job."""
        self._close()
        self._lock.close()

    def _close(self) -> None:
        if self._records is not None:
            self._records.close()
            self._records = None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _locked(path: Path) -> BinaryIO:
    """Lock a file until it is closed or the process ends, also by a crash."""
    file = path.open("ab")
    if sys.platform != "win32":
        import fcntl  # noqa: PLC0415 - not on Windows, where two jobs with one output are not detected

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ValueError(
                f"Another process is running the job in {path.parent}. Wait for it, or pass another output."
            ) from error
    return file
