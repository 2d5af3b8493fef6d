"""Embed shards on a Ray cluster: Ray Data sends shard numbers to actors, which read, embed and write these shards.

The only module that imports ray (the extra `ray`). Shards are the same as in a job on one machine, so the vectors are the
same, and either engine can resume the other's job. The input and output folders must be the same on every node.
"""

import json
import os
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from penult.bulk.input import readers
from penult.bulk.input.input_files import Input
from penult.bulk.input.readers import Scanned
from penult.bulk.job.errors import WorkError
from penult.bulk.job.record import Record
from penult.bulk.job.reuse import Old
from penult.bulk.job.shard import make_shard
from penult.bulk.job.worker import failed
from penult.bulk.options import Columns, Model
from penult.core.embedder import Embedder
from penult.extras import install_hint
from penult.types import TruncationWarning

_FORMATS = ("parquet", "lance")
_TRIES = 3  # maximum tries of a shard whose actor dies; Ray itself would retry forever


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything an actor needs to embed any shard of a job; `anywhere` makes its paths absolute."""

    model: Model
    columns: Columns
    files: tuple[Input, ...]
    scanned: Scanned
    folder: Path
    old: Path | None
    run: str = field(default_factory=lambda: uuid.uuid4().hex)  # so that tries of an earlier run do not count

    def anywhere(self) -> "Setup":
        """Return a copy with absolute paths: each process of a cluster has its own working directory."""
        model = self.model
        files_from = None if model.files_from is None else _absolute(model.files_from)
        return replace(
            self,
            model=replace(model, reference=_absolute(model.reference), files_from=files_from),
            files=tuple(replace(file, path=file.path.absolute()) for file in self.files),
            folder=self.folder.absolute(),
            old=self.old and self.old.absolute(),
        )


def _absolute(reference: str) -> str:
    """Return the absolute path of a file or folder; return anything else, such as a Hub id, unchanged."""
    return str(Path(reference).absolute()) if Path(reference).exists() else reference


class ShardActor:
    """Actor that embeds shards: one per process, with its own model.

    An error is returned instead of raised: Ray would turn an exception into pages of its own stack trace.
    """

    def __init__(self, setup: Setup, threads: int) -> None:
        warnings.simplefilter("ignore", TruncationWarning)  # counted in every record instead
        self._setup, self._threads = setup, threads
        self._opened: tuple[Embedder, Old | None] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Embed the shards with these numbers, and return their records."""
        return {"answer": [self._answer(int(number)) for number in batch["shard"]]}

    def _answer(self, number: int) -> str:
        try:
            return json.dumps(asdict(self._make(number)))
        except Exception as error:  # noqa: BLE001 - a process boundary: the driver reports it
            return json.dumps(asdict(failed(error)))

    def _make(self, number: int) -> Record:
        setup = self._setup
        self._begin(number)
        if self._opened is None:
            embedder = setup.model.load(self._threads)
            self._opened = embedder, None if setup.old is None else Old(setup.old, embedder.dimension)
        embedder, old = self._opened
        shard = next(readers.shards(setup.files, setup.scanned, number))
        return make_shard(embedder, shard, setup.folder, setup.columns, old)

    def _begin(self, number: int) -> None:
        """Record a try on disk, so that the count survives this process."""
        with (self._setup.folder / f"{number:08}.{self._setup.run}.tries").open("ab") as file:
            file.write(b"|")
            tries = file.tell()
        if tries > _TRIES:
            raise ValueError(f"an actor died {_TRIES} times at shard {number}. Provide more memory, or pass fewer --workers.")


def check(files: Sequence[Input]) -> None:
    """Raise ValueError for input that does not support random access, ImportError if ray is not installed."""
    slow = [file.name for file in files if file.format not in _FORMATS]
    if slow:
        raise ValueError(f"--engine ray does not read {slow[0]}. Convert it to Parquet or Lance, or remove --engine ray.")
    _ray()


def run(setup: Setup, numbers: Sequence[int], *, workers: int, address: str | None) -> Iterator[Record]:
    """Embed shards on a cluster, in any order.

    Args:
        setup: the job.
        numbers: numbers of the shards that are not done.
        workers: number of actors; they share the cluster's CPUs evenly.
        address: address of the cluster, or "auto". None: start a cluster on this machine.

    Raises:
        ValueError: a shard failed because of an error that the user can fix, such as a full disk.
        WorkError: a shard failed because of a bug, its actor died repeatedly, or Ray itself failed.
        ConnectionError: there is no cluster at that address.
    """
    ray = _ray()
    is_local = not ray.is_initialized()
    if is_local:  # "local": None would first look for a cluster, and wait minutes for one that has stopped
        ray.init(address=address or "local", log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        threads = max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
        ray.data.DataContext.get_current().enable_progress_bars = False
        records = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers)).map_batches(
            ShardActor,
            batch_size=1,
            fn_constructor_args=(setup.anywhere(), threads),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=threads,
        )
        for row in records.iter_rows():
            yield _record(json.loads(row["answer"]))
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WorkError(f"Ray failed: {lines[-1].strip()}") from error
    finally:
        if is_local:
            ray.shutdown()


def _record(answer: dict[str, Any]) -> Record:
    if "message" in answer:
        raise (ValueError if answer["user_error"] else WorkError)(answer["message"])
    return Record(**answer)


def _ray() -> Any:  # noqa: ANN401 - a module
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray's telemetry
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")  # otherwise its lines mix with those of --progress json
    try:
        import ray  # noqa: PLC0415 - an extra
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"--engine ray needs {install_hint('ray')}.") from error
    return ray
