"""What HTTP and many small requests cost: one client that sends batches, and 32 clients with one text each, against `embed`.

usage: server_load.py MODEL [--texts FILE] [--seconds 5] [--rounds 5] [--clients 32] [--batch 64] [--route openai|predict]

It starts a server of its own on a free port of this machine. Each round runs the three in turn, so that noise of the machine
affects all alike: `Embedder.embed` of 512 texts at once in this process, the batching client, the small clients. It prints the
median tokens per second of each and their ratios, CPU seconds of the server per 1,000 tokens, and the latencies of the small
requests (p50 and p99, in ms). Clients send bytes that were made before and read no JSON, so that they take little of the CPU
that they share with the server. Texts: the lines of FILE, or sentences of 5 to 40 words.
"""

import argparse
import itertools
import json
import os
import platform
import random
import re
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def start(model: str, route: str, more: list[str]) -> tuple[subprocess.Popen[str], int]:
    """Start a server and return it with its port."""
    task = ["--task", "transformers_embedding_extraction"] if route == "predict" else []
    command = [
        sys.executable,
        "-m",
        "penult",
        "serve",
        "--model_path",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        *task,
        *more,
    ]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if match := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, int(match[1])
    raise SystemExit("the server did not start")


def request(route: str, texts: list[str]) -> bytes:
    """Return the bytes of a request."""
    openai = route == "openai"
    body = json.dumps({"input": texts, "encoding_format": "base64"} if openai else {"inputs": texts}).encode()
    path = "/v1/embeddings" if openai else "/predict"
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Client:
    """One client with one connection that it keeps."""

    def __init__(self, port: int, requests: list[tuple[bytes, int]]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.requests = itertools.cycle(requests)
        self.tokens = 0
        self.latencies: list[float] = []
        self.head, self.left, self.asked, self.started = b"", -1, 0, 0.0

    def ask(self) -> None:
        """Send the next request."""
        message, self.asked = next(self.requests)
        self.head, self.left, self.started = b"", -1, time.perf_counter()
        self.socket.sendall(message)

    def read(self) -> bool:
        """Read what has come of the answer; return whether it is whole."""
        data = self.socket.recv(1 << 20)
        assert data, "the server closed the connection"
        if self.left < 0:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return False
            assert self.head.startswith(b"HTTP/1.1 200"), self.head[:500]
            match = LENGTH.search(self.head, 0, end)
            assert match is not None
            self.left = int(match[1]) - (len(self.head) - end - 4)
        else:
            self.left -= len(data)
        if self.left:
            return False
        self.latencies.append(time.perf_counter() - self.started)
        self.tokens += self.asked
        return True


def load(port: int, requests: list[tuple[bytes, int]], clients: int, seconds: float) -> tuple[float, int, list[float]]:
    """Let clients ask for so long, each as soon as it has its answer; return tokens per second, tokens and latencies."""
    made = [Client(port, requests[i::clients] or requests) for i in range(clients)]
    started = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for client in made:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask()
        waiting = len(made)
        while waiting:
            for key, _ in selector.select():
                if not key.data.read():
                    continue
                if time.perf_counter() - started < seconds:
                    key.data.ask()
                else:
                    selector.unregister(key.fileobj)
                    waiting -= 1
    took = time.perf_counter() - started
    for client in made:
        client.socket.close()
    tokens = sum(client.tokens for client in made)
    return tokens / took, tokens, [x for client in made for x in client.latencies]


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--route", choices=["openai", "predict"], default="openai")
    options, more = parser.parse_known_args()
    random.seed(0)
    words = "the a cat dog sat on mat river bright moon stone eats fish query passage of and in document search".split()
    made = [" ".join(random.choices(words, k=random.randint(5, 40))) for _ in range(2048)]
    texts = [line for line in options.texts.read_text().splitlines() if line.strip()][:2048] if options.texts else made
    from penult import Embedder

    embedder = Embedder.load(options.model, truncate="right")
    counts = embedder.count_tokens(texts).tolist()
    size = options.batch
    large = [
        (request(options.route, texts[i : i + size]), sum(counts[i : i + size])) for i in range(0, len(texts) - size + 1, size)
    ]
    small = [(request(options.route, [text]), count) for text, count in zip(texts, counts, strict=True)]
    embedder.embed(texts[:512])
    server, port = start(options.model, options.route, more)
    rates: dict[str, list[float]] = {"local": [], "large": [], "small": []}
    cpu: dict[str, list[float]] = {"local": [], "large": [], "small": []}
    latencies: list[float] = []
    try:
        load(port, large, 1, 1)
        load(port, small, options.clients, 1)
        for _ in range(options.rounds):
            began, used, tokens = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - began < options.seconds:
                embedder.embed(texts[:512])
                tokens += sum(counts[:512])
            rates["local"].append(tokens / (time.perf_counter() - began))
            cpu["local"].append(1000 * (time.process_time() - used) / tokens)
            for kind, requests, clients in (("large", large, 1), ("small", small, options.clients)):
                used = cpu_seconds(server.pid)
                rate, tokens, seen = load(port, requests, clients, options.seconds)
                rates[kind].append(rate)
                cpu[kind].append(1000 * (cpu_seconds(server.pid) - used) / tokens)
                latencies += seen if kind == "small" else []
    finally:
        server.terminate()
        server.wait()
    latencies.sort()
    rate = {kind: statistics.median(values) for kind, values in rates.items()}
    used = {kind: statistics.median(values) for kind, values in cpu.items()}
    print(f"{processor()}; texts of {statistics.mean(counts):.1f} tokens; medians of {options.rounds} rounds")
    names = {"local": "in-process, 512 texts at once", "large": f"one client, batches of {size}",
             "small": f"{options.clients} clients, one text each"}  # fmt: skip
    for kind, name in names.items():
        print(f"{name}: {rate[kind]:.0f} tokens/s, {used[kind]:.3f} CPU s per 1,000 tokens")
    print(f"small / batching client {rate['small'] / rate['large']:.2f} (CPU {used['large'] / used['small']:.2f}), "
          f"batching client / in-process {rate['large'] / rate['local']:.2f} (CPU {used['local'] / used['large']:.2f})")  # fmt: skip
    print(f"p50 {latencies[len(latencies) // 2] * 1000:.0f} ms, p99 {latencies[int(len(latencies) * 0.99)] * 1000:.0f} ms, "
          f"{len(latencies)} requests")  # fmt: skip


if __name__ == "__main__":
    main()
