"""`penult embed` without pyarrow: the rows and vectors of a job with it, resumable, and one sentence for everything else."""

import json
import sys

import numpy as np
import pytest
from bulk.jobs import corpus

from penult.bulk import plain_job
from penult.bulk.job import parts
from penult.bulk.job.errors import StoppedError
from penult.bulk.options import Columns, Model
from penult.bulk.request import Request


@pytest.fixture
def plain(tiny, tmp_path, monkeypatch):
    """Return a function that runs a job without tables and returns its summary."""
    monkeypatch.setattr(plain_job, "_ROWS", 16)

    def start(*given, out="plain.npy", text="text", **options):
        model = Model(str(options.pop("model", tiny)), truncate=options.pop("truncate", "right"))
        columns = Columns(text, options.pop("vector", "embedding"), "document")
        return plain_job.embed_files(Request(tuple(map(str, given)), tmp_path / out, model, columns, shown="off", **options))

    return start


def files(path):
    """Return the output and the files beside it, without the hash of the job."""
    return {file.name.removeprefix(path.name): file.read_bytes() for file in path.parent.glob(f"{path.name}*")}


@pytest.fixture
def table(tmp_path):
    """A CSV file with unusual rows: texts of several lines, one that is not UTF-8, too few fields."""
    path = tmp_path / "in.csv"
    path.write_bytes(
        b'id,text,n\n1,"the cat, said\nhe",5\n2,a dog,\n3,b\xfcrd,7\n4,x\n'
        + b"".join(b"%d,row %d,9\n" % (n, n) for n in range(5, 60))
    )
    return path


@pytest.mark.parametrize("ending", [".npy", ".jsonl"])
def test_the_same_as_with_arrow(plain, job, table, tmp_path, ending):
    """Rows, vectors, reasons and metadata of CSV: byte for byte in .npy, equal values in .jsonl."""
    expected, summary = job(table, out=f"arrow{ending}"), plain(table, out=f"plain{ending}")
    assert summary.totals == expected.totals
    assert (summary.totals.rows, summary.totals.rejected) == (57, 2)
    made, wanted = files(tmp_path / f"plain{ending}"), files(tmp_path / f"arrow{ending}")
    assert made.keys() == wanted.keys()
    about = [json.loads(values.pop(".about.json")) for values in (made, wanted)]
    assert about[0] | {"penult.model": ""} == about[1] | {"penult.model": ""}
    if ending == ".jsonl":
        rows = [[json.loads(line) for line in values.pop("").splitlines()] for values in (made, wanted)]
        vectors = [np.array([row.pop("embedding") for row in some], np.float32) for some in rows]
        assert rows[0] == rows[1]
        assert vectors[0].tobytes() == vectors[1].tobytes()
    lines = [[json.loads(line)["line"] for line in values.pop(".rejected.jsonl").splitlines()] for values in (made, wanted)]
    assert lines == [[5, 6], [5, 6]]
    assert made == wanted
    assert not (tmp_path / f"plain{ending}.job").exists()


