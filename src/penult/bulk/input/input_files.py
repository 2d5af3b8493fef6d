"""Which files a job reads, in which order, and what tells a changed one.

Knows names, endings and hashes; it opens no file but to hash it, and knows nothing of rows.
"""

import glob
import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from penult.atomic_files import atomic_write

Format: TypeAlias = Literal["parquet", "lance", "jsonl", "csv", "text"]
_ENDINGS: dict[str, Format] = {
    ".parquet": "parquet",
    ".lance": "lance",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".txt": "text",
}
_BESIDE = (".rejected.jsonl", ".npy.rows.jsonl")  # of an output
STDIN = "-"
_SPOOLED, _SPOOLED_AGAIN = "stdin.spooled", "stdin.again.spooled"
Stamp: TypeAlias = tuple[tuple[str, int, int], ...]
"""(name, size in bytes, time in nanoseconds) of each file."""


@dataclass(frozen=True, slots=True)
class Input:
    """One file (or Lance folder) of rows.

    Attributes:
        name: how the user knows it: "-" for standard input.
        path: where it lies.
        format: how it is read.
        sha256: of its content.
        stamp: names, sizes and times of its files when it was hashed, so that a change during the job is seen.
    """

    name: str
    path: Path
    format: Format
    sha256: str
    stamp: Stamp

    def check_unchanged(self) -> None:
        """Raise ValueError if the file is no longer the one that was hashed."""
        if _stamp(_files(self.path)) != self.stamp:
            raise ValueError(f"{self.name} changed while it was read; start anew with --overwrite.")


def find(given: Sequence[str], format_: Format | None = None, *, without: Iterable[Path] = ()) -> list[Path]:
    """List the files behind names, folders and globs: names in the order given, what a folder or a glob holds sorted.

    Args:
        given: files, folders (searched to any depth for known endings) and globs.
        format_: how to read files whose ending says nothing. None: such a file is an error.
        without: paths that a folder or a glob may hold and that are no input: the job's own output.

    Raises:
        FileNotFoundError: a name or a glob that matches nothing.
        ValueError: a file given twice, or one whose ending says nothing.
    """
    outputs = {path.resolve() for path in without}
    found: list[Path] = []
    for name in given:
        path = Path(name)
        if path.is_file() or (path.suffix == ".lance" and path.is_dir()):
            matched = [path]
        elif path.is_dir():
            matched = [file for file in _walk(path) if file.suffix.lower() in _ENDINGS and file.resolve() not in outputs]
        else:
            matched = [Path(match) for match in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207 - takes absolute globs
            matched = [
                file
                for file in matched
                if file.resolve() not in outputs and (file.is_file() or file.suffix == ".lance") and not _ours(file, name)
            ]
        if not matched:
            raise FileNotFoundError(f"No input at {name!r}; give files, folders or globs of {', '.join(_ENDINGS)} files.")
        found += matched
    seen: set[Path] = set()
    for path in found:
        if path.resolve() in seen:
            raise ValueError(f"{path} is given twice, and its rows would be doubled; give it once.")
        seen.add(path.resolve())
        kind(path, format_)
    return found


def kind(path: Path, format_: Format | None = None) -> Format:
    """Tell how a file is read: by its ending, else as `format_` says."""
    found = _ENDINGS.get(path.suffix.lower(), format_)
    if found is None:
        raise ValueError(f"{path} ends in none of {', '.join(_ENDINGS)}; say --format {'|'.join(get_args(Format))}.")
    return found


def opened(path: Path, format_: Format | None = None, *, known: Mapping[Stamp, str] | None = None) -> Input:
    """Hash a file and note its size and time.

    Args:
        path: a file, or a Lance folder.
        format_: as in `find`.
        known: hashes of an earlier run by stamp, so that a job that goes on does not read all of its input twice.
    """
    files = _files(path)
    stamp = _stamp(files)
    name = STDIN if is_spooled(path) else str(path)
    return Input(name, path, kind(path, format_), (known or {}).get(stamp) or _sha256(files), stamp)


def spool(folder: Path) -> Path:
    """Copy standard input to a file, whole or not at all: a pipe cannot be read again after a crash.

    What an unfinished job has of it is never written over: a pipe that says the same, or nothing, goes on with that.

    Raises:
        OSError: the disk is full.
    """
    before, again = folder / _SPOOLED, folder / _SPOOLED_AGAIN
    if before.exists() and sys.stdin.isatty():
        return before
    with atomic_write(again) as file:
        while block := sys.stdin.buffer.read(1 << 20):
            file.write(block)
    if before.exists():
        if again.stat().st_size and _sha256([again]) != _sha256([before]):
            return again
        again.unlink()
    else:
        again.rename(before)
    return before


def is_spooled(path: Path) -> bool:
    """Say whether a file holds what came over standard input."""
    return path.name in (_SPOOLED, _SPOOLED_AGAIN)


def _walk(folder: Path) -> list[Path]:
    """List a folder's files to any depth; a .lance folder counts as one file, hidden ones and unfinished jobs as none."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.endswith(_BESIDE) or _is_job(path):
            continue
        if path.is_dir() and path.suffix != ".lance":
            found += _walk(path)
        else:
            found.append(path)
    return found


def _ours(path: Path, pattern: str) -> bool:
    """Say whether a glob met a part of some job or output that its pattern does not name: an unfinished job's records too."""
    named = Path(pattern).name
    beside = any(path.name.endswith(ending) and ending.split(".")[1] not in named for ending in _BESIDE)
    return beside or any(map(_is_job, path.parents))


def _is_job(folder: Path) -> bool:
    """Say whether a folder is that of an unfinished job, and not one that a user named so."""
    return folder.suffix == ".job" and (folder / "lock").exists()


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _stamp(files: Iterable[Path]) -> Stamp:
    return tuple((str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file in files for stat in (file.stat(),))


def _sha256(files: Sequence[Path]) -> str:
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
