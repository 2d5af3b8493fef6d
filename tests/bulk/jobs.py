"""Small corpora, jobs in this process, and the command in a process of its own, for the tests of bulk jobs."""

import json
import os
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from conftest import default_sigint
from models import WORDS

from penult.bulk import embed
from penult.bulk.job.reuse import Old
from penult.bulk.job.shard import make_shard
from penult.bulk.job.worker import Ready
from penult.bulk.texts import metadata_of


class InProcess:
    """Replace the pool of worker processes, which takes a second to start; do its work in this process."""

    def __init__(self, model, role, workers, say):
        self._embedder = model.load(threads=1)
        self.ready = Ready(self._embedder.dimension, self._embedder.recipe.max_length, metadata_of(self._embedder, "m", role))

    def run(self, tasks):
        for task in tasks:
            old = None if task.old is None else Old(task.old, self._embedder.dimension)
            yield make_shard(self._embedder, task.shard, task.folder, task.columns, old)

    def close(self):
        self._embedder.close()


def corpus(path: Path, rows: int, *, seed: int = 0) -> Path:
    """Write JSON lines of `rows` short texts of the tiny model's words, each with an id, a number and a list."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
            file.write(json.dumps({"id": f"row {number}", "text": text, "n": number, "tags": ["a", text[:3]]}) + "\n")
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "penult", *map(str, arguments)]


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, **options)


def started(*arguments: object, **options: object) -> subprocess.Popen:
    options |= {"stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*arguments), preexec_fn=default_sigint, **options)  # noqa: PLW1509 - takes no lock


def recorded(out: Path) -> int:
    """Count the shards that an unfinished job has recorded."""
    try:
        return (out.with_name(f"{out.name}.job") / "done.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def workers_of(pid: int) -> list[int]:
    """List the worker processes of a job: the children that multiprocessing started to run tasks."""
    children = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            spawned = b"spawn_main" in (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == pid and spawned:
            children.append(int(entry.name))
    return children


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ids(out: Path) -> list[str]:
    return pq.read_table(out, columns=["id"]).column("id").to_pylist()


def rejected(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.with_name(f"{out.name}.rejected.jsonl").read_text().splitlines()]


def vectors(path, column="embedding"):
    table = pq.read_table(path) if isinstance(path, Path) else path
    return np.asarray(table.column(column).combine_chunks().flatten()).reshape(table.num_rows, -1)


def lance_table(path):
    import lance

    return lance.dataset(str(path)).to_table()


@contextmanager
def half_done(monkeypatch, after=2):
    """Make a job fail after some shards."""
    carry_out = embed._records

    def records(*arguments):
        for number, record in enumerate(carry_out(*arguments)):
            if number == after:
                raise OSError("No space left on device")
            yield record

    with monkeypatch.context() as patched:
        patched.setattr(embed, "_records", records)
        yield
