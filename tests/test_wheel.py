"""The three wheels: their contents, and that each works without this checkout."""

import os
import re
import site
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="needs hatchling, which builds the wheels")

ROOT = Path(__file__).parents[1]
# Each distribution: its folder, its package, and a line of Python that uses it.
WHEELS = {
    "penult": (ROOT, "penult", "from penult import Embedder, Engine, Pipeline, RemoteEmbedder"),
    "langchain_penult": (
        ROOT / "integrations" / "langchain-penult",
        "langchain_penult",
        "from langchain_penult import PenultEmbeddings; PenultEmbeddings(model='somewhere')",
    ),
    "llama_index_embeddings_penult": (
        ROOT / "integrations" / "llama-index-embeddings-penult",
        "llama_index/embeddings/penult",
        "from llama_index.embeddings.penult import PenultEmbedding; PenultEmbedding(model='somewhere')",
    ),
}


def run(*command, **options):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which may name this checkout
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=env, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheels by distribution, built from this checkout without a network."""
    folder = tmp_path_factory.mktemp("wheels")
    for source, _, _ in WHEELS.values():
        run(
            sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source
        )  # fmt: skip
    return {path.name.partition("-")[0]: path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def fresh(wheels, tmp_path_factory):
    """The Python of a fresh environment with the wheels, which imports their dependencies from the current environment."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A path in a .pth file is searched, but .pth files in that path are not read; those would add this checkout.
    (own / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", *wheels.values())
    return python


@pytest.mark.parametrize("name", WHEELS)
def test_a_wheel_has_its_package_and_nothing_else(wheels, name):
    """Every source file of the package, py.typed, the license and the data; no test, no notebook, no other package."""
    source, package, _ = WHEELS[name]
    with zipfile.ZipFile(wheels[name]) as wheel:
        files = set(wheel.namelist())
        info = next(file for file in files if file.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(wheel.read(info))
    folder = info.partition("/")[0]
    base = source / "src" if name == "penult" else source
    tracked = run("git", "-C", ROOT, "ls-files", "--cached", "--", base / package).split()
    expected = {(ROOT / file).relative_to(base).as_posix() for file in tracked if (ROOT / file).exists()}
    assert expected <= files
    assert all(file.startswith((f"{package}/", f"{folder}/")) for file in files)
    assert not [file for file in files if re.search(r"test|notebook|__pycache__|\.ipynb", file.removeprefix(package))]
    assert f"{package}/py.typed" in files
    assert f"{folder}/licenses/LICENSE" in files
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert len(metadata.get_payload()) > 500  # the README


@pytest.mark.parametrize("name", WHEELS)
def test_a_wheel_works_without_the_checkout(fresh, name, tmp_path):
    """The import comes from the installed wheel, and a basic use works."""
    package, use = WHEELS[name][1].replace("/", "."), WHEELS[name][2]
    code = f"import {package} as p; {use}; print(p.__file__)"
    file = Path(run(fresh, "-c", code, cwd=tmp_path).strip())
    assert file.is_relative_to(fresh.parents[1])


def test_the_command_works(fresh, tmp_path):
    """`penult --help` lists the commands, `--version` prints the version; the time of the import is printed."""
    text = run(fresh.parent / "penult", "--help", cwd=tmp_path)
    assert {"inspect", "cut", "embed"} <= set(text.split())
    assert run(fresh.parent / "penult", "--version", cwd=tmp_path).startswith("penult 0.")
    timed = subprocess.run([fresh, "-X", "importtime", "-c", "import penult"], capture_output=True, text=True, cwd=tmp_path)
    assert re.search(r"\d+ \|\s+\d+ \| penult\n", timed.stderr)
    print(next(line for line in timed.stderr.splitlines() if line.endswith("| penult")))


def test_the_requirements_of_the_wheels_are_met(fresh):
    """`pip check` reports no problem of the three distributions."""
    done = subprocess.run([sys.executable, "-m", "pip", "--python", fresh, "check"], capture_output=True, text=True)
    assert done.stdout
    assert not re.findall(r"^\S*penult\S* \d.*", done.stdout, re.MULTILINE)
