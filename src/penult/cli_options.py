"""The options of `Embedder.load` on the command line, for every command that loads a model."""

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


def layer_of(text: str) -> int | str | None:
    """Parse --layer.

    Raises:
        ValueError: the value is empty.
    """
    if not text.strip():
        raise ValueError("--layer is empty; it must be a number, a tensor's name, or none.")
    if text.lower() == "none":
        return None
    return int(text) if text.removeprefix("-").isdecimal() else text


def pooling_of(text: str | None) -> Pooling | tuple[Pooling, ...] | None:
    """Parse --pooling: one, or several separated by commas.

    Raises:
        ValueError: unknown pooling.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    known = tuple(pooling for name in names for pooling in _POOLINGS if pooling == name)
    if len(known) != len(names):
        raise ValueError(f"--pooling is {text!r}; it must be one of {', '.join(_POOLINGS)}, or several with commas.")
    return known[0] if len(known) == 1 else known


def task_of(text: str | None) -> str | int | None:
    """Parse --task: a name or a number."""
    return int(text) if text is not None and text.isdecimal() else text


def prompts_of(query: str | None, document: str | None) -> dict[str, str] | None:
    """Return the prompts of --query-prompt and --document-prompt; None if neither is set."""
    given: dict[Role, str | None] = {"query": query, "document": document}
    return {role: prompt for role, prompt in given.items() if prompt is not None} or None
