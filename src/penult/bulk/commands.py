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
    MODEL_HELP,
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
        typer.Argument(
            metavar="IN",
            help="Input: files, folders (recursive), globs, or - for standard input (JSON Lines). Formats: Parquet, Lance, "
            "JSON, JSON Lines, CSV, TSV, text, Markdown, HTML, PDF.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Output: a path that ends in .parquet, .lance, .npy or .jsonl."),
    ],
    *,
    model: Annotated[str, typer.Option(metavar="MODEL", help=MODEL_HELP)],
    text_column: Annotated[str, typer.Option(metavar="NAME", help="Column of the texts; a.b is field b of column a.")] = "text",
    id_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of the row ids, for vector stores. Default: id, if the input has it."),
    ] = None,
    vector_column: Annotated[str, typer.Option(metavar="NAME", help="Name of the new column with the vectors.")] = "embedding",
    role: Annotated[
        Literal["document", "query"], typer.Option(help="Role of the texts; selects the model's prompt.")
    ] = "document",
    prompt: Annotated[
        str | None, typer.Option(help="Prompt before each text. Default: the model's prompt for --role.", metavar="TEXT")
    ] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="Use the prompt of this name in the model's files.", metavar="NAME")
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
        int | None, typer.Option(metavar="N", help="Maximum tokens per batch, padding included. Default: 512; 256 with int8.")
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", help="Worker processes. Each loads the model; the CPU cores are divided among them.")
    ] = 1,
    shard_rows: Annotated[
        int | None,
        typer.Option(metavar="N", help="Rows per shard, the unit of work. Default: 64 to 4096, by the length of the texts."),
    ] = None,
    format_: Annotated[
        Literal["parquet", "lance", "jsonl", "json", "csv", "tsv", "text", "document"] | None,
        typer.Option("--format", help="Format of input files without a known extension. Default for standard input: jsonl."),
    ] = None,
    encoding: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Encoding of text, CSV and JSON files, for example latin-1, cp1252 or shift_jis. A byte order mark overrides "
            "it.",
        ),
    ] = "utf-8",
    max_row_bytes: Annotated[
        int, typer.Option(metavar="N", help="Maximum bytes per row; longer rows are rejected.")
    ] = 8_000_000,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="OLD",
            help="Earlier output (.parquet or .lance) of the same model; vectors of unchanged texts are reused from it.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--overwrite", help="Resume an unfinished job, or delete it and any existing output and start again."
        ),
    ] = True,
    progress: Annotated[
        Literal["auto", "json", "off"],
        typer.Option(
            help="Progress on standard error: auto = a bar on a terminal, else a line every 10 s; json = JSON lines, one per "
            "shard and every 10 s; off = none."
        ),
    ] = "auto",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Run in processes on this machine (local), or on a Ray cluster (ray).")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster address; auto = the cluster of this machine. Default: start a cluster on this machine.",
        ),
    ] = None,
) -> None:
    """Embed files of texts into one file of rows with vectors.

    If the job is interrupted, run the same command again to resume it.

    Exit status: 0 = every row has a vector; 3 = some rows were rejected (reasons in OUT.rejected.jsonl); 1 = the job did not
    finish.
    """
    with _one_sentence("no work was done in this run, and the work of earlier runs is kept.", json_=progress == "json"):
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
                raise ValueError("--prompt and --prompt-name are both set. Pass only one of them.")
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
    parts += [f"{totals.rejected:,} rejected, reasons in {rejected}"] * (totals.rejected > 0)
    parts += [f"{totals.cut:,} truncated to {summary.max_length} tokens"] * (totals.cut > 0)
    parts += [f"{totals.taken:,} vectors reused from {from_}"] * (totals.taken > 0)
    rate = summary.rows_per_second
    parts += ["already finished, nothing to do"] if rate is None else [f"{rate:,.0f} rows/s"] * (rate > 0)
    event = {"event": "done", "out": str(out), "rejected_file": rejected if totals.rejected else None}
    _end(event | asdict(totals), "; ".join(parts), json_=progress == "json")
    if totals.rejected:
        raise typer.Exit(_REJECTED)


def ingest(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Output of `penult embed`: a .parquet file or a .lance folder.")],
    *,
    to: Annotated[
        str, typer.Option(metavar="STORE", help="Vector store: qdrant:FOLDER, qdrant:URL, lancedb:FOLDER or pgvector:DSN.")
    ],
    collection: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Collection or table; created if it does not exist. With pgvector: TABLE or SCHEMA.TABLE."
        ),
    ],
    id_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column of the row ids. Default: the id column of `penult embed`; without one, an id is the hash of its row.",
        ),
    ] = None,
    id_suffix: Annotated[
        Literal["row"] | None,
        typer.Option(help="row = add the row number to each id, for rows that are chunks of documents and share ids."),
    ] = None,
    layout: Annotated[
        Literal["columns", "langchain", "llama-index"],
        typer.Option(
            help="Names of the stored fields: as the file's columns, or as LangChain's or LlamaIndex's vector store reads them."
        ),
    ] = "columns",
    index: Annotated[
        Literal["auto", "hnsw", "none"],
        typer.Option(
            help="Index for searches: auto = HNSW, in LanceDB IVF_FLAT from 100,000 rows; hnsw = HNSW; none = scan all vectors."
        ),
    ] = "auto",
) -> None:
    """Write an output of `penult embed` into a vector store.

    Idempotent: running the same command again changes nothing.
    """
    with _one_sentence("run the same command again to write the remaining rows. No row is written twice."):
        if find_spec("pyarrow") is None:
            extra = to.partition(":")[0] if to.startswith(("qdrant:", "lancedb:", "pgvector:")) else "parquet"
            raise ImportError(f"`penult ingest` needs {install_hint(extra)}.")
        from penult.bulk.ingest import ingest as ingest_  # noqa: PLC0415 - `penult --help` stays quick

        with rows_written(collection) as advance:
            result = ingest_(
                source, to, collection, id_column=id_column, id_suffix=id_suffix, layout=layout, index=index, advance=advance
            )
    parts = [f"{result.rows:,} rows read", f"{collection} has {result.entries:,} entries"]
    parts += [f"{result.equal:,} rows are equal to an earlier row and share its entry"] * (result.equal > 0)
    parts += [result.note] if result.note is not None else []
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
        raise ValueError(f"--prompt and --prompt-{role} are both set. Pass only one of them.")
    return named if prompt is None else {**named, role: prompt}


def _end(values: dict[str, object], sentence: str, *, json_: bool) -> None:
    """Print the last line."""
    typer.echo(json.dumps(values) if json_ else f"penult: {sentence}", err=True)
