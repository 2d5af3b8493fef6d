"""Strict JSON: NaN and infinity become null, and types that JSON does not have become text. Does not import Arrow."""

import base64
import json
import math
from typing import Any

import numpy as np


def dumps(value: Any) -> str:  # noqa: ANN401 - any value of a row
    """Return a value as strict JSON: NaN and infinity become null, and types not in JSON become text (`as_text`)."""
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), ensure_ascii=False, default=_plain, allow_nan=False)


def as_text(value: Any) -> str:  # noqa: ANN401 - any Arrow value
    """Return a value of a type not in JSON as text: bytes in base64, dates and decimals as Python writes them."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def finite(value: Any) -> Any:  # noqa: ANN401
    """Return a value with None for NaN and infinity, also in nested lists and objects."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {finite(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Convert a type that `json` does not support: older versions of Arrow return half floats as NumPy scalars."""
    return finite(float(value)) if isinstance(value, np.floating) else as_text(value)
