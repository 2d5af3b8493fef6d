"""From a configuration to a process that listens: the log, and uvicorn.

This file and `connection` are the only ones that import uvicorn.
"""

import logging
import sys
import warnings

import uvicorn

from penult.server.app import Extend, create_app
from penult.server.config import ServerConfig
from penult.server.connection import Connection
from penult.server.middleware import Json, Plain
from penult.types import TruncationWarning

_ANY = ("0.0.0.0", "::")  # noqa: S104 - named to warn of it
# That the end of a server waits for what was begun: the largest request allowed takes some three minutes on two cores. A client
# that never reads its answer, or sends its body a byte at a time, must not hold up the end for ever.
_ENDING_SECONDS = 300


def run(config: ServerConfig, extend: Extend | None = None) -> None:
    """Open the models, then answer until SIGTERM or Ctrl-C; what was begun is finished.

    Args:
        config: what is served.
        extend: see `create_app`.
    """
    say(json=config.log_json)
    warnings.filterwarnings("ignore", category=TruncationWarning)  # each answer says how many of its texts were cut
    if config.api_key is None and config.host in _ANY:
        logging.getLogger(__name__).warning(
            "Listening on %s without a key: everybody on the network may ask. --host 127.0.0.1 or --api-key changes that.",
            config.host,
        )
    app = create_app(config, extend)
    uvicorn.run(
        app,
        host=config.host,
        port=config.port,
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_ENDING_SECONDS,
    )


def say(*, json: bool) -> None:
    """Send the log to standard error, a line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if json else Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines hold whole URLs
