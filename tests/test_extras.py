"""Extras, and the commands that install them: the command in a message, a page or a notebook works from a checkout."""

import json
import re
import subprocess
import tomllib

import pytest
from conftest import ROOT

from penult import extras

OURS = {"penult", "langchain-penult", "llama-index-embeddings-penult"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


class Installed:
    """A distribution with the origin that pip recorded."""

    def __init__(self, **record):
        self.record = record

    def read_text(self, name):
        assert name == "direct_url.json"
        return json.dumps(self.record) if self.record else None


@pytest.mark.parametrize(
    ("record", "command"),
    [
        ({}, 'pip install "penult[server]"'),
        ({"url": "{here}", "dir_info": {}}, 'pip install "{path}[server]"'),
        ({"url": "{here}", "dir_info": {"editable": True}}, 'pip install -e "{path}[server]"'),
        ({"url": "{here}/penult.whl", "archive_info": {}}, 'pip install "{path}/penult.whl[server]"'),
        ({"url": "{here}/gone", "dir_info": {}}, 'pip install ".[server]" in a checkout of penult'),
        ({"url": "https://a.b/penult.whl", "archive_info": {}}, 'pip install "penult[server] @ https://a.b/penult.whl"'),
        (
            {"url": "https://a.b/penult.git", "vcs_info": {"vcs": "git", "commit_id": "12ab"}},
            'pip install "penult[server] @ git+https://a.b/penult.git@12ab"',
        ),
    ],
)
def test_the_command_uses_the_source_of_this_penult(tmp_path, monkeypatch, record, command):
    """Only a penult from a package index is installed by its name alone."""
    folder = tmp_path / "with a blank"
    folder.mkdir()
    (folder / "penult.whl").touch()
    record = json.loads(json.dumps(record).replace("{here}", folder.as_uri()))
    monkeypatch.setattr(extras, "distribution", lambda _: Installed(**record))
    expected = command.replace("{path}", str(folder))
    assert extras.install_hint("server") == f"the extra penult[server] ({expected})"


def test_sources_that_were_never_installed(monkeypatch):
    """The command for sources on PYTHONPATH names their checkout."""

    def absent(name):
        raise extras.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", absent)
    assert extras.install_hint("qdrant") == f'the extra penult[qdrant] (pip install -e "{ROOT}[qdrant]")'


def test_extras_with_packages_of_this_repository_name_their_folder():
    """A name that is not yet on an index would fail, or install another author's package."""
    listed = [line for lines in EXTRAS.values() for line in lines if re.match(r"[\w-]+", line)[0] in OURS - {"penult"}]
    assert len(listed) == 2
    for line in listed:
        name, path = line.split(" @ {root:uri}/")
        assert f'name = "{name}"' in (ROOT / path / "pyproject.toml").read_text()


def install_commands() -> list[tuple[str, str]]:
    """Return the arguments of `pip install` in every page, notebook and source file, with the file's name."""
    files = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    pages = [name for name in files if re.search(r"\.(md|ipynb)$|^(src|integrations)/.*\.(py|toml)$", name)]
    found = []
    for name in pages:
        text = (ROOT / name).read_text(encoding="utf-8").replace('\\"', '"')
        found += [(name, command) for command in re.findall(r"pip install +([^`\n#)]+)", text)]
    return found


def test_documented_commands_install_existing_packages():
    """A page with `pip install` names this checkout and existing extras, and no unregistered package name."""
    commands = install_commands()
    assert {"README.md"} <= {name for name, _ in commands}
    for name, command in commands:
        if "{" in command or name == "src/penult/extras.py":
            continue
        words = re.findall(r'"[^"]*"|[^\s"]+', command)
        assert not {re.split(r"[\[=<> @]", word.strip("'\""))[0] for word in words} & OURS, (name, command)
        for extra in re.findall(r"\.\[([\w,-]+)\]", command):
            assert set(extra.split(",")) <= set(EXTRAS), (name, command)
