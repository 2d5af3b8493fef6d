"""What many small requests cost: 32 clients with one text each against one client that sends batches, in one run.

usage: server_load.py MODEL [--texts FILE] [--seconds 5] [--rounds 3] [--clients 32] [--batch 64] [--route openai|predict]

It starts a server of its own on a free port of this machine, takes turns between the two kinds of load, and prints tokens
a second of each, their ratio, and the latencies of the small requests (p50 and p99, in ms). Texts: the lines of FILE, or
sentences of 5 to 40 words.
"""

import argparse
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

SERVE = "import sys; from penult.server import main; main(sys.argv[1:])"


def start(model: str, route: str, more: list[str]) -> tuple[subprocess.Popen[str], int]:
    task = ["--task", "transformers_embedding_extraction"] if route == "predict" else []
    command = [sys.executable, "-c", SERVE, "--model_path", model, "--host", "127.0.0.1", "--port", "0", *task, *more]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", line)
        if found:
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, int(found[1])
    raise SystemExit("the server did not start")


class Client:
    """One client with one connection that it keeps."""

    def __init__(self, port: int, route: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port)
        self.openai = route == "openai"
        self.tokens = 0
        self.latencies: list[float] = []

    def ask(self, texts: list[str], tokens: int) -> None:
        body = {"input": texts, "encoding_format": "base64"} if self.openai else {"inputs": texts}
        started = time.perf_counter()
        self.connection.request("POST", "/v1/embeddings" if self.openai else "/predict", json.dumps(body))
        answer = self.connection.getresponse()
        read = json.loads(answer.read())
        assert answer.status == 200, read
        self.latencies.append(time.perf_counter() - started)
        assert len(read["data"] if self.openai else read["embeddings"]) == len(texts)
        self.tokens += tokens

    def run(self, batches: list[tuple[list[str], int]], until: float) -> None:
        while time.perf_counter() < until:
            for texts, tokens in batches:
                self.ask(texts, tokens)
                if time.perf_counter() >= until:
                    break


def load(port: int, route: str, texts: list[str], clients: int, batch: int, seconds: float) -> tuple[float, list[float]]:
    made = [Client(port, route) for _ in range(clients)]
    groups = [texts[i : i + batch] for i in range(0, len(texts) - batch + 1, batch)]
    batches = [(group, sum(COUNTS[text] for text in group)) for group in groups]
    started = time.perf_counter()
    threads = [
        threading.Thread(target=client.run, args=(batches[i::clients] or batches, started + seconds))
        for i, client in enumerate(made)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - started
    return sum(client.tokens for client in made) / took, [x for client in made for x in client.latencies]


COUNTS: dict[str, int] = {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--route", choices=["openai", "predict"], default="openai")
    options, more = parser.parse_known_args()
    random.seed(0)
    words = "the a cat dog sat on mat river bright moon stone eats fish query passage of and in document search".split()
    made = [" ".join(random.choices(words, k=random.randint(5, 40))) for _ in range(2048)]
    texts = [line for line in options.texts.read_text().splitlines() if line.strip()][:2048] if options.texts else made
    from penult import Embedder

    with Embedder.load(options.model, truncate="right") as embedder:
        COUNTS.update(zip(texts, embedder.count_tokens(texts).tolist(), strict=True))
        started = time.perf_counter()
        embedder.embed(texts[:512])
        local = sum(COUNTS[text] for text in texts[:512]) / (time.perf_counter() - started)
    server, port = start(options.model, options.route, more)
    try:
        load(port, options.route, texts, 1, options.batch, 1)
        large, small, latencies = [], [], []
        for _ in range(options.rounds):
            large.append(load(port, options.route, texts, 1, options.batch, options.seconds)[0])
            rate, seen = load(port, options.route, texts, options.clients, 1, options.seconds)
            small.append(rate)
            latencies += seen
    finally:
        server.terminate()
        server.wait()
    latencies.sort()
    print(f"texts of {statistics.mean(COUNTS.values()):.1f} tokens; in-process, 512 texts at once: {local:.0f} tokens/s")
    print(f"one client, batches of {options.batch}: {' '.join(f'{x:.0f}' for x in large)} tokens/s")
    print(f"{options.clients} clients, one text each: {' '.join(f'{x:.0f}' for x in small)} tokens/s")
    print(f"ratio {statistics.median(small) / statistics.median(large):.2f} "
          f"p50 {latencies[len(latencies) // 2] * 1000:.0f} ms p99 {latencies[int(len(latencies) * 0.99)] * 1000:.0f} ms "
          f"({len(latencies)} requests)")  # fmt: skip


if __name__ == "__main__":
    main()
