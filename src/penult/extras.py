"""The command that installs an extra into this installation of penult, for all messages."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

_EXTRAS = {
    "pyarrow": "parquet", "lance": "lance", "ray": "ray", "qdrant_client": "qdrant", "lancedb": "lancedb",
    "psycopg": "pgvector", "torch": "export", "onnxscript": "export", "sentencepiece": "sentencepiece",
    **dict.fromkeys(("fastapi", "fastapi_offline", "uvicorn", "pydantic", "orjson", "prometheus_client", "yaml"), "server"),
}  # fmt: skip
"""Extra that installs a package, by import name."""
_SOURCES = Path(__file__).parents[2]


def install_hint(extra: str) -> str:
    """Return an extra's name and the command that installs it.

    >>> install_hint("server")
    'the extra penult[server] (pip install "/home/me/penult[server]")'
    """
    return f"the extra penult[{extra}] ({_command(extra)})"


def extra_with(module: str) -> str | None:
    """Return the extra that installs a module's package; None if no extra does."""
    return _EXTRAS.get(module.partition(".")[0])


def _command(extra: str) -> str:
    """Return the command, with the origin that pip recorded (PEP 610): a checkout, a wheel or a repository.

    Without such a record, penult was installed from a package index, and its name is enough. With a record, the name alone
    would install a package from a public index, which may be someone else's.
    """
    try:
        record = json.loads(distribution("penult").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # sources on PYTHONPATH
        record = {"url": _SOURCES.as_uri(), "dir_info": {"editable": True}}
    url = record.get("url", "")
    if "vcs_info" in record:
        info = record["vcs_info"]
        return f'pip install "penult[{extra}] @ {info["vcs"]}+{url}@{info["commit_id"]}"'
    if not url.startswith("file:"):
        return f'pip install "penult[{extra}]{f" @ {url}" if url else ""}"'
    path = url2pathname(urlsplit(url).path)
    if not Path(path).exists():  # a checkout that was removed after the installation
        return f'pip install ".[{extra}]" in a checkout of penult'
    editable = "-e " if record.get("dir_info", {}).get("editable") else ""
    return f'pip install {editable}"{path}[{extra}]"'
