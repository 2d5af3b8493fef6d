"""Many threads embed the same texts for a long time, through a server and in this process: is every vector the same to the bit?

usage: soak.py MODEL [--minutes 20] [--threads 8] [--seed 0]

Half of the threads call `RemoteEmbedder.embed` against a server that the script starts, half `Embedder.embed` of one shared
embedder. Each call embeds 1 to 24 texts of 1 to 300 words, chosen at random from 200. Each vector is compared with that of
the text embedded alone. Once a minute and at the end a line shows calls, differing vectors, errors, resident memory (MB),
threads and open files of both processes. Exits 1 if a vector differed or a call failed.
"""

import argparse
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from server_load import start

from penult import Embedder, RemoteEmbedder

WORDS = "time year people way day man thing woman life child world school state family student group country problem".split()


def texts_of(rng: random.Random) -> list[str]:
    """Return 200 texts, every tenth of them long."""
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 300 if number % 10 == 0 else 40))) for number in range(200)]


def process_state(pid: int) -> str:
    """Return a process's resident memory, threads and open files."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    resident = int(status["VmRSS"].split()[0]) // 1024
    return f"{resident} MB, {status['Threads'].strip()} threads, {sum(1 for _ in Path(f'/proc/{pid}/fd').iterdir())} files"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--threads", type=int, default=8, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # some texts are longer than a small model takes
    texts = texts_of(random.Random(options.seed))
    server, port = start(options.model, "openai", [])
    try:
        return soak(options, texts, server, port)
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def soak(options: argparse.Namespace, texts: list[str], server: "subprocess.Popen[str]", port: int) -> int:
    embedder = Embedder.load(options.model)
    expected = np.concatenate([embedder.embed([text]) for text in texts])
    counts: Counter[str] = Counter()
    lock = threading.Lock()
    end = time.monotonic() + options.minutes * 60

    def run(kind: str, seed: int) -> None:
        rng = random.Random(seed)
        client = RemoteEmbedder(f"http://127.0.0.1:{port}") if kind == "remote" else embedder
        while time.monotonic() < end:
            rows = rng.sample(range(len(texts)), rng.randint(1, 24))
            try:
                vectors = client.embed([texts[row] for row in rows])
            except Exception as error:  # noqa: BLE001 - every failure is counted and shown
                with lock:
                    counts["errors"] += 1
                print(f"{kind}: {type(error).__name__}: {error}", flush=True)
                continue
            differing = int((vectors != expected[rows]).any(axis=1).sum())
            with lock:
                counts[f"{kind} calls"] += 1
                counts["vectors"] += len(rows)
                counts["differing"] += differing

    threads = [
        threading.Thread(target=run, args=(kind, 1000 * number + options.seed))
        for number, kind in enumerate(["remote", "local"] * options.threads)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(60 / len(threads))
        left = max(0.0, end - time.monotonic()) / 60
        state = ", ".join(f"{counts[key]} {key}" for key in ("remote calls", "local calls", "vectors", "differing", "errors"))
        print(
            f"{left:5.1f} min left: {state}; server {process_state(server.pid)}; client {process_state(os.getpid())}",
            flush=True,
        )
    return int(bool(counts["differing"] or counts["errors"]))


if __name__ == "__main__":
    sys.exit(main())
