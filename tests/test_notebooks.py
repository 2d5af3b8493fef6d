"""The notebooks: each runs from top to bottom without a network, and shows its charts in a real browser.

pytest keeps the screenshots for looking at: `pytest tests/test_notebooks.py --basetemp=DIR`, then DIR/pages0/*.png. To make the
stored outputs anew, run `make notebooks`.
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
# Runs before the first cell: whatever is not on this machine cannot be reached.
FENCE = """
import socket

def _here(host):
    if host not in (None, "", "127.0.0.1", "::1", "localhost"):
        raise AssertionError(f"the notebook wants to reach {host!r}")

def _connect(self, address, _really=socket.socket.connect):
    if isinstance(address, tuple):
        _here(address[0])
    return _really(self, address)

def _look_up(host, *more, _really=socket.getaddrinfo, **named):
    _here(host)
    return _really(host, *more, **named)

socket.socket.connect, socket.getaddrinfo = _connect, _look_up
"""
# Says, once all images are decoded, what a reader sees: how large the page is, where the charts stand, what is cut off.
FACTS = """
<script>window.addEventListener("load", () => {
  const charts = [...document.images].map(image => {
    const box = image.getBoundingClientRect();
    return [box.x + scrollX, box.y + scrollY, box.width, box.height, image.naturalWidth];
  });
  const wide = [...document.querySelectorAll("pre")].filter(pre => pre.scrollWidth > pre.clientWidth + 1);
  const said = document.createElement("script");
  said.type = "application/json"; said.id = "facts";
  said.textContent = JSON.stringify({charts, wide: wide.map(pre => pre.textContent), width: document.body.scrollWidth,
    height: document.documentElement.scrollHeight, text: document.body.innerText.length});
  document.body.append(said);
});</script>
"""
WIDTH = 1100


@pytest.fixture(scope="module")
def stored():
    """The notebooks as they are in the repository."""
    return {name: nbformat.read(FOLDER / f"{name}.ipynb", as_version=4) for name in NAMES}


@pytest.fixture(scope="module")
def executed(stored, tmp_path_factory):
    """Run a notebook, each once, on fewer texts; speeds are measured on a toy, in one round."""
    toy = tiny_model(tmp_path_factory.mktemp("toy"), size=Size(positions=512), max_length=256)
    quick = f"model, rounds, count, every = {str(toy)!r}, 1, 8, 60"
    done = {}

    def run(name):
        if name not in done:
            notebook = nbformat.from_dict(stored[name])
            for cell in [cell for cell in notebook.cells if cell.cell_type == "code"]:
                cell.outputs = []
                if "parameters" in cell.metadata.get("tags", ()):
                    cell.source += f"\n{quick}"
            notebook.cells.insert(0, nbformat.v4.new_code_cell(FENCE))
            where = {"metadata": {"path": str(FOLDER)}}
            nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()
            del notebook.cells[0]
            done[name] = notebook
        return done[name]

    return run


@pytest.fixture(scope="module")
def browser():
    """Call headless Chromium, without a network, on a page."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium: install Debian's chromium")

    def call(page: Path, profile: Path, *options: str) -> str:
        quiet = ["gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage"]
        command = [
            found,
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
    """Where pages and screenshots are kept."""
    return tmp_path_factory.mktemp("pages")


def charts_of(notebook) -> list[bytes]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


def test_there_are_four():
    """The four pages that the README promises are there."""
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_read_without_running(stored, name):
    """A stored page says what its reader will be able to do, and holds every output, small, whole and without a trace of a machine."""
    notebook = stored[name]
    nbformat.validate(notebook)
    assert "**After this page you can**" in notebook.cells[0].source
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    said = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert said
    assert not re.search(r"(?<![\w.])/(tmp|home|root|Users|usr|work|private|var)/|[A-Z]:\\", said)
    assert charts_of(notebook)
    assert max(map(len, charts_of(notebook))) < 60_000
    assert notebook.metadata.kernelspec.name == "python3"


def test_speeds_name_their_processor(stored):
    """The page with speeds says which processor they were measured on, on how many threads and with which runtime."""
    printed = [o.get("text", "") for cell in stored["03_speed_and_cost"].cells for o in cell.get("outputs", ())]
    assert re.search(r"Measured on: \S+ .*\bavx2.*\nONNX Runtime [\d.]+ on one thread\n", "".join(printed))


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_without_a_network(stored, executed, name):
    """A page runs from top to bottom, warns of nothing, and shows a chart in the cells where its stored form has one."""
    for was, now in zip(stored[name].cells, executed(name).cells, strict=True):
        outputs = now.get("outputs", ())
        assert not [output.text for output in outputs if output.get("name") == "stderr"]
        if not any("Not run:" in output.get("text", "") for output in outputs):
            assert ["image/png" in output.get("data", {}) for output in outputs if "data" in output] == [
                "image/png" in output.get("data", {}) for output in was.get("outputs", ()) if "data" in output
            ]


@pytest.mark.parametrize("name", NAMES)
def test_a_browser_shows_its_charts(executed, browser, pages, tmp_path, name):
    """In a browser the page is not blank, nothing is cut off at the side, and every chart stands where its place is."""
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
        drawn = Image.open(io.BytesIO(chart)).convert("RGB")
        assert natural == drawn.width
        assert drawn.convert("L").getextrema()[0] < 100  # ink
        seen = shot.crop((round(x), round(y), round(x + width), round(y + height)))
        apart = np.abs(np.asarray(seen, np.int16) - np.asarray(drawn.resize(seen.size), np.int16))
        assert apart.mean() < 10
