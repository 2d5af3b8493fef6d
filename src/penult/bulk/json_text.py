"""JSON text that every reader takes: no NaN, no infinity, and text for what JSON does not have. Imports no Arrow."""

import base64
import json
import math
from typing import Any

import numpy as np


def dumps(value: Any) -> str:  # noqa: ANN401 - whatever a row holds
    """Return a value as strict JSON: NaN and infinity become null, and what JSON does not have becomes text (`as_text`)."""
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), ensure_ascii=False, default=_plain, allow_nan=False)


def as_text(value: Any) -> str:  # noqa: ANN401 - whatever Arrow holds
    """Return a value that JSON does not have as text: bytes in base64, dates and decimals as Python writes them."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def finite(value: Any) -> Any:  # noqa: ANN401
    """Return a value in which NaN and infinity, in lists and objects too, are None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {finite(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return what `json` does not know as what it knows: older versions of Arrow give half floats as those of NumPy."""
    return finite(float(value)) if isinstance(value, np.floating) else as_text(value)
