"""The notebooks: each runs from top to bottom without a network, and shows its charts in a real browser.

To look at the screenshots, run `pytest tests/test_notebooks.py --basetemp=DIR` and open DIR/pages0/*.png. To refresh the stored
outputs, run `make notebooks`.
"""

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from models import Size, tiny_model

nbformat = pytest.importorskip("nbformat", reason="needs the extra penult[notebooks]")
nbclient = pytest.importorskip("nbclient", reason="needs the extra penult[notebooks]")
nbconvert = pytest.importorskip("nbconvert", reason="needs the extra penult[notebooks]")
Image = pytest.importorskip("PIL.Image", reason="needs the extra penult[notebooks]")

FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
# Runs before the first cell: allows connections to this machine alone.
FENCE = """
import socket

def _check(host):
    if host not in (None, "", "127.0.0.1", "::1", "localhost"):
        raise AssertionError(f"the notebook connects to {host!r}")

def _connect(self, address, _original=socket.socket.connect):
    if isinstance(address, tuple):
        _check(address[0])
    return _original(self, address)

def _look_up(host, *more, _original=socket.getaddrinfo, **named):
    _check(host)
    return _original(host, *more, **named)

socket.socket.connect, socket.getaddrinfo = _connect, _look_up
"""
# Records, after all images are decoded, the size of the page, the position of the charts and the lines that are cut off.
FACTS = """
<script>window.addEventListener("load", () => {
  const charts = [...document.images].map(image => {
    const box = image.getBoundingClientRect();
    return [box.x + scrollX, box.y + scrollY, box.width, box.height, image.naturalWidth];
  });
  const wide = [...document.querySelectorAll("pre")].filter(pre => pre.scrollWidth > pre.clientWidth + 1);
  const facts = document.createElement("script");
  facts.type = "application/json"; facts.id = "facts";
  facts.textContent = JSON.stringify({charts, wide: wide.map(pre => pre.textContent), width: document.body.scrollWidth,
    height: document.documentElement.scrollHeight, text: document.body.innerText.length});
  document.body.append(facts);
});</script>
"""
WIDTH = 1100


@pytest.fixture(scope="module")
def stored():
    """The notebooks of the repository, with their outputs."""
    return {name: nbformat.read(FOLDER / f"{name}.ipynb", as_version=4) for name in NAMES}


@pytest.fixture(scope="module")
def executed(stored, tmp_path_factory):
    """Run a notebook, once each; speeds are measured on a tiny model and few texts, in one round."""
    model = tiny_model(tmp_path_factory.mktemp("model"), size=Size(positions=512), max_length=256)
    parameters = f"model, rounds, count = {str(model)!r}, 1, 8"
    done = {}

    def run(name):
        if name not in done:
            notebook = nbformat.from_dict(stored[name])
            for cell in [cell for cell in notebook.cells if cell.cell_type == "code"]:
                cell.outputs = []
                if "parameters" in cell.metadata.get("tags", ()):
                    cell.source += f"\n{parameters}"
            notebook.cells.insert(0, nbformat.v4.new_code_cell(FENCE))
            resources = {"metadata": {"path": str(FOLDER)}}
            nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
            del notebook.cells[0]
            done[name] = notebook
        return done[name]

    return run


@pytest.fixture(scope="module")
def browser():
    """Call headless Chromium, without a network, on a page."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: install Debian's chromium")

    def call(page: Path, profile: Path, *options: str) -> str:
        quiet = ["gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage"]
        command = [
            program,
            "--headless",
            "--no-sandbox",
            "--no-first-run",
            "--hide-scrollbars",
            *(f"--disable-{x}" for x in quiet),
        ]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", *options, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return call


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The folder for pages and screenshots."""
    return tmp_path_factory.mktemp("pages")


def charts_of(notebook) -> list[bytes]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


def test_there_are_four():
    """The four notebooks of the documentation exist."""
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_read_without_running(stored, name):
    """A stored notebook states what its reader learns, and has all its outputs: small, without errors, without paths of a machine."""
    notebook = stored[name]
    nbformat.validate(notebook)
    assert "**After this page you can**" in notebook.cells[0].source
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert text
    assert not re.search(r"(?<![\w.])/(tmp|home|root|Users|usr|work|private|var)/|[A-Z]:\\", text)
    assert charts_of(notebook)
    assert max(map(len, charts_of(notebook))) < 60_000
    assert "../" not in "".join(cell.source for cell in notebook.cells)  # every file is in the repository
    assert notebook.metadata.kernelspec.name == "python3"


def test_speeds_name_their_processor(stored):
    """The notebook with speeds states the processor, the number of threads and the runtime."""
    printed = [o.get("text", "") for cell in stored["03_speed_and_cost"].cells for o in cell.get("outputs", ())]
    assert re.search(r"Measured on: \S+ .*\bavx2.*\nONNX Runtime [\d.]+ on one thread\n", "".join(printed))


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_without_a_network(stored, executed, name):
    """A notebook runs from top to bottom without a warning, and has charts in the same cells as its stored form."""
    for before, now in zip(stored[name].cells, executed(name).cells, strict=True):
        outputs = now.get("outputs", ())
        assert not [output.text for output in outputs if output.get("name") == "stderr"]
        assert ["image/png" in output.get("data", {}) for output in outputs if "data" in output] == [
            "image/png" in output.get("data", {}) for output in before.get("outputs", ()) if "data" in output
        ]


@pytest.mark.parametrize("name", NAMES)
def test_a_browser_shows_its_charts(executed, browser, pages, tmp_path, name):
    """In a browser the page is not blank, nothing is cut off at the side, and every chart appears at its position."""
    notebook = executed(name)
    exporter = nbconvert.HTMLExporter(embed_images=True)
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = ""
    html, _ = exporter.from_notebook_node(notebook)
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?:", html)
    page, picture = pages / f"{name}.html", pages / f"{name}.png"
    page.write_text(html.replace("</body>", f"{FACTS}</body>"), encoding="utf-8")

    dumped = browser(page, tmp_path / "first", f"--window-size={WIDTH},900", "--dump-dom")
    facts = json.loads(re.search(r'<script type="application/json" id="facts">(.*?)</script>', dumped, re.DOTALL)[1])
    assert facts["text"] > 2000
    assert facts["width"] <= WIDTH
    assert facts["wide"] == []
    charts = charts_of(notebook)
    assert len(charts) == len(facts["charts"]) > 0

    size = f"--window-size={WIDTH},{facts['height'] + 200}"
    browser(page, tmp_path / "second", size, f"--screenshot={picture}")
    shot = Image.open(picture).convert("RGB")
    for chart, (x, y, width, height, natural) in zip(charts, facts["charts"], strict=True):
        image = Image.open(io.BytesIO(chart))
        assert natural == image.width
        assert image.convert("RGBA").getchannel("A").getextrema()[0] == 255  # opaque, so that it is readable on a dark page
        expected = image.convert("RGB")
        assert expected.convert("L").getextrema()[0] < 100  # not blank
        actual = shot.crop((round(x), round(y), round(x + width), round(y + height)))
        difference = np.abs(np.asarray(actual, np.int16) - np.asarray(expected.resize(actual.size), np.int16))
        assert difference.mean() < 10
