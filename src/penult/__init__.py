"""penult computes text embeddings for retrieval on ordinary CPUs.

The names below are imported at first use: `import penult` loads no runtime, no tokenizer and no web framework.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

# From version 1.29 on, onnxruntime sends telemetry and writes a device id into HOME, also offline. Only this variable, set
# before its first import, disables both; child processes inherit it.
if "ORT_DISABLE_TELEMETRY" not in os.environ and "onnxruntime" in sys.modules:
    import logging

    logging.getLogger(__name__).warning(
        "onnxruntime was imported before penult, and from its version 1.29 on it reports usage to its maker. Set "
        "ORT_DISABLE_TELEMETRY=1 before the first import of onnxruntime, or import penult first."
    )
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from penult._version import __version__

if TYPE_CHECKING:
    from penult.core.embedder import Embedder
    from penult.core.tokenized import Tokenized
    from penult.deepsparse.arguments import Context, Scheduler
    from penult.deepsparse.engine import Engine
    from penult.deepsparse.pipeline import Pipeline
    from penult.remote import RemoteEmbedder
    from penult.types import Pooling, Role, TextEmbedder, TextError, TruncationWarning, Vectors

_HOMES = {
    "Context": "deepsparse.arguments",
    "Embedder": "core.embedder",
    "Engine": "deepsparse.engine",
    "Pipeline": "deepsparse.pipeline",
    "Pooling": "types",
    "RemoteEmbedder": "remote",
    "Role": "types",
    "Scheduler": "deepsparse.arguments",
    "TextEmbedder": "types",
    "TextError": "types",
    "Tokenized": "core.tokenized",
    "TruncationWarning": "types",
    "Vectors": "types",
}

__all__ = [
    "Context",
    "Embedder",
    "Engine",
    "Pipeline",
    "Pooling",
    "RemoteEmbedder",
    "Role",
    "Scheduler",
    "TextEmbedder",
    "TextError",
    "Tokenized",
    "TruncationWarning",
    "Vectors",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'penult' has no attribute {name!r}")
    return getattr(import_module(f"penult.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
