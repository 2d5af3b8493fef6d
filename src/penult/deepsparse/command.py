"""DeepSparse's command line: its options and spellings, in addition to those of `penult serve`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from penult.deepsparse.arguments import TASK
from penult.server import command

if TYPE_CHECKING:
    from penult.deepsparse.config_file import DeepSparseServer
    from penult.server.app import Extend
    from penult.server.config import Limits, ServerConfig

_IGNORED = ("batch_size", "num_workers", "log_level", "hot_reload_config")


@dataclass(frozen=True, kw_only=True)
class Options(command.Options):
    """The options of `penult serve` and of `penult.server`; None: not set."""

    config: Annotated[
        Path | None, typer.Option("--config", "--config-file", help="YAML file with endpoints, instead of MODEL.")
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", "--num-cores", help="Threads per model. Default: the physical cores, divided among the workers."
        ),
    ] = None
    model_path: Annotated[str | None, typer.Option(help="Same as MODEL.")] = None
    task: Annotated[str | None, typer.Option(help=f"{TASK}: load the model for the DeepSparse routes at start.")] = None
    integration: Annotated[
        Literal["local", "sagemaker", "openai"] | None,
        typer.Option(help="sagemaker: inference under /invocations. local, openai: under the usual paths."),
    ] = None
    batch_size: Annotated[str | None, typer.Option(hidden=True)] = None
    num_workers: Annotated[str | None, typer.Option(hidden=True)] = None
    log_level: Annotated[str | None, typer.Option(hidden=True)] = None
    hot_reload_config: Annotated[bool, typer.Option("--hot-reload-config", hidden=True)] = False

    def configuration(self) -> "ServerConfig":
        """Return the configuration, and print ignored options on standard error."""
        config = super().configuration()
        for name in _IGNORED:
            if getattr(self, name):
                typer.echo(f"--{name.replace('_', '-')} is ignored: it has no effect in penult", err=True)
        return config

    def extend(self) -> "Extend":
        """Return the function that adds DeepSparse's routes to the server."""
        from penult.deepsparse import routes  # noqa: PLC0415 - importing the web framework takes 0.5 s

        return routes.add

    def endpoint(self) -> dict[str, Any]:
        """Return the options of the model, under the keys of a configuration file."""
        values = {"model": self.model_path, "task": self.task}
        return super().endpoint() | {key: value for key, value in values.items() if value is not None}

    def from_model(self, endpoint: dict[str, Any]) -> "DeepSparseServer":
        """Return the configuration of a server with this one endpoint, named after its task as in DeepSparse."""
        from penult.deepsparse.config_file import DeepSparseEndpoint, DeepSparseServer  # noqa: PLC0415 - pydantic, here and below
        from penult.server.config_file import Document  # noqa: PLC0415

        only = Document("", {"name": TASK, **endpoint}).validate(DeepSparseEndpoint)
        return DeepSparseServer(endpoints=(only,), integration="local")

    def from_file(self, path: Path) -> "DeepSparseServer":
        """Return the configuration in a file."""
        from penult.deepsparse.config_file import read  # noqa: PLC0415

        return read(path)

    def overrides(self, limits: "Limits") -> dict[str, Any]:
        """Return the configuration fields that the options set; OpenAI's routes always exist."""
        integration = {} if self.integration in (None, "openai") else {"integration": self.integration}
        return super().overrides(limits) | integration


def add(app: typer.Typer) -> None:
    """Add the command `serve` with DeepSparse's options to a command line, replacing penult's own."""
    command.add(app, Options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `penult.server` with command-line arguments.

    Args:
        arguments: the command line. None: this process's.

    Raises:
        SystemExit: the command line is wrong, or the server does not start.
    """
    command.main(arguments, Options)
