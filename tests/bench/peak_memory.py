"""What a first and a warm load of a model cost: peak memory, seconds, and bytes written to the cache.

usage: peak_memory.py --keep FOLDER [--before SRC] [--runs 5] [--sizes 90,436,1340] [--limit]

It makes BERT-like models of random weights (MB of weights: 90 is all-MiniLM-L6-v2's size), each with its weights inside the
graph and in external data, and keeps them in FOLDER. Each load runs in a process of its own; a first load has an empty cache.
With --before, the penult in that source folder takes turns with this one. Medians of the runs, as a Markdown table:

- peak: the largest resident memory, pages of mapped files included (VmHWM), in MB of 10^6 bytes, as all sizes here
- anonymous: the largest part of it that is not a page of a file, which the kernel could not give up (RssAnon, sampled each ms)
- limit (with --limit): the smallest limit on the data segment (RLIMIT_DATA) with which the load succeeds, to 16 MB
- seconds and CPU seconds of the whole process, imports included

Linux only.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from models import Size, bert_graph, bert_weights, tiny_model

MB = 10**6
_STEP = 16 * MB
_VOCABULARY = 30522
_SIZES = {
    90: Size(hidden=384, layers=6, heads=12, positions=512),
    200: Size(hidden=512, layers=14, heads=8, positions=512),
    436: Size(hidden=768, layers=12, heads=12, positions=512),
    1340: Size(hidden=1024, layers=24, heads=16, positions=512),
}
_LOAD = "from penult import Embedder; Embedder.load(sys.argv[1], threads=1)"
_LIMITED = "resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]),) * 2)"


@dataclass(frozen=True)
class Cost:
    """What one load cost: bytes of memory, seconds, and bytes in the cache."""

    peak: int
    anonymous: int
    seconds: float
    cpu: float
    cache: int


def make_model(folder: Path, megabytes: int, *, external: bool) -> Path:
    """Write a model folder with about so many MB of weights, unless it is there."""
    if not (folder / "onnx" / "model.onnx").exists():
        size = _SIZES[megabytes]
        tiny_model(folder)
        weights = bert_weights(size)
        rows = np.random.default_rng(1).standard_normal((_VOCABULARY, size.hidden), dtype=np.float32)
        weights["embeddings.word_embeddings.weight"] = rows
        model = bert_graph(weights, size.heads)
        (folder / "onnx" / "model.onnx").unlink()
        if external:
            onnx.save_model(model, folder / "onnx" / "model.onnx", save_as_external_data=True, location="model.onnx_data")
        else:
            onnx.save_model(model, folder / "onnx" / "model.onnx")
        stated = {"max_position_embeddings": size.positions, "hidden_size": size.hidden, "pad_token_id": 0}
        (folder / "config.json").write_text(json.dumps(stated))
    return folder


def size_of(folder: Path) -> int:
    """Return the bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def load(model: Path, cache: Path, source: Path | None = None, limit: int | None = None) -> Cost | None:
    """Load a model in a process of its own; None where that fails within the limit."""
    env = dict(os.environ, PENULT_CACHE=str(cache))
    if source is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(source), env.get("PYTHONPATH"))))
    code = f"import resource, sys; {_LIMITED if limit else 'pass'}; {_LOAD}"
    started = time.perf_counter()
    silent = subprocess.DEVNULL if limit else None
    child = subprocess.Popen([sys.executable, "-c", code, str(model), str(limit)], env=env, stderr=silent)
    peak = anonymous = 0
    while True:
        ended, status, usage = os.wait4(child.pid, os.WNOHANG)
        if ended:
            break
        memory = _memory(child.pid)
        peak, anonymous = max(peak, memory.get("VmHWM", 0)), max(anonymous, memory.get("RssAnon", 0))
        time.sleep(0.001)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        if limit is None:
            raise SystemExit(f"the load of {model} failed")
        return None
    return Cost(peak, anonymous, time.perf_counter() - started, usage.ru_utime + usage.ru_stime, size_of(cache))


def _memory(pid: int) -> dict[str, int]:
    """Return the memory of a process in bytes, by the kernel's names; empty where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(amount) * 1024 for name, amount, _ in fields}


def least_limit(model: Path, source: Path | None, warm: Path | None) -> int:
    """Find the smallest limit on the data segment with which a load succeeds; `warm` is a cache that has the graph."""
    low, high = 0, 8 * size_of(model) + 2000 * MB
    while high - low > _STEP:
        middle = (low + high) // 2
        with tempfile.TemporaryDirectory() as fresh:
            works = load(model, warm or Path(fresh), source, middle)
        low, high = (low, middle) if works else (middle, high)
    return high


def measure(model: Path, sources: Sequence[Path | None], runs: int) -> dict[tuple[Path | None, bool], list[Cost]]:
    """Load a model for the first time and again, so many times from each source in turn."""
    costs: dict[tuple[Path | None, bool], list[Cost]] = {}
    for _ in range(runs):
        for source in sources:
            with tempfile.TemporaryDirectory() as cache:
                for warm in (False, True):
                    cost = load(model, Path(cache), source)
                    assert cost is not None
                    costs.setdefault((source, warm), []).append(cost)
    return costs


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} CPUs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", default="90,436,1340")
    parser.add_argument("--limit", action="store_true")
    arguments = parser.parse_args()
    sources = [None] if arguments.before is None else [arguments.before.resolve(), None]
    names = {None: "now"} | ({} if arguments.before is None else {sources[0]: "before"})
    print(f"Processor: {_processor()}; onnxruntime {version('onnxruntime')}, onnx {version('onnx')}\n")
    columns = ["model", "weights", "load", "penult", "peak", "peak / files", "anonymous", "limit", "seconds", "CPU", "cache"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for megabytes in map(int, arguments.sizes.split(",")):
        for external in (False, True):
            folder = arguments.keep / f"{megabytes}-{'external' if external else 'inline'}"
            model = make_model(folder, megabytes, external=external)
            files = size_of(model)
            costs = measure(model, sources, arguments.runs)
            for (source, warm), runs in sorted(costs.items(), key=lambda item: item[0][1]):
                limit = ""
                if arguments.limit:
                    with tempfile.TemporaryDirectory() as cache:
                        if warm:
                            load(model, Path(cache), source)
                        limit = f"{least_limit(model, source, Path(cache) if warm else None) / MB:.0f}"
                peak, anonymous, seconds, cpu, stored = (
                    statistics.median(getattr(cost, name) for cost in runs)
                    for name in ("peak", "anonymous", "seconds", "cpu", "cache")
                )
                row = [f"{files / MB:.0f} MB", "external" if external else "inline", "warm" if warm else "first", names[source]]
                row += [f"{peak / MB:.0f}", f"{peak / files:.2f}", f"{anonymous / MB:.0f}", limit]
                row += [f"{seconds:.2f}", f"{cpu:.2f}", f"{stored / MB:.1f}"]
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
