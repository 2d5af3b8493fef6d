"""An embedded file in Qdrant, LanceDB and PostgreSQL: the same entries in each, however often it is written."""

import json
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import qdrant_client
from bulk.jobs import InProcess, corpus, run
from bulk.postgres import server
from models import tiny_model

from penult.bulk import embed
from penult.bulk.embed import embed_files
from penult.bulk.ingest import entry_id, ingest
from penult.bulk.options import Columns, Model
from penult.bulk.request import Request
from penult.bulk.stores import qdrant

QUESTIONS = 100


def embedded(rows, out, model):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embed, "Pool", InProcess)
        embed_files(Request((str(rows),), out, Model(str(model)), Columns("text", "embedding", "document"), shown="off"))
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny):
    """200 embedded rows, one of which has values that some stores do not support directly."""
    folder = tmp_path_factory.mktemp("ingest")
    rows = corpus(folder / "in.jsonl", 199)
    with rows.open("a") as file:
        file.write(json.dumps({"id": "odd", "text": "moon \x00 日本 'quoted' \"too\" \\", "n": 0, "tags": []}) + "\n")
    return embedded(rows, folder / "in.parquet", tiny)


@pytest.fixture(scope="module")
def other(source, tmp_path_factory):
    """The same rows with the vectors of another model."""
    folder = tmp_path_factory.mktemp("other")
    model = tiny_model(folder / "model", pooling="cls")
    return embedded(source.with_suffix(".jsonl"), folder / "in.parquet", model)


@pytest.fixture(scope="module")
def questions(embedder):
    texts = [
        f"{a} {b} {n}" for a in ("moon", "cat", "river", "stone") for b in ("the", "fish", "mat", "in", "a") for n in range(5)
    ]
    assert len(texts) == QUESTIONS
    return embedder.embed(texts, role="query")


@pytest.fixture(scope="module")
def nearest(source, questions):
    """All rows with their cosines for each question, by brute force, as the reference for every store."""
    table = pq.read_table(source)
    vectors = np.asarray(table.column("embedding").combine_chunks().flatten()).reshape(table.num_rows, -1)
    ids = [entry_id(value) for value in table.column("id").to_pylist()]
    return [dict(zip(ids, row, strict=True)) for row in questions @ vectors.T]


def check_top10(found, nearest):
    """Check that the ten results of a store are the ten best, except for rows whose cosines differ by less than 1e-6."""
    assert len(found) == QUESTIONS
    for ids, scores in zip(found, nearest, strict=True):
        best = sorted(scores.values(), reverse=True)[:10]
        assert len(set(ids)) == 10
        assert np.abs(np.array([scores[id_] for id_ in ids]) - best).max() <= 1e-6


def check_ingest(source, other, to, dump):
    """Check that a second run changes nothing, that vectors of another model are an error, and that the store is closed then."""
    first = ingest(source, to, "notes")
    assert (first.rows, first.entries) == (200, 200)
    before = dump()
    assert ingest(source, to, "notes") == first
    assert dump() == before
    with pytest.raises(
        ValueError, match=r"has vectors with the fingerprint '[0-9a-f]{32}', but the fingerprint of the file is"
    ) as refused:
        ingest(other, to, "notes")
    assert dump() == before
    assert ingest(other, to, "more").entries == 200
    del refused


