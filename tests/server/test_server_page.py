"""docs/server.md: its commands run against a server, its file is read, and nothing of the server is missing in it."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml
from pages_kit import DOCS, HUB_ID, blocks
from server_kit import curl, serving

from penult.deepsparse import command, config_file
from penult.deepsparse.arguments import TASK
from penult.deepsparse.command import Options
from penult.deepsparse.config_file import DeepSparseEndpoint
from penult.server import EndpointConfig, Limits, ServerConfig
from penult.server.metrics import Metrics

FILE = DOCS / "server.md"
PAGE = FILE.read_text(encoding="utf-8")
BLOCKS = blocks(FILE, "console")
LINES = [line for block in BLOCKS for line in block.splitlines()]
EXAMPLES = [
    (line[2:], "" if following.startswith("$") else following)
    for line, following in zip(LINES, [*LINES[1:], "$"], strict=True)
    if line.startswith("$") and "curl" in line
]
COMMANDS = [command for command, _ in EXAMPLES]
BENCH = Path(__file__).parents[2] / ".bench" / "all-MiniLM-L6-v2"


needs_curl = pytest.mark.skipif(shutil.which("curl") is None or shutil.which("gzip") is None, reason="needs curl and gzip")


@pytest.fixture(scope="module")
def running(tiny):
    with serving(DeepSparseEndpoint(model=str(tiny), name=TASK), allow_endpoints=True) as made:
        yield made


@pytest.fixture(scope="module")
def minilm():
    if not BENCH.is_dir():
        pytest.skip("needs all-MiniLM-L6-v2: make bench-model")
    with serving(DeepSparseEndpoint(model=str(BENCH), name=TASK)) as made:
        yield made


def run(command: str, server, home: Path, model: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the page; it fails if the status is not below 400."""
    return curl(command.replace("http://localhost:5543", server.url).replace("MODEL_FOLDER", str(model)), home)


@needs_curl
@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.endswith("models/all-MiniLM-L6-v2")])
def test_the_commands_run(running, tmp_path, tiny, command):
    """Each curl command of the page gets 200."""
    done = run(command, running, tmp_path, tiny)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@needs_curl
@pytest.mark.parametrize(("command", "answer"), [example for example in EXAMPLES if "/endpoints " not in example[0]])
def test_the_answers_are_those_of_the_server(minilm, tmp_path, command, answer):
    """Each answer of the page is that of all-MiniLM-L6-v2, except for what `...` omits."""
    assert answer, "the command has no answer on the page"
    done = run(command, minilm, tmp_path, BENCH)
    pattern = ".*".join(re.escape(part) for part in answer.split("..."))
    assert re.fullmatch(pattern, done.stdout.strip(), re.DOTALL), done.stdout[:1000] + done.stderr


def test_every_route_has_a_command(running):
    """Each path of the OpenAPI document stands on the page, and all but the list of health routes in a command."""
    for path in (path.replace(f"{TASK}-0", TASK) for path in running.get("/openapi.json").json()["paths"]):
        if path != "/v1/models/{name}":
            assert path in PAGE, path
            in_command = any(f"localhost:5543{path}" in command for command in COMMANDS)
            assert in_command or "health" in path or path in ("/ping", "/status"), path


def test_the_configuration_file_is_read(tiny, tmp_path):
    """The YAML of the page is a file that can be served."""
    (text,) = blocks(FILE, "yaml")
    file = tmp_path / "config.yaml"
    file.write_text(text.replace(HUB_ID, str(tiny)).replace("max_length: 128", "max_length: 64"))
    config = config_file.read(file)
    with serving(*config.endpoints) as running:
        answer = running.post("/v1/embeddings", {"input": "the cat", "input_type": "query", "model": "text-embedding-3-small"})
        assert answer.json()["model"] == "minilm"
        assert len(answer.json()["data"][0]["embedding"]) == 16


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of the table below a heading, by the names in its first column."""
    text = re.search(rf"^##+ {heading}\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)[1]
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| `")]
    return {name: row for row in table for name in re.findall(r"`([^`]+)`", row[0])}


@pytest.mark.parametrize(("heading", "section"), [("Server", ServerConfig), ("Endpoint", EndpointConfig)])
def test_every_key_has_a_row_with_its_default(heading, section):
    """The tables of the configuration file have each key, with its default."""
    table = rows(heading)
    fields = {name: field for name, field in section.model_fields.items() if name != "api_key"}
    assert set(table) == set(fields)
    for name, field in fields.items():
        key, default, meaning = table[name]
        assert meaning, key
        if field.is_required():
            assert default == "required", key
        elif name != "limits":
            value = field.get_default(call_default_factory=True)
            assert yaml.safe_load(default) == (list(value) if isinstance(value, tuple) else value), key


def test_every_option_has_a_row():
    """The table of options has each option of the command line that is not hidden, apart from the limits."""
    click = typer.main.get_command(serve_app())
    names = {name for parameter in click.params for name in parameter.opts + parameter.secondary_opts if not hidden(parameter)}
    aliases = {"--num-cores", "--config-file", "--prompt-query", "--prompt-document", "model", "--help"}
    limits = {f"--{name.replace('_', '-')}" for name in Limits.model_fields}
    assert set(rows("Options")) - {"MODEL", "PENULT_API_KEY", "--max-..."} == names - aliases - limits


def serve_app() -> typer.Typer:
    app = typer.Typer(add_completion=False)
    command.add(app)
    return app


def hidden(parameter) -> bool:
    return getattr(parameter, "hidden", False)


def test_every_option_that_the_page_names_exists():
    """No option of the page is unknown to the command."""
    named = {word.lstrip("-").replace("-", "_") for word in re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)}
    assert named - {"head", "data_binary", "help", "no_normalize", "max_"} <= set(Options.__dataclass_fields__)


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
            if line.startswith("$"):
                assert shlex.split(line)[0] == "$"
