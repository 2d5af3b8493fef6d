"""The cache folder: hashes of files, numbers that are measured once, and atomic writes of such small files."""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Return the cache folder: PENULT_CACHE, else the platform's cache folder for a user."""
    return Path(os.environ.get("PENULT_CACHE") or user_cache_path("penult", appauthor=False))


def hash_files(paths: Iterable[Path]) -> str:
    """Return the sha256 of files. A file of a known path, size, time and inode is not read again.

    Raises:
        ValueError: one is not a file, or lies in the Hub's cache and is not what the Hub named.
    """
    digests = [_hash_file(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def remembered(memo: Path, measure: Callable[[], int]) -> int:
    """Return the number in a file; where there is none, measure it and write it there."""
    return int(_remembered(memo, str.isdecimal, lambda: str(measure())))


def write(path: Path, text: str) -> None:
    """Write a file atomically, in a folder that exists. It is not synced: a cache that the machine loses is made again."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(text)
    temporary.replace(path)


def _hash_file(path: Path) -> str:
    """Return a file's sha256. In the Hub's cache it must be the file's name, since downloading checks no more than the size."""
    path = path.resolve()
    digest = _digest(path)
    if path.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", path.name) and digest != path.name:
        raise ValueError(
            f"{path} has the sha256 {digest}, not the one that the Hub states and the file is named by; it was damaged or "
            "changed: delete it, and load the model again where the Hub can be reached."
        )
    return digest


def _digest(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; fetch it again.")  # reading a device or a pipe may never end
    stat = path.stat()
    # With the time of the last change of the inode, which no program sets back as it may that of the content.
    state = (path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    key = hashlib.sha256("\0".join(map(str, state)).encode()).hexdigest()[:32]
    memo = cache_folder() / "hashes" / key

    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return _remembered(memo, lambda text: len(text) == 64, digest)


def _remembered(memo: Path, is_whole: Callable[[str], bool], measure: Callable[[], str]) -> str:
    """Return the text of a file; where there is none, or none that is whole, measure it and write it there."""
    with suppress(FileNotFoundError):
        if is_whole(known := memo.read_text()):
            return known
    text = measure()
    memo.parent.mkdir(parents=True, exist_ok=True)
    write(memo, text)
    return text
