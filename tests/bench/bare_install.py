"""Install penult without extras, and run every command of the README there: each works, or names its extra in one sentence.

    python tests/bench/bare_install.py [--python VENV_PYTHON]

It makes an environment, so it needs a package index and about a minute; run it with the development environment. With
--python, an environment with penult that is there already is used.
"""

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from models import tiny_model
from test_readme import HUB_ID, PAGES, README, commands, files_for

MORE = [  # what the README's commands do not do
    ["embed", "texts.csv", "texts.npy", "--model", "MODEL"],
    ["embed", "texts.jsonl", "texts.npy", "--model", "MODEL"],
    ["embed", "texts.jsonl", "out.lance", "--model", "MODEL"],
    ["embed", "texts.jsonl", "ray.npy", "--model", "MODEL", "--engine", "ray"],
    ["ingest", "texts.npy", "--to", "lancedb:./store", "--collection", "docs"],
    ["ingest", "texts.npy", "--to", "pgvector:dbname=none", "--collection", "docs"],
]
ADVICE = "the extra penult["


def main() -> None:
    """Print what each command did, and exit with 1 where one neither worked nor named its extra."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="an interpreter with penult, in place of a new environment")
    python = parser.parse_args().python
    with tempfile.TemporaryDirectory(prefix="penult-bare-") as name:
        folder = Path(name)
        if python is None:
            venv.create(folder / "venv", with_pip=True)
            python = folder / "venv" / "bin" / "python"
            subprocess.run([python, "-m", "pip", "install", "-q", ROOT], check=True)
        model = tiny_model(folder / "model")
        work = folder / "work"
        work.mkdir()
        files_for(work)
        given = {"MODEL": str(model), HUB_ID: str(model), "FILE": "texts.jsonl", "docs/*.parquet": "docs/a.parquet"}
        listed = [(page.name, words) for page in PAGES for words in commands(page)]
        listed += [("more", words) for words in MORE]
        bad = [words for page, words in listed if not check(python, work, page, [given.get(word, word) for word in words])]
    sys.exit(1 if bad else 0)


def check(python: Path, folder: Path, page: str, words: list[str]) -> bool:
    """Run a command; return whether it worked or named its extra, and print it."""
    quick = {"bench": ["--rounds", "1", "--limit", "4"], "serve": ["--port", "0"]}.get(words[0], [])
    command = [str(python), "-m", "penult", *words, *quick]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
        status, said = done.returncode, done.stderr.strip()
    except subprocess.TimeoutExpired:
        status, said = 0, "still serves"
    fine = status == 0 or (ADVICE in said and "\n" not in said)
    print(
        f"{'ok' if fine else 'BAD':4}{page:12}{' '.join(words)[:100]}\n{'':16}{said.splitlines()[-1] if status and said else ''}"
    )
    return fine


if __name__ == "__main__":
    print(README.name, "and the guides, in an environment without extras")
    main()
