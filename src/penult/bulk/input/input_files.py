"""The input files of a job: which they are, in which order, and whether one has changed.

Handles names, extensions and hashes. The only content it looks at is whether a .json file in a folder contains rows.
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
_NOT_COMPRESSED = (".parquet", ".lance", ".pdf")  # formats with built-in compression
_TABLES = ("parquet", "lance", "jsonl", "json", "csv", "tsv")
_OVERRIDES = (("text", "document"), ("json", "jsonl"), ("jsonl", "json"))  # (format by extension, --format that overrides it)
_BESIDE_OUTPUTS = (".rejected.jsonl", ".npy.rows.jsonl", ".about.json")  # written beside an output
STDIN = "-"
_SPOOLED, _SPOOLED_AGAIN = "stdin.spooled", "stdin.again.spooled"
_PARTITION = re.compile("([^=]+)=(.*)", re.DOTALL)
_NULL = "__HIVE_DEFAULT_PARTITION__"  # folder name of Hive and Spark for rows with a null value
Stamp: TypeAlias = tuple[tuple[str, int, int], ...]
"""(name, size in bytes, modification time in nanoseconds) of each file."""


@dataclass(frozen=True, slots=True)
class Input:
    """One file (or Lance folder) of rows.

    Attributes:
        name: name in messages; "-" for standard input.
        path: path of the file.
        format: format of the file.
        sha256: hash of the content.
        stamp: names, sizes and times of its files at hashing time, to detect a change during the job.
        id: id of a document: its path relative to the input folder.
        partitions: columns from the names of its folders, `key=value`, as Hive and Spark write them.
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
        """Raise ValueError if the file has changed since it was hashed."""
        if _stamp(_files(self.path)) != self.stamp:
            raise ValueError(f"{self.name} changed while it was being read. Restore it, or pass --overwrite to start again.")


def find(
    names: Sequence[str],
    format_: Format | None = None,
    *,
    without: Iterable[Path] = (),
    say: Callable[[str], None] | None = None,
) -> list[Path]:
    """List the files of names, folders and globs: names in the order given, files of a folder or a glob sorted.

    Args:
        names: files, folders (searched recursively for known extensions) and globs.
        format_: format of files with an unknown extension. None: such a file is an error.
        without: paths to exclude from folders and globs: the job's own output.
        say: called with messages for the user about skipped files.

    Raises:
        FileNotFoundError: a name or a glob matches nothing.
        ValueError: a file is given twice, or has an unknown extension.
        ImportError: a file needs an extra that is not installed.
    """
    outputs = {path.resolve() for path in without}
    files: list[Path] = []
    for name in names:
        path = Path(name)
        skipped = ""
        if path.is_file() or (path.suffix == ".lance" and path.is_dir()):
            matched = [path]
        elif path.is_dir():
            matched, skipped = _in_folder(path, outputs, format_)
        else:
            matched = _in_glob(name, outputs)
        if not matched:
            details = f" ({skipped})" if skipped else ""
            raise FileNotFoundError(
                f"No input files at {name!r}{details}. Pass files, folders or globs of {', '.join(_ENDINGS)} files."
            )
        if skipped and say is not None:
            say(f"{name}: {skipped}")
        files += matched
    seen: set[Path] = set()
    for path in files:
        if path.resolve() in seen:
            raise ValueError(f"{path} is in the input twice, which would duplicate its rows. Pass it once.")
        seen.add(path.resolve())
        if kind(path, format_) == "document" and not documents.is_readable(path):
            raise ImportError(f"Reading {path} needs {install_hint('documents')}.")
    return files


def kind(path: Path, format_: Format | None = None) -> Format:
    """Return the format of a file by its extension, or `format_` if the extension is unknown or ambiguous."""
    detected = _kind(path)
    if detected is None or (detected, format_) in _OVERRIDES:
        detected = format_
    if detected is None:
        raise ValueError(f"{path} has an unknown file extension. Pass --format with one of {', '.join(get_args(Format))}.")
    return detected


def opened(
    path: Path,
    format_: Format | None = None,
    *,
    known: Mapping[Stamp, str] | None = None,
    options: ReadOptions = DEFAULT_READING,
    root: Path | None = None,
) -> Input:
    """Hash a file and record its size and time.

    Args:
        path: a file, or a Lance folder.
        format_: as in `find`.
        known: hashes of an earlier run by stamp, so that a resumed job does not read all of its input twice.
        options: how its rows are read.
        root: the result of `root_of`.
    """
    files = _files(path)
    stamp = _stamp(files)
    sha256 = (known or {}).get(stamp) or _sha256(files)
    if is_spooled(path):
        return Input(STDIN, path, kind(path, format_), sha256, stamp, STDIN, (), options)
    inside = root is not None and path.is_relative_to(root)
    id_ = (path.relative_to(root) if inside and root is not None else path).as_posix()
    return Input(str(path), path, kind(path, format_), sha256, stamp, id_, _partitions(path), options)


def root_of(inputs: Sequence[str]) -> Path | None:
    """Return the folder that ids of documents are relative to. None: several inputs are given, so ids are whole paths."""
    names = [name for name in inputs if name != STDIN]
    if len(names) != 1:
        return None
    path = Path(names[0])
    return path if path.is_dir() else Path(*takewhile(lambda part: not glob.has_magic(part), path.parent.parts))


