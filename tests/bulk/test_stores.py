"""Entries in stores: unique ids, valid metadata, the layouts of frameworks, names and indexes."""

import datetime as dt
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import qdrant_client
from bulk.jobs import run
from bulk.postgres import server

from penult.bulk import tables, texts
from penult.bulk.ingest import Ingested, entry_id, ingest
from penult.bulk.stores import lancedb as lancedb_store

TEXTS = ["the cat sat on the mat", "a dog in the river", "moon and stone", "the fish eats a fish", "bright moon"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Local mode is not recommended"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def embedded(path, embedder, *, id_column="id", **columns):
    """Write a file as `penult embed` does, with TEXTS and other columns."""
    table = pa.table({"text": TEXTS[: len(next(iter(columns.values())))]} | columns)
    metadata = texts.metadata_of(embedder, "tiny", "document")
    metadata |= {"penult.text_column": "text", "penult.vector_column": "embedding", "penult.id_column": id_column}
    table = tables.with_vectors(table, "embedding", embedder.embed(table.column("text").to_pylist()), metadata)
    pq.write_table(table, path)
    return path


def points(place, collection="c"):
    client = qdrant_client.QdrantClient(path=str(place))
    records, _ = client.scroll(collection, limit=1000, with_vectors=True)
    client.close()
    return records


@pytest.fixture(scope="module")
def dsn():
    pytest.importorskip("psycopg", reason="the extra `pgvector` is not installed")
    with server() as dsn:
        yield dsn


def query(dsn, statement, *values):
    import psycopg

    with psycopg.connect(dsn) as connection:
        return connection.execute(statement, values).fetchall()


# --- ids


@pytest.mark.parametrize("to", ["qdrant", "lancedb", "pgvector"])
def test_repeated_ids_are_an_error_before_any_write(embedder, tmp_path, to, request):
    """The message names the first two, and how many rows would be lost; no store is created."""
    if to != "qdrant":
        pytest.importorskip({"lancedb": "lancedb", "pgvector": "psycopg"}[to])
    place = request.getfixturevalue("dsn") if to == "pgvector" else tmp_path / "db"
    source = embedded(tmp_path / "in.parquet", embedder, id=["doc1", "doc2", "doc1", "doc2", "doc1"])
    message = (
        r"The ids in column 'id' of .* are not unique: 'doc1' in rows 1 and 3, 'doc2' in rows 2 and 4\. 3 rows would overwrite"
    )
    with pytest.raises(ValueError, match=f"{message}.*--id-suffix row"):
        ingest(source, f"{to}:{place}", "repeated")
    if to == "pgvector":
        assert query(place, "SELECT to_regclass('repeated')") == [(None,)]
    else:
        assert not place.exists()


@pytest.mark.parametrize(
    "ids",
    [
        [1, 2, 3, 2, 4],
        [1.0, math.nan, 2.0, math.nan, 3.0],
        [b"\x00", b"\x01", b"", b"\x01", b"\x02"],
        [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 2}, {"a": 4}],
        [dt.date(2000, 1, 1), dt.date(2000, 1, 2), dt.date(2000, 1, 3), dt.date(2000, 1, 2), dt.date(2000, 1, 4)],
        pa.array(["a", "b", "c", "b", "d"]).dictionary_encode(),
        pa.array([1000, 1, 2000, 1, 3000], pa.timestamp("ns")),
        ["", "b", "c", "b", "d"],
    ],
    ids=["int", "nan", "bytes", "struct", "date", "dictionary", "nanoseconds", "empty"],
)
def test_ids_of_any_type(embedder, tmp_path, ids):
    """A repeated id of any type is found; without it, there are as many entries as rows."""
    source = embedded(tmp_path / "in.parquet", embedder, id=ids)
    with pytest.raises(ValueError, match=r"in rows 2 and 4\. 1 row would"):
        ingest(source, f"qdrant:{tmp_path}/db", "c")
    table = pq.read_table(source)
    pq.write_table(table.slice(0, 3).replace_schema_metadata(table.schema.metadata), tmp_path / "unique.parquet")
    assert ingest(tmp_path / "unique.parquet", f"qdrant:{tmp_path}/db", "c") == Ingested(3, 3)


