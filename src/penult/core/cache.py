"""The cache folder: its location, file hashes, and numbers that are measured once.

Every read from the cache is verified: disks damage files, and crashes leave partial ones. Reading from the cache does not
require write permission.
"""

import errno
import functools
import hashlib
import logging
import os
import re
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path

from penult.atomic_files import atomic_write

_LOGGER = logging.getLogger(__name__)
ADVICE = "Set PENULT_CACHE to a writable folder with free space."
_NO_HOME = "this user has no home directory"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_FULL = 2**20  # free bytes below which a disk counts as full
_SMALL = 2**20  # bytes of a file; hashing it (0.7 ms at 1.5 GB/s) is as fast as a safe lookup of its hash
# Seconds. A file rewritten within the timestamp resolution of its file system keeps its times: 2 s on FAT.
_RECENT = 2.0
_LARGEST = 2**37  # bytes (137 GB) of a weight file: larger than any encoder's, and hashing takes minutes


def cache_folder() -> Path:
    """Return the folder to read from: PENULT_CACHE, else the platform's cache folder, else a private temporary folder.

    Raises:
        OSError: PENULT_CACHE begins with ~ and this user has no home, or no temporary folder can be created.
    """
    if setting := os.environ.get("PENULT_CACHE"):
        try:
            return Path(setting).expanduser().absolute()  # the working directory may change
        except RuntimeError as error:
            raise OSError(
                f"PENULT_CACHE is {setting!r}, but that user has no home directory. Set it to an absolute path."
            ) from error
    try:
        folder = user_cache_path("penult", appauthor=False)
    except RuntimeError:  # newer versions of platformdirs raise it; older ones return a folder named ~
        return _private_folder(_NO_HOME)
    reason = _unusable(folder)
    return folder if reason is None else _private_folder(reason)


def writable_folder() -> Path:
    """Return the folder to write to: `cache_folder()`, or a private temporary folder if that is not writable.

    Raises:
        OSError: PENULT_CACHE names a folder that is not writable, or no temporary folder can be created.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = "Permission denied or read-only file system"
    except OSError as error:
        reason = error.strerror or str(error)
    if os.environ.get("PENULT_CACHE"):
        raise OSError(f"PENULT_CACHE is {folder}, which cannot be written: {reason}. {ADVICE}")
    return _private_folder(f"{folder} cannot be written ({reason})")


@contextmanager
def disk_errors(folder: Path, advice: str = ADVICE) -> Iterator[None]:
    """Convert disk errors while a folder is written into one clear error.

    Args:
        folder: the folder. Files that failed writers leave there must still exist when this ends.
        advice: what to do, for the message.

    Raises:
        OSError: the converted error.
    """
    try:
        yield
    except OSError as error:
        inside = error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(folder)
        if inside or error.errno in _DISK:
            raise OSError(f"{folder} cannot be written: {error.strerror}. {advice}") from error
        raise
    except ValueError as error:  # raised by the writers of ONNX Runtime and torch
        if "No space left on device" in str(error) or disk_is_full(folder):
            raise OSError(f"{folder} cannot be written: No space left on device. {advice}") from error
        raise


def disk_is_full(folder: Path) -> bool:
    """Return whether the disk of a folder is full."""
    try:
        status = os.statvfs(folder)
    except (OSError, AttributeError):  # os.statvfs does not exist on Windows
        return False
    return status.f_bavail * status.f_frsize < _FULL


def hash_files(paths: Iterable[Path], *, reread: bool = False) -> str:
    """Return the sha256 of files.

    A large file with a known path, size, inode and times is not read again, unless it is younger than two seconds.

    Args:
        paths: the files.
        reread: whether to read every file, even one with a known hash.

    Raises:
        ValueError: a file is not a regular file, has an implausible size, or is in the Hub's cache and does not have its hash.
    """
    digests = [_hash_file(path, reread=reread) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def remembered(note: Path, measure: Callable[[], int]) -> int:
    """Return the number in a note; if there is none, measure and store it."""
    known = read_note(note)
    if known is not None and known.isdecimal():
        return int(known)
    number = measure()
    _try_note(note, str(number))
    return number


def read_note(path: Path) -> str | None:
    """Return the text that `write_note` wrote at this path; None if it is missing or damaged."""
    try:
        text, _, checksum = path.read_text(encoding="utf-8").rpartition("\n")
    except (OSError, ValueError):
        return None
    return text if checksum == _checksum(path.name, text) else None


def write_note(path: Path, text: str) -> None:
    """Write a text with its checksum atomically; the folder must exist."""
    with atomic_write(path, uuid.uuid4().hex[:8], sync=False) as file:
        file.write(f"{text}\n{_checksum(path.name, text)}".encode())


def _try_note(path: Path, text: str) -> None:
    """Write a note if the cache is writable; else the next process repeats the work."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_note(path, text)


