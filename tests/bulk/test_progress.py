"""What a job says of itself: a bar on a terminal, a line a shard for a program, nothing else."""

import io
import json
import sys
from dataclasses import asdict

import pytest

from penult.bulk.job import progress
from penult.bulk.job.progress import Progress, Totals
from penult.bulk.job.record import Record


class Terminal(io.StringIO):
    """A terminal that keeps what is written on it."""

    def isatty(self):
        return True


def on_a_terminal(monkeypatch):
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def record(**values):
    return Record(**(dict.fromkeys(Record.__dataclass_fields__, 0) | values))


def test_the_bar(monkeypatch):
    """It starts where an earlier run stopped, counts good and refused rows, tells the cut ones, and a sentence does not tear it."""
    terminal = on_a_terminal(monkeypatch)
    shown = Progress("auto", 20, Totals(rows=4, rejected=1))
    assert "5/20" in terminal.getvalue()
    shown.add(record(rows=8, rejected=2, cut=3, tokens=90))
    shown.say("a worker was replaced")
    shown.close()
    said = terminal.getvalue()
    assert "15/20" in said
    assert "cut=3, rejected=3" in said
    assert "penult: a worker was replaced\n" in said
    assert shown.totals == Totals(rows=12, rejected=3, cut=3, tokens=90)
    shown.close()  # once more is no harm
    assert terminal.getvalue() == said


def test_totals_begin_at_nothing():
    """And grow by what a shard has of each."""
    five = {"rows": 1, "rejected": 2, "cut": 3, "taken": 4, "tokens": 5}
    assert asdict(Totals().plus(record(**five))) == five


def test_lines_of_json(monkeypatch):
    """A program has no bar, on a terminal either; the time that is left follows from this run's rate, not the earlier one's."""
    terminal = on_a_terminal(monkeypatch)
    shown = Progress("json", 20, Totals(rows=10))
    shown.add(record(rows=4, rejected=1))
    shown.say("hello")
    shown.close()
    first, second = map(json.loads, terminal.getvalue().splitlines())
    assert (first["event"], first["of"]) == ("progress", 20)
    assert (first["rows"], first["rejected"]) == (14, 1)
    assert first["eta_seconds"] == pytest.approx(5 / first["rows_per_second"], rel=0.1, abs=0.1)
    assert second == {"event": "note", "message": "hello"}


def test_rows_a_second(monkeypatch):
    """Rows of this run, of both kinds, over its time, whatever an earlier run had done; rounded to a tenth, as the time left."""
    terminal, clock = on_a_terminal(monkeypatch), [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Progress("json", 45, Totals(rows=10, rejected=3))
    assert shown.rate == 0
    for now, rows in ((100.0, 0), (100.0, 2), (106.1, 17)):
        clock[0] = now
        shown.add(record(rows=rows, rejected=rows // 17))
    said = [json.loads(line) for line in terminal.getvalue().splitlines()]
    assert [(line["rows_per_second"], line["eta_seconds"]) for line in said] == [(0, None), (2e9, 0), (3.3, 3.7)]


@pytest.mark.parametrize("shown", ["auto", "off"])
def test_nothing_but_sentences(shown, capfd):
    """Without a terminal, or where it is off, only what must be said is said."""
    made = Progress(shown, 5, Totals())
    made.add(record(rows=5))
    made.say("done")
    made.close()
    assert capfd.readouterr() == ("", "penult: done\n")


def test_off_on_a_terminal(monkeypatch):
    """`off` is off there too."""
    terminal = on_a_terminal(monkeypatch)
    Progress("off", 5, Totals()).add(record(rows=5))
    assert terminal.getvalue() == ""
