"""The Grafana dashboard and its provisioning."""

import json
import re

import yaml
from deploy_kit import DEPLOY, ROOT, compose


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
