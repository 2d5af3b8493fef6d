"""Which files a job reads, in which order, and what tells a changed one.

Knows names, endings and hashes, and of a .json file in a folder whether it holds rows; of rows it knows nothing more.
"""

import glob
import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal, TypeAlias, get_args
from urllib.parse import unquote

from penult.atomic_files import atomic_write
from penult.bulk.input import documents, folders, json_rows, streams
from penult.bulk.options import DEFAULT_READING, ReadOptions
from penult.extras import install_hint

Format: TypeAlias = Literal["parquet", "lance", "jsonl", "json", "csv", "tsv", "text", "document"]
_ENDINGS: dict[str, Format] = {
    ".parquet": "parquet",
    ".lance": "lance",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".md": "document",
    ".markdown": "document",
    ".rst": "document",
    ".html": "document",
    ".xhtml": "document",
    ".htm": "document",
    ".pdf": "document",
}
_NOT_COMPRESSED = (".parquet", ".lance", ".pdf")  # these have compression of their own
_TABLES = ("parquet", "lance", "jsonl", "json", "csv", "tsv")
_OTHERWISE = (("text", "document"), ("json", "jsonl"), ("jsonl", "json"))  # what an ending says, and what --format makes of it
_BESIDE = (".rejected.jsonl", ".npy.rows.jsonl", ".about.json")  # of an output
STDIN = "-"
_SPOOLED, _SPOOLED_AGAIN = "stdin.spooled", "stdin.again.spooled"
_PARTITION = re.compile("([^=]+)=(.*)", re.DOTALL)
_NULL = "__HIVE_DEFAULT_PARTITION__"  # what Hive and Spark name the folder of rows whose value is null
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
        id: names a document: its path within the folder that was given.
        partitions: the columns that its folders name, as Hive and Spark write them: `key=value`.
        options: how its rows are read.
    """

    name: str
    path: Path
    format: Format
    sha256: str
    stamp: Stamp
    id: str = ""
    partitions: tuple[tuple[str, str | None], ...] = ()
    options: ReadOptions = DEFAULT_READING

    def check_unchanged(self) -> None:
        """Raise ValueError if the file is no longer the one that was hashed."""
        if _stamp(_files(self.path)) != self.stamp:
            raise ValueError(f"{self.name} changed while it was read; start anew with --overwrite.")


def find(
    given: Sequence[str],
    format_: Format | None = None,
    *,
    without: Iterable[Path] = (),
    say: Callable[[str], None] | None = None,
) -> list[Path]:
    """List the files behind names, folders and globs: names in the order given, what a folder or a glob holds sorted.

    Args:
        given: files, folders (searched to any depth for known endings) and globs.
        format_: how to read files whose ending says nothing. None: such a file is an error.
        without: paths that a folder or a glob may hold and that are no input: the job's own output.
        say: takes a sentence for the user: what was left out of a folder.

    Raises:
        FileNotFoundError: a name or a glob that matches nothing.
        ValueError: a file given twice, or one whose ending says nothing.
        ImportError: a file that is read with an extra, which is not installed.
    """
    outputs = {path.resolve() for path in without}
    found: list[Path] = []
    for name in given:
        path = Path(name)
        said = ""
        if path.is_file() or (path.suffix == ".lance" and path.is_dir()):
            matched = [path]
        elif path.is_dir():
            matched, said = _in_folder(path, outputs, format_)
        else:
            matched = _in_glob(name, outputs)
        if not matched:
            why = f" ({said})" if said else ""
            raise FileNotFoundError(f"No input at {name!r}{why}; give files, folders or globs of {', '.join(_ENDINGS)} files.")
        if said and say is not None:
            say(f"{name}: {said}")
        found += matched
    seen: set[Path] = set()
    for path in found:
        if path.resolve() in seen:
            raise ValueError(f"{path} is given twice, and its rows would be doubled; give it once.")
        seen.add(path.resolve())
        if kind(path, format_) == "document" and not documents.is_readable(path):
            raise ImportError(f"{path} is read with {install_hint('documents')}.")
    return found


def kind(path: Path, format_: Format | None = None) -> Format:
    """Tell how a file is read: by its ending, else as `format_` says."""
    found = _kind(path)
    if found is None or (found, format_) in _OTHERWISE:
        found = format_
    if found is None:
        raise ValueError(f"{path} ends in none of {', '.join(_ENDINGS)}; say --format {'|'.join(get_args(Format))}.")
    return found


def opened(
    path: Path,
    format_: Format | None = None,
    *,
    known: Mapping[Stamp, str] | None = None,
    options: ReadOptions = DEFAULT_READING,
    root: Path | None = None,
) -> Input:
    """Hash a file and note its size and time.

    Args:
        path: a file, or a Lance folder.
        format_: as in `find`.
        known: hashes of an earlier run by stamp, so that a job that goes on does not read all of its input twice.
        options: how its rows are read.
        root: as in `root_of`.
    """
    files = _files(path)
    stamp = _stamp(files)
    sha256 = (known or {}).get(stamp) or _sha256(files)
    if is_spooled(path):
        return Input(STDIN, path, kind(path, format_), sha256, stamp, STDIN, (), options)
    inside = root is not None and path.is_relative_to(root)
    id_ = (path.relative_to(root) if inside and root is not None else path).as_posix()
    return Input(str(path), path, kind(path, format_), sha256, stamp, id_, _partitions(path), options)


def root_of(given: Sequence[str]) -> Path | None:
    """Return the folder whose paths name documents. None: where several are given, documents are named by their whole paths."""
    names = [name for name in given if name != STDIN]
    if len(names) != 1:
        return None
    path = Path(names[0])
    return path if path.is_dir() else Path(*takewhile(lambda part: not glob.has_magic(part), path.parent.parts))


def reading(files: Sequence[Input]) -> str:
    """Return what decides the rows of files beside their content, as JSON; "" where all of it is the default.

    It is a part of what a job is: one that was begun with other options, or on folders of other names, is another job.
    """
    default, values = ReadOptions(), dict[str, object]()
    for options in {file.options for file in files}:
        if options.codec != default.codec:
            values["encoding"] = options.codec
        if options.max_row_bytes != default.max_row_bytes:
            values["max_row_bytes"] = options.max_row_bytes
    formats = ["" if file.format == _stated_kind(file.path) else file.format for file in files]
    if any(formats):
        values["format"] = formats if len(set(formats)) > 1 else formats[0]
    names = [(file.id if file.format == "document" else "", file.partitions) for file in files]
    if any(id_ or partitions for id_, partitions in names):
        values["names"] = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
    if any(file.format == "document" and streams.ending(file.path) in documents.WITH_EXTRA for file in files):
        values |= {package: importlib.metadata.version(package) for package in ("lxml", "pypdf")}
    return json.dumps(values, sort_keys=True) if values else ""


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


def _kind(path: Path) -> Format | None:
    ending = streams.ending(path)
    compressed = ending != path.suffix.lower()
    return None if compressed and ending in _NOT_COMPRESSED else _ENDINGS.get(ending)


def _stated_kind(path: Path) -> Format | None:
    """Tell how a file is read without --format."""
    return "jsonl" if is_spooled(path) else _kind(path)


def _in_folder(folder: Path, outputs: set[Path], format_: Format | None) -> tuple[list[Path], str]:
    """List a folder's files of known kinds, and say what is left out. A document beside tables is most often a note on them."""
    walked = folders.walk(folder, _BESIDE)
    files = [path for path in walked.files if path.resolve() not in outputs]
    single = {
        path
        for path in files
        if _kind(path) == "json" and path.is_file() and format_ != "jsonl" and not json_rows.holds_objects(path)
    }
    known = [path for path in files if _is_input(path) and path not in single]
    beside = set[Path]()
    if format_ != "document" and any(_kind(path) in _TABLES for path in known):
        beside = {path for path in known if _kind(path) == "document"}
    taken = [path for path in known if path not in beside]
    other = [path for path in files if path not in single and path not in known]
    said = []
    if other:
        said.append(f"{_files_of(other)} of other kinds left out: {folders.counted(other, folder)}")
        if any(_kind(path) == "document" for path in other):
            said.append(f"HTML and PDF are read with {install_hint('documents')}")
    if beside:
        notes = folders.counted(sorted(beside), folder)
        said.append(f"documents beside tables left out: {notes}; a glob, a name or --format document reads them")
    if single:
        said.append(f".json files that do not hold several objects left out: {folders.named(sorted(single), folder)}")
    if walked.links:
        said.append(f"links that lead nowhere or in a circle left out: {folders.named(walked.links, folder)}")
    if said and taken:
        said.append(f"{_files_of(taken)} read: {folders.named(taken, folder)}")
    return taken, "; ".join(said)


