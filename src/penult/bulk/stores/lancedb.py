"""A LanceDB table in a folder. The only file that imports lancedb (the extra `lancedb`)."""

from typing import Any

import pyarrow as pa

from penult.bulk import tables
from penult.bulk.output import output_files
from penult.bulk.stores.base import Entries, VectorSpec
from penult.extras import install_hint

_ID, _VECTOR = "penult_id", "vector"


class LanceDB:
    """One table: the rows' columns, `penult_id` and `vector`; the fingerprint stands in its schema's metadata.

    Args:
        place: the database's folder.
        collection: the table's name; made where there is none.
        spec: of the vectors.

    Raises:
        ValueError: the table holds vectors of another model, or other columns.
    """

    batch_rows = 16_384  # every upsert reads all ids of the table once

    def __init__(self, place: str, collection: str, spec: VectorSpec) -> None:
        taken = {_ID, _VECTOR} & set(spec.schema.names)
        if taken:
            raise ValueError(f"The file has a column {taken.pop()!r}, which the LanceDB table needs for itself; rename it.")
        vector = tables.vector_field(_VECTOR, spec.dimension)
        metadata = {key.encode(): value.encode() for key, value in spec.kept.items()}
        self._schema = pa.schema([pa.field(_ID, pa.string()), *spec.schema, vector], metadata=metadata)
        database = _lancedb().connect(place)
        if collection in database.list_tables(limit=1_000_000).tables:
            self._table = database.open_table(collection)
            found = self._table.schema
            spec.check_same_model(output_files.named(found), f"The table {collection!r} in {place}")
            if found.names != self._schema.names:
                raise ValueError(
                    f"The table {collection!r} in {place} has the columns {', '.join(found.names)}, the rows "
                    f"{', '.join(self._schema.names)}; name another --collection."
                )
        else:
            self._table = database.create_table(collection, schema=self._schema)

    def upsert(self, entries: Entries) -> None:
        """Write entries over those of equal ids, as one version of the table; if all are there already, as none.

        Raises:
            OSError: the disk is full, or LanceDB refuses.
        """
        # Of rows with one id the last counts, as in the other stores; a merge of both would be refused.
        last = sorted({id_: row for row, id_ in enumerate(entries.ids)}.values())
        columns = [pa.array(entries.ids), *entries.rows.columns, _vectors(entries)]
        table = pa.table(columns, schema=self._schema).take(pa.array(last, pa.int64()))
        try:
            if not self._holds(table):
                self._table.merge_insert(_ID).when_matched_update_all().when_not_matched_insert_all().execute(table)
        except RuntimeError as error:
            raise OSError(f"LanceDB refuses: {error}") from error

    def _holds(self, table: pa.Table) -> bool:
        """Say whether all rows are in the table as they are: each version would be one more copy of them on the disk."""
        ids = table.column(_ID)
        wanted = ", ".join(f"'{id_}'" for id_ in ids.to_pylist())
        found = self._table.search().where(f"{_ID} IN ({wanted})").limit(len(ids) + 1).to_arrow()
        if found.num_rows != table.num_rows:
            return False
        place = {id_: row for row, id_ in enumerate(found.column(_ID).to_pylist())}
        same = found.select(table.schema.names).take(pa.array([place[id_] for id_ in ids.to_pylist()], pa.int64()))
        return bool(same.equals(table))

    def count(self) -> int:
        """Count the rows of the table."""
        return int(self._table.count_rows())

    def close(self) -> None:
        """Do nothing: each upsert is on the disk."""


def _vectors(entries: Entries) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(tables.flat(entries.vectors), entries.vectors.shape[1])


def _lancedb() -> Any:  # noqa: ANN401 - a module
    try:
        import lancedb  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(f"LanceDB needs {install_hint('lancedb')}.") from error
    return lancedb
