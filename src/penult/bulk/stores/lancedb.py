"""A LanceDB table in a folder. The only module that imports lancedb (the extra `lancedb`)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from penult.bulk import tables
from penult.bulk.output import output_files
from penult.bulk.stores.base import Entries, Index, VectorSpec
from penult.bulk.stores.values import finite
from penult.extras import install_hint

_ID, _VECTOR = "penult_id", "vector"
# Batches between compactions of small files, and between updates of the id index of an existing table.
_MERGED, _INDEXED = 64, 16
_INDEX_ROWS = 100_000  # below this, LanceDB recommends search without an index


class LanceDB:
    """One table: the rows' columns, `penult_id` and `vector`; the fingerprint is in its schema's metadata.

    In the layout "langchain": `id`, `text`, `metadata` (a struct of the other columns) and `vector`.

    Args:
        place: the database's folder.
        collection: the table's name; created if it does not exist.
        spec: spec of the vectors.
        index: index of a table of 100,000 rows or more; a smaller one is searched without an index. "auto": IVF_FLAT, which
            keeps float32; "hnsw": IVF_HNSW_SQ, which takes 40 times as long to build.

    Raises:
        ValueError: the table has vectors of another model, or other columns.
        OSError: LanceDB rejects the folder or the name.
    """

    batch_rows = 16_384  # 25 MB of vectors with D = 384

    def __init__(self, place: str, collection: str, spec: VectorSpec, index: Index) -> None:
        self._spec, self._index = spec, index
        self._id = "id" if spec.layout == "langchain" else _ID
        self._schema = _schema(spec, self._id)
        self._written = self._batches = 0
        lancedb = _lancedb()
        with _os_errors():
            database = lancedb.connect(place)
            if collection not in database.list_tables(limit=1_000_000).tables:
                self._table = database.create_table(collection, schema=self._schema)
            else:
                self._table = database.open_table(collection)
                self._check(f"The table {collection!r} in {place}")
            self._new = not self._table.count_rows()
            self._index_ids()

    def _check(self, name: str) -> None:
        existing = self._table.schema
        self._spec.check_same_model(output_files.named(existing), name)
        if existing.names != self._schema.names:
            raise ValueError(
                f"{name} has the columns {', '.join(existing.names)}, but the file would write "
                f"{', '.join(self._schema.names)}. Pass "
                "another --collection."
            )

    def upsert(self, entries: Entries) -> None:
        """Write entries, replacing those with equal ids, as one version of the table; as none if all exist already.

        Raises:
            OSError: the disk is full, or LanceDB rejects the entries.
        """
        # Of rows with the same id, the last is kept, as in the other stores; LanceDB would reject a merge of both.
        last = sorted({id_: row for row, id_ in enumerate(entries.ids)}.values())
        columns = [pa.array(entries.ids), *self._rows(finite(entries.rows)), _vectors(entries)]
        table = pa.table(columns, schema=self._schema).take(pa.array(last, pa.int64()))
        with _os_errors():
            known_new = self._new and entries.documents is not None  # ids from a column were checked before
            existing = None if known_new else self._existing(table)
            if existing is None or not existing.num_rows:
                self._table.add(table)
            elif not _same(existing, table, self._id):
                self._table.merge_insert(self._id).when_matched_update_all().when_not_matched_insert_all().execute(table)
            else:
                return
            self._written += table.num_rows
            self._batches += 1
            if self._batches % (_MERGED if known_new else _INDEXED) == 0:
                self._table.optimize()
                if not known_new:
                    self._index_ids()

    def _rows(self, rows: pa.Table) -> list[pa.Array]:
        """Return the columns between the id and the vector."""
        if self._spec.layout == "columns":
            return list(rows.columns)
        text = rows.column(self._spec.text_column)
        others = rows.drop_columns([self._spec.text_column]).combine_chunks()
        return [text, others.to_struct_array()] if others.num_columns else [text]

    def _existing(self, table: pa.Table) -> pa.Table:
        """Return the rows of the LanceDB table that have the ids of these rows."""
        ids = ", ".join(f"'{id_}'" for id_ in table.column(self._id).to_pylist())
        return self._table.search().where(f"{self._id} IN ({ids})").limit(table.num_rows + 1).to_arrow()

    def finish(self) -> None:
        """Compact the small files of many upserts, and build or update the index."""
        with _os_errors():
            if self._written:
                self._table.optimize()
                self._table.checkout_latest()
            if self._new and self._table.count_rows() > self._written:
                raise OSError(
                    "Another process wrote to the table at the same time, so it may have duplicate ids. Drop the table and run "
                    "again."
                )
            if self._index == "none" or self._table.count_rows() < _INDEX_ROWS or self._indexed(_VECTOR):
                return
            kind = _lancedb().index.HnswSq if self._index == "hnsw" else _lancedb().index.IvfFlat
            self._table.create_index(_VECTOR, config=kind(distance_type="cosine"))

    def _index_ids(self) -> None:
        """Index the ids of a large table: without an index, the lookup for each batch would read all of them."""
        if self._table.count_rows() >= _INDEX_ROWS and not self._indexed(self._id):
            self._table.create_index(self._id, config=_lancedb().index.BTree())

    def _indexed(self, column: str) -> bool:
        return any(column in index.columns for index in self._table.list_indices())

    def count(self) -> int:
        """Return the number of rows in the table."""
        with _os_errors():
            return int(self._table.count_rows())

    def close(self) -> None:
        """Do nothing: each upsert is already on disk."""


def _schema(spec: VectorSpec, id_: str) -> pa.Schema:
    if spec.layout == "langchain":
        text = spec.schema.field(spec.text_column)
        others = [field for field in spec.schema if field.name != text.name]
        fields = [text.with_name("text"), *([pa.field("metadata", pa.struct(others))] if others else [])]
    else:
        fields = list(spec.schema)
    reserved = {id_, _VECTOR} & {field.name for field in fields}
    if reserved:
        raise ValueError(
            f"The file has a column {reserved.pop()!r}, a name that penult's LanceDB tables reserve. Rename the column."
        )
    metadata = {key.encode(): value.encode() for key, value in spec.kept.items()}
    return pa.schema([pa.field(id_, pa.string()), *fields, tables.vector_field(_VECTOR, spec.dimension)], metadata=metadata)


def _same(existing: pa.Table, table: pa.Table, id_: str) -> bool:
    """Return whether the existing rows equal all rows of the table: writing them again would store one more copy on disk."""
    if existing.num_rows != table.num_rows:
        return False
    place = {value: row for row, value in enumerate(existing.column(id_).to_pylist())}
    rows = pa.array([place[value] for value in table.column(id_).to_pylist()], pa.int64())
    return bool(existing.select(table.schema.names).take(rows).equals(table))


@contextmanager
def _os_errors() -> Iterator[None]:
    """Convert RuntimeError, raised by the Rust library of LanceDB, to OSError."""
    try:
        yield
    except RuntimeError as error:
        message = re.sub(r", /\S+\.rs:\d+.*", "", " ".join(str(error).split()))  # without the location in LanceDB's source
        raise OSError(f"LanceDB failed: {message}") from error


def _vectors(entries: Entries) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(tables.flat(entries.vectors), entries.vectors.shape[1])


def _lancedb() -> Any:  # noqa: ANN401 - a module
    try:
        import lancedb  # noqa: PLC0415 - an extra
        import lancedb.index  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"LanceDB needs {install_hint('lancedb')}.") from error
    return lancedb
