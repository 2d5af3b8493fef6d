"""The plan past one cluster in README.md is what its script computes."""

import json
import re
import sys
from pathlib import Path

import pytest
from bench import cost_table

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_table_of_the_readme(tmp_path, monkeypatch, capsys):
    """From the rate that README.md names, the script writes the very table and sentences that stand there."""
    rate = int(re.search(r"One core: ([\d,]+) tokens a second", README)[1].replace(",", ""))
    rows = [{"system": "onnxruntime", "tokens_per_cpu_second": 1.0}, {"system": "penult", "tokens_per_cpu_second": rate + 0.3}]
    (tmp_path / "bench.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(sys, "argv", ["cost_table.py", str(tmp_path / "bench.json"), "--dollars-a-core-hour", "0.04"])
    cost_table.main()
    written = capsys.readouterr().out
    assert " ".join(written.split()) in " ".join(README.split())


def test_a_rate_twice_as_high_costs_half():
    """Hours and dollars go with the rate; the bottleneck moves at half the cores."""
    slow, fast = (cost_table.table(rate, 1.0, 200, 384) for rate in (1000, 2000))
    assert "a billion tokens take 278 core hours, 277.78 dollars" in slow
    assert "a billion tokens take 139 core hours, 138.89 dollars" in fast
    cores = [int(re.search(r"bottleneck up to ([\d,]+) cores", text)[1].replace(",", "")) for text in (slow, fast)]
    assert cores[0] == pytest.approx(2 * cores[1], abs=1)
