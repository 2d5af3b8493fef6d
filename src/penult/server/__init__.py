"""The server: `penult serve`, and `penult.server` under DeepSparse's own options.

Importing this costs no web framework; `serve` and `main` import it when they are called.
"""

from collections.abc import Sequence

from penult.server.config import ConfigError, EndpointConfig, Limits, ServerConfig

__all__ = ["ConfigError", "EndpointConfig", "Limits", "ServerConfig", "main", "serve"]


def serve(config: ServerConfig) -> None:
    """Open the models and answer requests until the process is told to end; then finish what was begun.

    Raises:
        FileNotFoundError: a model is not there.
        ValueError: the configuration cannot be served; the message says why.
        ModuleNotFoundError: the packages of penult[server] are not installed.
    """
    from penult.server.run import run  # noqa: PLC0415 - a web framework, half a second

    run(config)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve as the command line says, with DeepSparse's options."""
    from penult.deepsparse.command import command  # noqa: PLC0415

    command(arguments)
