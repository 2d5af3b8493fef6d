"""Recursive listing of folders: each file once, and messages about skipped files. Handles file names only, not rows."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_NAMED = 8  # maximum files named in a message


@dataclass(slots=True)
class Found:
    """Files of a folder, and links that are not followed: broken, circular, or to a parent of the folder."""

    files: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)


def walk(folder: Path, skip: Iterable[str] = ()) -> Found:
    """List a folder's files recursively, sorted; a .lance folder counts as one file.

    Links are followed, also out of the folder. No file or folder is listed twice, and no parent of the folder is listed.

    Args:
        folder: the folder to search.
        skip: suffixes of names that are skipped silently, as are hidden files and unfinished jobs.
    """
    endings, result = tuple(skip), Found()
    root = folder.resolve()
    seen = {root, *root.parents}
    waiting, links = [folder], list[Path]()
    while waiting or links:
        if waiting:
            for path in sorted(waiting.pop().iterdir()):
                if path.name.startswith(".") or path.name.endswith(endings) or is_job(path):
                    continue
                if path.is_symlink():
                    links.append(path)
                else:
                    _add(path, path.resolve(), seen, waiting, result)
            continue
        link = links.pop(0)  # after all real files, so that these keep their own names
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):  # Python 3.12 and older raise RuntimeError for a circular link
            result.links.append(link)
            continue
        if target in (root, *root.parents):
            result.links.append(link)
        else:
            _add(link, target, seen, waiting, result)
    result.files.sort()
    return result


def is_job(folder: Path) -> bool:
    """Return whether a folder is that of an unfinished job, and not a user's folder of such a name."""
    return folder.suffix == ".job" and (folder / "lock").exists()


def counted(files: Sequence[Path], folder: Path) -> str:
    """Return the extensions of files with their counts, the most frequent first, and some file names."""
    endings = Counter(file.suffix.lower() or "no extension" for file in files)
    kinds = ", ".join(f"{ending} {count}" for ending, count in sorted(endings.items(), key=lambda pair: (-pair[1], pair[0])))
    return f"{kinds} ({named(files, folder)})"


def named(files: Sequence[Path], folder: Path) -> str:
    """Return some names of files in a folder, and the number of the others."""
    more = f" and {len(files) - _NAMED:,} more" if len(files) > _NAMED else ""
    return ", ".join(file.relative_to(folder).as_posix() for file in files[:_NAMED]) + more


def _add(path: Path, target: Path, seen: set[Path], waiting: list[Path], result: Found) -> None:
    if target in seen:
        return
    seen.add(target)
    if path.is_dir() and path.suffix != ".lance":
        waiting.append(path)
    else:
        result.files.append(path)
