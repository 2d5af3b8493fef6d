"""The messages of the section Installation on the troubleshooting page."""

import os
import re
import subprocess
import sys

import messages_kit
import pytest
from conftest import ROOT, load_script

from penult.extras import install_hint

SECTION = "Installation"
ENVIRONMENT = ROOT / ".ci" / "environment.py"  # creates the virtual environments of the Makefile
# penult without extras: the packages that only extras install are hidden from the import system.
BARE = """
import sys
from importlib.machinery import PathFinder

ABSENT = sys.argv.pop(1).split()
sys.argv[0] = "penult"

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, *rest)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
from penult.__main__ import main
main()
"""
EXTRAS = "uvicorn fastapi fastapi_offline yaml orjson prometheus_client pyarrow qdrant_client lancedb psycopg lance ray"


def last_line(*words, **env):
    """Return the last line that a failing Python process writes to standard error."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **env}, check=False)
    assert done.returncode, done.stderr
    return done.stderr.splitlines()[-1]


def bare(*words):
    """Return the message of a command of an installation without extras, with the checkout's path as it was installed."""
    option, checkout = re.search(r'(-e )?"(.+)\[server\]"', install_hint("server")).groups()
    message = last_line("-c", BARE, EXTRAS, *words)
    return message.replace(option or "\0", ""), {"CHECKOUT": checkout}


def no_adapter(tmp_path, monkeypatch):
    return last_line("-I", "-S", "-c", "import langchain_penult"), {}


def no_server(tmp_path, monkeypatch):
    return bare("serve", "MODEL")


def no_store(tmp_path, monkeypatch):
    (tmp_path / "vectors.parquet").touch()
    return bare("ingest", tmp_path / "vectors.parquet", "--to", "qdrant:store", "--collection", "docs")


def old_python(tmp_path, monkeypatch):
    script = load_script(ENVIRONMENT)
    monkeypatch.setattr(script.sys, "version_info", (3, 10, 2))
    monkeypatch.setattr(script.shutil, "which", lambda _: None)
    with pytest.raises(SystemExit) as error:
        script.suitable_python()
    return str(error.value), {"PYTHON": sys.executable}


def pip_failed(tmp_path, monkeypatch):
    words = (ENVIRONMENT, tmp_path / "venv", "dev", "--", "--no-index", "package-without-a-file")
    return last_line(*words), {"FOLDER": tmp_path / "venv"}


def imported_first(tmp_path, monkeypatch):
    env = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", "import onnxruntime, penult"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=True)
    return done.stderr.splitlines()[-1], {}


CASES = {
    "No module named langchain_penult": no_adapter,
    "`penult serve`: no module named yaml": no_server,
    "`penult ingest` needs an extra": no_store,
    "Python is too old for make": old_python,
    "pip failed": pip_failed,
    "onnxruntime was imported before penult": imported_first,
}


@pytest.mark.parametrize("heading", CASES)
def test_a_message_is_on_the_page(heading, tmp_path, monkeypatch):
    message, names = CASES[heading](tmp_path, monkeypatch)
    messages_kit.check(SECTION, heading, message, **names)


def test_every_message_of_the_page_has_a_test():
    messages_kit.check_complete(SECTION, CASES)