def test_chunks_of_documents(embedder, tmp_path):
    """With --id-suffix row each row is an entry, with an id from document id and row number; a null id is an error."""
    source = embedded(tmp_path / "in.parquet", embedder, id=["doc1", "doc1", "doc2", "doc2", "doc2"])
    arguments = (source, "--to", f"qdrant:{tmp_path}/db", "--collection", "c", "--id-suffix", "row")
    for _ in range(2):
        done = run("ingest", *arguments)
        assert done.returncode == 0, done.stderr
        assert "5 rows read; c has 5 entries" in done.stderr
    assert {point.id for point in points(tmp_path / "db")} == {
        entry_id([id_, row]) for row, id_ in enumerate(["doc1", "doc1", "doc2", "doc2", "doc2"], 1)
    }
    source = embedded(tmp_path / "in.parquet", embedder, id=["doc1", None, "doc2", "doc2", "doc2"])
    with pytest.raises(ValueError, match=r"Row 2 of .* has no id in column 'id'"):
        ingest(source, f"qdrant:{tmp_path}/db", "c", id_suffix="row")


def test_equal_rows_without_an_id_column(embedder, tmp_path):
    """They share an entry, and the last line says so; with --id-suffix row they do not."""
    source = embedded(tmp_path / "in.parquet", embedder, id_column="", n=[1, 2])
    table = pq.read_table(source)
    pq.write_table(pa.concat_tables([table, table]).replace_schema_metadata(table.schema.metadata), source)
    done = run("ingest", source, "--to", f"qdrant:{tmp_path}/db", "--collection", "c")
    assert "4 rows read; c has 2 entries; 2 rows are equal to an earlier row and share its entry" in done.stderr
    assert ingest(source, f"qdrant:{tmp_path}/db", "d", id_suffix="row") == Ingested(4, 4)


def test_progress(embedder, tmp_path):
    """It counts the rows written, and the total."""
    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2, 3])
    seen = []
    ingest(source, f"qdrant:{tmp_path}/db", "c", advance=lambda *counts: seen.append(counts))
    assert seen[-1] == (3, 3)


# --- metadata


def odd_columns():
    floats = [1.5, math.nan, math.inf, -math.inf, None]
    return {
        "id": list(range(5)),
        "score": floats,
        "half": pa.array(floats, pa.float16()),
        "nested": [{"x": [value]} for value in floats],
        "pairs": pa.array([[("a", value)] for value in floats], pa.map_(pa.string(), pa.float64())),
        "seen": pa.array([1, 1000, None, -1, 2], pa.timestamp("ns")),
        "far": pa.array([10**12, 0, None, 1, 2], pa.timestamp("s")),
    }


def check_json(rows):
    """Check that NaN and infinity are null at any depth, and that times keep nanoseconds and years after 9999."""
    rows = sorted(rows, key=lambda row: row["id"])
    assert [row["score"] for row in rows] == [1.5, None, None, None, None]
    assert [row["half"] for row in rows] == [1.5, None, None, None, None]
    assert [row["nested"] for row in rows] == [{"x": [1.5]}] + [{"x": [None]}] * 4
    assert [row["pairs"] for row in rows] == [[["a", 1.5]]] + [[["a", None]]] * 4
    assert rows[0]["seen"] == "1970-01-01 00:00:00.000000001"
    assert rows[1]["seen"] == "1970-01-01 00:00:00.000001"
    assert rows[3]["seen"] == "1969-12-31 23:59:59.999999999"
    assert rows[2]["seen"] is None
    assert rows[0]["far"].replace("T", " ").startswith("33658-09-27 01:46:40")


def test_odd_values_in_qdrant(embedder, tmp_path):
    """A payload is valid JSON whatever the columns contain."""
    source = embedded(tmp_path / "in.parquet", embedder, **odd_columns())
    assert ingest(source, f"qdrant:{tmp_path}/db", "c").entries == 5
    check_json(point.payload for point in points(tmp_path / "db"))


def test_odd_values_in_postgres(embedder, tmp_path, dsn):
    """Jsonb gets the same values."""
    source = embedded(tmp_path / "in.parquet", embedder, **odd_columns())
    assert ingest(source, f"pgvector:{dsn}", "odd") == Ingested(5, 5)
    check_json(row for (row,) in query(dsn, "SELECT metadata FROM odd"))
    assert query(dsn, "SELECT count(*) FROM odd WHERE original IS NOT NULL") == [(0,)]


