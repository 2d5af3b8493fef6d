"""Memory of `penult embed` over many short rows, second by second, and its rate beside that of Embedder.embed.

    python tests/bench/bulk_memory.py [--rows 1000000] [--model FOLDER] [--workers 1] [--rounds 1] [--json FILE] [--svg FILE]

Memory is that of all its processes together: the proportional set size, which counts a page that two share half for each.
The rate is rows a CPU second of all processes, start and merge included; beside it, that of one `Embedder.embed` call over
the same texts, in a process of its own whose start is not counted. With several rounds both are run in turn: where a processor
is shared, one round may be off by a third; the median is given, and memory is that of the last round.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import WORDS, tiny_model

ALONE = """
import json, resource, sys
from penult import Embedder
texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
e = Embedder.load(sys.argv[2], truncate="right")
e.embed(texts[:2000])
before = resource.getrusage(resource.RUSAGE_SELF)
e.embed(texts)
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=3, help="of a row")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", type=Path, help="default: the tests' tiny BERT")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = given.model or tiny_model(folder / "model")
        source = write_rows(folder / "in.jsonl", given.rows, given.words)
        job, alone = [], []
        for turn in range(given.rounds):
            samples, cpu = watched(source, folder / f"out{turn}.parquet", model, given.workers)
            job.append(cpu)
            measured = subprocess.run([sys.executable, "-c", ALONE, source, model], capture_output=True, text=True, check=True)
            alone.append(float(measured.stdout))
    steady = [mib for _, rows, mib in samples if given.rows * 0.1 <= rows]
    half = len(steady) // 2
    found = {
        "rows": given.rows,
        "mib_first_half": max(steady[:half]),
        "mib_second_half": max(steady[half:]),
        "rows_a_cpu_second": given.rows / statistics.median(job),
        "rows_a_cpu_second_of_embed": given.rows / statistics.median(alone),
        "ratio": statistics.median(one / other for one, other in zip(alone, job, strict=True)),
        "samples": samples,
    }
    print(json.dumps({key: value for key, value in found.items() if key != "samples"}, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found))
    if given.svg:
        given.svg.write_text(chart(samples, given.rows))


def write_rows(path: Path, rows: int, words: int) -> Path:
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"id": number, "text": " ".join(rng.choices(WORDS, k=words))}) + "\n")
    return path


def watched(source: Path, out: Path, model: Path, workers: int) -> tuple[list[tuple[float, int, float]], float]:
    """Run the job and give (second, rows done, MiB) as it goes, and the CPU seconds of all its processes."""
    command = [
        sys.executable,
        "-m",
        "penult",
        "embed",
        source,
        out,
        "--model",
        model,
        "--workers",
        workers,
        "--progress",
        "json",
    ]
    started, samples, rows, cpu = time.monotonic(), [], 0, {}
    with tempfile.TemporaryFile("w+") as said:
        job = subprocess.Popen([*map(str, command)], stderr=said)
        while job.poll() is None:
            time.sleep(0.25)
            family = [job.pid, *children(job.pid)]
            cpu |= {pid: seconds for pid in family if (seconds := cpu_seconds(pid))}
            records = out.with_name(f"{out.name}.job") / "done.jsonl"
            if records.exists():
                rows = sum(json.loads(line)["rows"] for line in records.read_text().splitlines() if line.endswith("}"))
            samples.append((time.monotonic() - started, rows, sum(map(mib, family))))
        said.seek(0)
        last = json.loads(said.read().splitlines()[-1])
    assert last["event"] == "done", last
    assert last["rows"] > 0, last
    return samples[:-1], sum(cpu.values())


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found


def mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    except (OSError, StopIteration):
        return 0.0


def cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100  # clock ticks, 100 a second on Linux


def chart(samples: list[tuple[float, int, float]], rows: int) -> str:
    """Draw memory over rows done."""
    top = max(mib for _, _, mib in samples) * 1.1
    points = " ".join(f"{60 + 520 * done / rows:.1f},{240 - 220 * mib / top:.1f}" for _, done, mib in samples)
    ticks = "".join(
        f'<text x="55" y="{244 - 220 * part}" text-anchor="end">{top * part:.0f}</text>'
        f'<text x="{60 + 520 * part}" y="262" text-anchor="middle">{rows * part:,.0f}</text>'
        for part in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 290" font-family="sans-serif" font-size="12">'
        f'<path d="M60 20V240H580" fill="none" stroke="#888"/>{ticks}'
        f'<text x="320" y="284" text-anchor="middle">rows done</text><text x="64" y="14">MiB, all processes</text>'
        f'<polyline points="{points}" fill="none" stroke="#06c" stroke-width="1.5"/></svg>\n'
    )


if __name__ == "__main__":
    main()
