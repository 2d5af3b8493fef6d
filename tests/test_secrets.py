"""Keys and texts appear in no log, representation or error message."""

import asyncio
import base64
import json
import logging
import pickle

import httpx
import numpy as np
import pytest
from bulk.jobs import run
from bulk.postgres import server

from penult import RemoteEmbedder
from penult.bulk.stores.base import Entries, VectorSpec

TEXT, PASSWORD, KEY = "moonlight sonata", "hunter2", "s3cret"


@pytest.fixture
def said(caplog, capfd, recwarn):
    """Everything that was logged, printed or warned, with every logger at DEBUG."""
    caplog.set_level(logging.DEBUG)

    def collect():
        streams = capfd.readouterr()
        return "\n".join([caplog.text, streams.out, streams.err, *(str(w.message) for w in recwarn)])

    return collect


def talks(status, body, url=f"http://user:{PASSWORD}@127.0.0.1/predict", key=KEY, sent=None):
    """Send a request to such a server with both clients; return what they show of themselves and of the response."""

    def answer(request):
        if sent is not None:
            sent.append(request.headers.get("authorization"))
        return httpx.Response(status, json=body)

    with RemoteEmbedder(url, key, retries=0, transport=httpx.MockTransport(answer)) as remote:
        words = [repr(remote), str(remote)]
        for call in (lambda: remote.embed([TEXT]), lambda: asyncio.run(remote.aembed([TEXT]))):
            try:
                call()
            except (ValueError, PermissionError, ConnectionError) as error:
                words += [repr(error), str(error)]
    return " ".join(words)


@pytest.mark.parametrize("status", [200, 301, 401, 403, 404, 413, 422, 429, 500, 503])
@pytest.mark.parametrize("body", [{"embeddings": [[1.0, 2.0]]}, {"error": {"message": "no"}}, []])
def test_whatever_the_server_answers(said, status, body):
    """No key, password in the URL, or text is shown by a client, its errors, or the log, including httpx's."""
    shown = talks(status, body) + said()
    assert "127.0.0.1" in shown
    for secret in (TEXT, PASSWORD, KEY, base64.b64encode(f"user:{PASSWORD}".encode()).decode()):
        assert secret not in shown


def test_an_unreachable_server(said):
    """The error has the address and no other part of the URL."""
    with RemoteEmbedder(f"http://user:{PASSWORD}@127.0.0.1:9", KEY, retries=0) as remote:
        with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9 cannot be reached") as caught:
            remote.embed([TEXT])
        with pytest.raises(ConnectionError) as late:
            asyncio.run(remote.aembed([TEXT]))
    with pytest.raises(ValueError, match="base_url is '127") as wrong:
        RemoteEmbedder(f"ftp://user:{PASSWORD}@127.0.0.1")
    shown = said() + str(caught.value) + str(late.value) + str(wrong.value)
    assert not [secret for secret in (TEXT, PASSWORD, KEY) if secret in shown]


@pytest.mark.parametrize(
    ("user", "key", "header"),
    [
        ("", None, None),
        ("", "k", "Bearer k"),
        ("ann:p%40ss@", None, "Basic " + base64.b64encode(b"ann:p@ss").decode()),
        ("ann@", None, "Basic " + base64.b64encode(b"ann:").decode()),
        ("ann:p%40ss@", "k", "Bearer k"),
    ],
)
def test_what_is_sent(user, key, header):
    """A key is sent as a bearer token; without a key, credentials in the URL are sent as basic authentication."""
    sent = []
    assert "http://127.0.0.1'" in talks(200, {"embeddings": [[1.0]]}, f"http://{user}127.0.0.1/predict", key, sent)
    assert set(sent) == {header}


def test_another_process_has_the_password(said):
    """A pickled client sends what the original sent."""
    sent = []
    talks(200, {"embeddings": [[1.0]]}, sent=sent)
    again = pickle.loads(pickle.dumps(RemoteEmbedder(f"http://ann:{PASSWORD}@127.0.0.1")))
    (request,) = again._options["auth"].sync_auth_flow(httpx.Request("GET", "http://127.0.0.1"))
    assert request.headers["Authorization"] == "Basic " + base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
    assert PASSWORD not in repr(again) + said()


def test_a_bulk_job_logs_no_text(tiny, tmp_path):
    """Both streams only have counts of good, truncated and rejected rows; the rejected rows are in a file beside them."""
    source, beside = tmp_path / "in.jsonl", tmp_path / "out.parquet.rejected.jsonl"
    rows = [{"text": TEXT}, {"text": f"{TEXT} " * 90}, {"text": None}, {"text": [TEXT]}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"text": "' + TEXT)
    for progress in ((), ("--progress", "json")):
        done = run("embed", source, tmp_path / "out.parquet", "--model", tiny, *progress)
        assert "3" in done.stderr
        assert len(beside.read_text().splitlines()) == 3
        assert not [word for word in TEXT.split() if word in done.stdout + done.stderr]
        (tmp_path / "out.parquet").unlink()


def test_a_database_that_rejects_a_row():
    """PostgreSQL's error has the row; penult only passes on the violated constraint."""
    pa = pytest.importorskip("pyarrow")
    psycopg = pytest.importorskip("psycopg", reason="needs the extra penult[pgvector]")
    from penult.bulk.stores.pgvector import PgVector

    rows = pa.table({"text": [TEXT]})
    kept = {"penult.fingerprint": "f", "penult.role": "document"}
    with server() as dsn:
        store = PgVector(dsn, "t", VectorSpec(2, kept, rows.schema, "columns"), "none")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("ALTER TABLE t ADD CONSTRAINT no_moon CHECK (metadata->>'text' NOT LIKE 'moon%')")
        with pytest.raises(OSError, match="no_moon") as caught:
            store.upsert(Entries(["00000000-0000-0000-0000-000000000000"], None, np.ones((1, 2), np.float32), rows))
        store.close()
    assert "moonlight" not in str(caught.value)
