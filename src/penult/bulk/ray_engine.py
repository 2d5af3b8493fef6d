"""Shards on a Ray cluster: Ray Data hands their numbers to actors, each of which reads, embeds and writes its own.

The only file that imports ray (the extra `ray`). Shards are those of a job on one machine, so the vectors are the same, and
a job may begin here and end there. The folders of input and output must be the same on every node.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penult.bulk import readers
from penult.bulk.inputs import Input
from penult.bulk.options import Columns, Model
from penult.bulk.readers import Scanned
from penult.bulk.takeover import Old
from penult.bulk.work import Record, make_shard
from penult.embedder import TruncationWarning

_FORMATS = ("parquet", "lance")


@dataclass(frozen=True, slots=True)
class Setup:
    """What an actor needs to make any shard of a job."""

    model: Model
    columns: Columns
    files: tuple[Input, ...]
    scanned: Scanned
    folder: Path
    old: Path | None


class ShardActor:
    """Makes shards; one in a process, with a model of its own."""

    def __init__(self, setup: Setup, threads: int) -> None:
        warnings.simplefilter("ignore", TruncationWarning)  # counted in every record instead
        self._setup = setup
        self._embedder = setup.model.load(threads)
        self._old = None if setup.old is None else Old(setup.old, self._embedder.dimension)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Make the shards of these numbers, and give their records."""
        return {"record": [self._make(int(number)) for number in batch["shard"]]}

    def _make(self, number: int) -> str:
        setup = self._setup
        shard = next(readers.shards(setup.files, setup.scanned, number))
        return json.dumps(asdict(make_shard(self._embedder, shard, setup.folder, setup.columns, self._old)))


def check(files: Sequence[Input]) -> None:
    """Raise ValueError for input that cannot be read from its middle, ImportError if ray is missing."""
    slow = [file.name for file in files if file.format not in _FORMATS]
    if slow:
        raise ValueError(f"{slow[0]} must be read from its start; --engine ray takes {' and '.join(_FORMATS)} files.")
    _ray()


def run(setup: Setup, numbers: Sequence[int], *, workers: int, address: str | None) -> Iterator[Record]:
    """Make shards on a cluster, in any order.

    Args:
        setup: the job.
        numbers: of the shards that are not done.
        workers: actors; they share the cluster's CPUs evenly.
        address: of the cluster, or "auto". None: one of this machine's own.

    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        threads = max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
        ray.data.DataContext.get_current().enable_progress_bars = False
        made = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers)).map_batches(
            ShardActor,
            batch_size=1,
            fn_constructor_args=(setup, threads),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=threads,
        )
        for row in made.iter_rows():
            yield Record(**json.loads(row["record"]))
    finally:
        if ours:
            ray.shutdown()


def _ray() -> Any:  # noqa: ANN401 - a module
    try:
        import ray  # noqa: PLC0415 - an extra
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("--engine ray needs the extra: pip install 'penult[ray]'.") from error
    return ray
