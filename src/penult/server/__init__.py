"""The HTTP server: its configuration, and `serve`.

The names below are imported on first use, so that the command line starts without importing pydantic and a web framework.
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
    """Load the models and answer requests until SIGTERM or SIGINT, then finish the requests in progress.

    With several workers, a program needs `if __name__ == "__main__":` around this call, as with multiprocessing.

    Args:
        config: the configuration of the server.
        extend: function that adds further routes, such as `penult.deepsparse.routes.add` for a `DeepSparseServer`. Workers
            import it by name.

    Raises:
        FileNotFoundError: a model is missing.
        OSError: the port is in use, or the host is not an address of this machine; raised before a model is loaded.
        ValueError: the configuration cannot be served.
        ModuleNotFoundError: the packages of penult[server] are not installed.
    """
    from penult.server.run import run  # noqa: PLC0415 - importing the web framework takes 0.5 s

    run(config, extend)


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'penult.server' has no attribute {name!r}")
    return getattr(import_module(f"penult.server.{_HOMES.get(name, 'config')}"), name)
