"""Limits of a tokenizer.json: how much it may lengthen a text, and how long it may take for a long word.

This module computes them from the parts of the file, without tokenizing a text or importing a tokenizer.
"""

import json
import re
from pathlib import Path
from typing import Any

MOST_WORD = 1000
"""Maximum word length of WordPiece in characters; its time is quadratic in it. Known models have 100 or 200."""

_MOST_GROWTH = 64  # maximum factor by which replacements may lengthen a text; in known models they do not
_MOST_MAP = 2**24  # maximum characters of a precompiled character map; known models have half a million
_NORMALIZER = re.compile(r'"normalizer"\s*:\s*(?=\{)')
_ESCAPED = re.compile(r"\\u00[0-7]")  # an ASCII letter, which does not need an escape


def check_normalizer(path: Path, text: str) -> None:
    """Check the normalizer of a tokenizer.json, before it is built, since building normalizes the added tokens.

    Args:
        path: the file, for the error.
        text: content of the file.

    Raises:
        ValueError: replacements lengthen a text too much.
    """
    decoder = json.JSONDecoder()
    try:
        if _ESCAPED.search(text):
            pending = [json.loads(text).get("normalizer")]
        else:
            pending, end = [], 0
            while place := _NORMALIZER.search(text, end):  # not nested ones, which would be parsed again at each depth
                normalizer, end = decoder.raw_decode(text, place.end())
                pending.append(normalizer)
    except (AttributeError, ValueError, RecursionError):
        return  # tokenizers rejects it
    for normalizer in pending:
        if (growth := _growth(normalizer)) > _MOST_GROWTH:
            raise ValueError(
                f"{path}: the normalizer may make a text {growth:,.0f} times as long; the maximum is {_MOST_GROWTH}. "
                "Download the file again."
            )


def _growth(part: Any) -> float:  # noqa: ANN401 - JSON
    """Return the maximum factor by which a normalizer lengthens a text."""
    if not isinstance(part, dict):
        return 1
    parts, pattern, content = part.get("normalizers"), part.get("pattern"), part.get("content")
    if isinstance(parts, list):
        growth = 1.0
        for inner in parts:
            growth *= _growth(inner)
        return growth
    if isinstance(part.get("prepend"), str):
        return max(1, len(part["prepend"]))
    if isinstance(part.get("precompiled_charsmap"), str):
        return max(1, len(part["precompiled_charsmap"]) / _MOST_MAP * _MOST_GROWTH)
    if isinstance(pattern, dict) and isinstance(content, str):
        text = pattern.get("String")
        # A regular expression may match the empty string, before every character.
        return max(1.0, len(content) / len(text)) if isinstance(text, str) and text else 1.0 + len(content)
    return 1
