"""`penult.server`: DeepSparse's command line, with what penult adds to it.

It knows options; dashes and underscores are the same.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import cast, get_args

from penult.deepsparse import config_file as configfile
from penult.server.config import ConfigError, Limits, ServerConfig, single
from penult.types import Pooling, Role

_ROLES: tuple[str, ...] = get_args(Role)
_OF_MODEL = ("pooling", "files_from", "model_file", "model_task", "prompt_query", "prompt_document")


def command(arguments: Sequence[str] | None = None) -> None:
    """Serve as the command line says; a configuration that cannot be served is one line and exit status 2."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        from penult.server import serve  # noqa: PLC0415 - it imports this package

        serve(config)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"penult.server: {error}", file=sys.stderr)  # noqa: T201 - a command's own words
        raise SystemExit(2) from None


def parse(arguments: Sequence[str]) -> ServerConfig:
    """Read a command line; what is given there stands above the file.

    Raises:
        FileNotFoundError: there is no such configuration file.
        ValueError: it says what cannot be served.
        SystemExit: it has an option that does not exist.
    """
    options = _parser().parse_args([_underscored(word) for word in arguments])
    model = options.model_path or options.model
    prompts = {role: prompt for role in _ROLES if (prompt := getattr(options, f"prompt_{role}")) is not None}
    if options.config_file is not None:
        if model is not None or options.task is not None:
            raise ConfigError("--config_file names models and tasks itself; leave out --task and --model_path, or the file.")
        given = [f"--{name}" for name in _OF_MODEL if getattr(options, name) is not None]
        if given:
            raise ConfigError(f"{', '.join(given)} given with --config_file; write it into the endpoint that it is for.")
        config = configfile.read(options.config_file)
    elif model is not None:
        endpoint = replace(
            single(model, options.task),
            pooling=options.pooling,
            prompts=prompts or None,
            files_from=options.files_from,
            model_file=options.model_file,
            model_task=options.model_task,
        )
        config = ServerConfig(endpoints=(endpoint,))
    else:
        raise ConfigError("No model is named; give --model_path MODEL or --config_file FILE.")
    for name in ("batch_size", "num_workers", "log_level", "hot_reload_config"):
        if getattr(options, name):
            print(f"penult.server: --{name} is accepted and has no meaning here", file=sys.stderr)  # noqa: T201
    limits = {field.name: value for field in fields(Limits) if (value := getattr(options, field.name)) is not None}
    host, port = options.host or config.host, config.port if options.port is None else options.port
    return replace(
        config,
        host=host,
        port=port,
        api_key=options.api_key or os.environ.get("PENULT_API_KEY") or None,
        log_json=options.log_json or config.log_json,
        threads=options.num_cores or config.threads,
        integration=config.integration if options.integration in (None, "openai") else options.integration,
        limits=replace(config.limits, **limits),
    )


def _underscored(word: str) -> str:
    name, sign, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + sign + value if word.startswith("--") and len(word) > 2 else word


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penult.server",
        description="Serve embeddings over HTTP: the routes of DeepSparse, OpenAI and Text Embeddings Inference.",
        epilog="Dashes and underscores in options are the same. The key may also stand in PENULT_API_KEY.",
    )
    parser.add_argument("model", nargs="?", help="the same as --model_path")
    parser.add_argument("--model_path", help="folder, .onnx file, Hub id, package:NAME or zoo: stub")
    parser.add_argument("--task", help="transformers_embedding_extraction: open the model for DeepSparse's routes first")
    parser.add_argument("--config_file", help="a YAML file with endpoints, as DeepSparse reads it")
    parser.add_argument("--host", help="0.0.0.0 unless told; 127.0.0.1: this machine alone")
    parser.add_argument("--port", type=int, help="5543 unless told; 0: any that is free")
    parser.add_argument("--api_key", help="clients must send it as `Authorization: Bearer KEY`")
    parser.add_argument("--log_json", action="store_true", help="log lines are JSON objects")
    names = ", ".join(get_args(Pooling))
    parser.add_argument("--pooling", type=_pooling, help=f"for a model whose files do not say: {names}; several with commas")
    parser.add_argument("--prompt_query", metavar="TEXT", help="put before queries; as the model's files say unless told")
    parser.add_argument("--prompt_document", metavar="TEXT", help="put before documents; as the model's files say unless told")
    parser.add_argument("--model_file", help="the .onnx file, of several in the folder or on the Hub")
    parser.add_argument("--files_from", help="folder or Hub id with tokenizer and configuration, for a model without them")
    parser.add_argument("--model_task", type=_task, help="the task of a model that has several")
    parser.add_argument("--num_cores", type=int, help="threads of a model; the physical cores unless told")
    parser.add_argument(
        "--integration", choices=["local", "sagemaker", "openai"], help="as DeepSparse's; openai is always there"
    )
    for name in ("batch_size", "num_workers", "log_level"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--hot_reload_config", action="store_true", help=argparse.SUPPRESS)
    limits = parser.add_argument_group("limits")
    for field in fields(Limits):
        limits.add_argument(f"--{field.name}", type=int, help=f"{field.default} unless told")
    return parser


def _pooling(text: str) -> Pooling | tuple[Pooling, ...]:
    names = text.split(",")
    wrong = [name for name in names if name not in get_args(Pooling)]
    if wrong:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(get_args(Pooling))}")
    return cast("Pooling", text) if len(names) == 1 else tuple(cast("list[Pooling]", names))


def _task(text: str) -> str | int:
    return int(text) if text.isdecimal() else text
