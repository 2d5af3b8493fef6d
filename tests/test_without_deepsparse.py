"""Without the folder of the DeepSparse interface and its two hooks, everything else works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

import penult

SOURCE = Path(penult.__file__).parent
HOOKS = ("__init__.py", "cli.py")


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """Copy the package without the folder, and without the lines of the hooks that mention it."""
    package = tmp_path_factory.mktemp("without") / "penult"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__", "deepsparse"))
    for name in HOOKS:
        lines = (package / name).read_text().splitlines(keepends=True)
        kept = [line for line in lines if "deepsparse" not in line.lower()]
        assert len(kept) < len(lines), name
        (package / name).write_text("".join(kept))
    return package


def python(without: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the copy instead of penult."""
    environment = {**os.environ, "PYTHONPATH": str(without.parent)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def test_nothing_else_imports_the_folder(without):
    """No file imports the folder."""
    left = [
        path
        for path in without.rglob("*.py")
        if re.search(r"^\s*(from|import) penult\.deepsparse", path.read_text(), re.MULTILINE)
    ]
    assert left == []


def test_vectors_and_files(without, tiny, embedder, tmp_path):
    """Library, command line and bulk jobs return the same vectors."""
    (tmp_path / "in.txt").write_text("the cat\na dog\n")
    code = f"""
import numpy, penult
assert penult.__file__ == {str(without / "__init__.py")!r}
with penult.Embedder.load({str(tiny)!r}) as embedder:
    numpy.save({str(tmp_path / "vectors.npy")!r}, embedder.embed(["the cat", "a dog"]))
"""
    done = python(without, "-c", code)
    assert done.returncode == 0, done.stderr
    done = python(without, "-m", "penult", "embed", str(tmp_path / "in.txt"), str(tmp_path / "out.npy"), "--model", str(tiny))
    assert done.returncode == 0, done.stderr
    expected = embedder.embed(["the cat", "a dog"])
    for name in ("vectors.npy", "out.npy"):
        np.testing.assert_allclose(np.load(tmp_path / name), expected, atol=1e-6)
    assert python(without, "-m", "penult", "inspect", str(tiny)).returncode == 0


def test_a_server(without, tiny, embedder):
    """`penult serve` has the OpenAI and TEI routes, and not the DeepSparse routes."""
    environment = {**os.environ, "PYTHONPATH": str(without.parent)}
    command = [sys.executable, "-m", "penult", "serve", str(tiny), "--host", "127.0.0.1", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if match := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                pytest.fail("".join(lines))
            answer = httpx.post(f"{match[1]}/v1/embeddings", json={"input": ["the cat"], "model": str(tiny)})
            vector = answer.json()["data"][0]["embedding"]
            np.testing.assert_allclose(np.float32(vector), embedder.embed(["the cat"])[0], atol=1e-6)
            assert httpx.post(f"{match[1]}/embed", json={"inputs": "a dog"}).status_code == 200
            assert httpx.get(f"{match[1]}/health").status_code == 200
            assert httpx.post(f"{match[1]}/predict", json={"inputs": "a"}).status_code == 404
        finally:
            server.terminate()