def test_rows_of_json(plain, embedder, tmp_path):
    """A row keeps its own columns; a text in an object, a text that is a number, and a lone surrogate."""
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"a": {"b": "the cat"}, "n": 1}\n\n{"a": {"b": 5}}\n{"a": {"b": "dog"}, "x": NaN}\n{"a": {"b": "x"}, "y": "\\ud800"}\n{"a": 1}\n[]\n'
    )
    totals = plain(source, out="o.jsonl", text="a.b").totals
    assert (totals.rows, totals.rejected) == (2, 4)
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    vectors = np.array([row.pop("embedding") for row in rows], np.float32)
    assert rows == [{"a": {"b": "the cat"}, "n": 1}, {"a": {"b": "dog"}, "x": None}]
    assert vectors.tobytes() == embedder.embed(["the cat", "dog"]).tobytes()
    rejected = [json.loads(line) for line in (tmp_path / "o.jsonl.rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rejected] == [3, 5, 6, 7]


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_job_resumes(plain, tmp_path, monkeypatch, calls):
    """Wherever it stopped; its output is that of an undisturbed run, and a third run has nothing to do."""
    source = corpus(tmp_path / "in.jsonl", 60)
    plain(source, out="undisturbed.npy")
    made, embed_texts = [], parts.embed_texts

    def failing(*arguments):
        if len(made) == calls:
            raise KeyboardInterrupt
        made.append(arguments)
        return embed_texts(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(parts, "embed_texts", failing)
        with pytest.raises(StoppedError, match=f"interrupted. {16 * calls} of 60 rows are done and kept"):
            plain(source)
    with pytest.raises(ValueError, match="another model or other options"):
        plain(source, text="id")
    made.clear()
    monkeypatch.setattr(parts, "embed_texts", lambda *arguments: (made.append(1), embed_texts(*arguments))[1])
    assert plain(source).totals.rows == 60
    assert len(made) == 4 - calls
    assert (tmp_path / "plain.npy").read_bytes() == (tmp_path / "undisturbed.npy").read_bytes()
    assert plain(source).rows_per_second is None
    with pytest.raises(ValueError, match="exists, but was created from other input"):
        plain(source, text="id")
    assert plain(source, text="id", overwrite=True).totals.rows == 60


def test_a_job_that_started_with_arrow(plain, job, tmp_path, monkeypatch):
    """It is not mistaken for a job without Arrow, nor the reverse."""
    source, embed_texts = corpus(tmp_path / "in.jsonl", 40), parts.embed_texts
    monkeypatch.setattr(parts, "embed_texts", lambda *arguments: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(StoppedError):
        job(source, out="o.npy")
    with pytest.raises(ValueError, match="contains an unfinished job of an installation with pyarrow"):
        plain(source, out="o.npy")
    assert (tmp_path / "o.npy.job" / "job.json").exists()
    with pytest.raises(StoppedError):
        plain(source, out="p.npy")
    monkeypatch.setattr(parts, "embed_texts", embed_texts)
    job(source, out="expected.npy")
    for out in ("o.npy", "p.npy"):
        job(source, out=out)
        assert (tmp_path / out).read_bytes() == (tmp_path / "expected.npy").read_bytes()


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (["in.parquet"], {}, "Reading in.parquet needs the extra penult[parquet]"),
        (["in.csv"], {"out": "o.parquet"}, r"Writing .*o.parquet needs the extra penult\[parquet\]"),
        (["in.csv"], {"workers": 2}, "--workers needs the extra"),
        (["in.csv"], {"engine": "ray"}, r"--engine ray needs the extra penult\[ray\]"),
        (["in.csv"], {"old": "o.npy"}, "--from needs the extra"),
        (["in.csv"], {"out": "o.xls"}, "has an unknown file extension. Pass an output that ends in .parquet, .lance, .npy or .jsonl"),
        (["in.csv"], {"text": "body"}, "The input has no text column 'body'. Pass the name of one with --text-column; the columns are: id, text, n"),
        (["in.csv"], {"vector": "n"}, "already has a column 'n'"),
        (["in.csv"], {"id_column": "key"}, "--id-column is 'key', but the columns of the input are"),
        (["no.csv"], {}, "No input files at"),
    ],
)  # fmt: skip
def test_errors_come_before_any_work(plain, table, tmp_path, monkeypatch, given, options, said):
    """One sentence, with the name of a missing extra; nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.parquet").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        (ValueError, ImportError, FileNotFoundError),
        match=said.replace("[", r"\[").replace(r"\\[", r"\[") if "\\" not in said else said,
    ):
        plain(*given, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_without_arrow(table, tiny, tmp_path, monkeypatch, capsys):
    """It works if pyarrow cannot be imported, and names the extra for other output formats."""
    from penult.cli import app

    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemExit) as end:
        app(["embed", str(table), str(tmp_path / "o.npy"), "--model", str(tiny)])
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 3
    assert said[0].startswith("penult: loading model")
    assert said[-1].startswith(f"penult: 57 rows in {tmp_path / 'o.npy'}; 2 rejected")
    assert np.load(tmp_path / "o.npy").shape == (57, 32)
