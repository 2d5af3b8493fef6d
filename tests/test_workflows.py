"""The GitHub workflows: their commands exist, their actions are pinned, and no job has a permission that it does not need."""

import re
import subprocess

import pytest
from conftest import ROOT

yaml = pytest.importorskip("yaml", reason="needs the extra penult[server]")

WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}
JOBS = [(name, job) for name, workflow in WORKFLOWS.items() for job in workflow["jobs"]]
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
WRITES = {
    ("docs.yml", "publish"): {"pages", "id-token"},
    ("release.yml", "build"): {"id-token", "attestations"},
    ("release.yml", "publish"): {"id-token"},
    ("release.yml", "github-release"): {"contents"},
}


def steps(name, job):
    return WORKFLOWS[name]["jobs"][job]["steps"]


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_commands_exist(name, job):
    """Every target of make is one of the Makefile, and every script is a file of the repository."""
    commands = "\n".join(step["run"] for step in steps(name, job) if "run" in step)
    for target in re.findall(r"\bmake ([\w-]+)", commands):
        assert target in TARGETS
    for script in re.findall(r"python (\S+\.py)", commands):
        assert (ROOT / script).is_file()


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_actions_are_pinned(name, job):
    """Each action is pinned to a commit, and a comment names its version."""
    text = (ROOT / ".github" / "workflows" / name).read_text()
    for step in steps(name, job):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
            assert re.search(rf"{step['uses']}  # v\d", text)


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_permissions_are_minimal(name, job):
    """A workflow has none, a job may read the repository, and only the jobs listed here may write."""
    assert WORKFLOWS[name]["permissions"] == {}
    permissions = WORKFLOWS[name]["jobs"][job]["permissions"]
    assert {scope for scope, access in permissions.items() if access == "write"} == WRITES.get((name, job), set())
    assert {scope for scope, access in permissions.items() if access == "read"} <= {"contents"}


def test_a_release_publishes_all_distributions():
    """The three distributions are published from a protected environment, by trusted publishing, without a password."""
    publish = WORKFLOWS["release.yml"]["jobs"]["publish"]
    names = re.findall(r'^name = "(.+)"', "\n".join(path.read_text() for path in projects()), re.MULTILINE)
    assert sorted(publish["strategy"]["matrix"]["project"]) == sorted(names)
    assert publish["environment"] == "pypi"
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text()


def test_the_pythons_of_the_classifiers_are_tested():
    """Every Python that the three distributions claim is one of the jobs that block."""
    tested = set(WORKFLOWS["test.yml"]["jobs"]["linux"]["strategy"]["matrix"]["python"])
    for project in projects():
        claimed = set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project.read_text()))
        assert claimed
        assert claimed <= tested


def projects():
    files = subprocess.run(["git", "-C", ROOT, "ls-files", "*pyproject.toml"], capture_output=True, text=True, check=True)
    return [ROOT / name for name in files.stdout.split()]
