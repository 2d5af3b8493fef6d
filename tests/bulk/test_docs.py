"""The pages on stores and recipes run on a tiny model, if the libraries that they name are installed."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys

import pytest
from bulk.jobs import command, corpus
from bulk.postgres import server
from pages_kit import DOCS, HUB_ID, blocks

TELEMETRY = {"HAYSTACK_TELEMETRY_ENABLED": "False", "ANONYMIZED_TELEMETRY": "False"}


def python(code, folder, tiny):
    """Run a block of Python in a new process, and return its output."""
    code = code.replace(HUB_ID, tiny.as_posix())
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | TELEMETRY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def needs(code):
    """Skip a block whose library is not installed."""
    for name in ("chromadb", "haystack", "txtai", "lancedb", "langchain_postgres", "langchain_qdrant"):
        if re.search(rf"^(from|import) {name}", code, re.MULTILINE) and importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("code", blocks(DOCS / "recipes.md", "python"), ids=["chroma", "haystack", "txtai", "numpy"])
def test_recipes(code, tiny, tmp_path):
    """Each recipe finds one of its texts. txtai needs torch, so its recipe runs only where torch is installed."""
    needs(code)
    output = python(code, tmp_path, tiny)
    assert "moon" in output or "Cats" in output or output.startswith("[(")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """The folder in which the commands of stores.md have run."""
    folder = tmp_path_factory.mktemp("stores")
    corpus(folder / "texts.jsonl", 20)
    with server() as dsn:
        words = dict(word.split("=", 1) for word in dsn.split())
        url = f"postgresql+psycopg://{words['user']}@/{words['dbname']}?host={words['host']}"
        import psycopg

        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA rag")
        commands = [["embed", "texts.jsonl", "vectors.parquet", "--model", str(tiny), "--progress", "off"]]
        lines = "\n".join(blocks(DOCS / "stores.md", "console")).splitlines()
        commands += [words[2:] for line in lines if (words := shlex.split(line, comments=True))[:2] == ["$", "penult"]]
        commands += [["ingest", "vectors.parquet", "--to", "lancedb:./lance", "--collection", "docs"]]
        assert len(commands) == 7
        for arguments in commands:
            words = [argument.replace("DSN", dsn) for argument in arguments]
            result = subprocess.run(command(*words), cwd=folder, capture_output=True, text=True, timeout=120)
            assert result.returncode == 0, result.stderr
        yield folder, url, dsn


@pytest.mark.parametrize(
    "code", blocks(DOCS / "stores.md", "python"), ids=["langchain-qdrant", "llama-index", "lancedb", "pgvector"]
)
def test_readers_of_stores(code, folder, tiny):
    """LangChain, LlamaIndex and the clients of the stores read the rows."""
    needs(code)
    folder, url, _ = folder
    assert "row " in python(code.replace('"URL"', repr(url)), folder, tiny)


def test_the_table_on_the_page(folder, embedder):
    """The table has the columns, types, index and comment of the page."""
    import psycopg

    with psycopg.connect(folder[2]) as connection:
        columns = connection.execute(
            "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute "
            "WHERE attrelid = 'rag.docs'::regclass AND attnum > 0 ORDER BY attnum"
        ).fetchall()
        ((index,),) = connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'rag' AND indexdef LIKE '%hnsw%'"
        ).fetchall()
        texts = connection.execute(
            "SELECT metadata->>'id', text FROM rag.docs WHERE metadata @> '{\"n\": 3}' ORDER BY embedding <=> embedding LIMIT 10"
        ).fetchall()
    shown = blocks(DOCS / "stores.md", "sql")[0].replace("384", str(embedder.dimension))
    lines = {line.split()[0]: line for line in shown.splitlines() if line}
    for name, kind, required in columns:
        assert f" {kind}" in lines[name]
        assert required == ("NOT NULL" in lines[name] or "PRIMARY KEY" in lines[name])
    assert index.partition(" ON ")[2] in shown
    assert [id_ for id_, _ in texts] == ["row 3"]