def _is_input(path: Path) -> bool:
    known = _kind(path)
    if known == "lance":
        return True
    return known is not None and path.is_file() and (known != "document" or documents.is_readable(path))


def _files_of(paths: Sequence[Path]) -> str:
    return f"{len(paths):,} file{'s' * (len(paths) != 1)}"


def _in_glob(pattern: str, outputs: set[Path]) -> list[Path]:
    """List the files that a glob matches, each under its first name."""
    found: dict[Path, Path] = {}
    for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - takes absolute globs
        path = Path(match)
        if (path.is_file() or path.suffix == ".lance") and not _ours(path, pattern):
            found.setdefault(path.resolve(), path)
    return [path for target, path in found.items() if target not in outputs]


def _ours(path: Path, pattern: str) -> bool:
    """Say whether a glob met a part of some job or output that its pattern does not name: an unfinished job's records too."""
    named = Path(pattern).name
    beside = any(path.name.endswith(ending) and ending.split(".")[1] not in named for ending in _BESIDE)
    return beside or any(map(folders.is_job, path.parents))


def _partitions(path: Path) -> tuple[tuple[str, str | None], ...]:
    """Return the columns that the folders of a path name, decoded as in an address."""
    found: dict[str, str | None] = {}
    for part in path.parent.parts:
        if named := _PARTITION.fullmatch(part):
            found[unquote(named[1])] = None if named[2] == _NULL else unquote(named[2])
    return tuple(found.items())


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
