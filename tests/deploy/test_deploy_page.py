"""docs/deploy.md: its commands, and a server without network access."""

import re
import shlex
import shutil
import sys

import network_kit
import pytest
from deploy_kit import DOCKERFILE, ROOT
from pages_kit import DOCS, blocks
from server_kit import parse

from penult.deepsparse.command import Options

PAGE = DOCS / "deploy.md"


def commands() -> list[list[str]]:
    """The words of each command on the page."""
    return [shlex.split(line[2:], comments=True) for block in blocks(PAGE, "console") for line in block.splitlines()]


def test_commands_of_the_page_are_valid():
    """Every command is one line of shell; those that start the server have valid options."""
    served = 0
    for words in commands():
        if "serve" in words:
            assert parse(words[words.index("serve") + 1 :]).endpoints
            served += 1
        if words[:2] == ["docker", "run"] and words[-1] != "penult":
            options = [word for word in words[words.index("penult") + 1 :] if word.startswith("--")]
            assert {option[2:].replace("-", "_") for option in options} <= set(Options.__dataclass_fields__)
    assert served == 1


def test_commands_of_the_page_use_build_arguments_and_files_that_exist():
    """Each --build-arg is an ARG of the Dockerfile; each file of deploy/ that the page names exists."""
    arguments = [word for words in commands() for word in words if re.fullmatch(r"[A-Z_]+=\S+", word) and words[0] == "docker"]
    assert len(arguments) >= 3
    for argument in arguments:
        assert re.search(rf"^ARG {argument.partition('=')[0]}=", DOCKERFILE, re.MULTILINE)
    named = set(re.findall(r"(?<![\w/])deploy/[\w./-]+\w", PAGE.read_text(encoding="utf-8")))
    assert len(named) >= 5
    assert all((ROOT / name).exists() for name in named)


def test_copied_model_is_served_without_network(tiny, tmp_path):
    """The section for machines without network: a copied folder is served offline."""
    shutil.copytree(tiny, tmp_path / "model")
    if not network_kit.available():
        pytest.skip("needs network namespaces")
    result = network_kit.observed([sys.executable, "-c", _OFFLINE, str(tmp_path)], tmp_path / "home")
    assert result["status"] == 0, result["output"]
    assert not result["names"]
    assert not result["without_route"]


_OFFLINE = """
import os, subprocess, sys, time, urllib.request
words = [sys.executable, "-m", "penult", "serve", "./model", "--host", "127.0.0.1", "--port", "5543"]
server = subprocess.Popen(words, cwd=sys.argv[1], env={**os.environ, "HF_HUB_OFFLINE": "1"})
status = 0
for _ in range(300):
    try:
        status = urllib.request.urlopen("http://127.0.0.1:5543/health").status
        break
    except OSError:
        time.sleep(0.1)
server.terminate()
server.wait(30)
sys.exit(status != 200)
"""
