"""A child process that opens the model of an endpoint before the server does.

A broken model can make loading hang or crash the process. `POST /endpoints` therefore first opens it in a child process, which
embeds one text. The child is killed at a time limit, when the client disconnects, and when the server shuts down.
"""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

from penult.server.errors import Refusal
from penult.server.models import Models

_MAX_PROBES = 4  # concurrent child processes
_COMMAND = (sys.executable, "-m", "penult.deepsparse.load_probe")
_RUNNING: set[int] = set()


async def probe_endpoint(values: Mapping[str, Any], models: Models) -> None:
    """Open the model of an endpoint in a child process, and embed one text.

    Args:
        values: the endpoint, as the client sent it.
        models: provides limits, threads and the shutdown event.

    Raises:
        Refusal: the model cannot be opened; the message says why.
    """
    if len(_RUNNING) >= _MAX_PROBES:
        raise Refusal(
            "full",
            f"The limit of {_MAX_PROBES} models that load at once is reached. Retry in 5 s.",
            headers={"Retry-After": "5"},
        )
    child = await asyncio.create_subprocess_exec(
        *_COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    _RUNNING.add(child.pid)
    assert child.stdin is not None  # noqa: S101 - set to PIPE
    assert child.stdout is not None  # noqa: S101
    child.stdin.write(json.dumps({"endpoint": dict(values), "threads": models.threads}).encode() + b"\n")
    answer = asyncio.ensure_future(child.stdout.read())  # completes when the child ends
    ending = asyncio.ensure_future(models.ending.wait())
    limit = models.limits.max_load_seconds
    try:
        await asyncio.wait({answer, ending}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise Refusal(
                "invalid",
                "The endpoint cannot be added: the server is shutting down."
                if ending.done()
                else f"The endpoint cannot be added: its model did not load within {limit} s (max_load_seconds).",
            )
        status = await child.wait()
    finally:
        answer.cancel()
        ending.cancel()
        _RUNNING.discard(child.pid)
        if child.returncode is None:
            child.kill()
        child.stdin.close()  # ends the child if it is still running
    if status:
        message = answer.result().decode(errors="replace") or f"loading its model ended a process with status {status}"
        raise Refusal("invalid", f"The endpoint cannot be added: {message}")


def main() -> None:
    """Open the model of the endpoint from standard input; on failure, print the reason on standard output."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _open(request["endpoint"], request["threads"])
    except (OSError, TypeError, ValueError) as error:
        sys.stdout.write(str(error))
        sys.stdout.flush()
        os._exit(1)
    os._exit(0)  # at once: there is nothing to clean up


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _open(values: Mapping[str, Any], threads: int | None) -> None:
    from penult.deepsparse.config_file import read_endpoint  # noqa: PLC0415 - after the thread that watches the parent
    from penult.deepsparse.served_pipeline import pipeline  # noqa: PLC0415
    from penult.server.config import Limits  # noqa: PLC0415
    from penult.server.metrics import Metrics  # noqa: PLC0415

    config, models = read_endpoint(values), Models(Limits(), Metrics(), threads)
    try:
        models.embedder(config).embedder.embed(["a"])
    except (OSError, TypeError, ValueError):  # if the model opens at its first request, that request reports it
        if config.open_at_start:
            raise
    if not config.open_at_start:
        pipeline(models, config).pipeline(["a"])


if __name__ == "__main__":
    main()
