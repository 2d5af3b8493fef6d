"""`penult embed` and `penult ingest` on the command line: options in, one sentence and an exit status out.

Exit status: 0 every row has a vector; 3 the job is finished and some rows were rejected; 1 it did not finish.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from penult.types import Pooling, Role

_POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
_REJECTED = 3
_FAILED = 1


def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="IN...", help="Parquet, Lance, JSONL, CSV or text files, folders, globs, or - for a pipe."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The output: .parquet, .lance, .npy or .jsonl.")],
    *,
    model: Annotated[str, typer.Option(help="A folder, an .onnx file, a Hub id or package:NAME[/folder].")],
    text_column: Annotated[str, typer.Option(help="The column of the texts.")] = "text",
    id_column: Annotated[str | None, typer.Option(help="Names a row in a vector store. Default: id, if there is one.")] = None,
    vector_column: Annotated[str, typer.Option(help="The column that the vectors go to.")] = "embedding",
    role: Annotated[
        Literal["document", "query"], typer.Option(help="What the texts are for; decides the prompt.")
    ] = "document",
    prompt: Annotated[
        str | None, typer.Option(help="Put before each text. Default: the model's own prompt for the role.", metavar="TEXT")
    ] = None,
    prompt_query: Annotated[
        str | None, typer.Option(help="The prompt of the role query; with --prompt-document, names both.", metavar="TEXT")
    ] = None,
    prompt_document: Annotated[
        str | None, typer.Option(help="The prompt of the role document; the fingerprint has both.", metavar="TEXT")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help=f"{', '.join(_POOLINGS)}, or several with commas. Default: as the model's files say.")
    ] = None,
    model_file: Annotated[str | None, typer.Option(help="The .onnx file, where the model has several.")] = None,
    files_from: Annotated[
        str | None, typer.Option(help="Folder or Hub id with tokenizer and configuration, for a model without them.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="The task of a model that has several.")] = None,
    normalize: Annotated[bool | None, typer.Option(help="Vectors of length 1. Default: as the model's files say.")] = None,
    layer_norm: Annotated[
        bool, typer.Option("--layer-norm", help="A layer norm before --dimensions, as some cards ask.")
    ] = False,
    precision: Annotated[Literal["fp32", "int8"], typer.Option(help="Of the arithmetic.")] = "fp32",
    dimensions: Annotated[int | None, typer.Option(help="Keep only the leading values.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of a text. Default: as the model's files say.")] = None,
    truncate: Annotated[
        Literal["error", "warn", "right", "left"], typer.Option(help="A longer text is rejected (error), or cut and counted.")
    ] = "warn",
    batch_tokens: Annotated[
        int | None, typer.Option(help="Most padded tokens of a batch. Default: 512, with int8 256.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; they share the machine's cores.")] = 1,
    shard_rows: Annotated[int | None, typer.Option(help="Rows that a crash may cost. Default: by the texts' length.")] = None,
    format_: Annotated[
        Literal["parquet", "lance", "jsonl", "csv", "text"] | None,
        typer.Option("--format", help="Of inputs whose ending says nothing. A pipe is jsonl by default."),
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="OLD", help="An older output: equal texts keep their vectors.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume/--overwrite", help="Go on with an unfinished job, or start anew.")] = True,
    progress: Annotated[
        Literal["auto", "json", "off"], typer.Option(help="auto: a bar on a terminal, else nothing; json: a line a shard.")
    ] = "auto",
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Processes of this machine, or Ray Data.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; auto finds the one this machine is in.")] = None,
) -> None:
    """Turn files of texts into one file of rows with vectors. A job that was stopped goes on where it was."""
    from penult.bulk.embed import Request, StoppedError, embed_files  # noqa: PLC0415 - `penult --help` stays quick
    from penult.bulk.job.pool import WorkError  # noqa: PLC0415
    from penult.bulk.options import Columns, Model  # noqa: PLC0415

    try:
        prompts = _prompts(role, prompt, {"query": prompt_query, "document": prompt_document})
        request = Request(
            inputs=tuple(inputs),
            out=out,
            model=Model(
                model,
                precision=precision,
                dimensions=dimensions,
                max_length=max_length,
                truncate=truncate,
                max_batch_tokens=batch_tokens,
                pooling=_pooling(pooling),
                query_prompt=prompts["query"],
                document_prompt=prompts["document"],
                files_from=files_from,
                model_file=model_file,
                task=int(task) if task is not None and task.isdecimal() else task,
                normalize=normalize,
                layer_norm=layer_norm,
            ),
            columns=Columns(text_column, vector_column, role),
            id_column=id_column,
            format=format_,
            old=from_,
            shard_rows=shard_rows,
            workers=workers,
            overwrite=not resume,
            shown=progress,
            engine=engine,
            address=address,
        )
        summary = embed_files(request)
    except (StoppedError, WorkError, ValueError, OSError, ImportError) as error:
        _end({"event": "failed", "message": str(error)}, str(error), json_=progress == "json")
        raise typer.Exit(_FAILED) from error
    totals, rejected = summary.totals, f"{out}.rejected.jsonl"
    parts = [f"{totals.rows:,} rows in {out}"]
    parts += [f"{totals.rejected:,} rejected, see {rejected}"] * (totals.rejected > 0)
    parts += [f"{totals.cut:,} cut at {summary.max_length} tokens"] * (totals.cut > 0)
    parts += [f"{totals.taken:,} taken over from {from_}"] * (totals.taken > 0)
    rate = summary.rows_per_second
    parts += ["finished before, nothing to do"] if rate is None else [f"{rate:,.0f} rows a second"] * (rate > 0)
    said = {"event": "done", "out": str(out), "rejected_file": rejected if totals.rejected else None}
    _end(said | asdict(totals), "; ".join(parts), json_=progress == "json")
    if totals.rejected:
        raise typer.Exit(_REJECTED)


def ingest(
    source: Annotated[Path, typer.Argument(metavar="IN", help="What `penult embed` wrote: .parquet or .lance.")],
    *,
    to: Annotated[str, typer.Option(help="qdrant:PATH|URL, lancedb:PATH or pgvector:DSN.")],
    collection: Annotated[str, typer.Option(help="Its name; made where there is none. pgvector: TABLE or SCHEMA.TABLE.")],
    id_column: Annotated[str | None, typer.Option(help="Names a row. Default: as the file says, else its content.")] = None,
    id_suffix: Annotated[
        Literal["row"] | None, typer.Option(help="row: an entry's id is its row's id and number, for chunks of documents.")
    ] = None,
    layout: Annotated[
        Literal["columns", "langchain", "llama-index"],
        typer.Option(help="Names of text and metadata: the file's columns, or those that a framework's vector store reads."),
    ] = "columns",
    index: Annotated[
        Literal["auto", "hnsw", "none"],
        typer.Option(help="auto: HNSW, in LanceDB IVF_FLAT from 100,000 rows on; none: every search reads all vectors."),
    ] = "auto",
    progress: Annotated[Literal["auto", "off"], typer.Option(help="auto: a bar on a terminal.")] = "auto",
) -> None:
    """Write an embedded file into a vector store. Running it again changes nothing."""
    from penult.bulk.ingest import ingest as ingest_  # noqa: PLC0415 - `penult --help` stays quick

    try:
        done = ingest_(
            source,
            to,
            collection,
            id_column=id_column,
            id_suffix=id_suffix,
            layout=layout,
            index=index,
            progress=progress == "auto" and sys.stderr.isatty(),
        )
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"penult: {error}", err=True)
        raise typer.Exit(_FAILED) from error
    parts = [f"{done.rows:,} rows read", f"{collection} has {done.entries:,} entries"]
    parts += [f"{done.equal:,} rows equal an earlier one and share its entry"] * (done.equal > 0)
    parts += [done.note] if done.note is not None else []
    typer.echo(f"penult: {'; '.join(parts)}", err=True)


def _prompts(role: Role, prompt: str | None, named: dict[Role, str | None]) -> dict[Role, str | None]:
    """Return the prompt of each role; `prompt` is that of the chosen one."""
    if prompt is not None and named[role] is not None:
        raise ValueError(f"--prompt and --prompt-{role} are both given; give one of the two.")
    return named if prompt is None else {**named, role: prompt}


def _pooling(text: str | None) -> Pooling | tuple[Pooling, ...] | None:
    """Read one pooling, or several with commas."""
    if text is None:
        return None
    given = text.split(",")
    known = tuple(name for part in given for name in _POOLINGS if name == part)
    if len(known) != len(given):
        raise ValueError(f"--pooling is {text!r}; it must be one of {', '.join(_POOLINGS)}, or several with commas.")
    return known[0] if len(known) == 1 else known


def _end(values: dict[str, object], sentence: str, *, json_: bool) -> None:
    """Say the last line."""
    typer.echo(json.dumps(values) if json_ else f"penult: {sentence}", err=True)
