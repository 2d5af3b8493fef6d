"""The commands `penult embed` and `penult ingest`: they read options, print one sentence and return an exit status.

Exit status: 0 every row has a vector; 3 the job finished and some rows were rejected; 1 the job did not finish.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from penult.bulk.job.errors import StoppedError, WorkError
from penult.cli_options import (
    Dimensions,
    DocumentPrompt,
    FilesFrom,
    Layer,
    LayerNorm,
    MaxLength,
    ModelFile,
    Normalize,
    Poolings,
    Precision,
    QueryPrompt,
    Task,
    Truncate,
    layer_of,
    pooling_of,
    task_of,
)  # fmt: skip
from penult.cli_words import sentence_of
from penult.extras import install_hint
from penult.progress_bar import rows_written
from penult.types import Role

_REJECTED = 3
_FAILED = 1


def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="IN...", help="Parquet, Lance, JSON, CSV, text, Markdown...; folders, globs, or - for a pipe."),
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The output: .parquet, .lance, .npy or .jsonl; never an input."),
    ],
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
    prompt_name: Annotated[
        str | None, typer.Option(help="The name of a prompt in the model's files, to put before each text.", metavar="NAME")
    ] = None,
    query_prompt: QueryPrompt = None,
    document_prompt: DocumentPrompt = None,
    layer: Layer = "-1",
    pooling: Poolings = None,
    normalize: Normalize = None,
    layer_norm: LayerNorm = False,
    dimensions: Dimensions = None,
    max_length: MaxLength = None,
    truncate: Truncate = "warn",
    precision: Precision = "fp32",
    task: Task = None,
    model_file: ModelFile = None,
    files_from: FilesFrom = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Most padded tokens of a batch. Default: 512, with int8 256.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; they share the machine's cores.")] = 1,
    shard_rows: Annotated[
        int | None, typer.Option(help="Rows of a shard, the unit of work. Default: by the texts' length.")
    ] = None,
    format_: Annotated[
        Literal["parquet", "lance", "jsonl", "json", "csv", "tsv", "text", "document"] | None,
        typer.Option("--format", help="Of inputs whose ending says nothing. A pipe is jsonl by default."),
    ] = None,
    encoding: Annotated[
        str, typer.Option(help="Of text, CSV and JSON files without a byte order mark: utf-8, latin-1, cp1252, shift_jis, ...")
    ] = "utf-8",
    max_row_bytes: Annotated[int, typer.Option(help="A row with more bytes is rejected, and never held whole.")] = 8_000_000,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="OLD", help="An older output: equal texts keep their vectors.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume/--overwrite", help="Go on with an unfinished job, or start anew.")] = True,
    progress: Annotated[
        Literal["auto", "json", "off"],
        typer.Option(help="auto: a bar on a terminal, else a line every 10 s; json: a line a shard, and every 10 s."),
    ] = "auto",
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Processes of this machine, or Ray Data.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; auto finds the one this machine is in.")] = None,
) -> None:
    """Turn files of texts into one file of rows with vectors. A job that was stopped goes on where it was.

    Exit status: 0 every row has a vector; 3 some rows were rejected, and OUT.rejected.jsonl says why; 1 the job did not finish.
    """
    with _one_sentence("nothing was begun, and what an earlier run had done is kept.", json_=progress == "json"):
        from penult.bulk.options import Columns, Model, ReadOptions  # noqa: PLC0415 - `penult --help` stays quick
        from penult.bulk.request import Request  # noqa: PLC0415

        if find_spec("pyarrow") is None:
            from penult.bulk.plain_job import embed_files  # noqa: PLC0415
        else:
            from penult.bulk.embed import embed_files  # noqa: PLC0415

        loaded = Model(
            model,
            precision=precision,
            dimensions=dimensions,
            max_length=max_length,
            truncate=truncate,
            max_batch_tokens=batch_tokens,
            pooling=pooling_of(pooling),
            files_from=files_from,
            model_file=model_file,
            task=task_of(task),
            normalize=normalize,
            layer_norm=layer_norm,
            layer=layer_of(layer),
        )
        if prompt_name is not None:
            if prompt is not None:
                raise ValueError("--prompt and --prompt-name are both given; give one of the two.")
            prompt = loaded.named_prompt(prompt_name)
        request = Request(
            inputs=tuple(inputs),
            out=out,
            model=loaded.with_prompts(_prompts(role, prompt, {"query": query_prompt, "document": document_prompt})),
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
            reading=ReadOptions(encoding, max_row_bytes),
        )
        summary = embed_files(request)
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
) -> None:
    """Write an embedded file into a vector store. Running it again changes nothing."""
    with _one_sentence("run it again to write the rest; no row is doubled."):
        if find_spec("pyarrow") is None:
            extra = to.partition(":")[0] if to.startswith(("qdrant:", "lancedb:", "pgvector:")) else "parquet"
            raise ImportError(f"`penult ingest` needs {install_hint(extra)}.")
        from penult.bulk.ingest import ingest as ingest_  # noqa: PLC0415 - `penult --help` stays quick

        with rows_written(collection) as advance:
            done = ingest_(
                source, to, collection, id_column=id_column, id_suffix=id_suffix, layout=layout, index=index, advance=advance
            )
    parts = [f"{done.rows:,} rows read", f"{collection} has {done.entries:,} entries"]
    parts += [f"{done.equal:,} rows equal an earlier one and share its entry"] * (done.equal > 0)
    parts += [done.note] if done.note is not None else []
    typer.echo(f"penult: {'; '.join(parts)}", err=True)


@contextmanager
def _one_sentence(interrupted: str, *, json_: bool = False) -> Iterator[None]:
    """Report user errors and SIGINT as one sentence with exit status 1."""
    try:
        yield
    except (StoppedError, WorkError, ValueError, OSError, ImportError, KeyboardInterrupt) as error:
        sentence = f"interrupted; {interrupted}" if isinstance(error, KeyboardInterrupt) else sentence_of(error)
        _end({"event": "failed", "message": sentence}, sentence, json_=json_)
        raise typer.Exit(_FAILED) from error


def _prompts(role: Role, prompt: str | None, named: dict[Role, str | None]) -> dict[Role, str | None]:
    """Return the prompt of each role; `prompt` applies to `role`."""
    if prompt is not None and named[role] is not None:
        raise ValueError(f"--prompt and --prompt-{role} are both given; give one of the two.")
    return named if prompt is None else {**named, role: prompt}


def _end(values: dict[str, object], sentence: str, *, json_: bool) -> None:
    """Print the last line."""
    typer.echo(json.dumps(values) if json_ else f"penult: {sentence}", err=True)
