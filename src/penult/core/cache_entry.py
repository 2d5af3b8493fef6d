"""Cache entries: folders that are built in a temporary folder, synced, renamed atomically, and verified when used.

The building process locks its temporary folder. The kernel releases the lock of a killed process, so the next process removes
the abandoned folder.
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

_ABANDONED = 24 * 3600.0  # seconds without a change, after which a folder is abandoned if locks are not available


@contextmanager
def making(parent: Path, kind: str) -> Iterator[Path]:
    """Create a temporary folder in `parent`, and remove it at the end if it still exists.

    Args:
        parent: the folder; it is created if missing, and abandoned folders of the same kind are removed from it.
        kind: prefix of the temporary folder's name.
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


def install(temporary: Path, folder: Path, is_complete: Callable[[], bool], *, replaces: bool = True) -> None:
    """Sync a temporary folder and rename it to its final path, unless another process was faster.

    Args:
        temporary: the folder, in the parent of `folder`.
        folder: the final path.
        is_complete: returns whether an existing `folder` is valid.
        replaces: whether to remove `folder` if it is not valid.

    Raises:
        OSError: `folder` exists and is not replaced, or a disk operation fails.
    """
    sync_all(temporary)
    for last in (False, False, True):  # other processes may remove and create it concurrently
        try:
            temporary.rename(folder)  # also replaces an empty folder
        except OSError:
            if is_complete():
                return
            if last or not replaces:
                raise
            _remove_damaged(folder, temporary.name.rpartition("-")[0])
        else:
            sync_folder(folder.parent)
            return


def _remove_damaged(folder: Path, prefix: str) -> None:
    """Remove a folder, atomically for other processes."""
    aside = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=folder.parent))
    with suppress(FileNotFoundError):
        folder.rename(aside / folder.name)
    shutil.rmtree(aside, ignore_errors=True)


def checksums(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a folder, by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_files([path]) for path in files}


def is_complete(folder: Path, sums: object, *, reread: bool = False) -> bool:
    """Return whether a folder's files match these checksums.

    Args:
        folder: the folder.
        sums: result of `checksums`, as read from a file.
        reread: as in `hash_files`.
    """
    if not isinstance(sums, Mapping):
        return False
    try:
        return all(hash_files([folder / name], reread=reread) == digest for name, digest in sums.items())
    except (OSError, ValueError, RuntimeError):  # Python 3.12 and older raise RuntimeError for a symlink loop
        return False


def sweep(parent: Path, pattern: str, *, ours: str = "") -> None:
    """Remove the temporary files and folders that killed processes left.

    Args:
        parent: their folder.
        pattern: glob pattern of their names.
        ours: name prefix of those made by processes of this machine, which lock them while they run. All others are removed
            after a day.
    """
    for path in parent.glob(pattern):
        with suppress(OSError):
            old = time.time() - path.lstat().st_mtime > _ABANDONED
            if old or (ours and path.name.startswith(ours)):
                _remove(path, old=old)


def _locked(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """Create a folder and lock it; the lock is None if the system or the disk does not support locks."""
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
        except OSError:  # some network file systems
            return folder, descriptor
        if folder.is_dir():  # not swept before it was locked
            return folder, descriptor
        os.close(descriptor)


def _remove(path: Path, *, old: bool) -> None:
    """Remove an abandoned folder or file: one that is not locked, or one that is old if locks are not supported."""
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
    """Return whether another process holds the lock, else acquire it; None if the disk does not support locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False
