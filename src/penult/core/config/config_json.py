"""Read JSON files of a model's folder, or raise one error with the file's name and the reason.

The files are untrusted, and ignoring a value of the wrong type would silently change the vectors. This module checks JSON
syntax, types and sizes, but not the meaning of keys.
"""

import json
import re
from pathlib import Path
from reprlib import repr as short
from types import UnionType
from typing import Any

_MOST_BYTES = 128 * 2**20  # the largest tokenizer.json of a known model has about 35 MB
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # a surrogate, possibly unpaired


_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")


def check_size(path: Path) -> None:
    """Raise an error for a file that would never end or fill the memory.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is larger than 128 MiB, or not a regular file.
    """
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to a file that does not exist. Download the whole model.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file. Download it again.")
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; the maximum is {_MOST_BYTES:,}. Download it again.")


def check_content(path: Path, description: str = "file", *, may_be_empty: bool = False) -> None:
    """Raise an error for a file without its expected content: a Git LFS pointer, an HTML page, or an empty file.

    Args:
        path: the file.
        description: expected kind of file, for the error.
        may_be_empty: whether the caller handles an empty file itself.

    Raises:
        ValueError: the file is one of these.
    """
    with path.open("rb") as file:
        head = file.read(256)
    if not head and not may_be_empty:
        raise ValueError(f"{path} is empty: its download was not completed. Download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the {description}. Run `git lfs pull` in its repository.")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        raise ValueError(f"{path} is an HTML page, not the {description}. Download it again.")


def read_text(path: Path) -> str:
    """Read a text file of plausible size.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: as `check_size` or `check_content`, or the file is not UTF-8.
    """
    check_size(path)
    check_content(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Download it again.") from error


def read_json(path: Path) -> object:
    """Read a JSON file; return None if it does not exist.

    Raises:
        ValueError: the file is not valid JSON, is nested too deeply, or contains a lone surrogate.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return None
    try:
        value: object = json.loads(text)
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # raises for a lone surrogate, with which tokenizers fail
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Download it again.") from error
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if the file does not exist.

    Raises:
        ValueError: the file is not valid JSON, or not an object.
    """
    value = read_json(path) if path.exists() or path.is_symlink() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{path} contains {short(value)}; it must be a JSON object. Download it again.")  # noqa: TRY004
    return value


def value_of(path: Path, key: str, kind: type | UnionType, allowed: str) -> Any:  # noqa: ANN401 - as `kind` says
    """Read one value of a JSON object; return None if the file or the key is missing, or the value is null.

    Args:
        path: the file.
        key: key of its object.
        kind: required type; a bool does not count as a number.
        allowed: description of the type, for the error.

    Raises:
        ValueError: the value has another type.
    """
    value = read_object(path).get(key)
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise ValueError(f"{path}: {key} is {short(value)}; it must be {allowed}. Fix the file, or download it again.")
    return value
