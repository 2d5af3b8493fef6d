"""A PostgreSQL table with a pgvector column. The only file that imports psycopg (the extra `pgvector`)."""

import json
from typing import Any

from penult.bulk.stores.base import Entries, VectorSpec
from penult.extras import install_hint

_UPSERT = """
INSERT INTO {table} AS old (id, embedding, row) VALUES (%s, %s, %s)
ON CONFLICT (id) DO UPDATE SET embedding = excluded.embedding, row = excluded.row
WHERE old.embedding <> excluded.embedding OR old.row::text <> excluded.row::text
"""


class PgVector:
    """One table: id uuid, embedding vector(D), row json; the fingerprint stands in its comment.

    `row` is json and not jsonb, which refuses the character U+0000 that a text may hold.

    Args:
        place: what libpq takes: a URI or `host=... dbname=...`.
        collection: the table's name; made where there is none, and the extension `vector` too.
        spec: of the vectors.

    Raises:
        ValueError: the table holds vectors of another model, or is not one of penult's.
        OSError: the server cannot be reached, or refuses.
    """

    batch_rows = 1000

    def __init__(self, place: str, collection: str, spec: VectorSpec) -> None:
        self._psycopg = _psycopg()
        try:
            self._connection = self._psycopg.connect(place, autocommit=True)
        except self._psycopg.Error as error:
            raise OSError(f"PostgreSQL cannot be reached: {str(error).strip()}") from error
        self._table = self._psycopg.sql.Identifier(collection)
        try:
            self._prepare(collection, spec)
        except self._psycopg.Error as error:
            self._connection.close()
            raise OSError(f"PostgreSQL refuses: {str(error).strip()}") from error
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, collection: str, spec: VectorSpec) -> None:
        sql = self._psycopg.sql
        with self._connection.transaction():
            self._run("CREATE EXTENSION IF NOT EXISTS vector")
            there = self._run(
                "SELECT obj_description(to_regclass(%s)), to_regclass(%s) IS NOT NULL", self._named(), self._named()
            )
            comment, exists = there.fetchone()
            if exists:
                spec.check_same_model(_parsed(comment), f"The table {collection!r}")
                return
            self._run(f"CREATE TABLE {{table}} (id uuid PRIMARY KEY, embedding vector({spec.dimension}) NOT NULL, row json)")
            comment = sql.SQL("COMMENT ON TABLE {} IS {}").format(self._table, sql.Literal(json.dumps(spec.kept)))
            self._connection.execute(comment)

    def upsert(self, entries: Entries) -> None:
        """Write entries over those of equal ids, in one transaction; one that is equal already is not touched."""
        rows = [
            (id_, f"[{','.join(vector.astype(str))}]", json.dumps(payload, ensure_ascii=False))
            for id_, vector, payload in zip(entries.ids, entries.vectors, entries.payloads(), strict=True)
        ]
        statement = self._psycopg.sql.SQL(_UPSERT).format(table=self._table)
        try:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                cursor.executemany(statement, rows)
        except self._psycopg.Error as error:
            # The whole message holds the row, with its text, where it breaks a rule of the table.
            raise OSError(f"PostgreSQL refuses: {error.diag.message_primary or type(error).__name__}") from None

    def count(self) -> int:
        """Count the rows of the table."""
        return int(self._run("SELECT count(*) FROM {table}").fetchone()[0])

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _named(self) -> str:
        """Give the table's name as SQL writes it."""
        name: str = self._table.as_string(self._connection)
        return name

    def _run(self, statement: str, *values: str) -> Any:  # noqa: ANN401 - a cursor
        return self._connection.execute(self._psycopg.sql.SQL(statement).format(table=self._table), values)


def _parsed(comment: str | None) -> dict[str, Any]:
    try:
        found = json.loads(comment or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _psycopg() -> Any:  # noqa: ANN401 - a module
    try:
        import psycopg  # noqa: PLC0415 - an extra
        import psycopg.sql  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"PostgreSQL needs {install_hint('pgvector')}.") from error
    return psycopg