@pytest.mark.filterwarnings("ignore:Local mode is not recommended", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_qdrant_folder_of_another_process(source, tmp_path):
    """A folder that another client has locked is one sentence."""
    holder = qdrant_client.QdrantClient(path=str(tmp_path / "db"))
    with pytest.raises(OSError, match="already accessed by another instance"):
        ingest(source, f"qdrant:{tmp_path}/db", "notes")
    holder.close()


def test_changed_rows_are_replaced(source, tmp_path, tiny):
    """LanceDB gets the new text and vector of changed rows, and has as many entries as before."""
    lancedb = pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    to = f"lancedb:{tmp_path}/db"
    ingest(source, to, "notes")
    table = pq.read_table(source)
    texts = ["another", *table.column("text").to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", pa.array(texts)), tmp_path / "new.parquet")
    assert ingest(tmp_path / "new.parquet", to, "notes").entries == 200
    found = lancedb.connect(str(tmp_path / "db")).open_table("notes").to_arrow()
    assert sorted(found.column("text").to_pylist()) == sorted(texts)


def test_lancedb(source, other, questions, nearest, tmp_path):
    """LanceDB keeps columns with their types, returns the same top 10, and is unchanged by a second run."""
    lancedb = pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    place = str(tmp_path / "db")

    def dump():
        return lancedb.connect(place).open_table("notes").to_arrow().sort_by("penult_id").to_pylist()

    check_ingest(source, other, f"lancedb:{place}", dump)
    versions = len(lancedb.connect(place).open_table("notes").list_versions())
    ingest(source, f"lancedb:{place}", "notes")
    assert len(lancedb.connect(place).open_table("notes").list_versions()) == versions, "each is a copy of all rows"
    table = lancedb.connect(place).open_table("notes")
    assert table.schema.field("n").type == pa.int64()
    found = [table.search(q).distance_type("cosine").limit(10).to_arrow().column("penult_id").to_pylist() for q in questions]
    check_top10(found, nearest)


def test_a_lancedb_table_that_lost_its_rows(source, tmp_path):
    """LanceDB's error is one sentence without a traceback."""
    pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    ingest(source, f"lancedb:{tmp_path}/db", "notes")
    for path in (tmp_path / "db" / "notes.lance" / "data").iterdir():
        path.unlink()
    with pytest.raises(OSError, match=r"LanceDB failed: .*[Nn]ot found"):
        ingest(source, f"lancedb:{tmp_path}/db", "notes")


def test_pgvector(source, other, questions, nearest):
    """A real PostgreSQL: exact float32, text with U+0000, the same top 10; a second run updates no row, errors close the connection."""
    psycopg = pytest.importorskip("psycopg", reason="the extra `pgvector` is not installed")
    with server() as dsn:

        def dump():
            with psycopg.connect(dsn) as connection:
                return connection.execute(
                    "SELECT id::text, embedding::text, text, metadata, original, xmin::text FROM notes ORDER BY id"
                ).fetchall()

        check_ingest(source, other, f"pgvector:{dsn}", dump)
        rows = {row["id"]: (json.loads(vector), text, row, original) for _, vector, text, row, original, _ in dump()}
        odd = {"id": "odd", "text": "moon \x00 日本 'quoted' \"too\" \\", "n": 0, "tags": []}
        assert rows["odd"][1:] == (odd["text"].replace("\x00", "␀"), {"id": "odd", "n": 0, "tags": []}, odd)
        assert sum(original is not None for _, _, _, _, original, _ in dump()) == 1
        expected = {row["id"]: row["embedding"] for row in pq.read_table(source).to_pylist()}
        assert all(np.array_equal(np.float32(rows[key][0]), np.float32(expected[key])) for key in expected)
        with psycopg.connect(dsn) as connection:
            order = "SELECT id::text FROM notes ORDER BY embedding <=> %s::vector LIMIT 10"
            found = [[row[0] for row in connection.execute(order, [str(q)]).fetchall()] for q in questions.tolist()]
            check_top10(found, nearest)
            connection.execute("CREATE TABLE theirs (id int)")
            connection.execute("ALTER TABLE more ADD CONSTRAINT short CHECK (length(metadata::text) < 9) NOT VALID")
            connection.commit()
        with pytest.raises(ValueError, match="vectors with the fingerprint None") as theirs:
            ingest(source, f"pgvector:{dsn}", "theirs")
        with pytest.raises(OSError, match=r"PostgreSQL failed: .*zero-length") as unnamed:
            ingest(source, f"pgvector:{dsn}", "")
        with pytest.raises(OSError, match=r'PostgreSQL failed: .*"more" violates check constraint "short"$') as too_long:
            ingest(other, f"pgvector:{dsn}", "more")
        others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        until = time.monotonic() + 10
        with psycopg.connect(dsn, autocommit=True) as connection:
            while connection.execute(others).fetchone() != (0,) and time.monotonic() < until:
                time.sleep(0.02)
            assert connection.execute(others).fetchone() == (0,), "a connection outlives its refusal"
        del theirs, unnamed, too_long


def test_ids_never_change():
    """An entry's id is a UUID of its row's id only: a number and its digits differ, and the value is fixed."""
    assert entry_id("row 1") == "3000644c-59cc-566a-bf3c-c95fcb453cfa"
    assert len({entry_id(5), entry_id("5"), entry_id(5.5), entry_id(None)}) == 4
    assert entry_id({"a": 1, "b": {"c": 2, "d": 3}}) == entry_id({"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.filterwarnings("ignore:Local mode is not recommended")
def test_qdrant(source, other, questions, nearest, tmp_path):
    """A local Qdrant: complete payloads, the top 10 of 100 questions, and a second run changes nothing."""
    place = str(tmp_path / "db")

    def dump():
        client = qdrant_client.QdrantClient(path=place)
        points = client.scroll("notes", limit=10_000, with_vectors=True)[0]
        client.close()
        return sorted(json.dumps([point.id, point.payload, list(map(float, point.vector))]) for point in points)

    check_ingest(source, other, f"qdrant:{place}", dump)
    payloads = {row[1]["id"]: row[1] for row in map(json.loads, dump())}
    assert payloads["odd"] == {"id": "odd", "text": "moon \x00 日本 'quoted' \"too\" \\", "n": 0, "tags": []}
    client = qdrant_client.QdrantClient(path=place)
    found = [[p.id for p in client.query_points("notes", query=list(q), limit=10).points] for q in questions.tolist()]
    client.close()
    check_top10(found, nearest)


def test_without_an_id_column_the_row_is_its_id(tmp_path, tiny):
    """Rows without ids are identified by their content; equal rows share an entry, and the last line says so."""
    (tmp_path / "twice.jsonl").write_text('{"text": "the cat"}\n{"text": "the cat"}\n{"text": "the dog"}\n')
    out = tmp_path / "out.parquet"
    assert run("embed", tmp_path / "twice.jsonl", out, "--model", tiny).returncode == 0
    result = run("ingest", out, "--to", f"qdrant:{tmp_path}/db", "--collection", "c")
    assert result.returncode == 0, result.stderr
    assert "3 rows read; c has 2 entries" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "elsewhere:x"], "Pass qdrant:PATH, qdrant:URL, lancedb:PATH or pgvector:DSN"),
        (["--to", "qdrant:x", "--id-column", "key"], "--id-column is 'key', but the columns of"),
        (["--to", "pgvector:host=/nowhere"], "PostgreSQL cannot be reached"),
        (["--to", "qdrant:http://127.0.0.1:1"], "Qdrant failed or cannot be reached"),
    ],
)
def test_invalid_targets(source, tmp_path, arguments, message):
    """A wrong store, column or address is one sentence with exit status 1."""
    if "pgvector" in arguments[1]:
        pytest.importorskip("psycopg", reason="the extra `pgvector` is not installed")
    result = run("ingest", source, "--collection", "c", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_from_a_lance_dataset(source, tmp_path, tiny):
    """A Lance dataset produces the same entries as a Parquet file of the same rows."""
    pytest.importorskip("lance", reason="the extra `lance` is not installed")
    lance = embedded(source.with_suffix(".jsonl"), tmp_path / "in.lance", tiny)
    kept = []
    for name, file in (("a", source), ("b", lance)):
        assert ingest(file, f"qdrant:{tmp_path}/{name}", "notes").entries == 200
        client = qdrant_client.QdrantClient(path=f"{tmp_path}/{name}")
        records, _ = client.scroll("notes", limit=300, with_vectors=True)
        kept.append({record.id: (record.payload, record.vector) for record in records})
        client.close()
    assert len(kept[0]) == 200
    assert kept[0] == kept[1]


@pytest.mark.filterwarnings("ignore:Local mode is not recommended")
def test_a_row_without_an_id(source, tmp_path, monkeypatch):
    """The error has its row number, also in a later batch, and the store is closed, so that the next try can open it."""
    monkeypatch.setattr(qdrant.Qdrant, "batch_rows", 8)
    table = pq.read_table(source).slice(0, 40)
    ids = [None if row == 30 else f"row {row}" for row in range(40)]
    pq.write_table(table.set_column(0, "key", pa.array(ids)), tmp_path / "in.parquet")
    with pytest.raises(
        ValueError, match=r"Row 31 of .*in\.parquet has no id in column 'key'\. Fill it, or pass another --id-column"
    ) as refused:
        ingest(tmp_path / "in.parquet", f"qdrant:{tmp_path}/db", "c", id_column="key")
    pq.write_table(table.set_column(0, "key", pa.array(f"row {row}" for row in range(40))), tmp_path / "in.parquet")
    assert ingest(tmp_path / "in.parquet", f"qdrant:{tmp_path}/db", "c", id_column="key").entries == 40
    del refused


class Server:
    """A fake client of a Qdrant server that records its calls."""

    def __init__(self, **options):
        self.asked = [options]

    def collection_exists(self, name):
        return False

    def create_collection(self, name, **options):
        self.asked.append(options["vectors_config"].size)

    def upsert(self, name, points, **options):
        self.asked.append((len(points), options))

    def count(self, name, **options):
        self.asked.append(options)
        return qdrant_client.models.CountResult(count=7)

    def close(self):
        self.asked.append("close")


def test_a_qdrant_server(source, monkeypatch):
    """It gets the key, waits until the points are on disk, and requests the exact count."""
    made = []

    def client(**options):
        made.append(Server(**options))
        return made[-1]

    monkeypatch.setattr(qdrant, "_qdrant", lambda: (qdrant_client.models, client))
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    for place in ("https://here:6333", "http://here:6333"):
        assert ingest(source, f"qdrant:{place}", "notes").entries == 7
        asked = [{"url": place, "api_key": "secret"}, 32, (200, {"wait": True}), {"exact": True}, "close"]
        assert made[-1].asked == asked


@pytest.mark.parametrize(
    ("to", "module"), [("qdrant", "qdrant_client"), ("lancedb", "lancedb"), ("pgvector", "psycopg")], ids=lambda name: name
)
def test_a_client_that_is_not_installed(source, tmp_path, monkeypatch, to, module):
    """The message names the extra to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs the extra penult\[{to}\] \(pip install .*\[{to}\]\"\)\."):
        ingest(source, f"{to}:{tmp_path}/db", "notes")


@pytest.mark.parametrize("to", ["qdrant:", "lancedb"])
def test_a_store_without_a_place(source, to):
    """The error shows what a store looks like."""
    with pytest.raises(ValueError, match=rf"--to is '{to}'\. Pass qdrant:PATH, qdrant:URL, lancedb:PATH or pgvector:DSN"):
        ingest(source, to, "notes")


def test_columns_that_a_lancedb_table_does_not_support(source, tmp_path):
    """A reserved column name, and columns other than the table's, are errors that name them."""
    pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
    table, to = pq.read_table(source), f"lancedb:{tmp_path}/db"
    taken = table.append_column("penult_id", table.column("id"))
    pq.write_table(taken, tmp_path / "taken.parquet")
    with pytest.raises(ValueError, match="The file has a column 'penult_id', a name that penult's LanceDB tables reserve"):
        ingest(tmp_path / "taken.parquet", to, "notes")
    ingest(source, to, "notes")
    pq.write_table(table.drop_columns(["n"]), tmp_path / "fewer.parquet")
    with pytest.raises(ValueError, match=r"'notes' in .* has the columns .*\bn\b.*\. Pass another --collection"):
        ingest(tmp_path / "fewer.parquet", to, "notes")


def test_a_file_that_penult_did_not_embed(tmp_path):
    """Vectors of an unknown model are an error."""
    pq.write_table(pa.table({"id": ["a"], "embedding": [[1.0, 2.0]]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="does not name the model of its vectors"):
        ingest(tmp_path / "x.parquet", f"qdrant:{tmp_path}", "c")
    pq.write_table(
        pq.read_table(tmp_path / "x.parquet").replace_schema_metadata({"penult.vector_column": "embedding"}),
        tmp_path / "z.parquet",
    )
    with pytest.raises(ValueError, match="does not name the model of its vectors"):
        ingest(tmp_path / "z.parquet", f"qdrant:{tmp_path}", "c")
    with pytest.raises(FileNotFoundError):
        ingest(tmp_path / "y.parquet", f"qdrant:{tmp_path}", "c")
    with pytest.raises(ValueError, match=r"y\.csv is not a \.parquet or \.lance file"):
        ingest(tmp_path / "y.csv", f"qdrant:{tmp_path}", "c")
