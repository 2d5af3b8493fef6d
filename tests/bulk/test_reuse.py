"""Reuse of vectors from an older output by text, and outputs that cannot be reused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penult.bulk import lance_files, tables
from penult.bulk.job import reuse

SAYS = {"penult.fingerprint": "f", "penult.role": "document", "penult.text_column": "text", "penult.vector_column": "vector"}
NAMED = {"fingerprint": "f", "role": "document", "text_column": "text"}


def older(folder, texts, dimension=2, says=SAYS):
    """Write an older output whose n-th row has a vector of n, n + 0.5 and so on."""
    vectors = np.arange(len(texts), dtype=np.float32)[:, None] + np.arange(dimension, dtype=np.float32) / 2
    table = tables.with_vectors(pa.table({"n": range(len(texts)), "text": texts}), "vector", vectors, says)
    pq.write_table(table, folder / "old.parquet", row_group_size=3000)
    return folder / "old.parquet"


def indexed(folder, texts, dimension=2):
    """Index an older output and open the index."""
    (folder / "index").mkdir()
    reuse.build(older(folder, texts, dimension), folder / "index", "text")
    return reuse.Old(folder / "index", dimension)


def test_texts_are_found_and_vectors_merged(tmp_path):
    """In whatever batch a text is; of equal texts the first counts, and a missing text is an empty one."""
    texts = [f"text {i}" for i in range(9000)]
    texts[5000] = texts[4999] = texts[2]
    texts[7000] = None
    old = indexed(tmp_path, texts, dimension=3)
    asked = ["new", texts[2], "text 8999", None, 7, "", texts[2], "\ud800", *texts[100:1300]]
    found = old.find(asked)
    assert found == {1: 2, 2: 8999, 5: 7000, 6: 2} | {8 + i: 100 + i for i in range(1200)}
    merge = old.merge([0, 1, 2, 6], found, np.full((1, 3), -1, np.float32))
    np.testing.assert_array_equal(merge, [[-1, -1, -1], [2, 2.5, 3], [8999, 8999.5, 9000], [2, 2.5, 3]])
    assert merge.dtype == np.float32


def test_an_older_dataset(tmp_path):
    """A Lance dataset is read like a Parquet file."""
    pytest.importorskip("lance", reason="the extra `lance` is not installed")
    table = pq.read_table(older(tmp_path, ["a", "b"]))
    lance_files.write(tmp_path / "old.lance", table.schema, table.to_batches())
    reuse.check(tmp_path / "old.lance", **NAMED)
    reuse.build(tmp_path / "old.lance", tmp_path, "text")
    assert reuse.Old(tmp_path, 2).find(["b", "c"]) == {0: 1}


def test_nothing_to_reuse(tmp_path):
    """An older output without rows has no vectors, and rows that are not in it keep their own."""
    old = indexed(tmp_path, pa.array([], pa.string()))
    assert old.find(["a", "b"]) == {}
    fresh = np.ones((2, 2), np.float32)
    np.testing.assert_array_equal(old.merge([0, 1], {}, fresh), fresh)


def test_an_index_is_built_once(tmp_path):
    """A second call uses the existing one; a partial one from a crash is built again."""
    (tmp_path / "index").mkdir()
    path = older(tmp_path, ["a"])
    (tmp_path / "index" / "old.sqlite.part").write_bytes(b"half of an index")
    reuse.build(path, tmp_path / "index", "text")
    path.unlink()
    reuse.build(path, tmp_path / "index", "text")
    assert reuse.Old(tmp_path / "index", 2).find(["a"]) == {0: 0}
    assert sorted(file.name for file in (tmp_path / "index").iterdir()) == ["old.f32", "old.sqlite"]


def test_an_index_that_cannot_be_written(tmp_path):
    """The error names the output and the folder."""
    path = older(tmp_path, ["a"])
    with pytest.raises(OSError, match=r"the index of .*old\.parquet cannot be written to .*nowhere: unable to open"):
        reuse.build(path, tmp_path / "nowhere", "text")


@pytest.mark.parametrize("key", ["fingerprint", "role", "text_column"])
def test_an_output_of_another_model_is_an_error(tmp_path, key):
    """Another model, role or column; the message names both. An output without metadata is an error too."""
    path = older(tmp_path, ["a"])
    reuse.check(path, **NAMED)
    with pytest.raises(
        ValueError, match=f"whose {key} is '{NAMED[key]}', but the {key} of this job is 'other'. Its vectors cannot be reused"
    ):
        reuse.check(path, **NAMED | {key: "other"})
    with pytest.raises(ValueError, match="whose fingerprint is None"):
        reuse.check(older(tmp_path, ["a"], says={}), **NAMED)


def test_files_that_are_not_an_older_output(tmp_path):
    """A file of another format, and a missing file, are errors."""
    with pytest.raises(ValueError, match=r"old\.npy, which is not an output with texts and vectors"):
        reuse.check(tmp_path / "old.npy", **NAMED)
    with pytest.raises(ValueError, match="whose fingerprint is None"):
        reuse.check(tmp_path / "old.parquet", **NAMED)
