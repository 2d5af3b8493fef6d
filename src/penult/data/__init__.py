"""What ships with penult beside its code.

`calibration.jsonl` holds the texts that int8 scales are found on: prose, questions, tables, code, logs and messages in some
twenty languages. They were written for this purpose and are under penult's own licence.
"""

import json
from importlib import resources


def calibration_texts() -> tuple[str, ...]:
    """Read the calibration texts."""
    lines = resources.files(__name__).joinpath("calibration.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line)["text"] for line in lines)
