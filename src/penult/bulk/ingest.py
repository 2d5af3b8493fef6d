"""`penult ingest`: write an embedded file into a vector store. It is idempotent.

An entry's id depends only on its row's id, so a second run replaces what the first wrote. Ids are therefore checked before
anything is written. Each store has its own module in stores/.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from penult.bulk import tables
from penult.bulk.arrow_values import rows_of, values_of
from penult.bulk.json_text import as_text
from penult.bulk.output import output_files
from penult.bulk.repeated_ids import HashRuns, find_repeated, hashes_of
from penult.bulk.stores.base import Entries, Index, Layout, Store, VectorSpec

_NAMESPACE = uuid.UUID("8d0f3a52-6c1e-5b7e-9b0e-2f4f6b1c9a10")  # namespace of penult's ids; must never change


_ID_ROWS = 65_536  # ids read at once
_LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "qdrant": ("columns", "langchain", "llama-index"),
    "lancedb": ("columns", "langchain"),
    "pgvector": ("columns", "langchain"),
}


@dataclass(frozen=True, slots=True)
class Ingested:
    """Result of an ingest.

    Attributes:
        rows: rows read.
        entries: entries in the collection after the ingest.
        equal: rows equal to an earlier row, which share its entry; 0 if a column contains ids.
        note: why the collection has no index although one was requested.
    """

    rows: int
    entries: int
    equal: int = 0
    note: str | None = None


def ingest(
    source: Path,
    to: str,
    collection: str,
    *,
    id_column: str | None = None,
    id_suffix: Literal["row"] | None = None,
    layout: Layout = "columns",
    index: Index = "auto",
    advance: Callable[[int, int], object] | None = None,
) -> Ingested:
    """Write all rows of an embedded file into a collection; create the collection if it does not exist.

    Args:
        source: output of `penult embed`: .parquet or .lance.
        to: qdrant:PATH|URL, lancedb:PATH or pgvector:DSN.
        collection: name of the collection. In PostgreSQL, TABLE or SCHEMA.TABLE.
        id_column: column of row ids. None: as the file's metadata say; if they name none, the whole row is the id.
        id_suffix: "row" derives an entry's id from its row's id and number, for rows that are chunks of one document.
        layout: "columns" keeps the column names; "langchain" and "llama-index" use those that their vector stores read.
        index: index built after the last row. "auto": HNSW in Qdrant and PostgreSQL, IVF_FLAT in a large LanceDB table;
            "none": no index, so a search reads all vectors.
        advance: called with the number of rows written and the number of rows in the file.

    Raises:
        ValueError: the file has no vectors from penult, the store has vectors of another model or layout, or an id is null
            or repeated. Nothing has been written then.
        OSError: file or store cannot be reached, or the store rejects the request.
    """
    spec = _spec(source, layout)
    id_column = id_column or spec.metadata.get("penult.id_column") or None
    if id_column is not None and id_column not in spec.schema.names:
        raise ValueError(f"--id-column is {id_column!r}, but the columns of {source} are {', '.join(spec.schema.names)}.")
    kind, place = _target(to, spec)
    if id_column is not None:
        _check_ids(source, id_column, repeats=id_suffix is not None)
    store = _open(kind, place, collection, spec, index)
    seen = HashRuns()
    rows = 0
    try:
        total = output_files.count(source)
        for entries in _entries(source, spec, id_column, id_suffix, store.batch_rows):
            store.upsert(entries)
            seen.add(hashes_of(entries.ids))
            rows += len(entries.ids)
            if advance is not None:
                advance(rows, total)
        note = store.finish()
        return Ingested(rows, store.count(), seen.repeated()[0], note)
    finally:
        seen.close()
        store.close()


def entry_id(value: Any) -> str:  # noqa: ANN401 - any type of id
    """Return the id of an entry for the id of a row: the same on every machine and in every version."""
    return str(uuid.uuid5(_NAMESPACE, json.dumps(value, sort_keys=True, default=as_text)))


def _target(to: str, spec: VectorSpec) -> tuple[str, str]:
    kind, _, place = to.partition(":")
    if kind not in _LAYOUTS or not place:
        raise ValueError(f"--to is {to!r}. Pass qdrant:PATH, qdrant:URL, lancedb:PATH or pgvector:DSN.")
    if spec.layout not in _LAYOUTS[kind]:
        raise ValueError(f"--layout is {spec.layout}, which {kind} does not support. Pass {' or '.join(_LAYOUTS[kind])}.")
    if spec.layout != "columns" and spec.text_column is None:
        raise ValueError(f"--layout {spec.layout} needs the text column, which the file no longer has. Pass --layout columns.")
    return kind, place


def _open(kind: str, place: str, collection: str, spec: VectorSpec, index: Index) -> Store:
    if kind == "qdrant":
        from penult.bulk.stores.qdrant import Qdrant  # noqa: PLC0415 - an extra

        return Qdrant(place, collection, spec, index)
    if kind == "lancedb":
        from penult.bulk.stores.lancedb import LanceDB  # noqa: PLC0415 - an extra

        return LanceDB(place, collection, spec, index)
    from penult.bulk.stores.pgvector import PgVector  # noqa: PLC0415 - an extra

    return PgVector(place, collection, spec, index)


def _spec(source: Path, layout: Layout) -> VectorSpec:
    if source.suffix not in (".parquet", ".lance"):
        raise ValueError(f"{source} is not a .parquet or .lance file. Pass one that `penult embed` wrote.")
    metadata = output_files.metadata(source)
    if metadata is None:
        raise FileNotFoundError(f"No file at {source}. Pass a file that `penult embed` wrote.")
    column = metadata.get("penult.vector_column")
    schema = output_files.schema(source)
    if column is None or "penult.fingerprint" not in metadata:
        raise ValueError(f"{source} does not name the model of its vectors. Pass a file that `penult embed` wrote.")
    plain = schema.remove(schema.get_field_index(column)).remove_metadata()
    views = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}  # few libraries support views
    rows = pa.schema([field.with_type(views.get(field.type, field.type)) for field in plain])
    return VectorSpec(schema.field(column).type.list_size, metadata, rows, layout)


def _check_ids(source: Path, id_column: str, *, repeats: bool) -> None:
    """Raise ValueError if an id is null or, unless `repeats`, repeated. Reads the ids at most twice."""

    def batches() -> Iterator[list[Any]]:
        done = 0
        for batch in output_files.batches(source, rows=_ID_ROWS, columns=[id_column]):
            ids = values_of(batch.column(0))
            if None in ids:
                number = done + ids.index(None) + 1
                raise ValueError(
                    f"Row {number} of {source} has no id in column {id_column!r}. Fill it, or pass another --id-column."
                )
            yield ids
            done += len(ids)

    if repeats:
        for _ in batches():
            pass
        return
    repeated = find_repeated(batches)
    if repeated is not None:
        raise ValueError(
            f"The ids in column {id_column!r} of {source} are not unique: {repeated}. {repeated.rows:,} "
            f"row{'s' * (repeated.rows != 1)} would overwrite others, "
            "so nothing was written. Pass --id-suffix row if the rows are chunks of documents, or another --id-column."
        )


def _entries(
    source: Path, spec: VectorSpec, id_column: str | None, id_suffix: Literal["row"] | None, count: int
) -> Iterator[Entries]:
    count_before = 0
    for batch in output_files.batches(source, rows=count):
        table = pa.Table.from_batches([batch])
        rows = table.select(spec.schema.names).cast(spec.schema)
        documents = None if id_column is None else values_of(rows.column(id_column))
        numbered = enumerate(rows_of(rows) if documents is None else documents, count_before + 1)
        ids = [entry_id([value, number] if id_suffix else value) for number, value in numbered]
        yield Entries(ids, documents, tables.vectors_of(table.column(spec.metadata["penult.vector_column"])), rows)
        count_before += len(ids)
