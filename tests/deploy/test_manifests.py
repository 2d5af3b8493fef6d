"""compose.yaml, the Kubernetes manifests and the systemd unit agree with each other and with the server."""

import shutil
import subprocess

import pytest
from deploy_kit import DEPLOY, HEALTH_TEST, NGINX, PORT, ROOT, compose, kubernetes, last_values, unit
from server_kit import serving

from penult.deepsparse.command import Options
from penult.server import EndpointConfig, run

SHUTDOWN_SECONDS = run._ENDING_SECONDS


def test_ports_are_equal(container):
    """Each file has the server's default port."""
    assert last_values("EXPOSE") == [str(PORT)]
    assert f"127.0.0.1:{PORT}/" in HEALTH_TEST[-1]
    assert compose()["penult"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    assert f"server 127.0.0.1:{PORT};" in NGINX
    assert f'["penult:{PORT}"]' in (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")


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
