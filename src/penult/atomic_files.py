"""Atomic and durable writes: to a temporary file, synced, renamed.

Knows files and folders, nothing of rows, jobs or models.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_LONGEST = 240  # characters of a name that every file system takes, but some for the dots


@contextmanager
def atomic_write(path: Path, suffix: str = "part", *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when it is complete and on the disk.

    What was under the name before stays until then; an error leaves nothing aside, and what a crash leaves there the next
    try writes over.

    Args:
        path: the name.
        suffix: of the file aside; where several processes may write one name, it must be each one's own.
        sync: wait for the disk. Without, a machine that stops may leave an empty file, which a reader must notice.
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
    """Put a folder and all that is in it on the disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk, where the system knows how."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
