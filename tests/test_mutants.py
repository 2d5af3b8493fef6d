"""The list of mutants that nothing can notice is of today's code, so that `make mutants` explains no line that is gone."""

import pytest
from mutants import FILES, ROOT, explained, mutants


@pytest.mark.parametrize("name", sorted(explained()))
def test_the_explained_mutants_exist(name):
    """Each line of mutants.md is a mutant of the file that it stands under."""
    assert name in FILES
    names = {what for _, what, _ in mutants((ROOT / "src" / "penult" / name).read_text())}
    assert sorted(explained()[name] - names) == []
