"""The cost table in docs/bulk.md is what its script computes from the measurements of the speed chart."""

import re
import sys
from pathlib import Path

import pytest
from bench import cost_table

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_of_the_page(monkeypatch, capsys):
    """From the rate in speed.json, the script writes the table and sentences that are on the page."""
    monkeypatch.setattr(sys, "argv", ["cost_table.py", str(DOCS / "assets" / "speed.json"), "--dollars-a-core-hour", "0.04"])
    cost_table.main()
    written = capsys.readouterr().out
    assert " ".join(written.split()) in " ".join((DOCS / "bulk.md").read_text(encoding="utf-8").split())


def test_a_rate_twice_as_high_costs_half():
    """Hours and dollars go with the rate; the bottleneck moves at half the cores."""
    slow, fast = (cost_table.table(rate, 1.0, 200, 384) for rate in (1000, 2000))
    assert "a billion tokens take 278 core hours, 277.78 dollars" in slow
    assert "a billion tokens take 139 core hours, 138.89 dollars" in fast
    cores = [int(re.search(r"bottleneck up to ([\d,]+) cores", text)[1].replace(",", "")) for text in (slow, fast)]
    assert cores[0] == pytest.approx(2 * cores[1], abs=1)
