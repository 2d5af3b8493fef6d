"""A JSON file of a model's folder: what it holds, or one error that names the file and what is wrong with it.

Whoever made the folder may be careless or hostile, and a value of the wrong type that is passed over gives other vectors in
silence. This file knows JSON and sizes; it knows no key's meaning.
"""

import json
import re
from pathlib import Path
from reprlib import repr as short
from types import UnionType
from typing import Any

_MOST_BYTES = 128 * 2**20  # the largest tokenizer.json of a known model has some 35 MB
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair, perhaps without its other half


_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")


def check_size(path: Path) -> None:
    """Refuse what would take for ever to read, or all memory.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is longer than 128 MiB, or no regular file.
    """
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to a file that does not exist; fetch the whole model.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file; fetch it again.")
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; such a file has at most {_MOST_BYTES:,}. Fetch it again.")


def check_content(path: Path, what: str = "file", *, may_be_empty: bool = False) -> None:
    """Refuse a file that is not what its name says: a git-LFS pointer, a web page, or nothing.

    Args:
        path: the file.
        what: what it should be, for the error.
        may_be_empty: whether the caller has its own words for an empty file.

    Raises:
        ValueError: it is one of these.
    """
    with path.open("rb") as file:
        head = file.read(256)
    if not head and not may_be_empty:
        raise ValueError(f"{path} is empty; it was not fetched to the end, fetch it again.")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git-LFS pointer, not the {what}; run `git lfs pull` in its repository.")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        raise ValueError(f"{path} is a web page, not the {what}, as a server sends it instead of a file; fetch it again.")


def read_text(path: Path) -> str:
    """Read a text file of a size that such files have.

    Raises:
        FileNotFoundError: there is none.
        ValueError: as `check_size` or `check_content`, or it is not UTF-8.
    """
    check_size(path)
    check_content(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); fetch it again.") from error


def read_json(path: Path) -> object:
    """Read a JSON file; None where there is none.

    Raises:
        ValueError: it is no JSON, nested too deeply, or spells a character that no text can have: half of a surrogate pair.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return None
    try:
        found: object = json.loads(text)
        if _HALF.search(text):
            json.dumps(found, ensure_ascii=False).encode()  # raises where a half stands alone: a tokenizer fails over it
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again.") from error
    return found


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no file.

    Raises:
        ValueError: it is no JSON, or holds something else.
    """
    found = read_json(path) if path.exists() or path.is_symlink() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {short(found)}; it must be a JSON object. Fetch it again.")  # noqa: TRY004
    return found


def value_of(path: Path, key: str, kind: type | UnionType, allowed: str) -> Any:  # noqa: ANN401 - as `kind` says
    """Read one value of a JSON object; None where the file or the key is absent, or the value null.

    Args:
        path: the file.
        key: of its object.
        kind: the type the value must have; a bool is no number.
        allowed: the type in words, for the error.

    Raises:
        ValueError: the value is of another type.
    """
    value = read_object(path).get(key)
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise ValueError(f"{path}: {key} is {short(value)}; it must be {allowed}. Mend or fetch the file again.")
    return value
