"""The files for deployment, parsed: the Dockerfile, compose.yaml, the Kubernetes manifests and the systemd unit."""

import configparser
import json
import re
from pathlib import Path

import yaml

from penult.server import EndpointConfig, ServerConfig

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
NGINX = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")


PORT = ServerConfig(endpoints=(EndpointConfig(model="m"),)).port
HEALTH_TEST = json.loads(re.search(r"HEALTHCHECK .*?CMD (\[.*?\])\n", DOCKERFILE, re.DOTALL)[1])


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
