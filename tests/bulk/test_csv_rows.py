"""CSV and TSV: delimiters, and stray quotes, which reject only their own line."""

import csv

import pytest
from bulk.jobs import rejected
from hypothesis import given
from hypothesis import strategies as st

from penult.bulk.input import csv_rows
from penult.bulk.input.csv_rows import columns_of, read_csv, read_tsv
from penult.bulk.input.rows import Row
from penult.bulk.options import ReadOptions

OPEN = "has a quote that is not closed, or that is closed inside a field; only this line is rejected"


def read(tmp_path, content, reader=read_csv, **options):
    """Read a file; return the values of each row, and the line of each rejected row."""
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    items = list(reader(path, "here", ReadOptions(**options)))
    return [list(item.values.values()) if isinstance(item, Row) else item.line for item in items]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['1,"open', "2,moon", "3,earth"], [2, ["2", "moon"], ["3", "earth"]]),
        (["1,cat", "2,moon", '3,"open'], [["1", "cat"], ["2", "moon"], 4]),
        (['1,"open', "2,moon", '3,"earth"', "4,river"], [2, ["2", "moon"], ["3", "earth"], ["4", "river"]]),
        (['1,"open', '2,"a ""quoted"" word"', "3,x"], [2, ["2", 'a "quoted" word'], ["3", "x"]]),
        (['1,"open', '2,"also open', "3,x", '4,"two', 'lines"'], [2, 3, ["3", "x"], ["4", "two\nlines"]]),
        (['1,"open', '2,""', "3,x"], [2, ["2", ""], ["3", "x"]]),
        (['"1,x', "2,moon"], [2, ["2", "moon"]]),
        (['1,5" pipe', '2,say "hi"', '3,"a"b'], [["1", '5" pipe'], ["2", 'say "hi"'], ["3", "ab"]]),
        (['1,"two', 'lines, ""both""', 'quoted"', "2,x"], [["1", 'two\nlines, "both"\nquoted'], ["2", "x"]]),
        (['"a"b,"open', "2,x"], [2, ["2", "x"]]),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_an_unclosed_quote(tmp_path, lines, expected, end):
    """Its line is rejected, and all other rows are read, whatever quotes come later."""
    rows_read = read(tmp_path, end.join(["id,text", *lines]) + end)
    assert [[value.replace(end, "\n") for value in row] if isinstance(row, list) else row for row in rows_read] == expected


CELLS = st.text(st.sampled_from('ab ,"\n'), max_size=6)


def quoted(value):
    return '"' + value.replace('"', '""') + '"'


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
def test_valid_quotes_round_trip(tmp_path_factory, rows):
    """Any values, quoted as in RFC 4180, are read unchanged, without rejected rows."""
    content = "a,b\n" + "".join(f"{quoted(one)},{quoted(other)}\n" for one, other in rows)
    assert read(tmp_path_factory.getbasetemp(), content) == [list(row) for row in rows]


@given(st.lists(st.text(st.sampled_from('ab,"'), max_size=5), max_size=8))
def test_no_line_is_lost(tmp_path_factory, lines):
    """Whatever a file contains, each line is a row, rejected, blank, or part of a row with valid quotes."""
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text("\n".join(["a,b", *lines]))
    before = 1
    for item in read_csv(path, "here"):
        held = lines[before - 1 : item.line - 1]
        while held and not held[0]:  # a blank line is not a row
            del held[0]
        before = item.line
        if len(held) > 1:
            (fields,) = csv.reader("\n".join(held).splitlines(keepends=True), strict=True)
            assert fields == (list(item.values.values()) if isinstance(item, Row) else item.record)
    assert not any(lines[before - 1 :])


