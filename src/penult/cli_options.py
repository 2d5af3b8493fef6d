"""Options and words that the commands share: those of `Embedder.load`, and its messages in the command line's own words."""

import re
from typing import Annotated, Literal, get_args

import typer

from penult.types import Pooling, Role

_POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

Model = Annotated[str, typer.Argument(help="A folder, an .onnx file, a Hub id (org/name[@revision]) or package:NAME[/folder].")]
Layer = Annotated[
    str,
    typer.Option(
        help="Hidden state: -1 the last, 0 the embedding output, n, a tensor's name, or none (the graph's own output)."
    ),
]
Poolings = Annotated[
    str | None, typer.Option(help=f"{', '.join(_POOLINGS)}, or several with commas. Default: as the model's files say.")
]
ModelFile = Annotated[str | None, typer.Option(help="Which graph, such as onnx/model_int8.onnx. Default: the usual one.")]
FilesFrom = Annotated[
    str | None, typer.Option(help="A folder or Hub id whose files say how the model is used, for mirrors in ONNX.")
]
Normalize = Annotated[
    bool | None, typer.Option("--normalize/--no-normalize", help="Vectors of length 1. Default: as the model's files say.")
]
LayerNorm = Annotated[bool, typer.Option("--layer-norm", help="A layer norm before --dimensions, as some cards ask.")]
Dimensions = Annotated[int | None, typer.Option(help="Keep only the leading values.")]
MaxLength = Annotated[int | None, typer.Option(help="Most tokens of a text. Default: as the model's files say.")]
Truncate = Annotated[
    Literal["error", "warn", "right", "left"], typer.Option(help="A longer text is rejected (error), or cut and counted.")
]
Precision = Annotated[Literal["fp32", "int8"], typer.Option(help="Arithmetic precision.")]
QueryPrompt = Annotated[
    str | None,
    typer.Option("--query-prompt", "--prompt-query", metavar="TEXT", help="Put before queries. Default: as the files say."),
]
DocumentPrompt = Annotated[
    str | None,
    typer.Option(
        "--document-prompt",
        "--prompt-document",
        metavar="TEXT",
        help="Put before documents. Default: as the files say.",
    ),
]
Task = Annotated[str | None, typer.Option(help="The task of a model that has several.")]

_EXTRAS = {
    "pyarrow": "parquet", "lance": "lance", "ray": "ray", "qdrant_client": "qdrant", "lancedb": "lancedb",
    "psycopg": "pgvector", "torch": "export", "onnxscript": "export", "sentencepiece": "sentencepiece",
    **dict.fromkeys(("fastapi", "fastapi_offline", "uvicorn", "pydantic", "orjson", "prometheus_client", "yaml"), "server"),
}  # fmt: skip
"""Extra that installs a package, by the name under which it is imported."""

_OPTIONS = {
    **{name: name for name in ("layer", "pooling", "precision", "truncate", "dimensions", "normalize", "task", "threads")},
    "max_length": "max-length", "layer_norm": "layer-norm", "model_file": "model-file", "files_from": "files-from",
    "max_batch_tokens": "batch-tokens",
}  # fmt: skip
"""Option of an argument of `Embedder.load`, where there is one."""

_NAME = f"(?P<name>{'|'.join(_OPTIONS)})"
_ASSIGNED = re.compile(rf"\b{_NAME}(?P<sign>=|<=)(?P<value>'[^']*'|True|False|None|[^\s,;.)]+)")
_NAMED = re.compile(rf"(?P<before>^|[.;:] |\bLeave |\band |\blower ){_NAME}(?= is | was | out\b|\.$| and \w+ out\b)")


def layer_of(text: str) -> int | str | None:
    """Read --layer."""
    if text.lower() == "none":
        return None
    return int(text) if text.removeprefix("-").isdecimal() else text


def pooling_of(text: str | None) -> Pooling | tuple[Pooling, ...] | None:
    """Read --pooling: one, or several with commas.

    Raises:
        ValueError: another pooling.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    known = tuple(pooling for name in names for pooling in _POOLINGS if pooling == name)
    if len(known) != len(names):
        raise ValueError(f"--pooling is {text!r}; it must be one of {', '.join(_POOLINGS)}, or several with commas.")
    return known[0] if len(known) == 1 else known


def task_of(text: str | None) -> str | int | None:
    """Read --task: a name or a number."""
    return int(text) if text is not None and text.isdecimal() else text


def prompts_of(query: str | None, document: str | None) -> dict[str, str] | None:
    """Read --query-prompt and --document-prompt; None where neither is given."""
    given: dict[Role, str | None] = {"query": query, "document": document}
    return {role: prompt for role, prompt in given.items() if prompt is not None} or None


def sentence_of(error: BaseException) -> str:
    """Return an error's message in the words of the command line; a package that is missing by the extra that installs it."""
    if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").partition(".")[0]) in _EXTRAS:
        extra = _EXTRAS[package]
        return f"{package} is not installed. Install the extra: pip install 'penult[{extra}]'."
    return in_options(str(error))


def in_options(message: str) -> str:
    """Return a message with options in place of the arguments of `Embedder.load`: --pooling mean, not pooling='mean'."""
    message = message.replace("pass prompts=", "pass --query-prompt or --document-prompt")
    return _NAMED.sub(lambda match: f"{match['before']}--{_OPTIONS[match['name']]}", _ASSIGNED.sub(_as_option, message))


def _as_option(match: re.Match[str]) -> str:
    option, value = _OPTIONS[match["name"]], match["value"].strip("'")
    if match["sign"] == "<=":
        return f"--{option} <= {value}"
    if value in ("True", "False"):
        return f"--{'no-' * (value == 'False')}{option}"
    return f"--{option} {'none' if value == 'None' else value}"
