"""Start a server from its configuration: the log, the sockets, and uvicorn.

This file and `connection` are the only ones that import uvicorn.
"""

import errno
import logging
import os
import socket
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress

import uvicorn

from penult.server import workers
from penult.server.app import Extend, create_app
from penult.server.config import ServerConfig
from penult.server.connection import Connection
from penult.server.log_format import start_log
from penult.types import TruncationWarning

_LOGGER = logging.getLogger(__name__)
_ANY = ("0.0.0.0", "::")  # noqa: S104 - compared, to log a warning
# Shutdown waits this long for requests in progress: the largest allowed request takes about three minutes on two cores. A
# client that never reads its answer, or sends its body byte by byte, must not delay shutdown indefinitely.
_ENDING_SECONDS = 300
_BACKLOG = 2048  # connections that wait to be accepted; uvicorn's default


def run(config: ServerConfig, extend: Extend | None = None) -> None:
    """Open the models, then answer requests until SIGTERM or Ctrl-C, and finish those in progress.

    Args:
        config: the configuration of the server.
        extend: see `create_app`.

    Raises:
        OSError: the host or the port cannot be used; raised before a model is loaded.
        ValueError: the configuration cannot be served.
    """
    start_log(as_json=config.log_json)
    if config.api_key is None and config.host in _ANY:
        _LOGGER.warning(
            "Listening on %s without an API key: anyone on the network can use the server. Pass --api-key or --host 127.0.0.1.",
            config.host,
        )
    sockets = bind(config.host, config.port)
    try:
        if config.workers == 1:
            answer(config, extend, sockets, lambda: _log_addresses(sockets))
        else:
            workers.run(config, extend, sockets, answer, lambda: _log_addresses(sockets), _ENDING_SECONDS)
    finally:
        for one in sockets:
            one.close()


def answer(config: ServerConfig, extend: Extend | None, sockets: Sequence[socket.socket], ready: Callable[[], None]) -> None:
    """Open the models in this process, and answer requests on these sockets until SIGTERM or SIGINT.

    Args:
        config: the configuration of the server.
        extend: see `create_app`.
        sockets: bound sockets.
        ready: called when the server accepts requests.
    """
    warnings.filterwarnings("ignore", category=TruncationWarning)  # each response states its number of truncated texts
    app = create_app(config, extend)
    for one in sockets:
        _listen(one)
    settings = uvicorn.Config(
        app,
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=config.keep_alive,
        timeout_graceful_shutdown=_ENDING_SECONDS,
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after the shutdown
        _Server(settings, ready).run(sockets=list(sockets))


class _Server(uvicorn.Server):
    """uvicorn's server with a callback for when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()


def bind(host: str, port: int) -> list[socket.socket]:
    """Return a socket bound to each address of a host.

    Raises:
        OSError: the host or the port cannot be used; the message says what to do.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OSError(
            f"--host {host!r} is not an address or a name of this machine ({error}). Pass 0.0.0.0 or 127.0.0.1."
        ) from error
    bound: list[socket.socket] = []
    for family, _, _, _, address in dict.fromkeys(addresses):
        # If port is 0, the further addresses get the port that the first one was assigned.
        chosen = port or (bound[0].getsockname()[1] if bound else 0)
        try:
            one = socket.socket(family, socket.SOCK_STREAM)
        except OSError:  # this kernel does not support IPv6, but the name has an IPv6 address
            continue
        if os.name == "posix":  # on Windows SO_REUSEADDR would let two programs listen on one port
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            one.bind((address[0], chosen, *address[2:]))
        except OSError as error:
            one.close()
            if bound and error.errno == errno.EADDRNOTAVAIL:  # IPv6 is disabled
                continue
            for other in bound:
                other.close()
            raise _refused(host, chosen, error) from error
        bound.append(one)
    if not bound:
        raise OSError(f"--host {host!r} has no address that this machine can listen on. Pass 0.0.0.0 or 127.0.0.1.")
    return bound


def _listen(one: socket.socket) -> None:
    """Listen on a socket; this fails if a server that started at the same moment listens already."""
    try:
        one.listen(_BACKLOG)
    except OSError as error:
        host, port = one.getsockname()[:2]
        raise _refused(host, port, error) from error


def _refused(host: str, port: int, error: OSError) -> OSError:
    reason = (error.strerror or str(error)).lower()
    if error.errno == errno.EADDRINUSE:
        advice = f"Port {port} on {host} is already in use. Pass another --port, or stop the program that uses it."
    elif error.errno == errno.EACCES:
        advice = f"Port {port} on {host} requires more privileges ({reason}). Pass a --port of at least 1024."
    else:
        advice = f"Cannot listen on port {port} of {host} ({reason}). Pass another --host or --port."
    return OSError(advice)


def _log_addresses(sockets: Sequence[socket.socket]) -> None:
    for one in sockets:
        host, port = one.getsockname()[:2]
        _LOGGER.info("penult is running on http://%s:%d (press Ctrl-C to stop it)", f"[{host}]" if ":" in host else host, port)
