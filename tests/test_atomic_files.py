"""Files that appear complete or not at all."""

import os
from pathlib import Path

import pytest

from penult.atomic_files import atomic_write, sync_all, sync_folder


def open_files():
    """Return the number of open files of this process, if the system shows it."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path):
    """Until then, the former content is read, and a temporary file has the new one."""
    path = tmp_path / "out"
    path.write_bytes(b"before")
    with atomic_write(path, "7.part") as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
        assert names(tmp_path) == [".out.7.part", "out"]
    assert path.read_bytes() == b"after"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_an_error_keeps_the_former_file(tmp_path, error):
    """And leaves no temporary file."""
    path = tmp_path / "out"
    path.write_bytes(b"before")

    def write():
        with atomic_write(path) as file:
            file.write(b"after")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["out"]


def test_leftovers_of_a_crash_are_overwritten(tmp_path):
    """A longer leftover does not end up in the new file."""
    (tmp_path / ".out.part").write_bytes(b"longer than what comes now")
    with atomic_write(tmp_path / "out") as file:
        file.write(b"now")
    assert (tmp_path / "out").read_bytes() == b"now"


def test_everything_is_synced(tmp_path, monkeypatch):
    """A folder, its subfolders and their files are synced to the disk, and no file stays open."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x")
    synced = []
    real = os.fsync

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    before = open_files()
    sync_all(tmp_path)
    everything = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file", tmp_path]
    assert sorted(synced) == sorted(path.stat().st_ino for path in everything)
    synced.clear()
    sync_folder(tmp_path)
    with atomic_write(tmp_path / "out") as file:
        file.write(b"x")
    assert synced[0] == synced[2] == tmp_path.stat().st_ino
    assert synced[1] == (tmp_path / "out").stat().st_ino
    assert open_files() == before