@pytest.mark.parametrize("layout", ["columns", "langchain"])
def test_odd_values_in_lancedb(embedder, tmp_path, layout):
    """Columns keep their types; floats are finite or null."""
    lancedb = pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    columns = {name: column for name, column in odd_columns().items() if name != "pairs"}
    columns["id" if layout == "columns" else "number"] = columns.pop("id")
    source = embedded(tmp_path / "in.parquet", embedder, id_column="id" if layout == "columns" else "number", **columns)
    for _ in range(2):
        assert ingest(source, f"lancedb:{tmp_path}/db", "c", layout=layout).entries == 5
    rows = lancedb.connect(str(tmp_path / "db")).open_table("c").to_arrow()
    rows = rows if layout == "columns" else pa.Table.from_struct_array(rows.column("metadata"))
    rows = rows.sort_by("id" if layout == "columns" else "number")
    assert rows.column("score").to_pylist() == rows.column("half").to_pylist() == [1.5, None, None, None, None]
    assert rows.column("nested").to_pylist() == [{"x": [1.5]}] + [{"x": [None]}] * 4
    assert rows.column("seen").cast(pa.int64()).to_pylist() == [1, 1000, None, -1, 2]


def test_string_views_and_names_in_lancedb(embedder, tmp_path):
    """Views become strings; an invalid name is one sentence without locations in LanceDB's source."""
    lancedb = pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    views = {"id": pa.array(["a", "b"], pa.string_view()), "raw": pa.array([b"a", None], pa.binary_view())}
    for _ in range(2):
        assert ingest(embedded(tmp_path / "in.parquet", embedder, **views), f"lancedb:{tmp_path}/db", "c") == Ingested(2, 2)
    rows = lancedb.connect(str(tmp_path / "db")).open_table("c").to_arrow().sort_by("id")
    assert rows.select(["id", "raw"]).to_pydict() == {"id": ["a", "b"], "raw": [b"a", None]}
    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2], **{"a.b": [1, 2]})
    with pytest.raises(OSError, match=r"LanceDB failed: .*cannot contain") as refused:
        ingest(source, f"lancedb:{tmp_path}/db", "d")
    assert ".rs:" not in str(refused.value)


# --- layouts


def test_langchain_reads_qdrant(embedder, tiny, tmp_path):
    """LangChain's QdrantVectorStore finds the texts, their metadata and ids, and filters by metadata."""
    langchain_qdrant = pytest.importorskip("langchain_qdrant")
    from langchain_penult import PenultEmbeddings

    source = embedded(tmp_path / "in.parquet", embedder, id=list("abcde"), n=[1, 2, 3, 4, 5])
    ingest(source, f"qdrant:{tmp_path}/db", "c", layout="langchain")
    client = qdrant_client.QdrantClient(path=str(tmp_path / "db"))
    store = langchain_qdrant.QdrantVectorStore(client, "c", embedding=PenultEmbeddings(model=str(tiny)))
    (document,) = store.similarity_search(TEXTS[2], k=1)
    assert document.page_content == TEXTS[2]
    assert {key: document.metadata[key] for key in ("id", "n", "_id")} == {"id": "c", "n": 3, "_id": entry_id("c")}
    match = qdrant_client.models.FieldCondition(key="metadata.n", match=qdrant_client.models.MatchValue(value=4))
    found = store.similarity_search(TEXTS[0], k=5, filter=qdrant_client.models.Filter(must=[match]))
    assert [document.page_content for document in found] == [TEXTS[3]]
    store.add_texts(["a new text"], [{"n": 6}])
    assert client.count("c").count == 6
    client.close()


def test_llama_index_reads_qdrant(embedder, tiny, tmp_path):
    """LlamaIndex's QdrantVectorStore returns the nodes, filters by metadata, and knows the document of a chunk."""
    qdrant = pytest.importorskip("llama_index.vector_stores.qdrant")
    from llama_index.core import VectorStoreIndex
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

    from llama_index.embeddings.penult import PenultEmbedding

    source = embedded(tmp_path / "in.parquet", embedder, id=["a", "a", "b", "b", "b"], n=[1, 2, 3, 4, 5])
    ingest(source, f"qdrant:{tmp_path}/db", "c", layout="llama-index", id_suffix="row")
    client = qdrant_client.QdrantClient(path=str(tmp_path / "db"))
    store = qdrant.QdrantVectorStore("c", client=client)
    index = VectorStoreIndex.from_vector_store(store, embed_model=PenultEmbedding(model_name=str(tiny)))
    (found,) = index.as_retriever(similarity_top_k=1).retrieve(TEXTS[2])
    node = found.node
    assert (node.text, node.metadata, node.ref_doc_id) == (TEXTS[2], {"id": "b", "n": 3}, "b")
    assert node.node_id == entry_id(["b", 3])
    filters = MetadataFilters(filters=[MetadataFilter(key="n", value=2)])
    found = index.as_retriever(similarity_top_k=5, filters=filters).retrieve(TEXTS[0])
    assert [one.node.text for one in found] == [TEXTS[1]]
    index.delete_ref_doc("b")
    assert client.count("c").count == 2
    client.close()


