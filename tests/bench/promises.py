"""Measure the promises of penult about vectors, memory and shared machines: one figure per line.

    python tests/bench/promises.py MODEL batches [--texts FILE] [--limit 2000]    a vector does not depend on its batch
    python tests/bench/promises.py MODEL stream [--rows 100000]                   memory of a long stream
    python tests/bench/promises.py MODEL query                                    short queries compared with the bare session
    python tests/bench/promises.py MODEL neighbors [--seconds 20]                two processes on one machine

MODEL is any reference; --precision int8 measures int8. `batches` embeds all texts in one call, in random batches, and each
alone, on one thread and on two. `neighbors` needs an otherwise idle machine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from penult import Embedder
from penult.bench.measure import read_texts

QUERIES = ["how long does the moon take to go round earth", "how long does the moon take to go around the earth"]
WORK = """
import json, sys, time
from penult import Embedder
model, precision, seconds, texts = json.loads(sys.stdin.readline())
e = Embedder.load(model, precision=precision, threads=1, truncate="right")
e.embed(texts)
print("ready", flush=True)
sys.stdin.readline()
end, done = time.perf_counter() + seconds, 0
while time.perf_counter() < end:
    e.embed(texts)
    done += 1
print(done / seconds, flush=True)
"""


def batches(given):
    """Compare the vectors of one call with those of random batches, and of each text alone."""
    texts = read_texts(given.texts)[: given.limit]
    chance = np.random.default_rng(0)
    for threads in (1, 2):
        with load(given, threads) as e:
            whole = e.embed(texts)
            mixed, order = np.empty_like(whole), chance.permutation(len(texts))
            while len(order):
                rows, order = np.split(order, [int(chance.integers(1, 65))])
                mixed[rows] = e.embed([texts[row] for row in rows])
            alone = np.concatenate([e.embed([text]) for text in texts])
        for name, found in (("random batches", mixed), ("alone", alone)):
            same = int((found == whole).all(axis=1).sum())
            print(
                f"{threads} threads, {name:15} largest difference {np.abs(found - whole).max():.1e}, "
                f"{same} of {len(texts)} rows the same to the last bit"
            )


def stream(given):
    """Measure the memory of a stream after its first 10 000 texts and at its end."""
    with load(given, None) as e:
        texts = (f"row {i} of a long stream, number {i * 7919 % 100_003}" for i in range(given.rows))
        done, first = 0, 0.0
        for vectors in e.embed_stream(texts):
            done += len(vectors)
            if not first and done >= 10_000:
                first = resident()
    print(f"{done} texts: {first:.0f} MB after the first 10 000, {resident():.0f} MB at the end")


def query(given):
    """Time short queries and the session's bare run on the same ids. Odd lengths are padded by one token."""
    with load(given, None) as e:
        for text in QUERIES:
            beside_the_session(e, text)


def beside_the_session(e, text):
    """Time one query and the bare run alternately."""
    ids = np.asarray([range(1000, 1000 + int(e.count_tokens([text], role="query")[0]))])
    feeds = {
        tensor.name: {"input_ids": ids, "token_type_ids": ids * 0}.get(tensor.name, ids * 0 + 1).astype(tensor.dtype)
        for tensor in e.engine.inputs
    }
    whole, bare = [], []
    for _ in range(300):
        whole.append(timed(lambda: e.embed([text], role="query")))
        bare.append(timed(lambda: e.engine.run(feeds, outputs=["sentence_embedding"])))
    a, b = statistics.median(whole), statistics.median(bare)
    print(f"{ids.size} tokens: embed p50 {a * 1e3:.2f} ms, bare run {b * 1e3:.2f} ms, ratio {a / b:.2f}")


def neighbors(given):
    """Measure one process alone and two at once, one thread each, alternately."""
    texts = read_texts(given.texts)[:64]
    lost = []
    for _ in range(3):
        (alone,) = together(given, texts, 1)
        both = together(given, texts, 2)
        lost.append(1 - statistics.mean(both) / alone)
    print(f"{os.cpu_count()} CPUs: with a second process, each loses {statistics.median(lost):.1%} of its rate")


def together(given, texts, count):
    """Run several processes at once; return the rounds per second of each."""
    processes = [
        subprocess.Popen([sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for process in processes:
        process.stdin.write(json.dumps([given.model, given.precision, given.seconds, texts]) + "\n")
        process.stdin.flush()
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    rates = [float(process.stdout.readline()) for process in processes]
    for process in processes:
        process.communicate()
    return rates


def load(given, threads):
    return Embedder.load(given.model, precision=given.precision, threads=threads, truncate="right")


def timed(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def resident():
    """Return the resident memory of this process in MB; if the system does not report it, its maximum."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("promise", choices=["batches", "stream", "query", "neighbors"])
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    {"batches": batches, "stream": stream, "query": query, "neighbors": neighbors}[given.promise](given)


if __name__ == "__main__":
    main()
