"""docs/start.md: its curl commands run against a server; tests/test_readme.py runs the rest of the page."""

import json
import re
import shutil

import pytest
from pages_kit import DOCS
from server_kit import curl, serving

from penult.server import EndpointConfig

PAGE = (DOCS / "start.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (curl .*)$", PAGE, re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_commands_are_answered(tiny, tmp_path):
    """Each curl command of the page is answered with one vector per text."""
    assert COMMANDS
    with serving(EndpointConfig(model=str(tiny))) as running:
        for command in COMMANDS:
            done = curl(command.replace("http://127.0.0.1:5543", running.url), tmp_path)
            assert done.returncode == 0, done.stderr
            assert len(json.loads(done.stdout)["data"]) == 2
