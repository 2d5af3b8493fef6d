"""The Dockerfile, what it copies and documents, and the HEALTHCHECK command."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import hub_server
import yaml
from deploy_kit import DEPLOY, DOCKERFILE, HEALTH_TEST, PORT, ROOT, compose, kubernetes, last_values
from pages_kit import DOCS
from server_kit import Process


def test_image_runs_as_a_numeric_user_without_root():
    """Kubernetes' runAsNonRoot needs a number; it and the manifest have the same one."""
    assert last_values("USER") == ["10001:10001"]
    context = kubernetes()["Deployment"]["spec"]["template"]["spec"]["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"], context["runAsGroup"]) == (True, 10001, 10001)


def test_image_starts_and_stops_by_signals_of_the_engine():
    """ENTRYPOINT has the exec form, so that the server itself receives SIGTERM."""
    (command,) = last_values("ENTRYPOINT")
    assert json.loads(command)[:2] == ["penult", "serve"]
    assert last_values("STOPSIGNAL") == ["SIGTERM"]
    assert not last_values("CMD")


def test_image_is_offline_at_run_time():
    """The last stage sets offline mode; the stages that download do not."""
    *build, last = DOCKERFILE.split("\nFROM ")
    assert "HF_HUB_OFFLINE=1" in last
    assert "HF_HUB_OFFLINE" not in "".join(build)


def test_every_build_argument_is_documented_and_used():
    """The page has a row for each ARG, and the script reads those of the model."""
    names = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", (DOCS / "deploy.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert names == rows
    script = (DEPLOY / "prepare.py").read_text(encoding="utf-8")
    for name in names - {"BASE", "EXTRAS", "VERSION", "GIT_COMMIT"}:
        assert f'setting("{name}")' in script


def test_copied_files_are_in_the_build_context():
    """Everything that COPY takes from the checkout exists and is not ignored."""
    sources = [name for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) == allowed
    assert all((ROOT / name).exists() for name in sources)
    files = re.search(r'"LICENSE"|license-files = \["(\w+)"\]', (ROOT / "pyproject.toml").read_text())
    assert files[1] in sources


def test_health_check_of_the_image(running):
    """The HEALTHCHECK command succeeds for a server, and fails without one; compose.yaml has the same."""
    program = HEALTH_TEST[-1].replace(f":{PORT}/", f":{running.port}/")
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0
    stopped = HEALTH_TEST[-1].replace(f":{PORT}/", ":1/")
    assert subprocess.run([sys.executable, "-c", stopped], capture_output=True, timeout=30).returncode == 1
    assert compose()["penult"]["healthcheck"]["test"] == ["CMD", *HEALTH_TEST]


def prepare(folder: Path, **arguments: str) -> None:
    """Run the script of the Dockerfile on a folder."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder), "HF_HUB_OFFLINE": "1", **arguments}
    environment.pop("PENULT_CACHE")
    command = [sys.executable, DEPLOY / "prepare.py", folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_prepared_model_is_served_from_a_read_only_cache(tiny, tmp_path, monkeypatch):
    """The script fills the cache for every route: a server that uses it writes no graph."""
    folder = tmp_path / "models"
    shutil.copytree(tiny, folder / "model")
    (folder / "model" / "config.json").chmod(0o600)
    prepare(folder, SERVED_NAME="tiny", PRECISION="fp32")
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.rglob("*"))
    graphs = sorted(path.name for path in (folder / "penult" / "graphs").iterdir())
    assert len(graphs) >= 2
    monkeypatch.delenv("PENULT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    server = Process("--config", str(folder / "server.yaml"))
    try:
        for path, body in (
            ("/v1/embeddings", {"input": "the cat", "model": "tiny"}),
            ("/embed", {"inputs": "the cat", "normalize": False}),
            ("/embed_all", {"inputs": "the cat"}),
            ("/predict", {"inputs": ["the cat"]}),
        ):
            answer = httpx.post(f"{server.url}{path}", json=body, timeout=30)
            assert answer.status_code == 200, (path, answer.text)
    finally:
        server.end()
    assert sorted(path.name for path in (folder / "penult" / "graphs").iterdir()) == graphs


def test_model_is_downloaded_from_the_hub(tiny, tmp_path):
    """With an empty folder the script downloads MODEL at REVISION, under its Hub id for clients."""
    folder = tmp_path / "models"
    (folder / "model").mkdir(parents=True)
    with hub_server.serve({"org/tiny": hub_server.files_of(tiny)}) as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        prepare(folder, MODEL="org/tiny", REVISION=hub.commit, **settings)
    (endpoint,) = yaml.safe_load((folder / "server.yaml").read_text(encoding="utf-8"))["endpoints"]
    assert endpoint == {"model": str(folder / "model"), "served_model_name": "org/tiny"}
    assert list((folder / "model").rglob("*.onnx"))
