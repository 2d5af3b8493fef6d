"""The expected memory of a first load is compared with the memory limit before the work."""

import pytest
from models import tiny_model

from penult import Embedder
from penult.core import memory

UNLIMITED_V1 = "9223372036854771712"

pytestmark = pytest.mark.usefixtures("warnings_alone")


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "1000"}, 1000),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/a/b\n", {"a/memory.max": "3000\n", "a/b/memory.max": "max"}, 3000),
        ("0::/a/b\n", {"a/memory.max": "3000\n", "a/b/memory.max": "2000"}, 2000),
        ("4:memory:/x/y\n", {"memory/x/memory.limit_in_bytes": "5000", "memory/x/y/memory.limit_in_bytes": UNLIMITED_V1}, 5000),
        ("4:memory:/gone\n", {"memory/memory.limit_in_bytes": "7000"}, 7000),
        ("5:cpu:/\n", {"memory/memory.limit_in_bytes": "7000"}, None),
        ("", {}, None),
    ],
)
def test_the_limit_of_the_control_group(tmp_path, monkeypatch, membership, files, limit):
    """The limit is the smallest of the control group and its parents, v1 and v2; otherwise the machine's memory."""
    monkeypatch.setattr(memory.os, "sysconf", lambda _: 10**6)
    (tmp_path / "membership").write_text(membership)
    for name, content in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert memory.memory_limit(tmp_path / "membership", tmp_path / "fs") == (10**12 if limit is None else limit)


def test_a_limit_of_resources_counts(tmp_path, monkeypatch):
    """A limit set with `ulimit -v` counts."""
    monkeypatch.setattr(
        memory.resource, "getrlimit", lambda kind: (12345, -1) if kind == memory.resource.RLIMIT_AS else (-1, -1)
    )
    assert memory.memory_limit(tmp_path / "none", tmp_path) == 12345


@pytest.mark.parametrize(("precision", "share", "outcome"), [
    ("fp32", 0.5, "warned"), ("int8", 2.0, "warned"), ("int8", 0.5, "refused"), ("fp32", 1e9, ""), ("int8", 1e9, ""),
])  # fmt: skip
def test_a_first_load_that_does_not_fit(tmp_path, monkeypatch, caplog, precision, share, outcome):
    """One warning before the work, and an error if the weights exceed the memory; a load from the cache has neither."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    model = tiny_model(tmp_path / "model")
    size = (model / "onnx" / "model.onnx").stat().st_size
    monkeypatch.setattr(memory, "memory_limit", lambda: int(share * size))
    settings = {"precision": precision, "calibration": ["the cat"] if precision == "int8" else None}
    words = r"GB of memory, but this process may use only 0\.0 GB\. Load it on a machine with more memory and copy the cache folder here"
    if outcome == "refused":
        with pytest.raises(ValueError, match=words):
            Embedder.load(model, **settings)
        return
    Embedder.load(model, **settings).close()
    assert caplog.text.count("this process may use") == (outcome == "warned")
    caplog.clear()
    Embedder.load(model, **settings).close()
    assert caplog.text == ""
