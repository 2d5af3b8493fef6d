"""What the READMEs, the guides and docstrings show runs as it stands, on a tiny model in place of the one that would be fetched.

A page's ```python blocks run one after the other, and so do its `$ penult` commands in ```console blocks, in a folder that
holds the files of `files_for`. A line `<!-- needs PACKAGE -->` on a page skips its code where that package is not installed.
Code that is not to run here is marked as another language: ```py, ```sh. A guide that needs more than this has tests of its own,
which name its file; it is left to them.
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

ROOT = Path(__file__).parents[1]
INTEGRATIONS = ROOT / "integrations"
README = ROOT / "README.md"
ADAPTERS = sorted(INTEGRATIONS.glob("*/README.md"))
PAGES = [README, *ADAPTERS, *sorted((ROOT / "docs").glob("*.md"))]
DOCSTRINGS = [*ROOT.glob("src/**/*.py"), *INTEGRATIONS.glob("*/*/**/*.py")]
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PENULT = "import sys; from penult.cli import app; sys.argv[0] = 'penult'; app()"
SERVERS = {"serve"}  # commands that do not end


def blocks(file: Path, language: str) -> list[str]:
    """The blocks of code in a language, their indentation taken off."""
    found = re.findall(rf"^( *)```{language}\n(.*?)\n *```", file.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def commands(page: Path) -> list[list[str]]:
    """The words of every `penult` command of a page, remarks taken off."""
    text = "\n".join(blocks(page, "console")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("$ ")]
    return [words[2:] for words in lines if words[:2] == ["$", "penult"]]


def name_of(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def has_own_tests(page: Path) -> bool:
    """Whether another file of tests names this guide."""
    others = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    return page.parent.name == "docs" and any(f'"{page.name}"' in path.read_text(encoding="utf-8") for path in others)


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
    """The Python blocks of a page, one after the other, as a reader would paste them."""
    check_needs(page)
    files_for(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(page, "python")).replace(HUB_ID, tiny.as_posix())
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    if page == README:  # its look at the recipe prints the file that said how to pool
        assert "1_Pooling/config.json" in said


def test_the_pages_have_examples():
    """The README and those of the adapters show more than one line of code."""
    for page in (README, *ADAPTERS):
        assert len(blocks(page, "python")) >= 4


def test_the_examples_of_docstrings_run(tiny):
    """Every Python block in a docstring of the three packages runs by itself."""
    found = [(file, code) for file in DOCSTRINGS for code in blocks(file, "python")]
    assert len(found) >= 2
    for file, code in found:
        exec(compile(code.replace(HUB_ID, tiny.as_posix()), str(file), "exec"), {})


@pytest.mark.parametrize("page", with_code("console"))
def test_the_commands_run(tiny, tmp_path, page):
    """A page's commands run in a fresh folder, in its order; a server is only asked whether it knows the options."""
    check_needs(page)
    files_for(tmp_path)
    given = {"MODEL": str(tiny), HUB_ID: str(tiny), "FILE": "texts.jsonl", "docs/*.parquet": "docs/a.parquet"}
    ran = []
    for command, *words in commands(page):
        ran.append(command)
        if command in SERVERS:
            known = run([command, "--help"], tmp_path)
            assert all(word.partition("=")[0] in known for word in words if word.startswith("--")), words
            continue
        quick = ["--rounds", "1", "--limit", "4"] if command == "bench" else []
        run([command, *(given.get(word, word) for word in words), *quick], tmp_path)
    if page == README:
        assert {"inspect", "cut", "embed", "ingest", "serve", "quality", "bench"} <= set(ran)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    """A relative link names a file of the repository."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, _ = link.partition("#")
        assert link.startswith(("https://", "#")) or (page.parent / path).exists(), link


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", PENULT, *words], capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode == 0, f"penult {shlex.join(words)}\n{done.stderr}"
    return done.stdout