def test_llama_index_without_ids(embedder, tmp_path):
    """A node of a file without an id column has no document."""
    qdrant = pytest.importorskip("llama_index.vector_stores.qdrant")
    source = embedded(tmp_path / "in.parquet", embedder, id_column="", n=[1, 2])
    ingest(source, f"qdrant:{tmp_path}/db", "c", layout="llama-index")
    client = qdrant_client.QdrantClient(path=str(tmp_path / "db"))
    nodes = qdrant.QdrantVectorStore("c", client=client).get_nodes()
    assert sorted((node.text, node.metadata["n"], node.ref_doc_id) for node in nodes) == [
        (TEXTS[1], 2, None),
        (TEXTS[0], 1, None),
    ]
    client.close()


def test_langchain_reads_postgres(embedder, tiny, tmp_path, dsn):
    """LangChain's PGVectorStore reads a table of the layout langchain by its default column names."""
    langchain_postgres = pytest.importorskip("langchain_postgres")
    from langchain_penult import PenultEmbeddings

    source = embedded(tmp_path / "in.parquet", embedder, id=list("abcde"), n=[1, 2, 3, 4, 5])
    ingest(source, f"pgvector:{dsn}", "langchain", layout="langchain")
    words = dict(word.split("=", 1) for word in dsn.split())
    url = f"postgresql+psycopg://{words['user']}@/{words['dbname']}?host={words['host']}"
    engine = langchain_postgres.PGEngine.from_connection_string(url)
    store = langchain_postgres.PGVectorStore.create_sync(engine, PenultEmbeddings(model=str(tiny)), "langchain")
    (document,) = store.similarity_search(TEXTS[2], k=1)
    engine._run_as_sync(engine.close())
    assert (document.page_content, document.metadata, document.id) == (TEXTS[2], {"id": "c", "n": 3}, entry_id("c"))


def test_langchain_reads_lancedb(embedder, tiny, tmp_path):
    """LangChain's LanceDB reads a table of the layout langchain."""
    community = pytest.importorskip("langchain_community.vectorstores")
    lancedb = pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    from langchain_penult import PenultEmbeddings

    source = embedded(tmp_path / "in.parquet", embedder, id=list("abcde"), n=[1, 2, 3, 4, 5])
    ingest(source, f"lancedb:{tmp_path}/db", "c", layout="langchain")
    connection = lancedb.connect(str(tmp_path / "db"))
    store = community.LanceDB(connection, PenultEmbeddings(model=str(tiny)), table_name="c", distance="cosine")
    (document,) = store.similarity_search(TEXTS[2], k=1)
    assert (document.page_content, document.metadata) == (TEXTS[2], {"id": "c", "n": 3})


def test_layouts_are_not_mixed(embedder, tmp_path):
    """A collection keeps its layout, and a layout that the store does not support is an error."""
    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2])
    ingest(source, f"qdrant:{tmp_path}/db", "c")
    with pytest.raises(ValueError, match="was written with --layout columns, not langchain"):
        ingest(source, f"qdrant:{tmp_path}/db", "c", layout="langchain")
    with pytest.raises(
        ValueError, match=r"--layout is llama-index, which lancedb does not support\. Pass columns or langchain"
    ):
        ingest(source, f"lancedb:{tmp_path}/db", "c", layout="llama-index")
    pq.write_table(pq.read_table(source).drop_columns(["text"]), source)
    with pytest.raises(ValueError, match="--layout langchain needs the text column, which the file no longer has"):
        ingest(source, f"qdrant:{tmp_path}/db", "d", layout="langchain")


# --- names


