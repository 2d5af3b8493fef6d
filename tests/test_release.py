"""The parts of `make release-check` that need no build: what it rewrites for an index, and the problems it reports."""

import re
import sys
import tomllib

import pytest
from conftest import ROOT, load_script

SCRIPT = ROOT / ".ci" / "release_check.py"
REPOSITORY = "https://example.org/penult"


@pytest.fixture(scope="module")
def check():
    """The script as a module."""
    return load_script(SCRIPT)


@pytest.mark.parametrize("folder", ["", "integrations/langchain-penult", "integrations/llama-index-embeddings-penult"])
def test_a_project_for_an_index_has_names_and_addresses(check, folder):
    """Extras that name a folder become names, direct references are off, and project.urls has the public address."""
    text = (ROOT / folder / "pyproject.toml").read_text()
    project = tomllib.loads(check.for_index(text, REPOSITORY))
    requirements = [line for lines in project["project"].get("optional-dependencies", {}).values() for line in lines]
    assert not [line for line in requirements if "@" in line]
    assert not project["tool"]["hatch"].get("metadata", {}).get("allow-direct-references")
    assert project["project"]["urls"]["Source"] == REPOSITORY
    if not folder:
        assert {"langchain-penult", "llama-index-embeddings-penult"} <= set(requirements)
    assert "urls" not in tomllib.loads(check.for_index(text, ""))["project"]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[a](docs/a.md)", f"[a]({REPOSITORY}/blob/v1.2/docs/a.md)"),
        ("[a](docs/a.md#part)", f"[a]({REPOSITORY}/blob/v1.2/docs/a.md#part)"),
        ("[a](#part)", "[a](#part)"),
        ("[a](https://a.b/c)", "[a](https://a.b/c)"),
        ("[a](mailto:a@b.c)", "[a](mailto:a@b.c)"),
        ("![a](docs/a.svg)", f"![a]({REPOSITORY}/raw/v1.2/docs/a.svg)"),
        ('<img src="docs/a.png">', f'<img src="{REPOSITORY}/raw/v1.2/docs/a.png">'),
    ],
)
def test_relative_links_become_absolute(check, link, expected):
    assert check.absolute_links(link, "", REPOSITORY, "1.2") == expected
    assert check.absolute_links(link, "", "", "1.2") == link


def test_links_out_of_a_folder(check):
    """An adapter's README links to files of the repository's root."""
    link = check.absolute_links("[a](../../README.md)", "integrations/langchain-penult", REPOSITORY, "1.2")
    assert link == f"[a]({REPOSITORY}/blob/v1.2/README.md)"


def test_the_changelog(check):
    """The newest section gives version, date and the notes of the release."""
    text = "# Changelog\n\n## 1.1 (unreleased)\n\n- New.\n\n## 1.0 (2026-01-01)\n\n- Old.\n"
    assert check.heading(text) == ("1.1", "unreleased")
    assert check.section(text) == "- New."
    with pytest.raises(SystemExit, match="has no heading of the form"):
        check.heading("# Changelog\n")


def test_versions_are_equal(check):
    """The three distributions and the changelog have one version."""
    versions = {check.version_of(ROOT / folder / below / package) for folder, package, below in check.DISTRIBUTIONS.values()}
    assert versions == {check.heading((ROOT / "CHANGELOG.md").read_text())[0]}


METADATA = b"License-Expression: MIT\nRequires-Python: >=3.11\nAuthor: a\nRequires-Dist: b\n"


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, None),
        ({"p/py.typed": None}, "the wheel lacks p/py.typed"),
        ({"p/a.py": None}, "the wheel lacks p/a.py"),
        ({"p-1.dist-info/licenses/LICENSE": None}, "the wheel lacks p-1.dist-info/licenses/LICENSE"),
        ({"p/tests/a.py": b""}, "the wheel must not have p/tests/a.py"),
        ({"/etc/a": b""}, "the wheel must not have /etc/a"),
        ({"p-1.dist-info/METADATA": METADATA + b"Requires-Dist: a @ file:///a"}, "direct reference: a @ file:///a"),
        ({"p-1.dist-info/METADATA": METADATA.replace(b"Author", b"Name")}, "no Author"),
        (
            {"p-1.dist-info/METADATA": METADATA + b"Project-URL: S, https://a.b\n\n[a](docs/a.md)"},
            "relative link in the description: docs/a.md",
        ),
    ],
)
def test_problems_of_a_wheel(check, changed, problem):
    contents = {"p/a.py": b"", "p/py.typed": b"", "p-1.dist-info/METADATA": METADATA, "p-1.dist-info/licenses/LICENSE": b""}
    contents = {name: data for name, data in {**contents, **changed}.items() if data is not None}
    assert check.wheel_problems(contents, {"p/a.py"}, "p") == ([problem] if problem else [])


def test_problems_of_a_source_distribution(check):
    members = ["a.py", "pyproject.toml", "README.md", "LICENSE", "PKG-INFO", ".gitignore"]
    assert check.sdist_problems(members, {"a.py"}) == []
    assert check.sdist_problems([*members[1:], "notebooks/a.md"], {"a.py"}) == [
        "the sdist lacks a.py",
        "the sdist must not have notebooks/a.md",
    ]


def test_an_interpreter_is_found_by_name(check, tmp_path):
    """The PATH comes first, then pyenv's newest; one that does not run or has another version is not taken."""
    version = "{}.{}".format(*sys.version_info)

    def python(path, code):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)
        return str(path)

    pyenv = tmp_path / "pyenv"
    assert check.find_python(version, path=str(tmp_path), pyenv=pyenv) is None
    python(pyenv / "versions" / f"{version}.9" / "bin" / "python", f"echo {version}")
    newest = python(pyenv / "versions" / f"{version}.10" / "bin" / "python", f"echo {version}")
    python(tmp_path / f"python{version}", "echo 3.0")
    assert check.find_python(version, path=str(tmp_path), pyenv=pyenv) == newest
    named = python(tmp_path / f"python{version}", f'exec {sys.executable} "$@"')
    assert check.find_python(version, path=str(tmp_path), pyenv=pyenv) == named


def test_every_extra_is_covered(check):
    """Each extra is imported, is one of the development extras, or has a reason."""
    smoke = (ROOT / ".ci" / "release_smoke.py").read_text()
    modules = set(re.findall(r'^    "(\w+)": \[', smoke, re.MULTILINE))
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert extras - check.DEVELOPMENT - set(check.NOT_INSTALLED) == modules | {"langchain", "llama-index", "server"}


def test_the_locked_versions_are_those_with_hashes():
    """.ci/constraints.txt and .ci/lock.txt name the same versions; the lock has a hash for each, and neither names a host."""
    constraints, lock = ((ROOT / ".ci" / name).read_text() for name in ("constraints.txt", "lock.txt"))
    assert re.findall(r"^[^#\s].*$", constraints, re.MULTILINE) == re.findall(r"^([^#\s].*?) \\$", lock, re.MULTILINE)
    assert not re.search(r"://|--(index|find)", constraints + lock)
    assert len(re.findall(r" \\\n    --hash=sha256:[0-9a-f]{64}", lock)) >= len(constraints.splitlines()) - 2
