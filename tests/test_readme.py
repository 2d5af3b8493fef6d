"""What the READMEs and docstrings show runs as it stands, on a tiny model in place of the one that would be fetched."""

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
PAGES = [README, *INTEGRATIONS.glob("*/README.md")]
DOCSTRINGS = [*ROOT.glob("src/**/*.py"), *INTEGRATIONS.glob("*/*/**/*.py")]
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PENULT = "import sys; from penult.cli import app; sys.argv[0] = 'penult'; app()"


def blocks(file: Path, language: str) -> list[str]:
    """The blocks of code in a language, their indentation taken off."""
    found = re.findall(rf"^( *)```{language}\n(.*?)\n *```", file.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def commands() -> list[list[str]]:
    """The words of every `penult` command of the README, remarks taken off."""
    lines = [line for block in blocks(README, "console") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))[:2] == ["$", "penult"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_examples_run(tiny, capsys, page):
    """The Python blocks of a README, one after the other, as a reader would paste them."""
    found = blocks(page, "python")
    assert len(found) >= 4
    code = "\n".join(found).replace(HUB_ID, tiny.as_posix())
    exec(compile(code, str(page), "exec"), {})
    assert capsys.readouterr().out or page != README


def test_the_recipe_says_where_it_is_from(tiny, capsys):
    """The README's look at the recipe prints the file that said how to pool."""
    exec(compile("\n".join(blocks(README, "python")).replace(HUB_ID, tiny.as_posix()), "README.md", "exec"), {})
    assert "1_Pooling/config.json" in capsys.readouterr().out


def test_the_examples_of_docstrings_run(tiny):
    """Every Python block in a docstring of the three packages runs by itself."""
    found = [(file, code) for file in DOCSTRINGS for code in blocks(file, "python")]
    assert len(found) >= 2
    for file, code in found:
        exec(compile(code.replace(HUB_ID, tiny.as_posix()), str(file), "exec"), {})


def test_the_commands_run(tiny, tmp_path):
    """The README's commands run in a fresh folder, in its order; a server is only asked whether it knows the options."""
    (tmp_path / "docs").mkdir()
    rows = [{"id": f"r{i}", "body": f"the cat sat on mat {i}"} for i in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "docs" / "a.parquet")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": row["body"]}) + "\n" for row in rows))
    given = {"MODEL": str(tiny), HUB_ID: str(tiny), "FILE": "texts.jsonl", "docs/*.parquet": "docs/a.parquet"}
    ran = []
    for _, _, *words in commands():
        if words[0] == "serve":
            known = run(["serve", "--help"], tmp_path)
            assert all(word in known for word in words if word.startswith("--")), words
            continue
        quick = ["--rounds", "1", "--limit", "4"] if words[0] == "bench" else []
        run([given.get(word, word) for word in words] + quick, tmp_path)
        ran.append(words[0])
    assert {"inspect", "cut", "embed", "ingest", "quality", "bench"} <= set(ran)


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", PENULT, *words], capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode == 0, f"penult {shlex.join(words)}\n{done.stderr}"
    return done.stdout
