"""What the READMEs, the guides and docstrings show runs as it stands, on a tiny model in place of the one that would be fetched.

A page's ```python blocks run one after the other, and so do its `$ penult` commands in ```console blocks, in a folder that
holds the files of `files_for`. A line `<!-- needs PACKAGE -->` on a page skips its code where that package is not installed.
Code that is not to run here is marked as another language: ```py, ```sh. A guide that needs more than this has tests of its own,
which name its file and read its code blocks; this module skips it.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench import speed_chart
from pages_kit import DOCS, HUB_ID, blocks

ROOT = Path(__file__).parents[1]
INTEGRATIONS = ROOT / "integrations"
README = ROOT / "README.md"
ADAPTERS = sorted(INTEGRATIONS.glob("*/README.md"))
PAGES = [README, *ADAPTERS, *sorted(DOCS.rglob("*.md"))]
DOCSTRINGS = [*ROOT.glob("src/**/*.py"), *INTEGRATIONS.glob("*/*/**/*.py")]
PENULT = "import sys; from penult.cli import app; sys.argv[0] = 'penult'; app()"
SERVERS = {"serve"}  # commands that do not end


def commands(page: Path) -> list[list[str]]:
    """The words of every `penult` command of a page, remarks taken off."""
    text = "\n".join(blocks(page, "console")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("$ ")]
    return [words[2:] for words in lines if words[:2] == ["$", "penult"]]


def name_of(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def has_own_tests(page: Path) -> bool:
    """Return whether another file of tests names this guide and reads its code blocks."""
    others = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    return page.parent.name == "docs" and any(f'"{page.name}"' in text and "block" in text for text in others)


def with_code(language: str) -> list:
    """The pages with code in a language, as parameters."""
    return [pytest.param(page, id=name_of(page)) for page in PAGES if blocks(page, language) and not has_own_tests(page)]


def check_needs(page: Path) -> None:
    """Skip where a package that the page asks for is not installed."""
    for package in re.findall(r"<!-- needs ([\w.]+) -->", page.read_text(encoding="utf-8")):
        pytest.importorskip(package, reason=f"{name_of(page)} needs the package {package}")


def files_for(folder: Path) -> None:
    """Write the files that the pages speak of."""
    (folder / "docs").mkdir()
    rows = [{"id": f"r{i}", "body": f"the cat sat on mat {i}", "text": f"the cat sat on mat {i}"} for i in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "docs" / "a.parquet")
    lines = "".join(json.dumps({"id": row["id"], "text": row["text"]}) + "\n" for row in rows)
    table = "id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows)
    for name in ("texts", "docs"):
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        (folder / f"{name}.csv").write_text(table, encoding="utf-8")


@pytest.mark.parametrize("page", with_code("python"))
def test_the_examples_run(tiny, capsys, tmp_path, monkeypatch, page):
    """The Python blocks of a page run one after the other, as a reader would paste them."""
    check_needs(page)
    files_for(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(page, "python")).replace(HUB_ID, tiny.as_posix())
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})
    output = capsys.readouterr().out
    if page.name == "models.md":  # it prints the file that states the pooling
        assert "1_Pooling/config.json" in output


def test_the_pages_have_examples():
    """The README, those of the adapters and the guides for Python users have at least four lines of Python."""
    guides = [
        ROOT / "docs" / f"{name}.md" for name in ("start", "langchain", "llama-index", "models", "precision", "deepsparse")
    ]
    for page in (README, *ADAPTERS, *guides):
        assert len("\n".join(blocks(page, "python")).splitlines()) >= 4, page


def test_every_command_is_on_a_page():
    """The guides together show each command of `penult` that needs neither torch nor the network."""
    shown = {command for page in PAGES for command, *_ in commands(page)}
    assert {"inspect", "cut", "embed", "ingest", "serve", "quality", "bench"} <= shown


def test_the_readme_is_short():
    """Two screens: what penult is, an example, the commands and links to the pages; details are in docs/."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 110


def test_the_speed_chart_is_that_of_its_measurements():
    """The chart is drawn from speed.json, and the pages state the same figures."""
    assets = ROOT / "docs" / "assets"
    result = json.loads((assets / "speed.json").read_text(encoding="utf-8"))
    assert (assets / "speed.svg").read_text(encoding="utf-8") == speed_chart.chart(result)
    for page in (README, ROOT / "docs" / "precision.md"):
        text = page.read_text(encoding="utf-8")
        for row in result["rows"]:
            assert f"{row['tokens_per_cpu_second']:,.0f}" in text, (page, row["system"])


def test_the_examples_of_docstrings_run(tiny):
    """Every Python block in a docstring of the three packages runs by itself."""
    found = [(file, code) for file in DOCSTRINGS for code in blocks(file, "python")]
    assert len(found) >= 2
    for file, code in found:
        exec(compile(code.replace(HUB_ID, tiny.as_posix()), str(file), "exec"), {})


@pytest.mark.parametrize("page", with_code("console"))
def test_the_commands_run(tiny, tmp_path, page):
    """A page's commands run in a fresh folder, in its order; of a server, only the options are checked, against its help."""
    check_needs(page)
    files_for(tmp_path)
    given = {"MODEL": str(tiny), HUB_ID: str(tiny), "FILE": "texts.jsonl", "docs/*.parquet": "docs/a.parquet"}
    for command, *words in commands(page):
        if command in SERVERS:
            known = run([command, "--help"], tmp_path)
            assert all(word.partition("=")[0] in known for word in words if word.startswith("--")), words
            continue
        quick = ["--rounds", "1", "--limit", "4"] if command == "bench" else []
        run([command, *(given.get(word, word) for word in words), *quick], tmp_path)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Git hosts and the documentation site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    """A relative link names a file of the repository, and its anchor a heading there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", PENULT, *words], capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode == 0, f"penult {shlex.join(words)}\n{done.stderr}"
    return done.stdout
