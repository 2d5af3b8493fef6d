"""Requests generated from the OpenAPI document by schemathesis: responses match the document, without a 500."""

import json
import subprocess
import sys

from server_kit import serving

from penult.deepsparse.arguments import TASK
from penult.deepsparse.config_file import DeepSparseEndpoint


def test_requests_made_from_the_document(tiny, tmp_path):
    """Valid and invalid requests get the responses that the document states."""
    with serving(DeepSparseEndpoint(model=str(tiny), task=TASK, kwargs={"extraction_strategy": "cls_token"})) as running:
        command = [
            sys.executable,
            "-c",
            "from schemathesis.cli import schemathesis as run; run()",
            "run",
            f"{running.url}/openapi.json",
        ]
        more = ["--max-examples", "5", "--seed", "1", "--workers", "1", "--no-color"]
        done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path, timeout=200, check=False)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "No issues found" in done.stdout, done.stdout[-2000:]


def test_the_document_has_every_route(client):
    """The document lists the routes of each protocol with their responses."""
    paths = client.get("/openapi.json").json()["paths"]
    named = {path: set(methods) for path, methods in paths.items()}
    name = "transformers_embedding_extraction-0"
    for path in ("/predict", f"/v2/models/{name}/infer", "/v1/embeddings", "/embed", "/embed_all"):
        assert named[path] == {"post"}
        assert {"200", "401", "413", "422", "429"} <= set(paths[path]["post"]["responses"])
    for path in ("/v1/models", "/info", "/metrics", "/config", "/v2", f"/v2/models/{name}", "/health", "/v2/health/ready"):
        assert named[path] == {"get"}
    assert json.dumps(paths).count("Annotated") == 0
