"""The examples of docs/bulk.md for other engines run unchanged where those are installed."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.dataset as ds
import pytest
from bulk.jobs import corpus
from pages_kit import DOCS, HUB_ID, blocks


@pytest.mark.parametrize("engine", ["pyspark", "daft"])
def test_a_recipe_gives_the_vectors_of_embedder(engine, tiny, embedder, tmp_path):
    """Every row comes back, with the vector that Embedder.embed gives for its text."""
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    if engine == "pyspark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    (code,) = [block for block in blocks(DOCS / "bulk.md", "py") if re.search(rf"^(import|from) {engine}", block, re.MULTILINE)]
    code = code.replace(HUB_ID, tiny.as_posix()).replace("384", str(embedder.dimension))
    corpus(tmp_path / "docs.jsonl", 100)
    environment = os.environ | {"PYSPARK_PYTHON": sys.executable}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (out,) = tmp_path.glob("vectors.*")
    table = ds.dataset(out, format="parquet").to_table().to_pydict()
    assert sorted(table["id"]) == sorted(f"row {number}" for number in range(100))
    assert np.abs(np.float32(table["embedding"]) - embedder.embed(table["text"])).max() <= 1e-6
