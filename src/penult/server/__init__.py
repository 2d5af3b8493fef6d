"""The HTTP server: its configuration, and `serve`.

The names below are imported when they are first used, so that the command line starts without pydantic and a web framework.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penult.server.app import Extend
    from penult.server.command import main
    from penult.server.config import ConfigError, EndpointConfig, Limits, ServerConfig

__all__ = ["ConfigError", "EndpointConfig", "Limits", "ServerConfig", "main", "serve"]
_HOMES = {"main": "command"}


def serve(config: "ServerConfig", extend: "Extend | None" = None) -> None:
    """Load the models and answer requests until SIGTERM or SIGINT; then finish those that have begun.

    A program that serves with several workers needs `if __name__ == "__main__":` around this call, as with multiprocessing.

    Args:
        config: what is served.
        extend: adds further routes; `penult.deepsparse.routes.add` those of DeepSparse, for a `DeepSparseServer`. Workers
            import it by its name.

    Raises:
        FileNotFoundError: a model is missing.
        OSError: the port is in use, or the host is not one of this machine; raised before a model is loaded.
        ValueError: the configuration cannot be served.
        ModuleNotFoundError: the packages of penult[server] are not installed.
    """
    from penult.server.run import run  # noqa: PLC0415 - a web framework, half a second

    run(config, extend)


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'penult.server' has no attribute {name!r}")
    return getattr(import_module(f"penult.server.{_HOMES.get(name, 'config')}"), name)
