"""`penult bench`: results of a real run on a tiny model; a library that cannot run is reported."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from penult.bench import measure, report

PEER_WORKER = Path(__file__).parent / "bench" / "peer_worker.py"
TEXTS = ["the cat sat on the mat", "a dog", "bright moon on the river"] * 4


def test_the_results_of_a_run(tiny):
    """Penult at both precisions and plain ONNX Runtime: rates, ratios, memory, and vectors that agree."""
    peers = measure.Peers(sys.executable, PEER_WORKER, ("deepsparse",))
    result = measure.measure(str(tiny), TEXTS, against=["onnxruntime"], peers=peers, rounds=2)
    rows = {row.system: row for row in result.rows}
    assert list(rows) == ["penult", "penult-int8", "onnxruntime", "deepsparse"]
    assert rows["penult"].penult_is == 1
    assert rows["onnxruntime"].cosine[0] > 0.9999
    assert rows["penult-int8"].cosine[0] > 0.9
    assert rows["onnxruntime"].peak_bytes > 2**20
    assert "deepsparse" in rows["deepsparse"].failure
    # 2 layers of 12 H^2 weights, two operations each; scores and mix 4 S H a layer
    squares, tokens = sum(n * n for n in (8, 4, 7)), sum((8, 4, 7))
    assert result.flops_a_token == pytest.approx(2 * 2 * 12 * 32**2 + 4 * 32 * 2 * squares / tokens)
    assert result.fp32_flops > 1e8
    text = report.table(result)
    assert "did not run: " in text
    assert json.loads(report.as_json(result))["tokens"] == 4 * tokens
    assert len(ET.fromstring(report.chart(result)).findall("{*}rect")) == 4  # the paper, and three bars


def test_invalid_arguments_are_reported(tiny, tmp_path):
    """An unknown system, no texts, or a pooling that the others do not have: one sentence."""
    with pytest.raises(ValueError, match=r"'openvino'; it must be onnxruntime\. .*run `make bench-peers`"):
        measure.measure(str(tiny), TEXTS, against=["openvino"])
    with pytest.raises(ValueError, match="no texts"):
        measure.measure(str(tiny), [])
    with pytest.raises(ValueError, match="pooling is 'max'"):
        measure.measure(str(tiny), TEXTS, pooling="max")


def test_texts_are_read(tmp_path):
    """Lines, JSONL, or penult's own texts in several lengths."""
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one\\n1"}\n{"text": "two"}\n')
    assert measure.read_texts(tmp_path / "a.txt") == ["one", "two"]
    assert measure.read_texts(tmp_path / "a.jsonl") == ["one\n1", "two"]
    assert len({len(text) for text in measure.read_texts(None)}) > 20


def test_the_command(tiny, tmp_path):
    """`penult bench` prints the table and writes JSON and a chart."""
    arguments = [
        "bench",
        str(tiny),
        "--rounds",
        "1",
        "--limit",
        "3",
        "--json",
        tmp_path / "b.json",
        "--chart",
        tmp_path / "b.svg",
    ]
    done = subprocess.run([sys.executable, "-m", "penult", *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "penult-int8" in done.stdout
    assert (tmp_path / "b.svg").read_text().startswith("<svg")
    assert json.loads((tmp_path / "b.json").read_text())["texts"] == 3


def test_the_files_of_another_model(tiny, tmp_path, monkeypatch):
    """A mirror with only the graph is measured with the files of the original, as every command loads it."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    shutil.copy(tiny / "onnx" / "model.onnx", mirror / "small.onnx")
    monkeypatch.setattr(measure, "_OURS", ("penult",))
    result = measure.measure(str(mirror), TEXTS, model_file="small.onnx", files_from=str(tiny), rounds=1)
    assert [row.failure for row in result.rows] == [""]
    assert result.rows[0].tokens_per_cpu_second > 0
