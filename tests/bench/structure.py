"""How deep the calls of penult go, and how many lines each folder has.

usage: structure.py MODEL [--chains]

For `embed`, POST /v1/embeddings, `penult embed` (one worker's part: a shard) and a first `prepare` it prints the number of
penult's own functions on the deepest stack, and how many different functions and files took part. `--chains` prints the stacks.
Run it with PYTHONPATH set to another checkout's src/ to compare two states.
"""

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import penult

ROOT = str(Path(penult.__file__).parent)


class Stacks:
    """The deepest stack of penult's functions in any thread, and all functions seen."""

    def __init__(self) -> None:
        self.deepest: list[str] = []
        self.seen: set[str] = set()
        self._local = threading.local()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(ROOT) or event not in ("call", "return") or code.co_name.startswith("<"):
            return
        stack = self._local.__dict__.setdefault("stack", [])
        if event == "return":
            if stack:
                stack.pop()
            return
        name = f"{os.path.relpath(code.co_filename, ROOT)}:{code.co_qualname}"
        stack.append(name)
        self.seen.add(name)
        if len(stack) > len(self.deepest):
            self.deepest = list(stack)


def measure(name: str, prepare: Callable[[], Callable[[], object]], *, chains: bool) -> None:
    """Prepare something, run it, and print how deep it went; threads that the preparation starts are watched too."""
    stacks = Stacks()
    threading.setprofile(stacks)
    work = prepare()
    stacks.deepest, stacks.seen = [], set()
    sys.setprofile(stacks)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    files = {one.partition(":")[0] for one in stacks.seen}
    print(f"| {name} | {len(stacks.deepest)} | {len(stacks.seen)} | {len(files)} |")
    if chains:
        print("\n".join(f"    {'  ' * i}{one}" for i, one in enumerate(stacks.deepest)))


def library(model: str) -> Callable[[], object]:
    """Return a call of `embed`."""
    from penult import Embedder

    embedder = Embedder.load(model)
    embedder.embed(["warm"])
    return lambda: embedder.embed(["the cat", "a dog"])


def server(model: str) -> Callable[[], object]:
    """Return what sends one request to an application in this process."""
    from starlette.testclient import TestClient

    from penult.server import EndpointConfig, ServerConfig
    from penult.server.app import create_app

    client = TestClient(create_app(ServerConfig(endpoints=(EndpointConfig(model=model),))))
    client.__enter__()
    client.post("/v1/embeddings", json={"input": "warm"})
    return lambda: client.post("/v1/embeddings", json={"input": ["the cat"]})


def shard(model: str) -> Callable[[], object]:
    """Return what a worker of a bulk job does with the texts of a shard."""
    from penult import Embedder
    from penult.bulk.texts import embed_texts

    embedder = Embedder.load(model)
    return lambda: embed_texts(embedder, ["the cat", "a dog"], "document")


def first_load(model: str) -> Callable[[], object]:
    """Return a load that finds an empty cache."""
    from penult import Embedder

    os.environ["PENULT_CACHE"] = tempfile.mkdtemp()
    return lambda: Embedder.load(model)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--chains", action="store_true")
    options = parser.parse_args()
    print("| call | functions on the deepest stack | functions | files |\n|---|---:|---:|---:|")
    calls = {"embed": library, "POST /v1/embeddings": server, "a shard of `penult embed`": shard, "a first load": first_load}
    for name, prepare in calls.items():
        measure(name, partial(prepare, options.model), chains=options.chains)
    print("\n| folder | files | lines |\n|---|---:|---:|")
    folders: dict[str, list[int]] = {}
    for path in Path(ROOT).rglob("*.py"):
        parts = path.relative_to(ROOT).parts[:-1]
        folders.setdefault(parts[0] if parts else ".", []).append(len(path.read_text().splitlines()))
    for name, lines in sorted(folders.items()):
        print(f"| {name} | {len(lines)} | {sum(lines)} |")
    print(f"| all | {sum(map(len, folders.values()))} | {sum(map(sum, folders.values()))} |")


if __name__ == "__main__":
    main()