def test_a_schema_and_a_table(embedder, tmp_path, dsn):
    """SCHEMA.TABLE is a table in an existing schema, with any characters in the names; it is found again."""
    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2])
    with pytest.raises(ValueError, match=r"--collection is 'rag\.docs', but the database has no schema 'rag'\."):
        ingest(source, f"pgvector:{dsn}", "rag.docs")
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA rag; CREATE SCHEMA "R a""g"')
    for collection, schema, table in (("rag.docs", "rag", "docs"), ('R a"g.Do c"s;--', 'R a"g', 'Do c"s;--')):
        for _ in range(2):
            assert ingest(source, f"pgvector:{dsn}", collection) == Ingested(2, 2)
        found = query(dsn, "SELECT indexdef FROM pg_indexes WHERE schemaname = %s AND tablename = %s", schema, table)
        assert sum("hnsw" in definition for (definition,) in found) == 1
    assert query(dsn, "SELECT to_regclass('public.docs')") == [(None,)]


@pytest.mark.parametrize("collection", ["n" * 64, "é" * 32, f"public.{'n' * 64}", f"{'s' * 64}.docs", "a.b.c", ".docs", "rag."])
def test_names_that_postgres_does_not_support(embedder, tmp_path, dsn, collection):
    """They are an error, and no other table is created instead."""
    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2])
    before = query(dsn, "SELECT count(*) FROM pg_tables")
    with pytest.raises(ValueError, match=r"PostgreSQL allows 63|pass TABLE or SCHEMA\.TABLE"):
        ingest(source, f"pgvector:{dsn}", collection)
    assert query(dsn, "SELECT count(*) FROM pg_tables") == before


def test_a_name_of_63_bytes(embedder, tmp_path, dsn):
    """It is not truncated, and its indexes are found."""
    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2])
    for _ in range(2):
        assert ingest(source, f"pgvector:{dsn}", "n" * 63) == Ingested(2, 2)
    assert len(query(dsn, "SELECT indexname FROM pg_indexes WHERE tablename = %s", "n" * 63)) == 2


@pytest.mark.parametrize("collection", ["n" * 300, "a/b", "..", "", "a\x00b", "日本" * 60])
def test_names_that_lancedb_does_not_support(embedder, tmp_path, collection):
    """The error is one sentence."""
    pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2])
    with pytest.raises((OSError, ValueError)) as refused:
        ingest(source, f"lancedb:{tmp_path}/db", collection)
    assert "\n" not in str(refused.value)


def test_a_lancedb_folder_that_is_a_file(embedder, tmp_path):
    """The error is one sentence."""
    pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2])
    with pytest.raises(OSError, match=r"\S") as refused:
        ingest(source, f"lancedb:{source}", "c")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "dsn",
    ["postgresql://me:s3cret@host:port/db", "me:s3cret@host/db", "host=h password='s3cret", "hots=h password=s3cret"],
)
def test_an_invalid_dsn(embedder, tmp_path, dsn):
    """The error is one sentence that does not contain the password."""
    pytest.importorskip("psycopg", reason="the extra `pgvector` is not installed")
    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2])
    with pytest.raises((OSError, ValueError)) as refused:
        ingest(source, f"pgvector:{dsn}", "c")
    assert "s3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)


# --- tables and indexes


def test_the_table_of_postgres(embedder, tmp_path, dsn):
    """Text, metadata and vector have their own columns, and there is one index of cosine distance; --index none builds none."""
    source = embedded(tmp_path / "in.parquet", embedder, id=list("abcde"), tags=[["x"], [], ["x", "y"], [], []])
    ingest(source, f"pgvector:{dsn}", "plain", index="none")
    assert query(
        dsn, "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = 'plain'::regclass AND attnum > 0 ORDER BY attnum"
    ) == [("id", "uuid"), ("text", "text"), ("metadata", "jsonb"), ("embedding", "vector(32)"), ("original", "json")]  # fmt: skip
    found = query(dsn, """SELECT text FROM plain WHERE metadata @> '{"tags": ["x"]}' ORDER BY text""")
    assert found == [(text,) for text in sorted([TEXTS[0], TEXTS[2]])]
    indexes = "SELECT indexdef FROM pg_indexes WHERE tablename = 'plain' AND indexdef LIKE '%%hnsw%%'"
    assert query(dsn, indexes) == []
    for _ in range(2):
        ingest(source, f"pgvector:{dsn}", "plain")
        ((definition,),) = query(dsn, indexes)
        assert "vector_cosine_ops" in definition


