"""What a first load of a 200 MB graph takes: memory near the size of its files, and next to nothing in the cache."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from peak_memory import MB, load, make_model, size_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_a_first_load(tmp_path, external):
    """At most 1.3 x the files + 200 MB are resident at a time, and weights that need no change are not copied."""
    model = make_model(tmp_path / "model", 200, external=external)
    files = size_of(model)
    assert files > 190 * MB
    cost = load(model, tmp_path / "cache")
    assert 0.5 * files < cost.peak < 1.3 * files + 200 * MB
    assert cost.cache < MB
