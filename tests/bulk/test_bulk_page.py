"""docs/bulk.md: its commands and Python code run, and it names every option of `penult embed`."""

import json
import re
import shlex

from bulk.jobs import run
from pages_kit import DOCS, HUB_ID, blocks

PAGE = DOCS / "bulk.md"


def test_the_commands_run(tiny, tmp_path):
    """The commands run in order, in a new folder, on a tiny model."""
    (tmp_path / "docs").mkdir()
    rows = [{"id": f"r{i}", "body": f"the cat sat on mat {i}"} for i in range(8)]
    (tmp_path / "docs" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "questions.csv").write_text("text\nwho sat?\nwhere?\n")
    given = {HUB_ID: str(tiny), "docs/*.jsonl": "docs/a.jsonl"}
    commands = [shlex.split(line, comments=True) for block in blocks(PAGE, "console") for line in block.splitlines()]
    assert len(commands) == 5
    for _, _, *words in commands:
        done = run(*(given.get(word, word) for word in words), cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_the_examples_run(tiny):
    """The Python code runs."""
    exec("\n".join(blocks(PAGE, "python")).replace(HUB_ID, tiny.as_posix()), {})


def test_every_option_is_there():
    """The page names every option of `penult embed`."""
    page = PAGE.read_text()
    options = set(re.findall(r"--[a-z-]+", run("embed", "--help").stdout)) - {"--help", "--prompt-query", "--prompt-document"}
    assert {option for option in options if option not in page and option.replace("--no-", "--") not in page} == set()
    assert len(options) > 25
