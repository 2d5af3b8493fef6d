"""Folders of the cache that are there whole or not at all: made aside, synced, renamed, and checked when they are used.

A folder that is being made is locked by its maker. The kernel drops the lock of a process that is killed, so the next maker
removes what it left.
"""

import glob
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from penult.atomic_files import sync_all, sync_folder
from penult.core.cache import hash_files

if os.name != "nt":
    import fcntl

_ABANDONED = 24 * 3600.0  # seconds without a change, after which a maker is dead whose lock cannot be asked for


@contextmanager
def making(parent: Path, kind: str) -> Iterator[Path]:
    """Make a temporary folder in `parent`; it is removed at the end if it is still there.

    Args:
        parent: the folder; it is made where it is missing, and what killed makers of this kind left in it is removed.
        kind: the first word of the temporary folder's name.
    """
    parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{kind}-{socket.gethostname()}-"
    sweep(parent, f".{glob.escape(kind)}-*", ours=prefix)
    folder, lock = _locked(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def install(temporary: Path, folder: Path, is_whole: Callable[[], bool], *, replaces: bool = True) -> None:
    """Put a temporary folder on the disk and under its name, unless another process was faster.

    Args:
        temporary: the folder, in the parent of `folder`.
        folder: the name.
        is_whole: whether `folder` is what it should be.
        replaces: whether `folder` is removed if it is not.

    Raises:
        OSError: `folder` exists and is not replaced, or the disk refuses.
    """
    sync_all(temporary)
    for last in (False, False, True):  # others may be removing and making it too
        try:
            temporary.rename(folder)  # over an empty folder too
        except OSError:
            if is_whole():
                return
            if last or not replaces:
                raise
            _remove_damaged(folder, temporary.name.rpartition("-")[0])
        else:
            sync_folder(folder.parent)
            return


def _remove_damaged(folder: Path, prefix: str) -> None:
    """Remove a folder at once, for those who look for it."""
    aside = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=folder.parent))
    with suppress(FileNotFoundError):
        folder.rename(aside / folder.name)
    shutil.rmtree(aside, ignore_errors=True)


def checksums(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a folder by its relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_files([path]) for path in files}


def is_whole(folder: Path, sums: object, *, reread: bool = False) -> bool:
    """Return whether a folder has the files of these checksums.

    Args:
        folder: the folder.
        sums: what `checksums` gave, as a file kept it.
        reread: as in `hash_files`.
    """
    if not isinstance(sums, Mapping):
        return False
    try:
        return all(hash_files([folder / name], reread=reread) == digest for name, digest in sums.items())
    except (OSError, ValueError, RuntimeError):  # Python 3.12 and older raise the latter for a link to itself
        return False


def sweep(parent: Path, pattern: str, *, ours: str = "") -> None:
    """Remove the temporary files and folders that killed processes left.

    Args:
        parent: where.
        pattern: their names.
        ours: the beginning of the names that processes of this machine give, which lock them while they live. What others left
            goes after a day.
    """
    for path in parent.glob(pattern):
        with suppress(OSError):
            old = time.time() - path.lstat().st_mtime > _ABANDONED
            if old or (ours and path.name.startswith(ours)):
                _remove(path, old=old)


def _locked(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """Make a folder and lock it; None for the lock where the system or the disk has none."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        if os.name == "nt":
            return folder, None
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # another process swept it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # some network disks
            return folder, descriptor
        if folder.is_dir():  # nobody swept it before it was locked
            return folder, descriptor
        os.close(descriptor)


def _remove(path: Path, *, old: bool) -> None:
    """Remove a folder or file whose maker is dead; where locks cannot tell, one that is old."""
    descriptor = None if os.name == "nt" else os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        alive = None if descriptor is None else _is_locked(descriptor)
        if alive or (alive is None and not old):
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_locked(descriptor: int) -> bool | None:
    """Return whether another process holds the lock, which is taken where it is free; None where the disk has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False
