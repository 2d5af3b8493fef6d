"""What a server does at its limits: huge bodies, half-sent bodies, endpoints that come and go, more clients than it can serve.

usage: server_limits.py MODEL [--only json bodies long slow cycles mixed] [--seconds 60] [--option ARGUMENT ...]

It starts a server of its own on a free port of this machine for each part and prints its figures:
- json: for bodies of 32 MB that no request needs, the status, the seconds until it came, the worst latency of GET /health
  meanwhile, and the server's peak resident memory;
- bodies: 40 clients that hold a body of 29 MB one byte short: resident memory, and how many were refused;
- long: a request of 33 texts of 1,000,001 characters: status, seconds, peak memory;
- slow: 400 clients that send half a head, and 20 that send half a body: how many are closed after 20 and 40 seconds;
- cycles: 21 times POST and DELETE /endpoints: resident memory and threads;
- mixed: 256 clients, a quarter each of 1, 4, 16 and 64 texts a request, which retry after the seconds of a 429: p50, p99 and
  the number of answers and of 429s for each size.
"""

import argparse
import http.client
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Self

from server_load import start

MB = 1_000_000


class Server:
    """A server on a free port."""

    def __init__(self, model: str, options: list[str]) -> None:
        self.process, self.port = start(model, "openai", options)

    def status(self, key: str) -> int:
        """Return a number of /proc: kB of memory, or the count of threads."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{key}:\s+(\d+)", text)[1])

    def memory(self, key: str = "VmRSS") -> str:
        """Return resident (VmRSS) or peak (VmHWM) memory in MB."""
        return f"{self.status(key) / 1000:.0f} MB"

    def ask(self, method: str, path: str, body: bytes | None = None, timeout: float = 300) -> tuple[int, dict[str, str], bytes]:
        """Send a request and return status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Health:
    """Asks GET /health every 20 ms; `worst` is the longest it took, in seconds."""

    def __init__(self, server: Server) -> None:
        self.server, self.worst, self.ended = server, 0.0, threading.Event()
        self.thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        while not self.ended.wait(0.02):
            started = time.perf_counter()
            self.server.ask("GET", "/health")
            self.worst = max(self.worst, time.perf_counter() - started)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()


