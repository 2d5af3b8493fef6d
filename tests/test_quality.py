"""`penult quality`: each kind of data, and each metric against its definition."""

import json
from math import log2

import numpy as np
import pytest
from models import tiny_model
from test_cli import run
from typer.testing import CliRunner

from penult.cli import app
from penult.data import calibration_texts
from penult.quality import Data, measure, ndcg, read_data, spearman, table


class Fake:
    """An embedder with vectors from a table; those of queries are longer, because lengths must not matter."""

    def __init__(self, vectors):
        self.vectors, self.asked = vectors, []
        self.dimension = len(next(iter(vectors.values())))
        self.fingerprint = "fake"

    def embed(self, texts, role="document", *, progress=False):
        self.asked.append((list(texts), role))
        return np.array([self.vectors[text] for text in texts], np.float32) * (3 if role == "query" else 1)


def test_cosines():
    """Minimum, mean and 1st percentile of the cosine similarity of each text's two vectors, whatever their lengths."""
    exact = Fake({"a": [1, 0], "b": [0, 2], "c": [3, 4]})
    other = Fake({"a": [2, 0], "b": [1, 1], "c": [4, 3]})
    found = measure(exact, other, Data(("a", "b", "c"), where="x"))
    cosines = [1, 2**-0.5, 24 / 25]
    assert (found.texts, found.spearman, found.ndcg) == (3, None, None)
    assert found.least == pytest.approx(min(cosines))
    assert found.mean == pytest.approx(np.mean(cosines))
    assert found.percentile == pytest.approx(np.quantile(cosines, 0.01))
    assert table(found, Data((), where="x")).splitlines() == [
        "3 texts of x",
        "cosine to fp32   mean 0.88904   1st percentile 0.71216   minimum 0.70711",
    ]


def test_spearman():
    """Equal to the correlation of ranks computed manually, with ties; invariant under increasing functions."""
    assert spearman([1, 2, 3, 4], [10, 20, 30, 1e9]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1])


def test_ndcg():
    """The discounted gain of the results, relative to the best possible."""
    assert ndcg([2, 1], [1, 2]) == pytest.approx(1)
    assert ndcg([0, 2], [2]) == pytest.approx(1 / log2(3))
    assert ndcg([0, 0], [2]) == 0
    assert ndcg([0], []) == 0
    assert ndcg([0] * 10 + [1], [1]) == 0  # the eleventh does not count
    assert ndcg([1, 0, 3], [3, 1]) == pytest.approx((1 + 3 / 2) / (3 + 1 / log2(3)))


def test_pairs_with_scores(tmp_path):
    """A tab-separated table with columns in any order and literal quotes; a limit counts pairs."""
    path = tmp_path / "sts.tsv"
    path.write_text('sentence1\tscore\tsentence2\na\t5\t"b\nc\t1\td\na\t3\td\n')
    data = read_data(path)
    assert data.texts == ("a", '"b', "c", "d", "a", "d")
    assert data.pairs == ((0, 1, 5.0), (2, 3, 1.0), (4, 5, 3.0))
    assert read_data(path, 2).pairs == data.pairs[:2]
    exact = Fake({"a": [1, 0], '"b': [1, 0.1], "c": [1, 0], "d": [0.3, 1]})
    other = Fake({"a": [1, 0], '"b': [0, 1], "c": [1, 0], "d": [1, 0.1]})
    found = measure(exact, other, data)
    # by cosine a"b > cd, ad (equal) here, and the other way round there; the scores are 5, 1, 3
    ranks = [3, 1, 2]
    wanted = (np.corrcoef([3, 1.5, 1.5], ranks)[0, 1], np.corrcoef([1, 2.5, 2.5], ranks)[0, 1])
    assert found.spearman == pytest.approx(wanted)
    assert "Spearman         fp32 " in table(found, data)


def corpus(folder):
    (folder / "corpus.jsonl").write_text(
        '{"_id": "d1", "title": "T", "text": "one"}\n\n{"_id": "d2", "text": "two"}\n{"_id": "d3", "title": "", "text": "three"}\n'
    )
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "ask"}\n{"_id": "q2", "text": "unjudged"}\n')
    (folder / "qrels_test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td2\t2\nq1\td3\t1\nq9\td1\t1\nq1\td9\t1\n")
    return folder


def test_a_search_corpus(tmp_path):
    """Titles precede texts; only documents are searched, queries are embedded as queries; unknown ids are ignored."""
    data = read_data(corpus(tmp_path), limit=1)
    assert data.texts == ("T one", "two", "three", "ask", "unjudged")
    assert data.documents == (0, 1, 2)
    assert data.relevant == {3: {1: 2.0, 2: 1.0}}
    exact = Fake({"T one": [0, 1], "two": [1, 0], "three": [1, 0.5], "ask": [1, 0], "unjudged": [1, 1]})
    other = Fake(exact.vectors | {"ask": [0, 1]})
    found = measure(exact, other, data)
    assert found.ndcg[0] == pytest.approx(1)
    assert found.ndcg[1] == pytest.approx((1 / log2(3) + 2 / 2) / (2 + 1 / log2(3)))
    assert found.least == pytest.approx(0, abs=1e-6)
    assert exact.asked == [(["T one", "two", "three", "unjudged"], "document"), (["ask"], "query")]
    assert "nDCG@10          fp32 1.0000   int8 " in table(found, data)
    (tmp_path / "queries_more.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match=r"has 2 files queries\*\.jsonl; a search corpus needs exactly one"):
        read_data(tmp_path)


def test_lines(tmp_path):
    """JSON lines with a text, plain lines, and penult's calibration texts; the message names an invalid file."""
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    (tmp_path / "a.txt").write_text("x\n\ny\nz\n")
    assert read_data(tmp_path / "a.jsonl").texts == ("x", "y")
    assert read_data(tmp_path / "a.jsonl", 1).texts == ("x",)
    assert read_data(tmp_path / "a.txt", 2).texts == ("x", "y")
    assert read_data(None, 5).texts == calibration_texts()[:5]
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"words": "y"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl line 2 has no `text`"):
        read_data(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text("x\n")
    with pytest.raises(ValueError, match=r"a\.jsonl is not valid JSON Lines"):
        read_data(tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a\.txt has no texts"):
        measure(Fake({"": [1]}), Fake({"": [1]}), read_data(tmp_path / "a.txt"))


def test_the_command(tmp_path):
    """Results of a real int8 model as JSON and as text; a missing file gives one line."""
    folder = tiny_model(tmp_path / "m")
    told = json.loads(CliRunner().invoke(app, ["quality", str(folder), "--limit", "20", "--json"]).output)
    assert told["texts"] == 20
    assert 0.9 < told["least"] <= told["percentile"] <= told["mean"] <= 1.00001
    (tmp_path / "lines.txt").write_text("the cat sat\na dog\n")
    lines = CliRunner().invoke(app, ["quality", str(folder), "--data", str(tmp_path / "lines.txt")]).output
    assert f"2 texts of {tmp_path / 'lines.txt'}" in lines
    (folder / "onnx" / "model.onnx").rename(tmp_path / "small.onnx")  # a mirror with the graph alone
    mirror = [str(tmp_path), "--model-file", "small.onnx", "--files-from", str(folder), "--limit", "20", "--json"]
    assert json.loads(CliRunner().invoke(app, ["quality", *mirror]).output) == told
    failed = run("quality", folder, "--data", tmp_path / "none.txt")
    assert failed.returncode != 0
    assert "none.txt" in failed.stderr
    assert "Traceback" not in failed.stderr
