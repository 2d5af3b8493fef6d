"""The files for deployment agree with each other and with the server; the image is built and run, where that is possible."""

import configparser
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import container_kit
import httpx
import hub_server
import network_kit
import pytest
import yaml
from server_kit import Process, parse, serving

from penult.deepsparse.command import Options
from penult.server import EndpointConfig, Limits, ServerConfig, run

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
NGINX = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
PORT = ServerConfig(endpoints=(EndpointConfig(model="m"),)).port
SHUTDOWN_SECONDS = run._ENDING_SECONDS
HEALTH_TEST = json.loads(re.search(r"HEALTHCHECK .*?CMD (\[.*?\])\n", DOCKERFILE, re.DOTALL)[1])

slow = pytest.mark.skipif(os.environ.get("PENULT_SLOW_TESTS") != "1", reason="takes minutes; set PENULT_SLOW_TESTS=1 to run it")


def compose() -> dict:
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]


def kubernetes() -> dict[str, dict]:
    """The Kubernetes objects by kind."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents if document}


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str
    parser.read(DEPLOY / "penult.service")
    return parser


def last_values(instruction: str) -> list[str]:
    """The arguments of an instruction in the last stage of the Dockerfile."""
    stage = DOCKERFILE.replace("\\\n", " ").rpartition("\nFROM ")[2]
    return re.findall(rf"^{instruction} (.*)$", stage, re.MULTILINE)


@pytest.fixture(scope="module")
def running(tiny):
    with serving(EndpointConfig(model=str(tiny))) as server:
        yield server


@pytest.fixture
def container():
    return kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"][0]


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


def test_ports_are_equal(container):
    """Each file has the server's default port."""
    assert last_values("EXPOSE") == [str(PORT)]
    assert f"127.0.0.1:{PORT}/" in HEALTH_TEST[-1]
    assert compose()["penult"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    assert f"server 127.0.0.1:{PORT};" in NGINX
    assert f'["penult:{PORT}"]' in (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")


def test_every_build_argument_is_documented_and_used():
    """The page has a row for each ARG, and the script reads those of the model."""
    names = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.MULTILINE))
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


def test_grace_periods_exceed_the_shutdown_time(container):
    """Every process manager waits longer than the server, which finishes its requests."""
    assert int(compose()["penult"]["stop_grace_period"].removesuffix("s")) > SHUTDOWN_SECONDS
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > SHUTDOWN_SECONDS + pause
    assert int(unit()["Service"]["TimeoutStopSec"]) > SHUTDOWN_SECONDS


def test_probes_use_routes_that_exist(container, running):
    """The startup, readiness and liveness probes are answered with 200, also with a key."""
    paths = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")]
    assert len(paths) == 3
    for path in paths:
        assert running.get(path).status_code == 200
    with serving(EndpointConfig(model=running.app.state.service.config.endpoints[0].model), api_key="k") as guarded:
        assert {guarded.get(path).status_code for path in paths} == {200}
        assert guarded.get("/metrics").status_code == 401


def test_health_check_of_the_image(running):
    """The HEALTHCHECK command succeeds for a server, and fails without one; compose.yaml has the same."""
    program = HEALTH_TEST[-1].replace(f":{PORT}/", f":{running.port}/")
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0
    stopped = HEALTH_TEST[-1].replace(f":{PORT}/", ":1/")
    assert subprocess.run([sys.executable, "-c", stopped], capture_output=True, timeout=30).returncode == 1
    assert compose()["penult"]["healthcheck"]["test"] == ["CMD", *HEALTH_TEST]


def test_options_of_every_file_are_options_of_the_server(container):
    """The arguments in compose.yaml, the manifest and the unit are parsed; the limits of bodies are equal."""
    words = unit()["Service"]["ExecStart"].split()
    assert words[:2] == ["/opt/penult/bin/penult", "serve"]
    for arguments in (compose()["penult"]["command"], container["args"], words[3:]):
        named = {word[2:].replace("-", "_") for word in arguments if word.startswith("--")}
        assert named <= set(Options.__dataclass_fields__)
        assert arguments[arguments.index("--max-bodies-in-flight") + 1] == str(128 * 2**20)


