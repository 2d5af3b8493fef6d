"""A PostgreSQL table with a pgvector column. The only module that imports psycopg (the extra `pgvector`)."""

import json
from typing import Any

from penult.bulk.stores.base import Entries, Index, VectorSpec
from penult.bulk.stores.values import without_nul
from penult.extras import install_hint

_NAME_BYTES = 63  # PostgreSQL truncates longer names
_VECTOR_INDEX, _HALFVEC_INDEX = 2000, 4000  # maximum dimensions of an HNSW index, by indexed type
_COLUMNS = {"columns": ("id", "text", "metadata"), "langchain": ("langchain_id", "content", "langchain_metadata")}
_UPSERT = """
INSERT INTO {table} AS old ({id}, {text}, {metadata}, embedding, original) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT ({id}) DO UPDATE
SET {text} = excluded.{text}, {metadata} = excluded.{metadata}, embedding = excluded.embedding, original = excluded.original
WHERE old.embedding <> excluded.embedding OR (old.{text}, old.{metadata}, old.original::text)
IS DISTINCT FROM (excluded.{text}, excluded.{metadata}, excluded.original::text)
"""
_CREATE = """
CREATE TABLE {table} (
    {id} uuid PRIMARY KEY, {text} text, {metadata} jsonb NOT NULL, embedding vector({dimension}) NOT NULL, original json
)
"""
_EXISTING = """
SELECT obj_description(to_regclass(%(name)s)), to_regclass(%(name)s) IS NOT NULL,
ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass(%(name)s) AND attnum > 0 AND NOT attisdropped)
"""
_INDEXED = """
SELECT EXISTS (
    SELECT FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
    WHERE indrelid = to_regclass(%s) AND amname IN ('hnsw', 'ivfflat') AND indisvalid
)
"""