@pytest.mark.parametrize(("dimension", "indexed"), [(2000, "vector_cosine_ops"), (2001, "halfvec_cosine_ops"), (4001, None)])
def test_long_vectors_in_postgres(tmp_path, dsn, dimension, indexed):
    """Above 2,000 dimensions half precision is indexed; above 4,000 nothing is, and a note says so."""
    vectors = np.random.default_rng(0).standard_normal((3, dimension)).astype(np.float32)
    metadata = {"penult.fingerprint": "f" * 32, "penult.role": "document", "penult.id_column": "id"}
    metadata |= {"penult.vector_column": "embedding", "penult.text_column": "text"}
    table = pa.table({"id": [1, 2, 3], "text": TEXTS[:3]})
    pq.write_table(tables.with_vectors(table, "embedding", vectors, metadata), tmp_path / "in.parquet")
    done = ingest(tmp_path / "in.parquet", f"pgvector:{dsn}", f"d{dimension}")
    definitions = query(dsn, "SELECT indexdef FROM pg_indexes WHERE tablename = %s", f"d{dimension}")
    assert len(definitions) == 1 + (indexed is not None)
    if indexed is None:
        assert "no HNSW index" in done.note
        assert f"{dimension} dimensions" in done.note
    else:
        assert done.note is None
        assert any(indexed in definition for (definition,) in definitions)
    ((stored,),) = query(dsn, f"SELECT embedding::text FROM d{dimension} WHERE text = %s", TEXTS[1])
    assert np.array_equal(np.float32(json.loads(stored)), vectors[1])


def test_a_table_of_an_older_version(embedder, tmp_path, dsn):
    """It is an error that says what to do, and the table is unchanged."""
    import psycopg

    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2])
    kept = {"penult.fingerprint": embedder.fingerprint, "penult.role": "document"}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE older (id uuid PRIMARY KEY, embedding vector(32) NOT NULL, row json)")
        connection.execute(f"COMMENT ON TABLE older IS '{json.dumps(kept)}'")
    with pytest.raises(
        ValueError, match=r"'older' has no column metadata .*older version of penult created it\. Pass another --collection"
    ):
        ingest(source, f"pgvector:{dsn}", "older")


def test_an_index_that_cannot_be_built(embedder, tmp_path, dsn):
    """The rows are written, and the error says so."""
    import psycopg

    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2])
    ingest(source, f"pgvector:{dsn}", "unindexed", index="none")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE filler LOGIN; GRANT ALL ON unindexed TO filler")
    with pytest.raises(
        OSError, match=r"All rows are written, but the index could not be built\. PostgreSQL failed: must be owner"
    ):
        ingest(source, f"pgvector:{dsn.replace('user=penult', 'user=filler')}", "unindexed")


@pytest.mark.parametrize(("index", "kind"), [("auto", "IVF_FLAT"), ("hnsw", "IVF_HNSW_SQ")])
def test_the_index_of_lancedb(embedder, tmp_path, monkeypatch, index, kind):
    """A large table is compacted and indexed once; a small one, or with --index none, is not indexed."""
    lancedb = pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    rng = np.random.default_rng(0)
    table = pa.table({"id": list(range(600)), "text": ["moon"] * 600})
    metadata = texts.metadata_of(embedder, "tiny", "document") | {
        "penult.vector_column": "embedding",
        "penult.id_column": "id",
    }
    vectors = rng.standard_normal((600, 32)).astype(np.float32)
    pq.write_table(tables.with_vectors(table, "embedding", vectors, metadata), tmp_path / "in.parquet")
    monkeypatch.setattr(lancedb_store.LanceDB, "batch_rows", 100)

    def indexes():
        found = lancedb.connect(str(tmp_path / "db")).open_table("c").list_indices()
        return [index.index_type for index in found if index.columns == ["vector"]]

    to = f"lancedb:{tmp_path}/db"
    ingest(tmp_path / "in.parquet", to, "c")
    assert indexes() == []
    assert lancedb.connect(str(tmp_path / "db")).open_table("c").stats()["fragment_stats"]["num_fragments"] == 1
    monkeypatch.setattr(lancedb_store, "_INDEX_ROWS", 500)
    changed = table.set_column(1, "text", pa.array(["river"] * 600))
    pq.write_table(tables.with_vectors(changed, "embedding", vectors, metadata), tmp_path / "in.parquet")
    ingest(tmp_path / "in.parquet", to, "c", index="none")
    assert indexes() == []
    pq.write_table(tables.with_vectors(table, "embedding", vectors, metadata), tmp_path / "in.parquet")
    ingest(tmp_path / "in.parquet", to, "c", index=index)
    assert [found.upper().replace("_", "") for found in indexes()] == [kind.replace("_", "")]
    found = lancedb.connect(str(tmp_path / "db")).open_table("c").search(vectors[7]).distance_type("cosine").limit(1).to_list()
    assert found[0]["id"] == 7