def _checksum(name: str, text: str) -> str:
    return hashlib.sha256(f"{name}\n{text}".encode()).hexdigest()[:32]


def _hash_file(path: Path, *, reread: bool) -> str:
    """Return a file's sha256. In the Hub's cache it must equal the file's name, since downloads only check the size."""
    path = path.resolve()
    digest = _digest(path, reread=reread)
    if path.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", path.name) and digest != path.name:
        raise ValueError(
            f"{path} has the SHA-256 {digest}, not the one in its name: it was damaged or changed. Delete it, and load the "
            "model again with access to the Hub."
        )
    return digest


def _digest(path: Path, *, reread: bool) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is not a file. Download it again.")  # reading a device or a pipe may never end
    before = path.stat()
    if before.st_size < _SMALL:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    note = cache_folder() / "hashes" / hashlib.sha256("\0".join(map(str, (path, *_state(before)))).encode()).hexdigest()[:32]
    if not reread and not _is_recent(before) and (known := read_note(note)) is not None:
        return known
    with path.open("rb") as file:
        _check_size(path, file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    if _state(after) == _state(before) and not _is_recent(after):
        _try_note(note, digest)
    return digest


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return the status that changes with a file's content; it includes ctime, which programs cannot set back."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _is_recent(status: os.stat_result) -> bool:
    """Return whether a file was changed so recently, or so far in the future, that its times do not identify its content."""
    return time.time() - max(status.st_mtime, status.st_ctime) < _RECENT


def _check_size(path: Path, descriptor: int) -> None:
    """Raise an error for a file that would take minutes to read or is sparse.

    Raises:
        ValueError: the file is larger than any weights, or almost entirely a hole.
    """
    status = os.fstat(descriptor)
    size = status.st_size
    if size > _LARGEST:
        raise ValueError(f"{path} has {size:,} bytes; penult reads weight files of at most {_LARGEST:,}. Download it again.")
    stored = getattr(status, "st_blocks", size) * 512
    if size < 2**30 or stored >= size // 16 or not hasattr(os, "SEEK_HOLE"):
        return
    hole = os.lseek(descriptor, 0, os.SEEK_HOLE)  # `st_blocks` alone is 0 on some network file systems
    os.lseek(descriptor, 0, os.SEEK_SET)
    if hole < size:
        raise ValueError(f"{path} is a sparse file: {size:,} bytes, of which {stored:,} are stored. Download it again.")


def _unusable(folder: Path) -> str | None:
    """Return why the platform's cache folder is not usable; None if it is. The home may belong to another user."""
    home = os.path.expanduser("~")  # noqa: PTH111 - does not raise, and returns "~" for a user without a home
    if not folder.is_absolute() or (folder.is_relative_to(home) and not os.path.isdir(home)):  # noqa: PTH112 - as above
        return _NO_HOME
    parent = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))  # noqa: PTH110 - does not raise
    if hasattr(os, "geteuid") and parent.stat().st_uid not in (os.geteuid(), 0):
        return f"{parent} belongs to another user"
    return None


@functools.cache
def _private_folder(reason: str) -> Path:
    """Return this user's private temporary cache, and warn of it once per process.

    Raises:
        OSError: it cannot be created.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"penult-{os.geteuid() if hasattr(os, 'geteuid') else os.getlogin()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if not _is_private(folder):
            folder = Path(tempfile.mkdtemp(prefix="penult-"))
    except OSError as error:
        raise OSError(f"{reason}, and no temporary folder can be created: {error.strerror}. {ADVICE}") from error
    if not _is_child():
        _LOGGER.warning(
            "%s: prepared models are cached in %s, which the system may clear. Set PENULT_CACHE to a persistent folder.",
            reason, folder,
        )  # fmt: skip
    return folder


def _is_private(folder: Path) -> bool:
    status = folder.lstat()
    if not hasattr(os, "geteuid"):
        return stat.S_ISDIR(status.st_mode)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _is_child() -> bool:
    """Return whether another Python process started this one, and has already warned."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None
