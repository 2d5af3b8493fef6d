"""docs/server.md: its commands run against a server, its file is read, and nothing of the server is missing in it."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from server_kit import serving

from penult.deepsparse import config_file
from penult.deepsparse.arguments import TASK
from penult.deepsparse.command import Options
from penult.deepsparse.config_file import DeepSparseEndpoint
from penult.server import EndpointConfig, Limits, ServerConfig
from penult.server.metrics import Metrics

PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line[2:] for block in BLOCKS for line in block.splitlines() if "curl" in line]


@pytest.fixture(scope="module")
def running(tiny):
    with serving(DeepSparseEndpoint(model=str(tiny), task=TASK, kwargs={"extraction_strategy": "cls_token"})) as made:
        yield made


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("gzip") is None, reason="needs curl and gzip")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run(running, tmp_path, command):
    """Each curl of the page is answered with 200."""
    (tmp_path / ".curlrc").write_text("fail\nsilent\nshow-error\n")
    words = command.replace("http://localhost:5543", running.url)
    done = subprocess.run(
        ["bash", "-c", words], capture_output=True, text=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_route_has_a_command(running):
    """Each path of the OpenAPI document stands on the page, and all but the list of health routes in a command."""
    for path in (path.replace(f"{TASK}-0", TASK) for path in running.get("/openapi.json").json()["paths"]):
        if path != "/v1/models/{name}":
            assert path in PAGE, path
            assert (
                any(f"localhost:5543{path}" in command for command in COMMANDS)
                or "health" in path
                or path in ("/ping", "/status")
            )


def test_the_configuration_file_is_read(tiny, tmp_path):
    """The YAML of the page is a file that can be served."""
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    file = tmp_path / "config.yaml"
    file.write_text(
        text.replace("sentence-transformers/all-MiniLM-L6-v2", str(tiny)).replace("max_length: 128", "max_length: 64")
    )
    config = config_file.read(file)
    with serving(*config.endpoints) as running:
        answer = running.post("/v1/embeddings", {"input": "the cat", "input_type": "query", "model": "text-embedding-3-small"})
        assert answer.json()["model"] == "minilm"
        assert len(answer.json()["data"][0]["embedding"]) == 16


@pytest.mark.parametrize("section", [ServerConfig, EndpointConfig, Limits])
def test_every_key_is_on_a_page(section):
    """Each key of a section stands on this page or on that of the limits."""
    more = Path(__file__).parents[2] / "docs" / "server-limits.md"
    text = PAGE + (more.read_text(encoding="utf-8") if more.exists() else "")
    missing = [name for name in section.model_fields if not re.search(rf"(?<![a-z]){name}(?![a-z])", text.replace("-", "_"))]
    assert not missing


def test_every_option_that_the_page_names_exists():
    """No option of the page is unknown to the command."""
    named = {word.lstrip("-").replace("-", "_") for word in re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)}
    assert named - {"head", "data_binary", "help"} <= set(Options.__dataclass_fields__)


def test_every_metric_is_on_the_page():
    """Each series of the server has a line."""
    names = {family.name for family in Metrics().registry.collect()}
    missing = [name for name in names if f"`{name}`" not in PAGE and not name.startswith("process_")]
    assert not missing
    assert set(re.findall(r"`((?:te|penult)_\w+)`", PAGE)) <= names


def test_the_commands_are_well_formed():
    """Every block of the page can be read by a shell."""
    for block in BLOCKS:
        for line in block.splitlines():
            assert shlex.split(line)[0] == "$"
