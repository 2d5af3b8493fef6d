"""Messages of the command line: Python messages with options instead of arguments, and extras instead of modules."""

import re
import sys
import warnings
from typing import TextIO

from penult.extras import extra_with, install_hint

_OPTIONS = {
    **{name: name for name in ("layer", "pooling", "precision", "truncate", "dimensions", "normalize", "task", "threads")},
    "max_length": "max-length", "layer_norm": "layer-norm", "model_file": "model-file", "files_from": "files-from",
    "max_batch_tokens": "batch-tokens",
}  # fmt: skip
"""Command-line option by argument of `Embedder.load`."""

_NAME = f"(?P<name>{'|'.join(_OPTIONS)})"
_ASSIGNED = re.compile(rf"\b{_NAME}(?P<sign>=|<=)(?P<value>'[^']*'|True|False|None|[^\s,;.)]+)")
_BARE = re.compile(rf"\b{_NAME}=(?=[ .,]|$)")
_NAMED = re.compile(rf"(?P<before>^|[.;:] ){_NAME}(?= is | was )")
_OMITTED = re.compile(rf"(?P<before>\bOmit (?:\w+ and )?){_NAME}(?=[,.]| and [\w-]+\.)")


def sentence_of(error: BaseException) -> str:
    """Return an error's message for the command line; a missing package is named by the extra that installs it."""
    if isinstance(error, ModuleNotFoundError) and (extra := extra_with(error.name or "")) is not None:
        return f"{error.name} is not installed. Install {install_hint(extra)}."
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}."
    return in_options(str(error))


def in_options(message: str) -> str:
    """Return a message with options instead of arguments of `Embedder.load`: --pooling mean, not pooling='mean'."""
    message = message.replace("pass prompts=", "pass --query-prompt or --document-prompt")
    message = _ASSIGNED.sub(_as_option, message)
    for pattern in (_BARE, _NAMED, _OMITTED, _OMITTED):  # "Omit layer and pooling" has two names
        message = pattern.sub(lambda match: f"{match.groupdict().get('before', '')}--{_OPTIONS[match['name']]}", message)
    return message


def _as_option(match: re.Match[str]) -> str:
    option, value = _OPTIONS[match["name"]], match["value"].strip("'")
    if match["sign"] == "<=":
        return f"--{option} <= {value}"
    if value in ("True", "False"):
        return f"--{'no-' * (value == 'False')}{option}"
    return f"--{option} {'none' if value == 'None' else value}"


def show_warnings() -> None:
    """Print the warnings of this process as one line each, with command-line options instead of arguments."""
    warnings.showwarning = _show


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, line
    print(f"penult: {in_options(str(message))}", file=file or sys.stderr)
