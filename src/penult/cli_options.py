"""The options of `Embedder.load` on the command line, for every command that loads a model."""

from typing import Annotated, Literal, get_args

import typer

from penult.types import Pooling, Role

_POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

MODEL_HELP = "Model folder, .onnx file, Hub id (org/name[@revision]), or package:NAME[/folder] for files in a Python package."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Layer = Annotated[
    str,
    typer.Option(
        metavar="LAYER",
        help="Hidden state to pool: -1 = last layer, 0 = embedding output, N = layer N, a tensor name, or none = the graph's "
        "own output.",
    ),
]
Poolings = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help=f"Pooling of the token vectors: {', '.join(_POOLINGS)}; or several, separated by commas (concatenated). Default: "
        "from the model's files.",
    ),
]
ModelFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The .onnx file to use, if the model has several, for example onnx/model_int8.onnx. Default: onnx/model.onnx or "
        "model.onnx.",
    ),
]
FilesFrom = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="Folder or Hub id to read tokenizer and configuration from, if the ONNX model lacks them."
    ),
]
Normalize = Annotated[
    bool | None,
    typer.Option("--normalize/--no-normalize", help="Whether to scale vectors to length 1. Default: from the model's files."),
]
LayerNorm = Annotated[
    bool,
    typer.Option(
        "--layer-norm", help="Apply layer normalization before truncation to --dimensions, if the model card requires it."
    ),
]
Dimensions = Annotated[
    int | None, typer.Option(help="Keep only the first N values of each vector (Matryoshka). Default: all.", metavar="N")
]
MaxLength = Annotated[int | None, typer.Option(metavar="N", help="Maximum tokens per text. Default: from the model's files.")]
Truncate = Annotated[
    Literal["error", "warn", "right", "left"],
    typer.Option(
        help="Text longer than --max-length: error = reject it; warn = truncate as the model's files say, and count it; right "
        "or left = truncate that end, and count it."
    ),
]
Precision = Annotated[
    Literal["fp32", "int8"], typer.Option(help="Arithmetic precision; int8 is faster, with slightly different vectors.")
]
QueryPrompt = Annotated[
    str | None,
    typer.Option(
        "--query-prompt", "--prompt-query", metavar="TEXT", help="Prompt before each query. Default: from the model's files."
    ),
]
DocumentPrompt = Annotated[
    str | None,
    typer.Option(
        "--document-prompt",
        "--prompt-document",
        metavar="TEXT",
        help="Prompt before each document. Default: from the model's files.",
    ),
]
Task = Annotated[
    str | None, typer.Option(metavar="TASK", help="Task (name or number), for models with several, such as jina-embeddings-v3.")
]


def layer_of(text: str) -> int | str | None:
    """Parse --layer.

    Raises:
        ValueError: the value is empty.
    """
    if not text.strip():
        raise ValueError("--layer is empty. Pass a number, a tensor name, or none.")
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
        raise ValueError(f"--pooling is {text!r}. Pass one of {', '.join(_POOLINGS)}, or several separated by commas.")
    return known[0] if len(known) == 1 else known


def task_of(text: str | None) -> str | int | None:
    """Parse --task: a name or a number."""
    return int(text) if text is not None and text.isdecimal() else text


def prompts_of(query: str | None, document: str | None) -> dict[str, str] | None:
    """Return the prompts of --query-prompt and --document-prompt; None if neither is set."""
    by_role: dict[Role, str | None] = {"query": query, "document": document}
    return {role: prompt for role, prompt in by_role.items() if prompt is not None} or None
