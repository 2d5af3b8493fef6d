"""Small corpora and the command in a process of its own, for the tests of bulk jobs."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from conftest import hearing
from models import WORDS


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


def started(*arguments: object) -> subprocess.Popen:
    pipe = {"stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*arguments), preexec_fn=hearing, **pipe)  # noqa: PLW1509 - takes no lock


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