def test_compose_is_restricted(container):
    """The server's container has a read-only root, no capabilities and limits of memory and cores."""
    service = compose()["penult"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert (service["mem_limit"], service["cpus"]) == ("1g", 2)
    limits = container["resources"]
    assert limits["requests"] == limits["limits"] == {"cpu": "2", "memory": "1Gi"}
    security = container["securityContext"]
    assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
    assert security["capabilities"] == {"drop": ["ALL"]}
    for name, other in compose().items():
        assert other["cap_drop"] == ["ALL"], name
        for volume in other.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / source).exists()


def test_kubernetes_objects_select_the_same_pods():
    """The Deployment, Service and PodDisruptionBudget select the pods' labels; the autoscaler scales the Deployment."""
    objects = kubernetes()
    assert set(objects) == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels == objects["Service"]["spec"]["selector"]
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]


def test_kubernetes_schema():
    """The manifests conform to the schemas of Kubernetes, without unknown fields."""
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for document in kubernetes().values():
        validator.validate(document, "1.30", strict=True)


def test_every_metric_of_the_dashboard_exists(running):
    """Each metric in an expression of the dashboard, and each label, is in GET /metrics."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "penult.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    running.post("/v1/embeddings", {"input": "the cat"})
    text = running.get("/metrics").text
    series = set(re.findall(r"^(\w+)", text, re.MULTILINE))
    used = {name for one in expressions for name in re.findall(r"\b(?:te|penult|process)_\w+", one)}
    assert len(used) > 15
    assert used <= series
    labels = {name for one in expressions for names in re.findall(r"by \(([^)]*)\)", one) for name in names.split(", ")}
    assert labels == {"le", "contract", "status", "method", "err"}
    assert all(f'{label}="' in text for label in labels)
    (query,) = [one["query"]["query"] for one in dashboard["templating"]["list"] if one["name"] == "job"]
    assert re.search(r"\((\w+),", query)[1] in series


def test_panels_have_axes_and_descriptions():
    """Each panel has a title, a unit, an axis label and a sentence; panels do not overlap."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "penult.json").read_text(encoding="utf-8"))
    places = set()
    for panel in dashboard["panels"]:
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert defaults["unit"]
        assert defaults["custom"]["axisLabel"]
        place = panel["gridPos"]
        cells = {(x, place["y"]) for x in range(place["x"], place["x"] + place["w"])}
        assert not cells & places
        places |= cells
        assert place["x"] + place["w"] <= 24


