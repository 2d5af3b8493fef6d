"""The image: built from the Dockerfile by Buildah, and run with a read-only root, without capabilities and without network."""

import json
import os

import container_kit
import pytest
from deploy_kit import ROOT

slow = pytest.mark.skipif(os.environ.get("PENULT_SLOW_TESTS") != "1", reason="takes minutes; set PENULT_SLOW_TESTS=1 to run it")


@pytest.fixture(scope="module")
def image(tmp_path_factory, tiny):
    if reason := container_kit.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("image")
    bench = ROOT / ".bench" / "all-MiniLM-L6-v2"
    builder = container_kit.Builder(folder)
    builder.base("localhost/penult-base")
    model = bench if bench.is_dir() else tiny
    seconds = builder.build(ROOT, "localhost/penult", model.resolve(), BASE="localhost/penult-base", SERVED_NAME="my-model")
    built = builder.image("localhost/penult")
    size = {name: container_kit.megabytes(built.root / name) for name in ("", "opt/penult", "models")}
    print(f"\nbuild: {seconds:.0f} s; MB: {size}")
    yield built
    builder.close()


REQUEST = """
import json, urllib.request
body = json.dumps({"input": "The cat sat.", "model": "any"}).encode()
request = urllib.request.Request("http://127.0.0.1:5543/v1/embeddings", body, {"Content-Type": "application/json"})
answer = json.load(urllib.request.urlopen(request, timeout=30))
print(answer["model"], sum(value * value for value in answer["data"][0]["embedding"]))
"""


@slow
def test_image_serves_offline_on_a_read_only_root(image):
    """The built image starts as its user, is healthy, embeds a text, and ends on SIGTERM with status 0."""
    container = image.start("--threads", "2")
    try:
        seconds = container.wait_until_healthy(120)
        model, square = container.run("python", "-c", REQUEST).stdout.split()
        assert model == "my-model"
        assert float(square) == pytest.approx(1, abs=1e-4)
        assert container.status("Uid").split() == ["10001"] * 4
        assert int(container.status("CapEff"), 16) == 0
        assert "Read-only file system" in container.run("touch", "/models/file").stderr
        assert container.run("touch", "/tmp/file").returncode == 0
        print(f"\nready after {seconds:.1f} s, RSS {container.status('VmRSS')}")
        assert container.stop() == 0
    finally:
        container.stop()
    warnings = [line for line in container.log.read_text().splitlines() if "WARNING" in line]
    assert len(warnings) == 1, warnings  # that there is no key; a cache that is not complete would be another one


@slow
def test_image_takes_further_options(image):
    """Arguments of `docker run` are further options of the server."""
    container = image.start("--api-key", "secret", "--log-json")
    try:
        container.wait_until_healthy(120)
        assert "401" in container.run("python", "-c", REQUEST).stderr
        assert json.loads(container.log.read_text().splitlines()[-1])["status"] == 401
    finally:
        assert container.stop() == 0
