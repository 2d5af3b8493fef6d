"""Refuse a tokenizer.json that makes far more of a text than the text is, or that takes far longer over a long word.

It knows what the parts of the file may do to a text's length; it reads no text and imports no tokenizer.
"""

import json
import re
from pathlib import Path
from typing import Any

MOST_WORD = 1000
"""The longest word in characters that WordPiece may look up; it takes the square of it. Known models have 100 or 200."""

_MOST_GROWTH = 64  # times that replacements may lengthen a text; those of known models make none longer
_MOST_MAP = 2**24  # characters of a map of characters; that of known models has half a million
_NORMALIZER = re.compile(r'"normalizer"\s*:\s*(?=\{)')
_ESCAPED = re.compile(r"\\u00[0-7]")  # an ASCII letter, which nobody needs to escape


def check_normalizer(path: Path, text: str) -> None:
    """Check the normalizer of a tokenizer.json, before the tokenizer is made, which normalizes its added tokens.

    Args:
        path: the file, for the error.
        text: its text.

    Raises:
        ValueError: replacements lengthen a text too much.
    """
    decoder = json.JSONDecoder()
    try:
        if _ESCAPED.search(text):
            found = [json.loads(text).get("normalizer")]
        else:
            found, end = [], 0
            while place := _NORMALIZER.search(text, end):  # not within another, which would be read again at each depth
                normalizer, end = decoder.raw_decode(text, place.end())
                found.append(normalizer)
    except (AttributeError, ValueError, RecursionError):
        return  # tokenizers refuses it
    for normalizer in found:
        if (growth := _growth(normalizer)) > _MOST_GROWTH:
            raise ValueError(
                f"{path}: the normalizer may make a text {growth:,.0f} times as long; penult takes {_MOST_GROWTH}. Fetch the "
                "file again."
            )


def _growth(part: Any) -> float:  # noqa: ANN401 - JSON
    """Return how many times as long a normalizer may make a text."""
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
        # A regular expression may match nothing, before every character.
        return max(1.0, len(content) / len(text)) if isinstance(text, str) and text else 1.0 + len(content)
    return 1
