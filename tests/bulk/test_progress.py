"""Progress of a job: a bar on a terminal, a line per shard for a program, or nothing."""

import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import asdict

import pytest

from penult import progress_bar
from penult.bulk.job import progress
from penult.bulk.job.parts import Tick
from penult.bulk.job.progress import Progress, Totals
from penult.bulk.job.record import Record


class Terminal(io.StringIO):
    """A terminal that records its output."""

    def isatty(self):
        return True


def on_a_terminal(monkeypatch):
    made = Terminal()
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LINES", "50")
    monkeypatch.setattr(sys, "stderr", made)
    return made


def record(**values):
    return Record(**(dict.fromkeys(Record.__dataclass_fields__, 0) | values))


def test_the_bar(monkeypatch):
    """It starts where an earlier run stopped, counts rows, rejected and truncated ones, and messages do not disturb it."""
    terminal = on_a_terminal(monkeypatch)
    shown = Progress("auto", 20, Totals(rows=4, rejected=1))
    assert "5/20" in terminal.getvalue()
    shown.add(record(rows=8, rejected=2, cut=3, tokens=90))
    shown.say("a worker was replaced")
    shown.close()
    output = terminal.getvalue()
    assert "15/20" in output
    assert "truncated=3, rejected=3" in output
    assert "penult: a worker was replaced\n" in output
    assert shown.totals == Totals(rows=12, rejected=3, cut=3, tokens=90)
    shown.close()  # a second call has no effect
    assert terminal.getvalue() == output


def test_totals_start_at_zero():
    """They grow by the counts of each shard."""
    five = {"rows": 1, "rejected": 2, "cut": 3, "taken": 4, "tokens": 5}
    assert asdict(Totals().plus(record(**five))) == five


def test_lines_of_json(monkeypatch):
    """No bar for a program, on a terminal either; the remaining time follows from the rate of this run."""
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


def test_rows_per_second(monkeypatch):
    """Rows of this run, embedded or rejected, per second of this run; rounded to a tenth, as the remaining time."""
    terminal, clock = on_a_terminal(monkeypatch), [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Progress("json", 45, Totals(rows=10, rejected=3))
    assert shown.rate == 0
    for now, rows in ((100.0, 0), (100.0, 2), (106.1, 17)):
        clock[0] = now
        shown.add(record(rows=rows, rejected=rows // 17))
    output = [json.loads(line) for line in terminal.getvalue().splitlines()]
    assert [(line["rows_per_second"], line["eta_seconds"]) for line in output] == [(0, None), (2e9, 0), (3.3, 3.7)]


@pytest.mark.parametrize("shown", ["auto", "off"])
def test_messages_only(shown, capfd):
    """Without a terminal, or with `off`, only messages are printed."""
    made = Progress(shown, 5, Totals())
    made.add(record(rows=5))
    made.say("done")
    made.close()
    assert capfd.readouterr() == ("", "penult: done\n")


def test_off_on_a_terminal(monkeypatch):
    """`off` applies on a terminal too."""
    terminal = on_a_terminal(monkeypatch)
    Progress("off", 5, Totals()).add(record(rows=5))
    assert terminal.getvalue() == ""


def test_lines_without_a_terminal(monkeypatch, capfd):
    """A line every ten seconds with everything on the bar, unfinished shards included; rates exclude earlier runs."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Progress("auto", 20_000, Totals(rows=1000, tokens=7))
    shown.add(Tick(3, rows=500, tokens=100, kept=500, earlier=500))
    for now, rows in ((109.9, 600), (110.0, 700), (115.0, 900), (119.0, 1000)):
        clock[0] = now
        shown.add(Tick(3, rows=rows, rejected=1, cut=2, tokens=rows * 10 + 100, kept=500, earlier=500))
    clock[0] = 120.0
    shown.add(record(shard=3, rows=1500, cut=4, tokens=20_100))
    assert capfd.readouterr().err.splitlines() == [
        "penult: 1,700 of 20,000 rows (8 %); 20 rows/s, 700 tokens/s; 15 min left; 2 truncated, 1 rejected",
        "penult: 2,500 of 20,000 rows (12 %); 50 rows/s, 1,000 tokens/s; 6 min left; 4 truncated, 0 rejected",
    ]
    assert shown.rate == 50


def test_rows_on_disk(capfd):
    """Finished shards, and the parts of unfinished ones that are on disk."""
    shown = Progress("off", 20, Totals(rows=2))
    shown.add(record(shard=0, rows=4, rejected=1))
    shown.add(Tick(1, rows=5, kept=3))
    shown.add(Tick(2, rows=5, kept=0))
    assert (shown.kept, shown.totals.seen) == (10, 7)
    shown.add(record(shard=1, rows=6))
    assert shown.kept == 13
    assert capfd.readouterr().err == ""


def test_a_bar_moves_within_a_shard(monkeypatch):
    """With every tick, and backwards if a worker died."""
    terminal = on_a_terminal(monkeypatch)
    shown = Progress("auto", 200, Totals())
    for rows in (10, 50, 20):
        shown.add(Tick(0, rows=rows, rejected=1, cut=2, tokens=rows))
        assert shown._bar.n == rows
    shown.add(record(shard=0, rows=60))
    assert shown._bar.n == 60
    shown._bar.refresh()
    shown.close()
    assert "tokens/s, truncated=0, rejected=0" in terminal.getvalue()


def test_json_within_a_shard(monkeypatch):
    """A line if the last one is ten seconds old."""
    terminal, clock = on_a_terminal(monkeypatch), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Progress("json", 100, Totals())
    for now in (5.0, 10.0, 15.0, 20.0):
        clock[0] = now
        shown.add(Tick(0, rows=int(now), tokens=int(now)))
    assert [json.loads(line)["rows"] for line in terminal.getvalue().splitlines()] == [10, 20]


@pytest.mark.parametrize("on_terminal", [False, True])
def test_rows_written_to_a_store(monkeypatch, capfd, on_terminal):
    """A bar or a line every ten seconds, with the remaining time."""
    clock = [0.0]
    if on_terminal:
        terminal = on_a_terminal(monkeypatch)
    else:
        monkeypatch.setattr(progress_bar.time, "monotonic", lambda: clock[0])
    with progress_bar.rows_written("docs") as advance:
        for rows in (100, 200, 300, 400):
            clock[0] += 6
            advance(rows, 1000)
    if on_terminal:
        assert "writing to docs" in terminal.getvalue()
        assert "400/1000" in terminal.getvalue()
    else:
        lines = ["200 of 1,000 rows in docs; 17 rows/s; 48 s left", "400 of 1,000 rows in docs; 17 rows/s; 36 s left"]
        assert capfd.readouterr().err.splitlines() == [f"penult: {line}" for line in lines]


def test_durations():
    """In a readable unit."""
    assert [progress_bar.duration(seconds) for seconds in (0, 99, 101, 5990, 7200, 90_000)] == [
        "0 s", "99 s", "2 min", "100 min", "2.0 h", "25.0 h",
    ]  # fmt: skip


def test_a_bar_on_a_terminal_without_a_size(tmp_path):
    """Some containers report 0 by 0; the bar is visible there too."""
    ours, theirs = pty.openpty()
    code = "from penult.progress_bar import progress_bar\nwith progress_bar(4, shown=True) as step: step(3)"
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, timeout=60)
    assert b"3/4" in os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)