def test_dashboard_finds_its_data_source():
    """The provisioned data source and folder of dashboards are those of compose.yaml."""
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "penult.yaml").read_text())["providers"]
    mounts = dict(reversed(volume.split(":")[:2]) for volume in compose()["grafana"]["volumes"])
    assert (ROOT / mounts[provider["options"]["path"]] / "penult.json").exists()
    assert mounts["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"


def test_systemd_unit_is_valid(tmp_path):
    """systemd-analyze finds no error in the unit, with a program that exists."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    file = tmp_path / "penult.service"
    text = (DEPLOY / "penult.service").read_text(encoding="utf-8")
    file.write_text(text.replace("/opt/penult/bin/penult", shutil.which("true")))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True, timeout=60)
    problems = [line for line in done.stderr.splitlines() if "penult.service" in line]
    assert not problems
    if done.returncode:
        pytest.skip(f"systemd-analyze does not work here: {done.stderr.strip()[:200]}")


def test_systemd_unit_is_restricted():
    """The unit has a sandbox, limits, and the same cores and memory as the container."""
    service = unit()["Service"]
    assert (service["CPUQuota"], service["MemoryMax"]) == ("200%", "1G")
    wanted = {"DynamicUser": "yes", "ProtectSystem": "strict", "NoNewPrivileges": "yes", "CacheDirectory": "penult",
              "Restart": "on-failure", "KillSignal": "SIGTERM", "CapabilityBoundingSet": ""}  # fmt: skip
    assert {name: service[name] for name in wanted} == wanted
    assert "PENULT_CACHE=%C/penult" in service["Environment"]


def test_nginx_has_the_limits_of_the_server():
    """The body size and the idle time of nginx fit the server's defaults."""
    assert f"client_max_body_size {Limits().max_body_bytes // 2**20}m;" in NGINX
    config = ServerConfig(endpoints=(EndpointConfig(model="m"),))
    assert int(re.search(r"keepalive_timeout (\d+)s", NGINX)[1]) < config.keep_alive


def test_nginx_forwards_requests_over_tls(running, tmp_path):
    """A real nginx accepts the file, and forwards an embedding request over TLS; a body over the limit is 413."""
    if shutil.which("nginx") is None or shutil.which("openssl") is None:
        pytest.skip("needs nginx and openssl")
    ports = [free_port(), free_port()]
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key, "-out", certificate]
    subprocess.run([*request, *subject], check=True, capture_output=True, timeout=60)
    site = re.sub(r"listen \[::\]:.*\n", "", NGINX)
    changes = {"listen 443": f"listen 127.0.0.1:{ports[0]}", "listen 80": f"listen 127.0.0.1:{ports[1]}",
               f"127.0.0.1:{PORT};": f"127.0.0.1:{running.port};", "embeddings.example.com;": "localhost;",
               "/etc/ssl/certs/embeddings.example.com.pem": str(certificate),
               "/etc/ssl/private/embeddings.example.com.key": str(key)}  # fmt: skip
    for old, new in changes.items():
        assert old in site
        site = site.replace(old, new)
    paths = "".join(f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    main = f"daemon off;\npid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{site}\n}}\n"
    (tmp_path / "nginx.conf").write_text(main)
    command = ["nginx", "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=context, base_url=f"https://localhost:{ports[0]}", timeout=30) as client:
            answer = ask(client)
            assert answer.status_code == 200
            assert len(answer.json()["data"][0]["embedding"]) == 32
            assert client.get("/metrics").status_code == 200
            assert client.post("/v1/embeddings", content=bytes(Limits().max_body_bytes + 1)).status_code == 413
        redirect = httpx.get(f"http://127.0.0.1:{ports[1]}/docs")
        assert (redirect.status_code, redirect.headers["location"]) == (301, "https://127.0.0.1/docs")
    finally:
        process.terminate()
        process.wait(20)


def ask(client: httpx.Client) -> httpx.Response:
    """Send a request, once nginx listens."""
    for _ in range(100):
        try:
            return client.post("/v1/embeddings", json={"input": "the cat"})
        except httpx.ConnectError:
            time.sleep(0.1)
    raise AssertionError("nginx does not listen")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def commands() -> list[list[str]]:
    """The words of each command on the page."""
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [shlex.split(line[2:], comments=True) for block in blocks for line in block.splitlines()]


def test_commands_of_the_page_are_valid():
    """Every command is one line of shell; those that start the server have valid options."""
    served = 0
    for words in commands():
        if "serve" in words:
            assert parse(words[words.index("serve") + 1 :]).endpoints
            served += 1
        if words[:2] == ["docker", "run"] and words[-1] != "penult":
            options = [word for word in words[words.index("penult") + 1 :] if word.startswith("--")]
            assert {option[2:].replace("-", "_") for option in options} <= set(Options.__dataclass_fields__)
    assert served == 1


def test_commands_of_the_page_use_build_arguments_and_files_that_exist():
    """Each --build-arg is an ARG of the Dockerfile; each file of deploy/ that the page names exists."""
    arguments = [word for words in commands() for word in words if re.fullmatch(r"[A-Z_]+=\S+", word) and words[0] == "docker"]
    assert len(arguments) >= 3
    for argument in arguments:
        assert re.search(rf"^ARG {argument.partition('=')[0]}=", DOCKERFILE, re.MULTILINE)
    named = set(re.findall(r"\bdeploy/[\w./-]+\w", PAGE))
    assert len(named) >= 5
    assert all((ROOT / name).exists() for name in named)


def test_copied_model_is_served_without_network(tiny, tmp_path):
    """The section for machines without network: a copied folder is served offline."""
    shutil.copytree(tiny, tmp_path / "model")
    if not network_kit.available():
        pytest.skip("needs network namespaces")
    result = network_kit.observed([sys.executable, "-c", _OFFLINE, str(tmp_path)], tmp_path / "home")
    assert result["status"] == 0, result["output"]
    assert not result["names"]
    assert not result["without_route"]


_OFFLINE = """
import os, subprocess, sys, time, urllib.request
words = [sys.executable, "-m", "penult", "serve", "./model", "--host", "127.0.0.1", "--port", "5543"]
server = subprocess.Popen(words, cwd=sys.argv[1], env={**os.environ, "HF_HUB_OFFLINE": "1"})
status = 0
for _ in range(300):
    try:
        status = urllib.request.urlopen("http://127.0.0.1:5543/health").status
        break
    except OSError:
        time.sleep(0.1)
server.terminate()
server.wait(30)
sys.exit(status != 200)
"""


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
