"""The process of one system: read a job per line, embed its texts, and write its cost.

Only the functions that measure penult import penult: tests/bench/peer_worker.py uses the others in an environment without it.

Each line of standard input is a JSON list of texts; each answer is {"cpu", "wall", "peak_bytes"}: CPU seconds, wall seconds
and peak memory so far. The (N, D) vectors are written to the file given in the job.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

Run = Callable[[Sequence[str]], Any]


def penult_fp32(job: dict[str, Any]) -> Run:
    return _penult(job, "fp32")


def penult_int8(job: dict[str, Any]) -> Run:
    return _penult(job, "int8")


def _penult(job: dict[str, Any], precision: Any) -> Run:
    from penult.core.embedder import Embedder

    names = ("pooling", "max_length", "model_file", "files_from")
    options: dict[str, Any] = {name: job.get(name) for name in names} | {"normalize": True}
    return Embedder.load(job["model"], threads=job["threads"], precision=precision, truncate="right", **options).embed


def onnxruntime_naive(job: dict[str, Any]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
    session = onnxruntime.InferenceSession(job["graph"], options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return padded(job, lambda feeds: session.run(None, {name: feeds[name] for name in names})[0], rows=32)


def padded(job: dict[str, Any], run: Callable[[dict[str, Any]], Any], *, rows: int = 0, tokens: int = 0) -> Run:
    """Return a function that embeds texts as a simple script would.

    Its batches have `rows` texts in input order, or `tokens` padded tokens each, of texts sorted by length.
    """
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(job["tokenizer"]) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(job["max_length"])

    def embed(texts: Sequence[str]) -> Any:
        ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        vectors: list[Any] = [None] * len(ids)
        for batch in _batches([len(row) for row in ids], rows, tokens):
            longest = max(len(ids[row]) for row in batch)
            padded = np.array([ids[row] + [0] * (longest - len(ids[row])) for row in batch])
            mask = np.array([[1] * len(ids[row]) + [0] * (longest - len(ids[row])) for row in batch])
            states = run({"input_ids": padded, "attention_mask": mask, "token_type_ids": np.zeros_like(padded)})
            pooled = states[:, 0] if job["pooling"] == "cls" else (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            for row, vector in zip(batch, pooled, strict=True):
                vectors[row] = vector / np.linalg.norm(vector)
        return vectors

    return embed


def _batches(lengths: list[int], rows: int, tokens: int) -> list[list[int]]:
    if not tokens:
        return [list(range(start, min(start + rows, len(lengths)))) for start in range(0, len(lengths), rows)]
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def matmul_fp32(job: dict[str, Any]) -> Run:
    import numpy as np

    a = np.random.default_rng(0).standard_normal((job["cube"], job["cube"])).astype(np.float32)
    return lambda _: (a @ a)[:1, :1]


def matmul_int8(job: dict[str, Any]) -> Run:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
    session = onnxruntime.InferenceSession(job["int8_graph"], options, providers=["CPUExecutionProvider"])
    a = np.random.default_rng(0).integers(0, 255, (job["cube"], job["cube"]), dtype=np.uint8)
    return lambda _: session.run(None, {"a": a})[0][:1, :1]


SYSTEMS: dict[str, Callable[[dict[str, Any]], Run]] = {
    "penult": penult_fp32,
    "penult-int8": penult_int8,
    "onnxruntime": onnxruntime_naive,
    "matmul-fp32": matmul_fp32,
    "matmul-int8": matmul_int8,
}


def main(systems: Mapping[str, Callable[[dict[str, Any]], Run]]) -> None:
    """Load the system named in the first line, report that it is ready, then process jobs."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    job = json.loads(sys.stdin.readline())
    run = systems[job["system"]](job)
    import numpy as np

    for line in chain([json.dumps(["ready"])], sys.stdin):
        texts = json.loads(line)
        cpu, wall = time.process_time(), time.perf_counter()
        vectors = run(texts)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        np.save(job["vectors"], np.asarray(vectors, dtype=np.float32))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"cpu": cpu, "wall": wall, "peak_bytes": peak}), file=answers, flush=True)


if __name__ == "__main__":
    main(SYSTEMS)
