"""kill -9 at random moments of a job, and its output after a resume.

    python tests/bench/kill_resume.py [--rows 20000] [--moments 20] [--one-job] [--model FOLDER] [--json FILE]

The first job runs undisturbed; then, for each moment, a new job is killed and run again to its end. Its output must
hold every id once and be equal to the undisturbed one, byte for byte. A moment is a random number of rows on the disk,
plus up to half a second: times in seconds would depend on the load of the machine. The last moments are in the merge. With --one-job, one job is killed again and again, at moments spread over its rows: in turn the parent alone, one worker alone,
or parent and workers together.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pyarrow.parquet as pq
from models import tiny_model

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--one-job", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="default: the tests' tiny BERT")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = given.model or tiny_model(folder / "model")
        source = write_corpus(folder / "in.jsonl", given.rows)

        def command(out: Path) -> list[str]:
            names = [source, out, "--model", model, "--workers", given.workers, "--shard-rows", 512]
            return [sys.executable, "-m", "penult", "embed", *map(str, names)]

        subprocess.run(command(folder / "warm.npy"), check=True, capture_output=True)  # the graph is in the cache from now on
        started = time.monotonic()
        subprocess.run(command(folder / "undisturbed.parquet"), check=True, capture_output=True)
        seconds = time.monotonic() - started
        expected = (folder / "undisturbed.parquet").read_bytes()
        print(
            f"undisturbed: {given.rows} rows in {seconds:.1f} s, sha256 {hashlib.sha256(expected).hexdigest()[:16]}", flush=True
        )
        rng = random.Random(given.seed)
        if given.one_job:
            sys.exit(not killed_often(command(folder / "job.parquet"), folder / "job.parquet", given, rng, expected))
        rows = [
            moment(command, folder / f"{n}.parquet", rng.randint(0, given.rows), rng.uniform(0, 0.5), expected)
            for n in range(given.moments)
        ]
    good = sum(row["equal"] and row["ids_once"] for row in rows)
    print(f"{good} of {len(rows)} moments: every id once, output equal byte for byte")
    if given.json:
        given.json.write_text(json.dumps({"rows": given.rows, "seconds": seconds, "moments": rows}, indent=1))
    sys.exit(good != len(rows))


def moment(command: Callable[[Path], list[str]], out: Path, rows: int, later: float, expected: bytes) -> dict[str, object]:
    """Kill a job when so many rows are on the disk, and a little later; resume it, and look at what is there."""
    job = subprocess.Popen(command(out), stderr=subprocess.DEVNULL)
    while kept(out) < rows and job.poll() is None and not out.exists():
        time.sleep(0.005)
    time.sleep(later)
    job.kill()
    killed = job.wait() == -9
    before = kept(out)
    done = subprocess.run(command(out), capture_output=True, text=True)
    ids = pq.read_table(out, columns=["id"]).column("id").to_pylist() if done.returncode == 0 else []
    row = {
        "killed": killed,
        "rows_kept": before,
        "ids_once": len(ids) == len(set(ids)) > 0,
        "equal": done.returncode == 0 and out.read_bytes() == expected,
    }
    print(json.dumps(row), flush=True)
    out.unlink(missing_ok=True)
    return row


def killed_often(command: list[str], out: Path, given: argparse.Namespace, rng: random.Random, expected: bytes) -> bool:
    """Kill one job at moments spread over its rows, resume it each time, and compare its output."""
    kinds: Counter[str] = Counter()
    for rows in sorted(rng.randint(0, given.rows) for _ in range(given.moments)):
        job = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while kept(out) < rows and job.poll() is None and not out.exists():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.5))
        kind = ("parent", "worker", "all")[kinds.total() % 3]
        workers = children(job.pid)
        for pid in {"parent": [job.pid], "worker": workers[:1], "all": [*workers, job.pid]}[kind]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if kind == "worker" and workers:
            with suppress(subprocess.TimeoutExpired):
                job.wait(timeout=2)  # it may end with an error, or continue with another worker
        job.kill()
        job.wait()
        kinds[kind] += 1
        print(json.dumps({"killed": kind, "rows_kept": kept(out)}), flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    equal = done.returncode == 0 and out.read_bytes() == expected
    left = sorted(path.name for path in out.parent.glob(f"{out.name}*"))
    print(f"{given.rows} rows, killed {dict(kinds)}; output equal byte for byte: {equal}; files: {', '.join(left)}")
    return equal


def children(pid: int) -> list[int]:
    """Return the processes that a process started, those that embed first."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return sorted((int(child) for child in found), reverse=True)


def kept(out: Path) -> int:
    """Count the rows that are recorded; 0 before the first and after the last moment of a job."""
    try:
        lines = (out.with_name(f"{out.name}.job") / "done.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return sum(json.loads(line)["rows"] for line in lines if line.endswith("}"))


def write_corpus(path: Path, rows: int) -> Path:
    """Write real paragraphs, again and again under new ids until there are enough."""
    shared = ROOT.parent / "shared" / "eval" / "text" / "paragraphs-en.dev.jsonl"
    found = shared if shared.exists() else ROOT / "notebooks" / "data" / "xquad-en" / "corpus.jsonl"
    texts = [json.loads(line)["text"] for line in found.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(json.dumps({"id": number, "text": texts[number % len(texts)]}) + "\n")
    return path


if __name__ == "__main__":
    main()
