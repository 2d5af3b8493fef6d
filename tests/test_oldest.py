"""`tests/oldest.txt` installs the oldest versions that the packages declare."""

import tomllib
from itertools import chain

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

TESTED_EXTRAS = ("server", "parquet", "sentencepiece")
OURS = {"penult", "langchain-penult", "llama-index-embeddings-penult"}
HIGHER = {"pydantic", "tqdm"}  # each with its reason in oldest.txt


def asked():
    projects = [
        tomllib.loads(path.read_text()) for path in (ROOT / "pyproject.toml", *ROOT.glob("integrations/*/pyproject.toml"))
    ]
    extras = (projects[0]["project"]["optional-dependencies"][extra] for extra in TESTED_EXTRAS)
    lines = chain(*(project["project"]["dependencies"] for project in projects), *extras)
    return [requirement for requirement in map(Requirement, lines) if requirement.name not in OURS]


@pytest.mark.parametrize("requirement", asked(), ids=str)
def test_the_lower_bound_is_what_is_tested(requirement):
    lines = (line.partition("#")[0].strip() for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines())
    tested = {pin.name: next(iter(pin.specifier)).version for pin in map(Requirement, filter(None, lines))}
    least = next(part.version for part in requirement.specifier if part.operator == ">=")
    assert requirement.specifier.contains(tested[requirement.name])
    if requirement.name not in HIGHER:
        assert Version(tested[requirement.name]) == Version(least)
