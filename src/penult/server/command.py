"""`penult serve`: the server's command-line options.

Typer derives the options from the fields of a dataclass, so that another command can inherit and extend them.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from penult.cli_options import layer_of
from penult.extras import install_hint

if TYPE_CHECKING:
    from penult.server.app import Extend
    from penult.server.config import Limits, ServerConfig

_FAILED = 2  # exit status if the server does not start


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `penult serve`; None: not set."""

    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Model: folder, .onnx file, Hub id or package:NAME[/folder].")
    ] = None
    config: Annotated[Path | None, typer.Option(help="YAML file with endpoints, instead of MODEL.")] = None
    host: Annotated[
        str | None, typer.Option(help="Bind address. Default: 0.0.0.0, all networks. 127.0.0.1: this machine only.")
    ] = None
    port: Annotated[int | None, typer.Option(help="Port. Default: 5543. 0: any free port.")] = None
    api_key: Annotated[
        str | None, typer.Option(help="API key that clients send as `Authorization: Bearer KEY`. Default: $PENULT_API_KEY.")
    ] = None
    allowed_hosts: Annotated[
        str | None,
        typer.Option(help="Host names of the server, separated by commas. See docs/server-limits.md."),
    ] = None
    allow_origin: Annotated[
        str | None, typer.Option(help="Origins of web pages that may use the server: https://a.example,... or *.")
    ] = None
    allow_endpoints: Annotated[
        bool, typer.Option("--allow-endpoints", help="Allow POST and DELETE /endpoints without a key on a loopback address.")
    ] = False
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON objects, one per line.")] = False
    threads: Annotated[
        int | None, typer.Option(help="Threads per model. Default: the physical cores, divided among the workers.")
    ] = None
    workers: Annotated[int | None, typer.Option(help="Server processes; each loads the model. Default: 1.")] = None
    keep_alive: Annotated[int | None, typer.Option(help="Seconds that an idle connection stays open. Default: 60.")] = None
    served_model_name: Annotated[
        str | None, typer.Option(help="The model's name for clients. Default: its folder's name, or its Hub id.")
    ] = None
    strict_model_name: Annotated[
        bool,
        typer.Option(
            "--strict-model-name",
            help="Answer 404 to requests for another model name. Default: a single model accepts any name.",
        ),
    ] = False
    pooling: Annotated[
        str | None,
        typer.Option(help="Pooling: mean, max, cls, ...; several are separated by commas. Default: from the model's files."),
    ] = None
    layer: Annotated[
        str | None,
        typer.Option(help="Layer: -1 the last, 0 the embedding output, n, a tensor name, or none (the graph's own output)."),
    ] = None
    precision: Annotated[Literal["fp32", "int8"] | None, typer.Option(help="Arithmetic precision. Default: fp32.")] = None
    max_length: Annotated[int | None, typer.Option(help="Maximum tokens per text. Default: from the model's files.")] = None
    truncate: Annotated[
        Literal["error", "warn", "right", "left"] | None,
        typer.Option(
            help="Texts that are too long: error rejects them, the other values truncate and count them. Default: warn, on "
            "the side from the model's files."
        ),
    ] = None
    dimensions: Annotated[int | None, typer.Option(help="Number of leading values of each vector to keep. Default: all.")] = (
        None
    )
    normalize: Annotated[bool | None, typer.Option(help="L2-normalize the vectors. Default: from the model's files.")] = None
    layer_norm: Annotated[
        bool, typer.Option("--layer-norm", help="Apply a layer norm before --dimensions, as some model cards require.")
    ] = False
    query_prompt: Annotated[
        str | None,
        typer.Option("--query-prompt", "--prompt-query", help="Prompt of queries. Default: from the model's files."),
    ] = None
    document_prompt: Annotated[
        str | None,
        typer.Option("--document-prompt", "--prompt-document", help="Prompt of documents. Default: from the model's files."),
    ] = None
    model_file: Annotated[str | None, typer.Option(help="The .onnx file, if the folder or Hub repository has several.")] = None
    files_from: Annotated[
        str | None, typer.Option(help="Folder or Hub id of tokenizer and configuration, for a model without them.")
    ] = None
    model_task: Annotated[str | None, typer.Option(help="Task, if the model has several.")] = None
    max_body_bytes: Annotated[int | None, typer.Option(help="Maximum bytes of a request body. Default: 33554432.")] = None
    max_bodies_in_flight: Annotated[
        int | None, typer.Option(help="Maximum bytes of all request bodies in progress. Default: 268435456.")
    ] = None
    max_client_batch_size: Annotated[int | None, typer.Option(help="Maximum texts per request. Default: 2048.")] = None
    max_text_chars: Annotated[int | None, typer.Option(help="Maximum characters per text. Default: 1000000.")] = None
    max_request_tokens: Annotated[int | None, typer.Option(help="Maximum tokens per request. Default: 1048576.")] = None
    max_concurrent_requests: Annotated[
        int | None, typer.Option(help="Maximum requests that run or wait, per model. Default: 512.")
    ] = None
    max_queue_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens that run or wait, per model. Default: 2097152.")
    ] = None
    max_queue_seconds: Annotated[
        int | None, typer.Option(help="Maximum expected seconds in the queue, per model. Default: 30.")
    ] = None
    max_tick_tokens: Annotated[int | None, typer.Option(help="Token budget of a merged batch. Default: 4096.")] = None
    max_answer_values: Annotated[int | None, typer.Option(help="Maximum numbers per response. Default: 16777216.")] = None
    max_load_seconds: Annotated[
        int | None, typer.Option(help="Maximum seconds to load a model while the server runs. Default: 300.")
    ] = None

    def configuration(self) -> "ServerConfig":
        """Return the configuration from the file or for the single model, overridden by the other options.

        Raises:
            FileNotFoundError: the file does not exist.
            ConfigError: the configuration is invalid.
        """
        from penult.server.config import ConfigError  # noqa: PLC0415 - `penult --help` needs no pydantic, here and below
        from penult.server.config_file import override  # noqa: PLC0415

        endpoint = self.endpoint()
        if self.config is None:
            if "model" not in endpoint:
                raise ConfigError("No model is set. Pass MODEL or --config FILE.")
            config = self.from_model(endpoint)
        elif endpoint:
            names = ", ".join(endpoint)
            raise ConfigError(
                f"--config and options of a model ({names}) are mutually exclusive. Set the options in the configuration file."
            )
        else:
            config = self.from_file(self.config)
        return override(config, self.overrides(config.limits))

    def extend(self) -> "Extend | None":
        """Return the function that adds further routes to the server."""
        return None

    def endpoint(self) -> dict[str, Any]:
        """Return the options of the model, under the keys of a configuration file."""
        poolings = (self.pooling or "").split(",")
        prompts = {"query": self.query_prompt, "document": self.document_prompt}
        task = self.model_task
        values = {
            "model": self.model,
            "served_model_name": self.served_model_name,
            "precision": self.precision,
            "max_length": self.max_length,
            "truncate": self.truncate,
            "dimensions": self.dimensions,
            "normalize": self.normalize,
            "layer_norm": self.layer_norm or None,
            "pooling": self.pooling if len(poolings) == 1 else poolings,
            "prompts": {role: prompt for role, prompt in prompts.items() if prompt is not None} or None,
            "files_from": self.files_from,
            "model_file": self.model_file,
            "model_task": int(task) if task is not None and task.isdecimal() else task,
        }
        layer = {} if self.layer is None else {"layer": layer_of(self.layer)}  # None is a valid layer: the graph's own output
        return {key: value for key, value in values.items() if value is not None} | layer

    def from_model(self, endpoint: dict[str, Any]) -> "ServerConfig":
        """Return the configuration of a server with this one endpoint."""
        from penult.server.config import EndpointConfig, ServerConfig  # noqa: PLC0415
        from penult.server.config_file import Document  # noqa: PLC0415

        return ServerConfig(endpoints=(Document("", endpoint).validate(EndpointConfig),))

    def from_file(self, path: Path) -> "ServerConfig":
        """Return the configuration in a file."""
        from penult.server.config import ServerConfig  # noqa: PLC0415
        from penult.server.config_file import load  # noqa: PLC0415

        config, _ = load(path, ServerConfig)
        return config

    def overrides(self, limits: "Limits") -> dict[str, Any]:
        """Return the configuration fields that the options set; `limits` are the limits before the overrides."""
        from penult.server.config_file import override  # noqa: PLC0415

        values = {
            "host": self.host or None,
            "port": self.port,
            "api_key": os.environ.get("PENULT_API_KEY") if self.api_key is None else self.api_key,
            "allowed_hosts": _listed(self.allowed_hosts),
            "allow_origin": _listed(self.allow_origin),
            "allow_endpoints": self.allow_endpoints or None,
            "log_json": self.log_json or None,
            "threads": self.threads or None,
            "workers": self.workers,
            "keep_alive": self.keep_alive,
            "strict_model_name": self.strict_model_name or None,
            "limits": override(limits, {name: getattr(self, name) for name in type(limits).model_fields}),
        }
        return {key: value for key, value in values.items() if value is not None}


