"""Start servers for tests: real sockets on this machine, uvicorn in a thread or in a process."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from penult.deepsparse import routes
from penult.deepsparse.command import main
from penult.deepsparse.config_file import DeepSparseEndpoint, DeepSparseServer
from penult.server import EndpointConfig, ServerConfig
from penult.server.app import create_app
from penult.server.connection import Connection


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def curl(command: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell command with curl, which fails for a status of 400 and above; `home` gets its settings."""
    (home / ".curlrc").write_text("fail\nsilent\nshow-error\n")
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=30)


class Running:
    """A server in a thread; `app` is its application."""

    def __init__(self, config: ServerConfig) -> None:
        self.app = create_app(config, routes.add if isinstance(config, DeepSparseServer) else None)
        settings = uvicorn.Config(self.app, host="127.0.0.1", port=0, http=Connection, log_config=None, access_log=False)
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server._serve()), daemon=True)
        self._thread.start()
        until = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def post(self, path: str, body, **options) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def get(self, path: str, **options) -> httpx.Response:
        return self.client.get(path, **options)

    def stop(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def serving(*endpoints: EndpointConfig, kind: type[ServerConfig] = DeepSparseServer, **options) -> Iterator[Running]:
    """Serve endpoints on a free port of 127.0.0.1, with the DeepSparse routes by default."""
    if kind is DeepSparseServer:
        endpoints = tuple(
            DeepSparseEndpoint(**{name: getattr(one, name) for name in one.model_fields_set}) for one in endpoints
        )
        options = {"integration": "local", **options}
    running = Running(kind(endpoints=endpoints, **{"host": "127.0.0.1", "threads": 1, **options}))
    try:
        yield running
    finally:
        running.stop()


class Process:
    """`penult.server` in its own process; `lines` is its log."""

    def __init__(self, *arguments: str, port: int = 0, before: str = "") -> None:
        command = [sys.executable, "-c", f"{before}\nfrom penult.deepsparse.command import main; main()", *arguments]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--num_cores", "1"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        self.port = 0
        self._found = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._found.wait(60), self.lines
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                self._found.set()
        self._found.set()

    def end(self) -> int:
        """Send SIGTERM; return the exit status."""
        self.process.terminate()
        status = self.process.wait(30)
        self._reader.join(10)
        self.process.stderr.close()
        return status

    def kill(self) -> None:
        """Kill the process, as a crash does."""
        self.process.kill()
        self.process.wait(30)
        self._reader.join(10)
        self.process.stderr.close()


def parse(words: list[str]) -> ServerConfig:
    """Return the configuration of a command line."""
    configs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penult.server.run.run", lambda config, _: configs.append(config))
        main(words)
    return configs[0]
