"""A job's output before and after it is written."""

from dataclasses import replace

import pyarrow as pa
import pytest

from penult.bulk.embed import check_format, is_finished, output_schema
from penult.bulk.input.readers import Scanned
from penult.bulk.job.manifest import Identity, Manifest
from penult.bulk.job.progress import Totals
from penult.bulk.job.worker import Ready
from penult.bulk.options import Columns

IDENTITY = Identity(("h1",), "f", "document", "text", "v", None, "warn", None)
COLUMNS = Columns("text", "v", "document")


def made(*, columns=("text", "id"), identity=IDENTITY):
    """Return the schema of an output whose input has these columns."""
    scanned = Scanned(pa.schema([(name, pa.string()) for name in columns], metadata={"mine": "kept"}), (4,), 2)
    return output_schema(COLUMNS, scanned, Ready(3, 64, {"penult.fingerprint": "f"}), identity, Totals(7, 2))


def test_its_columns_and_metadata():
    """The input's columns, then the vectors; the metadata keep the input's entries and add model, columns and counts."""
    found = made()
    assert found.names == ["text", "id", "v"]
    assert found.field("v").type == pa.list_(pa.float32(), 3)
    said = {key.decode(): value.decode() for key, value in found.metadata.items()}
    assert said == {
        "mine": "kept", "penult.fingerprint": "f", "penult.text_column": "text", "penult.vector_column": "v",
        "penult.id_column": "id", "penult.job": IDENTITY.digest, "penult.rows": "7", "penult.rejected": "2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "asked", "names_a_row"),
    [(("text", "id"), None, b"id"), (("text", "id"), "key", b"key"), (("text",), None, b""), (("text",), "key", b"key")],
)
def test_the_id_column(columns, asked, names_a_row):
    """The requested column, else `id` if it exists."""
    found = made(columns=columns, identity=replace(IDENTITY, id_column=asked))
    assert found.metadata[b"penult.id_column"] == names_a_row


def test_a_format_is_tried_before_the_work(tmp_path):
    """The error for an unsupported column names the output; the trial is written to the other folder."""
    check_format(tmp_path / "out.parquet", tmp_path, made(), "v")
    assert [path.name for path in tmp_path.iterdir()] == ["none.parquet"]
    unholdable = made().append(pa.field("n", pa.month_day_nano_interval()))
    with pytest.raises(ValueError, match=r"out\.parquet cannot be written: .*interval"):
        check_format(tmp_path / "out.parquet", tmp_path, unholdable, "v")
    with pytest.raises(ValueError, match=r"out\.parquet cannot be written: .*No such file"):
        check_format(tmp_path / "out.parquet", tmp_path / "nowhere", made(), "v")


NEXT = replace(IDENTITY, takes_over="of an older output")


@pytest.mark.parametrize(
    ("ending", "said", "identity", "began", "there"),
    [
        (".npy", IDENTITY, IDENTITY, None, True),
        (".parquet", IDENTITY, IDENTITY, None, True),
        (".parquet", None, IDENTITY, None, False),
        (".parquet", IDENTITY, NEXT, None, False),
        (".parquet", IDENTITY, IDENTITY, IDENTITY, True),
        (".npy", IDENTITY, IDENTITY, IDENTITY, False),
        (".parquet", None, IDENTITY, IDENTITY, False),
        (".parquet", NEXT, IDENTITY, NEXT, True),
        (".parquet", IDENTITY, IDENTITY, NEXT, False),
        (".parquet", IDENTITY, replace(IDENTITY, role="query"), IDENTITY, False),
    ],
)
def test_whether_it_is_finished(tmp_path, ending, said, identity, began, there):
    """Without an unfinished job, by the output's metadata; with one, if its own file says so, whatever --from names."""
    manifest = began and Manifest(began, Scanned(pa.schema([]), (1,), 1), ())
    metadata = {} if said is None else {"penult.job": said.digest}
    assert is_finished(tmp_path / f"out{ending}", metadata, identity, manifest) is there