class PgVector:
    """One table: id uuid, text text, metadata jsonb, embedding vector(D), original json; the fingerprint is in its comment.

    Neither text nor jsonb supports the character U+0000. In rows that contain it, U+2400 replaces it, and `original` contains
    the unchanged row; it is null in all other rows. In the layout "langchain", the first three columns have LangChain's names.

    Args:
        place: a libpq connection string: a URI or `host=... dbname=...`.
        collection: TABLE or SCHEMA.TABLE; the table and the extension `vector` are created if they do not exist.
        spec: spec of the vectors.
        index: "auto" and "hnsw": an HNSW index with cosine distance is built after the last row.

    Raises:
        ValueError: the table has vectors of another model, was not created by penult, or its name or schema is invalid.
        OSError: the server cannot be reached, or rejects the request.
    """

    batch_rows = 1000

    def __init__(self, place: str, collection: str, spec: VectorSpec, index: Index) -> None:
        self._psycopg = _psycopg()
        names = _names(collection)
        self._spec, self._index = spec, index
        self._connection = self._connected(place)
        sql = self._psycopg.sql
        identifiers = dict(zip(("id", "text", "metadata"), map(sql.Identifier, _COLUMNS[spec.layout]), strict=True))
        self._parts = identifiers | {"table": sql.Identifier(*names), "dimension": sql.Literal(spec.dimension)}
        try:
            self._prepare(names, collection)
        except self._psycopg.Error as error:
            self._connection.close()
            raise OSError(f"PostgreSQL failed: {_line(error)}") from error
        except BaseException:
            self._connection.close()
            raise

    def _connected(self, place: str) -> Any:  # noqa: ANN401 - a connection
        try:
            return self._psycopg.connect(place, autocommit=True)
        except self._psycopg.ProgrammingError:  # its message contains the DSN with the password
            raise ValueError(
                "The DSN after pgvector: cannot be parsed. Pass a URI, postgresql://USER@HOST/DATABASE, or keywords, "
                "host=HOST user=USER dbname=DATABASE."
            ) from None
        except self._psycopg.Error as error:
            raise OSError(f"PostgreSQL cannot be reached: {_line(error)}") from error

    def _prepare(self, names: list[str], collection: str) -> None:
        sql = self._psycopg.sql
        with self._connection.transaction():
            self._run("CREATE EXTENSION IF NOT EXISTS vector")
            if len(names) == 2 and not self._one("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)", names[0]):
                raise ValueError(
                    f"--collection is {collection!r}, but the database has no schema {names[0]!r}. Create the schema, or pass "
                    "another --collection."
                )
            comment, exists, columns = self._run(_EXISTING, name=self._named()).fetchone()
            if exists:
                self._check_table(f"The table {collection!r}", _parsed(comment), columns)
                return
            self._run(_CREATE)
            text = sql.Literal(json.dumps(self._spec.kept))
            self._connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(self._parts["table"], text))

    def _check_table(self, name: str, kept: dict[str, Any], columns: list[str]) -> None:
        self._spec.check_same_model(kept, name)
        missing = {*_COLUMNS[self._spec.layout], "embedding", "original"} - set(columns)
        if missing:
            older = "; an older version of penult created it" if "row" in columns else ""
            raise ValueError(
                f"{name} has no column {' and no column '.join(sorted(missing))}{older}. Pass another --collection, or drop "
                "the table and ingest its file again."
            )

    def upsert(self, entries: Entries) -> None:
        """Write entries, replacing those with equal ids, in one transaction; an equal entry is not updated."""
        rows = [
            (id_, *self._stored(payload), f"[{','.join(vector.astype(str))}]", original)
            for id_, vector, (payload, original) in zip(
                entries.ids, entries.vectors, map(without_nul, entries.payloads()), strict=True
            )
        ]
        statement = self._psycopg.sql.SQL(_UPSERT).format(**self._parts)
        try:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                cursor.executemany(statement, rows)
        except self._psycopg.Error as error:
            # The full message would contain the row with its text if the row violates a constraint.
            raise OSError(f"PostgreSQL failed: {error.diag.message_primary or type(error).__name__}") from None

    def _stored(self, payload: dict[str, Any]) -> tuple[str | None, str]:
        """Return the values of the columns `text` and `metadata`."""
        column = self._spec.text_column
        text = None if column is None else payload.pop(column)
        return text, json.dumps(payload, ensure_ascii=False)

    def finish(self) -> str | None:
        """Build the HNSW index if the table has none; return why it cannot have one."""
        if self._index == "none":
            return None
        try:
            if self._one(_INDEXED, self._named()):
                return None
            version = tuple(map(int, self._one("SELECT extversion FROM pg_extension WHERE extname = 'vector'").split(".")[:2]))
            if self._spec.dimension <= _VECTOR_INDEX and version >= (0, 5):
                self._run("CREATE INDEX ON {table} USING hnsw (embedding vector_cosine_ops)")
            elif self._spec.dimension <= _HALFVEC_INDEX and version >= (0, 7):
                self._run("CREATE INDEX ON {table} USING hnsw ((embedding::halfvec({dimension})) halfvec_cosine_ops)")
            else:
                return (
                    f"no HNSW index: pgvector {'.'.join(map(str, version))} does not support one for {self._spec.dimension} "
                    "dimensions, "
                    "so searches scan the whole table"
                )
        except self._psycopg.Error as error:
            raise OSError(
                f"All rows are written, but the index could not be built. PostgreSQL failed: {_line(error)}"
            ) from error
        return None

    def count(self) -> int:
        """Return the number of rows in the table."""
        return int(self._one("SELECT count(*) FROM {table}"))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _named(self) -> str:
        """Return the table's name, quoted for SQL."""
        name: str = self._parts["table"].as_string(self._connection)
        return name

    def _one(self, statement: str, *values: str) -> Any:  # noqa: ANN401 - a value
        return self._connection.execute(self._psycopg.sql.SQL(statement).format(**self._parts), values).fetchone()[0]

    def _run(self, statement: str, **values: str) -> Any:  # noqa: ANN401 - a cursor
        return self._connection.execute(self._psycopg.sql.SQL(statement).format(**self._parts), values or None)


def _names(collection: str) -> list[str]:
    """Split a collection into [table] or [schema, table]."""
    names = collection.split(".")
    if len(names) > 2 or (len(names) == 2 and "" in names):
        raise ValueError(f"--collection is {collection!r}. With pgvector, pass TABLE or SCHEMA.TABLE.")
    for name in names:
        if len(name.encode()) > _NAME_BYTES:
            raise ValueError(
                f"The name {name!r} has {len(name.encode())} bytes; PostgreSQL allows {_NAME_BYTES}. Pass a shorter "
                "--collection."
            )
    return names


def _line(error: Exception) -> str:
    """Return an error's message as one line."""
    return " ".join(str(error).split())


def _parsed(comment: str | None) -> dict[str, Any]:
    try:
        values = json.loads(comment or "")
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _psycopg() -> Any:  # noqa: ANN401 - a module
    try:
        import psycopg  # noqa: PLC0415 - an extra
        import psycopg.sql  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"PostgreSQL needs {install_hint('pgvector')}.") from error
    return psycopg
