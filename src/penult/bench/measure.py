"""Run the systems interleaved, each in its own process, so that machine noise affects all systems equally.

Results are medians over rounds. Ratios are computed per round, which is robust on a shared machine.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from penult.bench import worker
from penult.core import loading, prepare, recipe
from penult.core.model_tokenizer import tokenizer_of
from penult.data import calibration_texts
from penult.text_files import read_lines, read_objects
from penult.types import Pooling

AGAINST = ("onnxruntime",)
_OURS = ("penult", "penult-int8")
_CUBE = 2048
_LEAVING_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Peers:
    """Other libraries to measure, in a separate environment; see tests/bench/peers.py.

    Attributes:
        python: the interpreter of the environment.
        script: the script that runs once for each peer: a worker such as `penult.bench.worker`.
        names: names of the peers in the script.
    """

    python: str
    script: Path
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Results of one system; seconds are medians per round.

    Attributes:
        penult_is: speed of penult at fp32 relative to this system, in tokens per CPU second; median of the rounds' ratios.
        cosine: minimum and mean cosine similarity to penult's fp32 vectors.
        failure: why the system did not run; all values are then 0.
    """

    system: str
    tokens_per_cpu_second: float = 0.0
    tokens_per_wall_second: float = 0.0
    penult_is: float = 0.0
    peak_bytes: int = 0
    cosine: tuple[float, float] = (0.0, 0.0)
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """Results of a benchmark run.

    Attributes:
        flops_a_token: FLOPs of the matrix products per token, averaged over the texts, without padding.
        fp32_flops: the machine's float32 matmul rate in operations per CPU second, for 2048 x 2048 matrices.
        int8_flops: the same for uint8 by int8.
    """

    model: str
    texts: int
    tokens: int
    threads: int
    rounds: int
    flops_a_token: float
    fp32_flops: float
    int8_flops: float
    rows: tuple[Row, ...]


