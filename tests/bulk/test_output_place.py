"""Output paths: never the input's own file, by whatever name, also with --overwrite."""

import json
import os
from importlib.util import find_spec

import pytest
from bulk.jobs import corpus, run

LANCE = pytest.mark.skipif(find_spec("lance") is None, reason="needs the extra penult[lance]")


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a few inputs, also links and hard links; it is the working folder."""
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path / "in.jsonl", 3)
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    corpus(tmp_path / "sub" / "a.jsonl", 3)
    corpus(tmp_path / "out.npy.rows.jsonl", 3)
    corpus(tmp_path / "out.jsonl.rejected.jsonl", 3)
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    os.link(tmp_path / "in.jsonl", tmp_path / "hard.jsonl")
    (tmp_path / "same").symlink_to("sub", target_is_directory=True)
    (tmp_path / "d.lance").mkdir()
    corpus(tmp_path / "d.lance" / "in.jsonl", 3)
    (tmp_path / "out.parquet.job").mkdir()
    corpus(tmp_path / "out.parquet.job" / "in.jsonl", 3)
    return tmp_path


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("given", "out"),
    [
        (["in.jsonl"], "in.jsonl"),
        (["in.jsonl"], "sub/../in.jsonl"),
        (["link.jsonl"], "in.jsonl"),
        (["in.jsonl"], "link.jsonl"),
        (["in.jsonl"], "hard.jsonl"),
        (["sub/a.jsonl", "in.jsonl"], "in.jsonl"),
        (["i*.jsonl"], "in.jsonl"),  # a glob that matches a file of the user's
        (["sub"], "same/a.jsonl"),
        (["sub"], "sub/new.parquet"),
        (["sub"], "same/new.parquet"),
        (["./sub/"], "sub/deep/new.npy"),
        (["out.npy.rows.jsonl"], "out.npy"),
        (["out.jsonl.rejected.jsonl"], "out.jsonl"),
        pytest.param(["d.lance/in.jsonl"], "d.lance", marks=LANCE),
        (["out.parquet.job/in.jsonl"], "out.parquet"),
    ],
)
def test_an_output_is_not_written_over_its_input(job, folder, given, out, overwrite):
    """Relative paths, links, hard links, folders, globs, and files beside the output: one sentence, nothing changed."""
    before = snapshot(folder)
    with pytest.raises(ValueError, match=r"Pass another output|Pass an output outside"):
        job(*given, out=out, overwrite=overwrite)
    assert snapshot(folder) == before


def test_a_link_in_the_input_folder_to_the_output(job, folder):
    """A folder with a link to the output is an error too."""
    (folder / "sub" / "b.jsonl").symlink_to("../in.jsonl")
    before = snapshot(folder)
    with pytest.raises(ValueError, match=r"b\.jsonl is also the output"):
        job("sub", out="in.jsonl", overwrite=True)
    assert snapshot(folder) == before


def test_standard_input_that_is_the_output(folder, tiny):
    """`penult embed - x.jsonl < x.jsonl` is an error too."""
    before = snapshot(folder)
    with (folder / "in.jsonl").open() as pipe:
        done = run("embed", "-", "in.jsonl", "--model", tiny, "--overwrite", stdin=pipe)
    assert (done.returncode, snapshot(folder)) == (1, before)
    assert "Standard input is read from the output in.jsonl" in done.stderr


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("no/such/out.parquet", "no/such is not a folder. Create it"),
        ("in.jsonl/out.parquet", "in.jsonl is not a folder. Create it"),
        ("folder.parquet", "folder.parquet is a folder. Pass another output"),
        pytest.param("file.lance", "file.lance is a file. Pass another output", marks=LANCE),
    ],
)
def test_invalid_output_paths(job, folder, out, message, overwrite):
    """They are an error before any work, and no folder is created."""
    (folder / "folder.parquet").mkdir()
    (folder / "file.lance").touch()
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=message):
        job("in.jsonl", out=out, overwrite=overwrite)
    assert sorted(folder.rglob("*")) == before


def test_a_glob_may_match_an_earlier_output(job, folder):
    """It is skipped, as are its other files: the same command again has nothing to do, and --overwrite works."""
    for options in ({}, {}, {"overwrite": True}):
        assert job("in*.jsonl", out="in.out.jsonl", **options).totals.rows == 3
    assert len([json.loads(line) for line in (folder / "in.out.jsonl").read_text().splitlines()]) == 3


def test_the_output_of_another_job_is_an_input(job, folder):
    """A similar name beside the output, or in another folder, is not a collision."""
    assert job("out.npy.rows.jsonl", out="other.parquet").totals.rows == 3
    assert job("sub", out="sub.parquet").totals.rows == 3