def test_a_large_lancedb_table_has_an_index_of_ids(embedder, tmp_path, monkeypatch):
    """So that a later run does not read all ids per batch; changed rows are replaced, new ones are added."""
    lancedb = pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    monkeypatch.setattr(lancedb_store, "_INDEX_ROWS", 3)
    monkeypatch.setattr(lancedb_store, "_INDEXED", 1)
    monkeypatch.setattr(lancedb_store.LanceDB, "batch_rows", 2)
    to = f"lancedb:{tmp_path}/db"
    ingest(embedded(tmp_path / "in.parquet", embedder, id=[1, 2, 3, 4], n=[1, 2, 3, 4]), to, "c", index="none")
    more = embedded(tmp_path / "in.parquet", embedder, id=[2, 1, 5, 6, 3], n=[2, 1, 5, 6, 9])
    for _ in range(2):
        assert ingest(more, to, "c", index="none") == Ingested(5, 6)
        table = lancedb.connect(str(tmp_path / "db")).open_table("c")
        assert [index.columns for index in table.list_indices()] == [["penult_id"]]
        rows = table.to_arrow().sort_by("id").select(["id", "n"]).to_pydict()
        assert rows == {"id": [1, 2, 3, 4, 5, 6], "n": [1, 2, 9, 4, 5, 6]}


@pytest.mark.parametrize("layout", ["columns", "langchain"])
def test_a_lancedb_table_without_ids(embedder, tmp_path, monkeypatch, layout):
    """Equal rows of different batches are one entry."""
    lancedb = pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    monkeypatch.setattr(lancedb_store, "_INDEX_ROWS", 2)
    monkeypatch.setattr(lancedb_store, "_INDEXED", 1)
    monkeypatch.setattr(lancedb_store.LanceDB, "batch_rows", 2)
    table = pq.read_table(embedded(tmp_path / "in.parquet", embedder, id_column="", n=[1, 2, 3])).drop_columns(["n"])
    table = pa.concat_tables([table, table]).replace_schema_metadata(table.schema.metadata)
    pq.write_table(table, tmp_path / "in.parquet")
    for _ in range(2):
        done = ingest(tmp_path / "in.parquet", f"lancedb:{tmp_path}/db", "c", layout=layout, index="none")
        assert done == Ingested(6, 3, 3)
    assert sorted(lancedb.connect(str(tmp_path / "db")).open_table("c").to_arrow().column("text").to_pylist()) == sorted(
        TEXTS[:3]
    )


def test_an_index_that_was_not_finished(embedder, tmp_path, monkeypatch):
    """Killed while building the index: the next run builds it, though it has no rows to write."""
    lancedb = pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    monkeypatch.setattr(lancedb_store, "_INDEX_ROWS", 2)
    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2, 3, 4, 5], n=[1] * 5)
    ingest(source, f"lancedb:{tmp_path}/db", "c", index="none")
    for _ in range(2):
        ingest(source, f"lancedb:{tmp_path}/db", "c")
        indexes = lancedb.connect(str(tmp_path / "db")).open_table("c").list_indices()
        assert sorted(index.columns for index in indexes) == [["penult_id"], ["vector"]]


def test_two_processes_that_fill_a_new_lancedb_table(embedder, tmp_path, monkeypatch):
    """Both add rows; the one that sees more rows than its own raises an error."""
    lancedb = pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    source = embedded(tmp_path / "in.parquet", embedder, id=[1, 2], n=[1, 2])
    finish = lancedb_store.LanceDB.finish

    def late(self):
        other = lancedb.connect(str(tmp_path / "db")).open_table("c")
        other.add(other.to_arrow())
        return finish(self)

    monkeypatch.setattr(lancedb_store.LanceDB, "finish", late)
    with pytest.raises(OSError, match="Another process wrote to the table at the same time"):
        ingest(source, f"lancedb:{tmp_path}/db", "c")