class _Process:
    """A system in its own process."""

    def __init__(self, job: dict[str, Any], python: str, script: str, folder: Path) -> None:
        self.system = str(job["system"])
        self._vectors = folder / f"{self.system}.npy"
        self._errors = (folder / f"{self.system}.log").open("w+")
        counts = dict.fromkeys(("OMP", "OPENBLAS", "MKL"), "_NUM_THREADS")
        env = os.environ | {name + tail: str(job["threads"]) for name, tail in counts.items()}
        env |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(  # noqa: S603 - the interpreter is the caller's own choice
            [python, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=env,
        )
        self._write(job | {"vectors": str(self._vectors)})
        self.costs: list[dict[str, float]] = []
        self.failure = "" if self._read() else self._why()

    def embed(self, texts: Sequence[str]) -> None:
        self._write(list(texts))
        answer = self._read()
        if answer is None:
            self.failure = self._why()
        else:
            self.costs.append(answer)

    def vectors(self) -> NDArray[np.float32]:
        return np.asarray(np.load(self._vectors), dtype=np.float32)

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_LEAVING_SECONDS)  # it exits at the end of its input
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _write(self, value: object) -> None:
        try:
            pipe = self._pipe(self._process.stdin)
            pipe.write(json.dumps(value) + "\n")
            pipe.flush()
        except BrokenPipeError:
            pass  # the process has ended; reading its answer says why

    def _read(self) -> dict[str, float] | None:
        line = self._pipe(self._process.stdout).readline()
        return json.loads(line) if line else None

    def _why(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"the process ended with status {self._process.returncode}"

    def _pipe(self, pipe: IO[str] | None) -> IO[str]:
        if pipe is None:
            raise RuntimeError("The process has no pipe. This is a bug.")
        return pipe


def measure(
    model: str,
    texts: Sequence[str],
    *,
    against: Sequence[str] = (),
    pooling: Pooling | Sequence[Pooling] | None = None,
    max_length: int | None = None,
    model_file: str | None = None,
    files_from: str | None = None,
    threads: int = 1,
    rounds: int = 5,
    peers: Peers | None = None,
) -> Result:
    """Measure penult at fp32 and int8, and other systems, on the same texts.

    Args:
        model: a model reference, as in `Embedder.load`.
        texts: the texts, all of which are embedded in each round.
        against: names from `AGAINST`.
        pooling: "mean" or "cls", if the model's files do not define it.
        max_length: maximum tokens of a text. None: as the model's files say.
        model_file: the graph file. None: the default one.
        files_from: folder or Hub id with tokenizer and configuration. None: the model's own.
        threads: threads of each system.
        rounds: number of rounds.
        peers: other libraries; one that cannot run is reported with its reason.

    Raises:
        ValueError: a system is unknown, the other systems do not support the pooling, or there are no texts.
    """
    unknown = [name for name in against if name not in AGAINST]
    if unknown:
        raise ValueError(
            f"--against is {unknown[0]!r}; it must be {', '.join(AGAINST)}. To compare other libraries, run `make bench-peers` "
            "in a checkout of penult."
        )
    if not texts:
        raise ValueError("There are no texts to embed. Pass a file with one text per line.")
    overrides = recipe.Overrides(pooling=pooling, max_length=max_length)
    source = loading.files_of(model, model_file=model_file, files_from=files_from)
    model_recipe = loading.read_files(source, overrides)
    if max_length is None and (most := recipe.positions(source.home)) is not None:
        # the peers do not inspect the graph
        model_recipe = replace(model_recipe, max_length=min(model_recipe.max_length, most))
    if model_recipe.query is not None:
        raise ValueError(f"{model!r} has one model for queries and one for documents. Pass the folder of one of them.")
    if model_recipe.pooling not in ("mean", "cls"):
        raise ValueError(
            f"pooling is {model_recipe.pooling!r}; a benchmark supports 'mean' and 'cls'. Pass --pooling mean or --pooling cls."
        )
    ids = tokenizer_of(source, model_recipe).tokenize(texts).ids
    with tempfile.TemporaryDirectory() as folder:
        int8_graph = Path(folder) / "int8.onnx"
        job: dict[str, object] = {
            "model": model, "model_file": model_file, "files_from": files_from,
            "graph": str(source.model), "folder": str(source.folder),
            "tokenizer": str(source.tokenizer), "pooling": model_recipe.pooling,
            "max_length": model_recipe.max_length, "threads": threads, "cube": _CUBE, "int8_graph": str(int8_graph),
        }  # fmt: skip
        from penult.bench.matmul import flops, write_int8_matmul  # noqa: PLC0415 - the import of onnx, here and below
        from penult.graph.describe import describe  # noqa: PLC0415

        graph = prepare.read_graph(source)
        described = describe(graph)
        a_token = flops(graph, [len(row) for row in ids], len(described.layers) - 1, described.cut.hidden_size or 0)
        write_int8_matmul(int8_graph, _CUBE)
        others = () if peers is None else peers.names
        processes = []
        for name in (*_OURS, *against, *others, "matmul-fp32", "matmul-int8"):
            python, script = (peers.python, peers.script) if peers and name in others else (sys.executable, worker.__file__)
            processes.append(_Process(job | {"system": name}, python, str(script), Path(folder)))
        try:
            for _ in range(rounds):
                for process in processes:
                    if not process.failure:
                        process.embed(texts)
            return _result(processes, Result(model, len(texts), sum(map(len, ids)), threads, rounds, a_token, 0.0, 0.0, ()))
        finally:
            for process in processes:
                process.close()


def read_texts(path: Path | None) -> list[str]:
    """Read one text per line, or JSONL rows with `text`. None: penult's own texts, alone and joined to longer ones."""
    if path is None:
        own = calibration_texts()
        return [" ".join(own[start : start + size]) for size in (1, 2, 4) for start in range(0, len(own), size)]
    if path.suffix == ".jsonl":
        return [row["text"] for row in read_objects(path, "text")]
    return [line for line in read_lines(path) if line.strip()]


def _result(processes: Sequence[_Process], run: Result) -> Result:
    *systems, fp32, int8 = processes
    ours = systems[0]
    if ours.failure:
        raise ChildProcessError(f"penult did not run: {ours.failure}")
    rates = [0.0 if p.failure else 2 * _CUBE**3 / statistics.median(cost["cpu"] for cost in p.costs) for p in (fp32, int8)]
    rows = tuple(Row(p.system, failure=p.failure) if p.failure else _row(p, ours, run.tokens) for p in systems)
    return replace(run, fp32_flops=rates[0], int8_flops=rates[1], rows=rows)


def _row(process: _Process, ours: _Process, tokens: int) -> Row:
    ratios = [theirs["cpu"] / own["cpu"] for theirs, own in zip(process.costs, ours.costs, strict=True)]
    a, b = process.vectors(), ours.vectors()
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return Row(
        system=process.system,
        tokens_per_cpu_second=tokens / statistics.median(cost["cpu"] for cost in process.costs),
        tokens_per_wall_second=tokens / statistics.median(cost["wall"] for cost in process.costs),
        penult_is=statistics.median(ratios),
        peak_bytes=int(max(cost["peak_bytes"] for cost in process.costs)),
        cosine=(float(cosine.min()), float(cosine.mean())),
    )
