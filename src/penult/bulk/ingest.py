"""`penult ingest`: write an embedded file into a vector store; running it again changes nothing.

An entry's id is a function of its row's id alone, so a second run replaces what the first wrote. Each store has a file of its
own in stores/.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from penult.bulk import tables
from penult.bulk.output import output_files
from penult.bulk.output.writers import as_text
from penult.bulk.stores.base import Entries, Store, VectorSpec

_NAMESPACE = uuid.UUID("8d0f3a52-6c1e-5b7e-9b0e-2f4f6b1c9a10")  # of our ids: drawn once, never to be changed
STORES = ("qdrant", "lancedb", "pgvector")


@dataclass(frozen=True, slots=True)
class Ingested:
    """How many rows were read, and how many entries the collection has now."""

    rows: int
    entries: int


def ingest(
    source: Path, to: str, collection: str, *, id_column: str | None = None, advance: Callable[[int, int], object] | None = None
) -> Ingested:
    """Write all rows of an embedded file into a collection; make it where there is none.

    Args:
        source: what `penult embed` wrote: .parquet or .lance.
        to: qdrant:PATH|URL, lancedb:PATH or pgvector:DSN.
        collection: its name.
        id_column: names a row. None: as the file says, and where it names none, the whole row is its id.
        advance: called with the rows that are written, and those of the file.

    Raises:
        ValueError: the file has no vectors of penult, the store holds vectors of another model, or an id is null.
        OSError: file or store cannot be reached.
    """
    spec = _spec(source)
    id_column = id_column or spec.metadata.get("penult.id_column") or None
    if id_column is not None and id_column not in spec.schema.names:
        raise ValueError(f"The column {id_column!r} is not in {source}; it has {', '.join(spec.schema.names)}.")
    store = _open(to, collection, spec)
    rows = 0
    try:
        for entries in _entries(source, spec, id_column, store.batch_rows):
            store.upsert(entries)
            rows += len(entries.ids)
            if advance is not None:
                advance(rows, int(spec.metadata.get("penult.rows", 0)))
        return Ingested(rows, store.count())
    finally:
        store.close()


def entry_id(value: Any) -> str:  # noqa: ANN401 - whatever a column of ids holds
    """Return the id of an entry for the id of a row: the same on every machine and in every version."""
    return str(uuid.uuid5(_NAMESPACE, json.dumps(value, sort_keys=True, default=as_text)))


def _open(to: str, collection: str, spec: VectorSpec) -> Store:
    kind, _, place = to.partition(":")
    if kind not in STORES or not place:
        raise ValueError(f"--to is {to!r}; it must be qdrant:PATH|URL, lancedb:PATH or pgvector:DSN.")
    if kind == "qdrant":
        from penult.bulk.stores.qdrant import Qdrant  # noqa: PLC0415 - an extra

        return Qdrant(place, collection, spec)
    if kind == "lancedb":
        from penult.bulk.stores.lancedb import LanceDB  # noqa: PLC0415 - an extra

        return LanceDB(place, collection, spec)
    from penult.bulk.stores.pgvector import PgVector  # noqa: PLC0415 - an extra

    return PgVector(place, collection, spec)


def _spec(source: Path) -> VectorSpec:
    if source.suffix not in (".parquet", ".lance"):
        raise ValueError(f"{source} ends in neither .parquet nor .lance; embed into one of them first.")
    metadata = output_files.metadata(source)
    if metadata is None:
        raise FileNotFoundError(f"No file at {source}.")
    column = metadata.get("penult.vector_column")
    schema = output_files.schema(source)
    if column is None or "penult.fingerprint" not in metadata:
        raise ValueError(f"{source} does not say which model made its vectors; write it with `penult embed`.")
    plain = schema.remove(schema.get_field_index(column)).remove_metadata()
    return VectorSpec(schema.field(column).type.list_size, metadata, plain)


def _entries(source: Path, spec: VectorSpec, id_column: str | None, count: int) -> Iterator[Entries]:
    done = 0
    for batch in output_files.batches(source, rows=count):
        table = pa.Table.from_batches([batch])
        rows = table.select(spec.schema.names)
        ids = _ids(rows, id_column, source, done)
        yield Entries(ids, tables.vectors_of(table.column(spec.metadata["penult.vector_column"])), rows)
        done += len(ids)


def _ids(rows: pa.Table, id_column: str | None, source: Path, before: int) -> list[str]:
    values: Sequence[Any] = rows.to_pylist() if id_column is None else rows.column(id_column).to_pylist()
    if None in values:
        raise ValueError(
            f"Row {before + list(values).index(None) + 1} of {source} has no {id_column!r}; every entry needs one."
        )
    return [entry_id(value) for value in values]