def test_the_first_line_is_in_the_rejected_row(job, tmp_path):
    """A rejected row has the number of its first line, its reason and its text; the job continues."""
    (tmp_path / "in.csv").write_text('id,text\n1,the cat\n2,"never closed\n3,moon\n4,earth\n5,river\n')
    done = job(tmp_path / "in.csv")
    assert (done.totals.rows, done.totals.rejected) == (4, 1)
    (row,) = rejected(tmp_path / "out.parquet")
    assert (row["line"], row["reason"], row["record"]) == (3, OPEN, '2,"never closed\n')


def test_many_unclosed_quotes_take_linear_time(tmp_path):
    """If every line opens a quote, each is read a few times, not to the end of the file."""
    for line in ('x",",z', 'a,"b', ',"""', '"",""x,"'):
        assert len(read(tmp_path, "a,b\n" + f"{line}\n" * 20_000)) >= 10_000  # minutes, were each read to the end


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("id;text\n1;the cat, sat\n", [["1", "the cat, sat"]]),
        ("id\ttext\n1\ta,b;c\n", [["1", "a,b;c"]]),
        ("id|text\n1|a,b\n", [["1", "a,b"]]),
        ('"a;b",text\n1,x\n', [["1", "x"]]),
        ("text\none; two\n", [["one; two"]]),
        ("sep=;\nid;text\n1;a,b\n", [["1", "a,b"]]),
        ("SEP=,\r\nid,text\r\n1,a\r\n", [["1", "a"]]),
        ('id, text\n1, the cat\n2, "a, b"\n', [["1", "the cat"], ["2", "a, b"]]),
        ('id, "text, all"\n1, "a, b"\n', [["1", "a, b"]]),
        ("id,text\n1,  two blanks\n", [["1", "  two blanks"]]),
    ],
)
def test_delimiters(tmp_path, content, expected):
    """A line `sep=`, else the first of comma, semicolon, tab and | in the header; spaces after it if all names have them."""
    assert read(tmp_path, content) == expected
    assert columns_of(tmp_path / "a.csv", "here")[-1].startswith("text")


def test_tabs(tmp_path):
    """A .tsv is always separated by tabs, whatever its header contains."""
    assert read(tmp_path, "a,b\ttext\n1,2\tx\n", read_tsv) == [["1,2", "x"]]


def test_a_row_that_is_too_long(tmp_path):
    """It is rejected with its line, and later rows are read; a quote that stays open ends at the limit too."""
    assert read(tmp_path, "a\n" + "x" * 50 + "\ny\n", max_row_bytes=40) == [2, ["y"]]
    assert read(tmp_path, "a\n" + "\u65e5" * 20 + "\ny\n", max_row_bytes=40) == [2, ["y"]]
    content = 'a,b\n1,"' + "x, y\n" * 20 + "2,z\n"
    assert read(tmp_path, content, max_row_bytes=40)[0] == 2
    assert read(tmp_path, content, max_row_bytes=40)[-1] == ["2", "z"]
    assert read(tmp_path, 'a,b\n1,"' + "x\n" * 20 + '"\n2,z\n', max_row_bytes=80) == [["1", "x\n" * 20], ["2", "z"]]


def test_a_record_of_too_many_lines(tmp_path, monkeypatch):
    """The number of lines in a record is limited, since each line takes memory besides its text."""
    monkeypatch.setattr(csv_rows, "_MAX_LINES", 5)
    assert read(tmp_path, 'a,b\n1,"' + "\n" * 4 + '"\n2,z\n') == [["1", "\n" * 4], ["2", "z"]]
    assert read(tmp_path, 'a,b\n1,"' + "\n" * 5 + 'x"\n2,z\n')[0] == 2


def test_invalid_headers(tmp_path):
    """An unclosed quote, duplicate names and too many columns are errors that name the file."""
    for content, message in (
        ('"a,b\n1,2\n', "The header of here has a quote that is not closed"),
        ("a, a\n", "The header of here has duplicate columns"),
        (",".join(map(str, range(10_001))), "here has 10,001 columns in its header; at most 10,000 are supported"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, content)
