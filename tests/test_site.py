"""The documentation site: it builds, its links lead somewhere, it loads nothing from other hosts, and its references are complete."""

import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

import penult
from penult.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = {
    "changelog",
    "contributing",
    "security",
    *(f"notebooks/{p.stem}" for p in ROOT.glob("notebooks/*.ipynb")),
}
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "link": "href",
    "source": "src",
    "object": "data",
    "embed": "src",
    "video": "src",
}
# The theme's script loads a library from another host where a page has one of these.
LOADING_CLASSES = {"mermaid", "pyodide", "glightbox", "arithmatex"}
CPU_SECONDS = 20

for package in ("zensical", "mkdocstrings_handlers.python"):
    pytest.importorskip(package, reason="building the site needs the extra penult[docs]")


@dataclass
class Page(HTMLParser):
    """The parts of a built page that the tests look at."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    images: list[dict[str, str | None]] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {value for key in ("id", "name") if (value := values.get(key))}
        self.classes |= set((values.get("class") or "").split())
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag in LOADED and values.get(LOADED[tag]):
            self.loaded.append(values[LOADED[tag]])
        if tag == "img":
            self.images.append(values)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site once; return its folder."""
    out = tmp_path_factory.mktemp("site") / "site"
    before = os.times()
    run = subprocess.run([sys.executable, ROOT / ".ci" / "site.py", out], capture_output=True, text=True, timeout=300)
    after = os.times()
    assert run.returncode == 0, re.sub(r"\x1b\[[0-9;]*m", "", run.stdout + run.stderr)
    assert after.children_user + after.children_system - before.children_user - before.children_system < CPU_SECONDS
    return out


@pytest.fixture(scope="module")
def pages(site):
    """The built pages by path; not the page of the status 404, whose links start at the root of a host."""
    paths = [path for path in site.rglob("*.html") if path != site / "404.html"]
    return {path: Page(path) for path in paths}


def nav() -> Iterator[str]:
    """Yield the pages of the navigation, without their ending."""

    def files(entries) -> Iterator[str]:
        for entry in entries:
            for value in entry.values():
                yield from files(value) if isinstance(value, list) else [value]

    yield from (
        name.removesuffix(".md") for name in files(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    )


def commands() -> dict:
    return {name: command for name, command in typer.main.get_command(app).commands.items() if not command.hidden}


def test_each_page_of_the_navigation_is_built(site):
    missing = [name for name in nav() if not (site / f"{name}.html").is_file()]
    assert not missing


def test_the_navigation_has_each_page_once():
    names = sorted(nav())
    sources = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    assert names == sorted(sources | GENERATED)


def test_each_link_and_anchor_of_the_site_exists(site, pages):
    dead = []
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or not target.is_relative_to(site.resolve()):
                dead.append(f"{path.relative_to(site)}: {link}")
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
                dead.append(f"{path.relative_to(site)}: {link} (anchor)")
    assert not dead


def test_no_page_loads_anything_from_another_host(site, pages):
    external = [f"{path.name}: {url}" for path, page in pages.items() for url in page.loaded if "//" in url]
    styles = [
        path
        for path in site.rglob("*.css")
        if re.search(r"""(@import|url\()\s*["']?(https?:)?//""", path.read_text(encoding="utf-8"))
    ]
    loading = {path.name: page.classes & LOADING_CLASSES for path, page in pages.items() if page.classes & LOADING_CLASSES}
    assert (external, styles, loading) == ([], [], {})


def test_the_python_reference_has_every_public_name(site, pages):
    page = pages[site / "reference" / "api.html"]
    missing = [name for name in penult.__all__ if name != "__version__" and f"penult.{name}" not in page.ids]
    assert not missing
    assert "penult.__version__" in page.path.read_text(encoding="utf-8")
    methods = {"load", "tokenize", "run", "embed", "embed_stream", "embed_tokens", "count_tokens"}
    assert {f"penult.Embedder.{name}" for name in methods} <= page.ids


@pytest.mark.parametrize("name", commands())
def test_the_reference_of_the_command_line_has_every_option(site, name):
    text = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    section = re.search(rf'<h2 id="penult-{name}">(.*?)(<h2 |</article>)', text, re.DOTALL)
    assert section is not None
    listed = set(re.findall(r"--[a-z][a-z0-9-]*", section[1]))
    options = {
        option for one in commands()[name].params for option in (*one.opts, *one.secondary_opts) if option.startswith("--")
    }
    assert options - {"--help"} <= listed


def test_every_image_has_an_alternative_text(pages):
    bare = [f"{path.name}: {image.get('src')}" for path, page in pages.items() for image in page.images if not image.get("alt")]
    assert not bare
    assert sum(len(page.images) for page in pages.values()) > len(list((DOCS / "assets").glob("*.svg")))


@pytest.mark.parametrize("path", sorted((DOCS / "assets").glob("*.svg")), ids=lambda path: path.stem)
def test_every_diagram_has_a_title_for_screen_readers(path):
    root = ET.parse(path).getroot()
    assert root.attrib["role"] == "img"
    assert root.findtext("{http://www.w3.org/2000/svg}title")