def part_json(model: str, options: list[str], _: float) -> None:
    """Measure bodies of 32 MB."""
    size = 32 * MB
    bodies = {
        "[1,1,...]": b"1," * (size // 2) + b"1",
        '["ab",...]': b'"ab",' * (size // 5) + b'"ab"',
        "[{},...]": b"{}," * (size // 3) + b"{}",
        "[[[[...": b"[" * size,
        '["\\"\\"...': b'"' + b'\\"' * (size // 2) + b'"',
        "32 texts of 1 MB": b",".join([b'"' + b"the cat " * 124_000 + b'"'] * 32),
    }
    for name, inner in bodies.items():
        server = Server(model, [*options, *(["--max-text-chars", "900000"] if name.startswith("32") else [])])
        body = b'{"input":[' + inner + b"]}"
        server.ask("POST", "/v1/embeddings", b'{"input":"a"}')
        with Health(server) as health:
            started = time.perf_counter()
            status, _, answer = server.ask("POST", "/v1/embeddings", body)
            took = time.perf_counter() - started
        print(
            f"json {name}: {status} after {took:.2f} s, /health {health.worst:.2f} s, peak {server.memory('VmHWM')}; {answer[:90]!r}"
        )
        server.stop()


def part_bodies(model: str, options: list[str], _: float) -> None:
    """Measure half-sent bodies."""
    server = Server(model, options)
    print(f"bodies: {server.memory()} before")
    held, body = [], b" " * 29 * MB
    refused: Counter[bytes] = Counter()

    def send() -> None:
        client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        held.append(client)
        head = b"POST /embed HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        try:
            client.sendall(head % len(body) + body[:-1])
            client.settimeout(3)
            refused[client.recv(12)] += 1
        except TimeoutError:
            refused[b"held"] += 1
        except OSError:
            refused[b"reset"] += 1

    threads = [threading.Thread(target=send) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started = time.perf_counter()
    server.ask("GET", "/health")
    took = time.perf_counter() - started
    print(f"bodies: {server.memory()} while held, peak {server.memory('VmHWM')}, /health {took:.2f} s, {dict(refused)}")
    for client in held:
        client.close()
    time.sleep(2)
    print(f"bodies: {server.memory()} after")
    server.stop()


def part_long(model: str, options: list[str], _: float) -> None:
    """Measure texts over the limit."""
    server = Server(model, options)
    body = json.dumps({"input": ["the cat " * 125_000 + "a"] * 33}).encode()[: 34 * MB]
    started = time.perf_counter()
    status, _, answer = server.ask("POST", "/v1/embeddings", json.dumps({"input": ["the cat " * 125_000 + "a"] * 31}).encode())
    print(
        f"long 31 x 1,000,001: {status} after {time.perf_counter() - started:.2f} s, peak {server.memory('VmHWM')}, {answer[:120]!r}"
    )
    started = time.perf_counter()
    status, _, answer = server.ask("POST", "/v1/embeddings", body)
    print(
        f"long 33 x 1,000,001: {status} after {time.perf_counter() - started:.2f} s, peak {server.memory('VmHWM')}, {answer[:120]!r}"
    )
    server.stop()


def part_slow(model: str, options: list[str], _: float) -> None:
    """Measure half-sent requests."""
    server = Server(model, options)
    halves = [b"POST /embed HTTP/1.1\r\nhost: localhost\r\n"] * 400
    halves += [b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5000\r\n\r\n{"] * 20
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in halves]
    for client, half in zip(clients, halves, strict=True):
        client.sendall(half)
        client.setblocking(False)
    closed: set[int] = set()
    for seconds in (20, 40):
        time.sleep(20)
        for client in clients:
            try:
                while client.recv(65536):
                    pass
                closed.add(client.fileno())
            except BlockingIOError:
                continue
            except OSError:
                closed.add(client.fileno())
        print(f"slow: {len(closed)} of {len(clients)} closed after {seconds} s")
    for client in clients:
        client.close()
    server.stop()


def part_cycles(model: str, options: list[str], _: float) -> None:
    """Measure endpoints that come and go."""
    known = subprocess.run([sys.executable, "-m", "penult", "serve", "--help"], capture_output=True, text=True).stdout
    server = Server(model, [*options, *(["--allow-endpoints"] if "--allow-endpoints" in known else [])])
    strategy = ("reduce_mean", "reduce_max", "cls_token")
    for cycle in range(21):
        kwargs = {"sequence_length": 128 + cycle, "extraction_strategy": strategy[cycle % 3]}
        body = {"task": "transformers_embedding_extraction", "model": model, "name": f"e{cycle}", "kwargs": kwargs}
        started = time.perf_counter()
        status, _, answer = server.ask("POST", "/endpoints", json.dumps(body).encode())
        took = time.perf_counter() - started
        assert status == 200, answer
        assert server.ask("POST", f"/v2/models/e{cycle}/infer", b'{"inputs":["the cat"]}')[0] == 200
        assert server.ask("DELETE", "/endpoints", json.dumps(body).encode())[0] == 200
        if cycle % 5 == 0:
            print(f"cycles {cycle + 1}: {server.memory()}, {server.status('Threads')} threads, POST {took:.1f} s")
    server.stop()


def part_mixed(model: str, options: list[str], seconds: float) -> None:
    """Measure 256 clients of four sizes."""
    random.seed(0)
    words = "the a cat dog sat on mat river bright moon stone eats fish query passage of and in document search".split()
    server = Server(model, options)
    latencies: dict[int, list[float]] = {1: [], 4: [], 16: [], 64: []}
    refused: Counter[int] = Counter()
    waits: dict[int, list[int]] = {1: [], 4: [], 16: [], 64: []}
    until = time.monotonic() + seconds

    def client(size: int) -> None:
        texts = [" ".join(random.choices(words, k=random.randint(5, 40))) for _ in range(size)]
        body = json.dumps({"input": texts, "encoding_format": "base64"}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
        while time.monotonic() < until:
            started = time.monotonic()
            while True:
                connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    latencies[size].append(time.monotonic() - started)
                    break
                assert answer.status == 429, answer.status
                refused[size] += 1
                waits[size].append(int(answer.headers["retry-after"]))
                connection.close()  # it may be idle for longer than the server keeps it
                time.sleep(waits[size][-1])
                if time.monotonic() > until:
                    return
        connection.close()

    threads = [threading.Thread(target=client, args=(size,)) for size in latencies for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for size, values in latencies.items():
        if values := sorted(values):
            print(f"mixed {size} texts: {len(values)} answers, p50 {values[len(values) // 2]:.1f} s, "
                  f"p99 {values[int(len(values) * 0.99)]:.1f} s, max {values[-1]:.1f} s, {refused[size]} x 429, "
                  f"retry-after median {statistics.median(waits[size]) if waits[size] else 0:.0f} s")  # fmt: skip
    print(f"mixed: peak {server.memory('VmHWM')}")
    server.stop()


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parts = {
        "json": part_json,
        "bodies": part_bodies,
        "long": part_long,
        "slow": part_slow,
        "cycles": part_cycles,
        "mixed": part_mixed,
    }
    parser.add_argument("--only", nargs="*", default=[*parts])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--option", nargs="*", default=[])
    given = parser.parse_args()
    for name in given.only:
        parts[name](str(Path(given.model).resolve()), given.option, given.seconds)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