def reading(files: Sequence[Input]) -> str:
    """Return everything besides content that determines the rows of files, as JSON; "" if all of it is the default.

    It is part of a job's identity: a job with other options, or on folders with other names, is another job.
    """
    default, values = ReadOptions(), dict[str, object]()
    for options in {file.options for file in files}:
        if options.codec != default.codec:
            values["encoding"] = options.codec
        if options.max_row_bytes != default.max_row_bytes:
            values["max_row_bytes"] = options.max_row_bytes
    formats = ["" if file.format == _default_kind(file.path) else file.format for file in files]
    if any(formats):
        values["format"] = formats if len(set(formats)) > 1 else formats[0]
    names = [(file.id if file.format == "document" else "", file.partitions) for file in files]
    if any(id_ or partitions for id_, partitions in names):
        values["names"] = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
    if any(file.format == "document" and streams.ending(file.path) in documents.WITH_EXTRA for file in files):
        values |= {package: importlib.metadata.version(package) for package in ("lxml", "pypdf")}
    return json.dumps(values, sort_keys=True) if values else ""


def spool(folder: Path) -> Path:
    """Copy standard input to a file atomically: a pipe cannot be read again after a crash.

    The copy of an unfinished job is never overwritten. If the pipe is empty or has the same content, the job resumes with it.

    Raises:
        OSError: the disk is full.
    """
    earlier, copy = folder / _SPOOLED, folder / _SPOOLED_AGAIN
    if earlier.exists() and sys.stdin.isatty():
        return earlier
    with atomic_write(copy) as file:
        while block := sys.stdin.buffer.read(1 << 20):
            file.write(block)
    if earlier.exists():
        if copy.stat().st_size and _sha256([copy]) != _sha256([earlier]):
            return copy
        copy.unlink()
    else:
        copy.rename(earlier)
    return earlier


def is_spooled(path: Path) -> bool:
    """Return whether a file is a copy of standard input."""
    return path.name in (_SPOOLED, _SPOOLED_AGAIN)


def _kind(path: Path) -> Format | None:
    ending = streams.ending(path)
    compressed = ending != path.suffix.lower()
    return None if compressed and ending in _NOT_COMPRESSED else _ENDINGS.get(ending)


def _default_kind(path: Path) -> Format | None:
    """Return the format of a file without --format."""
    return "jsonl" if is_spooled(path) else _kind(path)


def _in_folder(folder: Path, outputs: set[Path], format_: Format | None) -> tuple[list[Path], str]:
    """List a folder's files of known formats, with a message on skipped ones: documents beside tables are usually notes."""
    walked = folders.walk(folder, _BESIDE_OUTPUTS)
    files = [path for path in walked.files if path.resolve() not in outputs]
    single = {
        path
        for path in files
        if _kind(path) == "json" and path.is_file() and format_ != "jsonl" and not json_rows.contains_objects(path)
    }
    known = [path for path in files if _is_input(path) and path not in single]
    beside = set[Path]()
    if format_ != "document" and any(_kind(path) in _TABLES for path in known):
        beside = {path for path in known if _kind(path) == "document"}
    selected = [path for path in known if path not in beside]
    other = [path for path in files if path not in single and path not in known]
    notes = []
    if other:
        notes.append(f"skipped {_files_of(other)} of unsupported types: {folders.counted(other, folder)}")
        if any(_kind(path) == "document" for path in other):
            notes.append(f"HTML and PDF files need {install_hint('documents')}")
    if beside:
        summary = folders.counted(sorted(beside), folder)
        notes.append(
            f"skipped documents in a folder with tables: {summary}; pass their names, a glob or --format document to read them"
        )
    if single:
        notes.append(f"skipped .json files that do not contain several objects: {folders.named(sorted(single), folder)}")
    if walked.links:
        notes.append(f"skipped broken or circular links: {folders.named(walked.links, folder)}")
    if notes and selected:
        notes.append(f"reading {_files_of(selected)}: {folders.named(selected, folder)}")
    return selected, "; ".join(notes)


def _is_input(path: Path) -> bool:
    format_ = _kind(path)
    if format_ == "lance":
        return True
    return format_ is not None and path.is_file() and (format_ != "document" or documents.is_readable(path))


def _files_of(paths: Sequence[Path]) -> str:
    return f"{len(paths):,} file{'s' * (len(paths) != 1)}"


def _in_glob(pattern: str, outputs: set[Path]) -> list[Path]:
    """List the files that match a glob, each under its first name."""
    matches: dict[Path, Path] = {}
    for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - glob.glob accepts absolute patterns
        path = Path(match)
        if (path.is_file() or path.suffix == ".lance") and not _is_own_file(path, pattern):
            matches.setdefault(path.resolve(), path)
    return [path for target, path in matches.items() if target not in outputs]


def _is_own_file(path: Path, pattern: str) -> bool:
    """Return whether a match is part of a job or output, such as a job's records, that the pattern does not name."""
    named = Path(pattern).name
    beside = any(path.name.endswith(ending) and ending.split(".")[1] not in named for ending in _BESIDE_OUTPUTS)
    return beside or any(map(folders.is_job, path.parents))


def _partitions(path: Path) -> tuple[tuple[str, str | None], ...]:
    """Return the columns in the folder names of a path, percent-decoded."""
    columns: dict[str, str | None] = {}
    for part in path.parent.parts:
        if named := _PARTITION.fullmatch(part):
            columns[unquote(named[1])] = None if named[2] == _NULL else unquote(named[2])
    return tuple(columns.items())


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
