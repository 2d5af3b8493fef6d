"""The number of threads of a process, within the limits of its container and user."""

import pytest

from penult.core import threads


def test_the_variable_overrides(monkeypatch):
    """PENULT_THREADS is used as it is, and an invalid value is an error."""
    monkeypatch.setenv("PENULT_THREADS", "3")
    assert threads.default_threads() == 3
    for wrong in ("0", "two", "-1"):
        monkeypatch.setenv("PENULT_THREADS", wrong)
        with pytest.raises(ValueError, match=f"PENULT_THREADS is '{wrong}'"):
            threads.default_threads()


def test_the_affinity_mask_counts(monkeypatch):
    """A process bound to one CPU takes one thread."""
    monkeypatch.delenv("PENULT_THREADS", raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert threads.default_threads() == 1


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "400000 100000"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("4:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "200000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 64),
        ("", {}, 64),
    ],
)
def test_the_quota_of_the_control_group_counts(tmp_path, monkeypatch, membership, files, cpus):
    """The smallest quota of the group and its parents, rounded down, at least one."""
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 64)
    (tmp_path / "membership").write_text(membership)
    for name, content in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert threads._quota(tmp_path / "membership", tmp_path / "fs") == cpus