def _listed(value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


class Serve(TyperCommand):
    """A command that parses `Options` and serves. User errors are printed as one line, with exit status 2."""

    def invoke(self, ctx: Any) -> None:  # noqa: ANN401 - click's context; newer versions of typer bundle click
        """Serve until SIGTERM or SIGINT."""
        options: Options = super().invoke(ctx)
        try:
            from penult.server import serve  # noqa: PLC0415

            serve(options.configuration(), options.extend())
        except (ValueError, OSError, ModuleNotFoundError) as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name is not None
            advice = f". Install {install_hint('server')}." if missing else ""
            typer.echo(f"{ctx.command_path}: {error}{advice}", err=True)
            raise typer.Exit(_FAILED) from error


def add(app: typer.Typer, options: type[Options] = Options) -> None:
    """Add the command `serve` with these options to a command line, replacing an existing one."""
    app.command(
        "serve",
        cls=Serve,
        help="Serve embeddings over HTTP. Options accept dashes and underscores.",
        context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
    )(options)


def main(arguments: Sequence[str] | None = None, options: type[Options] = Options) -> None:
    """Run `penult.server` with command-line arguments.

    Args:
        arguments: the command line. None: this process's.
        options: the class of the allowed options.

    Raises:
        SystemExit: the command line is wrong, or the server does not start.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    add(app, options)
    try:
        app(sys.argv[1:] if arguments is None else list(arguments), prog_name="penult.server")
    except SystemExit as end:
        if end.code:  # with status 0, a program that calls this continues after the server has ended
            raise
