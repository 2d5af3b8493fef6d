"""Put a model, its prepared graphs and the server's configuration into a folder. The Dockerfile runs this at build time.

    XDG_CACHE_HOME=FOLDER python deploy/prepare.py FOLDER

If FOLDER/model is empty, MODEL is downloaded from the Hub. The environment variables MODEL, REVISION, MODEL_FILE, PRECISION and
SERVED_NAME are the build arguments of the Dockerfile; an empty one counts as not set.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx

from penult.deepsparse.command import Options
from penult.pull import pull
from penult.server.app import create_app

_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_TEXT = "The cat sat."
# Each of these uses a graph of its own, which a server with a read-only file system could not keep.
_REQUESTS = (
    ("/v1/embeddings", {"input": _TEXT}),
    ("/embed", {"inputs": _TEXT, "normalize": False}),
    ("/embed_all", {"inputs": _TEXT}),
    ("/predict", {"inputs": [_TEXT]}),
)


def setting(name: str) -> str | None:
    """Return a build argument; None if it is not set or empty."""
    return os.environ.get(name) or None


def fetch(model: Path) -> str | None:
    """Fill the model's folder from the Hub if it is empty; return the model's Hub id, None if it is not known."""
    if model.is_dir():
        if any(model.iterdir()):
            return setting("MODEL")
        model.rmdir()  # overlay file systems cannot rename a folder of a lower layer
    reference, revision = setting("MODEL") or _MODEL, setting("REVISION")
    pull(f"{reference}@{revision}" if revision else reference, to=model, model_file=setting("MODEL_FILE"))
    return reference


def write_config(folder: Path) -> Path:
    """Write the server's configuration, and return its path."""
    hub_id = fetch(folder / "model")
    endpoint = {
        "model": str(folder / "model"),
        "served_model_name": setting("SERVED_NAME") or hub_id,
        "model_file": setting("MODEL_FILE"),
        "precision": setting("PRECISION"),
    }
    file = folder / "server.yaml"
    stated = {key: value for key, value in endpoint.items() if value is not None}
    file.write_text(json.dumps({"endpoints": [stated]}, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    return file


async def warm_up(options: Options) -> None:
    """Open the model as `penult serve` does, and send one request for each graph."""
    app = create_app(options.configuration(), options.extend())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:5543") as client:
        for path, body in _REQUESTS:
            answer = await client.post(path, json=body, timeout=600)
            print(f"{path}: {answer.status_code}")
            if answer.status_code != 200 and path == "/v1/embeddings":
                sys.exit(f"The model does not embed: {answer.text}")


def main(folder: Path) -> None:
    """Prepare everything, readable for every user."""
    asyncio.run(warm_up(Options(config=write_config(folder))))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
