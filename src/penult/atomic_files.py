"""Atomic, durable writes: write to a temporary file, sync, rename.

Handles files and folders. Independent of rows, jobs and models.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_LONGEST = 240  # file name length that every file system supports, minus some for the dots


@contextmanager
def atomic_write(path: Path, suffix: str = "part", *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to `path` when it is complete and synced.

    An existing file stays until then. An error removes the temporary file. After a crash it remains, and the next write
    overwrites it.

    Args:
        path: the final path.
        suffix: suffix of the temporary file; must be unique per process if several processes may write to `path`.
        sync: sync to disk. If False, a system crash may leave an empty file, which readers must detect.
    """
    aside = path.with_name(f".{path.name[: _LONGEST - len(suffix)]}.{suffix}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def sync_all(folder: Path) -> None:
    """Sync a folder and everything in it to disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, if the system supports it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
