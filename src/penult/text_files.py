"""Text files of `penult quality` and `penult bench`: plain lines or JSON lines. Errors name the file and the line."""

import json
from pathlib import Path


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}). Convert it, for example with iconv.") from error


def read_objects(path: Path, *fields: str) -> list[dict[str, str]]:
    """Return the JSON object of each line; each has these fields, and their values are strings.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not such an object.
    """
    rows: list[dict[str, str]] = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON Lines: line {number}: {error}.") from error
        lacking = [name for name in fields if not isinstance(row, dict) or not isinstance(row.get(name), str)]
        if lacking:
            names = " and ".join(f"`{name}`" for name in lacking)
            raise ValueError(
                f"{path} line {number} has no {names}. Each line must be a JSON object with a string of that name."
            )
        rows.append(row)
    return rows
