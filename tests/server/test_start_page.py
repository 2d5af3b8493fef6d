"""docs/start.md: its curl commands run against a server; tests/test_readme.py runs the rest of the page."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from server_kit import serving

from penult.server import EndpointConfig

PAGE = (Path(__file__).parents[2] / "docs" / "start.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (curl .*)$", PAGE, re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_commands_are_answered(tiny, tmp_path):
    """Each curl command of the page is answered with one vector per text."""
    assert COMMANDS
    with serving(EndpointConfig(model=str(tiny))) as running:
        for command in COMMANDS:
            words = command.replace("http://127.0.0.1:5543", running.url)
            done = subprocess.run(
                ["bash", "-c", f"{words} --fail --silent --show-error"],
                capture_output=True,
                text=True,
                env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
                timeout=30,
            )
            assert done.returncode == 0, done.stderr
            assert len(json.loads(done.stdout)["data"]) == 2
