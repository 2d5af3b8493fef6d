"""The location of the cache, and what happens if it cannot be written."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import Size, tiny_model

from penult import Embedder
from penult.core import cache as caching
from penult.core import cache_entry, export

pytestmark = pytest.mark.usefixtures("warnings_alone")
CODE = "import sys; from penult import Embedder; print(Embedder.load(sys.argv[1], threads=1).embed(['the cat']).shape)"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory, a temporary folder, and no PENULT_CACHE."""
    for name in ("PENULT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "temporary").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    caching._private_folder.cache_clear()
    yield tmp_path / "home"
    caching._private_folder.cache_clear()


def check_private(folder, temporary, text):
    """Check that the cache is a private temporary folder of this user, and that one line names the variable."""
    assert folder.parent == temporary
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert text.count("PENULT_CACHE") == 1


def test_the_users_cache(home, caplog):
    """A writable home directory has the cache; nothing is logged or created before it is needed."""
    assert caching.cache_folder() == home / ".cache" / "penult"
    assert list(home.iterdir()) == []
    assert caching.writable_folder() == home / ".cache" / "penult"
    assert caplog.text == ""


def test_a_home_that_does_not_exist(home, tmp_path, tiny):
    """Prepared models are in a private temporary folder, which the next process finds; the home directory is not created."""
    home.rmdir()
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", CODE, tiny], capture_output=True, text=True, timeout=100)
        assert done.stdout == "(1, 32)\n", done.stderr
        assert len(done.stderr.splitlines()) == 1
        (folder,) = (tmp_path / "temporary").iterdir()
        check_private(folder, tmp_path / "temporary", done.stderr)
        assert len(list((folder / "graphs").iterdir())) == 1
    assert not home.exists()


def refuse_home(*_, **__):
    raise RuntimeError("could not determine the home directory")


@pytest.mark.parametrize("answer", [refuse_home, lambda *_, **__: Path("~/.cache/penult")])
def test_no_home_at_all(home, tmp_path, monkeypatch, caplog, answer):
    """For a user without HOME that the system does not know, no cache is created in a folder named ~."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(caching, "user_cache_path", answer)
    check_private(caching.cache_folder(), tmp_path / "temporary", caplog.text)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners of files")
def test_the_home_of_another_user(home, tmp_path, monkeypatch, caplog):
    """As with `sudo`, which may keep HOME: nothing is read or written there."""
    own = os.geteuid()
    if own == 0:
        os.chown(home, 12345, 12345)
    else:
        monkeypatch.setattr(caching.os, "geteuid", lambda: own + 1)
    check_private(caching.cache_folder(), tmp_path / "temporary", caplog.text)
    assert caching.writable_folder() == caching.cache_folder()
    assert list(home.iterdir()) == []


def test_a_read_only_home(home, tmp_path, monkeypatch, caplog):
    """Its cache is read; missing entries are created in a private cache."""
    warm, cold = tiny_model(tmp_path / "warm"), tiny_model(tmp_path / "cold", size=Size(hidden=64, heads=2))
    with Embedder.load(warm) as e:
        expected = e.embed(["the cat"])
    monkeypatch.setattr(caching.os, "access", lambda *_: False)
    with Embedder.load(warm) as e:
        assert np.array_equal(e.embed(["the cat"]), expected)
    assert caplog.text == ""
    with Embedder.load(cold) as e:
        assert e.dimension == 64
    (folder,) = (tmp_path / "temporary").iterdir()
    check_private(folder, tmp_path / "temporary", caplog.text)
    assert len(list((home / ".cache" / "penult" / "graphs").iterdir())) == 1
    assert len(list((folder / "graphs").iterdir())) == 1


def test_a_temporary_folder_with_other_permissions(home, tmp_path, caplog):
    """A folder with the expected name and other permissions is not used."""
    home.rmdir()
    planted = tmp_path / "temporary" / f"penult-{os.geteuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    folder = caching.cache_folder()
    assert folder != planted
    check_private(folder, tmp_path / "temporary", caplog.text)


def test_no_temporary_folder_either(home, monkeypatch):
    """Without a temporary folder, the error states what to set."""
    home.rmdir()

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(caching.tempfile, "gettempdir", refuse)
    with pytest.raises(
        OSError, match=r"no home directory, and no temporary folder can be created: Read-only.* Set PENULT_CACHE to"
    ):
        caching.cache_folder()


def test_the_variable_expands_a_tilde(home, monkeypatch):
    """PENULT_CACHE expands ~ as a shell does; an unknown user is an error."""
    monkeypatch.setenv("PENULT_CACHE", "~/models")
    assert caching.cache_folder() == home / "models"
    monkeypatch.setenv("PENULT_CACHE", "~no-user-of-this-name/models")
    with pytest.raises(OSError, match=r"^PENULT_CACHE is '~no-user-of-this-name/models', .* Set it to an absolute path"):
        caching.cache_folder()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/penult", "/dev/null"])
def test_an_unusable_penult_cache(tmp_path, monkeypatch, tiny, place):
    """A PENULT_CACHE that cannot be used is an error: no other folder replaces it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / place))
    with pytest.raises(OSError, match=r"^PENULT_CACHE is .*, which cannot be written: .*\. Set PENULT_CACHE") as error:
        Embedder.load(tiny)
    assert "\n" not in str(error.value)


def test_the_umask_decides_who_reads_the_cache(tmp_path, monkeypatch, tiny):
    """An image that root built can be run by another user."""
    for umask, mode in ((0o022, 0o755), (0o027, 0o750), (0o077, 0o700)):
        monkeypatch.setenv("PENULT_CACHE", str(tmp_path / oct(umask)))
        before = os.umask(umask)
        try:
            Embedder.load(tiny).close()
        finally:
            os.umask(before)
        for path in (tmp_path / oct(umask)).rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (mode if path.is_dir() else mode & 0o666), path


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_warm_cache_is_only_read(tmp_path, monkeypatch, precision):
    """The same model at another path, with other inodes and times, opens from a cache that cannot be written."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(caching, "_SMALL", 0)
    model = tiny_model(tmp_path / "model", size=Size(hidden=128))
    settings = {"precision": precision, "threads": 1, "calibration": ["the cat"] if precision == "int8" else None}
    with Embedder.load(model, **settings) as e:
        expected = e.embed(["the cat"])
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(model, moved)
    shutil.rmtree(model)
    shutil.rmtree(tmp_path / "cache" / "hashes", ignore_errors=True)
    for path in moved.rglob("*"):
        os.utime(path, (10**9, 10**9))
    before = sorted((path, path.lstat().st_mtime_ns) for path in (tmp_path / "cache").rglob("*"))

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("mkdir", "replace", "rename", "write_text", "write_bytes", "touch", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(caching, "atomic_write", refuse)
    monkeypatch.setattr(cache_entry.tempfile, "mkdtemp", refuse)
    with Embedder.load(moved, **settings) as e:
        assert np.array_equal(e.embed(["the cat"]), expected)
    monkeypatch.undo()
    assert sorted((path, path.lstat().st_mtime_ns) for path in (tmp_path / "cache").rglob("*")) == before


def test_a_warm_cache_on_a_read_only_disk(tmp_path):
    """The same on a real read-only file system."""
    model = tiny_model(tmp_path / "model", size=Size(hidden=128))
    env = os.environ | {"PENULT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", CODE]
    subprocess.run([*command, model], env=env, check=True, timeout=100)
    shutil.copytree(model, tmp_path / "other place")
    mounted = f'mount --bind -o ro "{tmp_path / "cache"}" "{tmp_path / "cache"}" || exit 77; ! touch "$0/a" 2>/dev/null || exit 77; shift 0; exec "$@"'
    run = ["unshare", "-rm", "sh", "-c", mounted, str(tmp_path / "cache"), *command, tmp_path / "other place"]
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=100)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("needs the right to mount")
    assert (done.stdout, done.stderr) == ("(1, 128)\n", "")


def test_a_full_disk(tmp_path, monkeypatch, tiny):
    """Whichever write finds the disk full, the error names the cache, no partial file remains, and the next load works."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # without a name, as `write` has it

    for place, name in (
        ("penult.core.assemble", "save"),
        ("penult.core.cache_entry", "sync_all"),
        ("penult.core.prepare", "write_note"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"{place}.{name}", full)
            with pytest.raises(
                OSError, match=r"cache cannot be written: No space left on device\. Set PENULT_CACHE to"
            ) as error:
                Embedder.load(tiny)
            assert "\n" not in str(error.value)
        assert list((tmp_path / "cache" / "graphs").iterdir()) == []
    with monkeypatch.context() as patch:  # ONNX Runtime's and torch's writers say it in their own words
        patch.setattr("penult.core.assemble.save", lambda *_: (_ for _ in ()).throw(ValueError("ONNX Runtime cannot open it")))
        with pytest.raises(ValueError, match="cannot open it"):
            Embedder.load(tiny)
        patch.setattr(caching, "_FULL", 2**80)
        with pytest.raises(OSError, match="No space left"):
            Embedder.load(tiny)
    Embedder.load(tiny).close()


def test_a_full_disk_during_an_export(tmp_path, monkeypatch):
    """A full disk in the export process is reported with the same message."""
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    child = tmp_path / "python"
    child.write_text(
        f"#!{sys.executable}\nimport json\nprint(json.dumps({{'error': 'saved cannot be exported: OSError: [Errno 28] No space left on device'}}))"
    )
    child.chmod(0o755)
    for call, out, advice in (
        (export.export, tmp_path / "out", "Pass a new folder on a writable disk"),
        (export.exported, tmp_path / "cache", "Set PENULT_CACHE"),
    ):
        with pytest.raises(OSError, match=f"cannot be written: No space left on device. {advice}"):
            call(folder, out, python=str(child))
    assert list((tmp_path / "cache" / "exports").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_sparse_files_are_rejected_before_they_are_read(tmp_path, monkeypatch):
    """A sparse file of a terabyte is rejected at once; so is a graph larger than protobuf allows."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    for size, words in ((2**40, "at most 137,438,953,472"), (2**36, "is a sparse file")):
        with (tmp_path / "weights.bin").open("wb") as file:
            file.truncate(size)
        with pytest.raises(ValueError, match=words):
            caching.hash_files([tmp_path / "weights.bin"])
    model = tiny_model(tmp_path / "model")
    os.truncate(model / "onnx" / "model.onnx", 2**40)
    with pytest.raises(ValueError, match="an ONNX file has at most"):
        Embedder.load(model)


def test_the_example_of_the_documentation_runs(tiny):
    """The Python block of docs/cache.md, on the tiny model."""
    text = (Path(__file__).parents[1] / "docs" / "cache.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)\n```", text, re.DOTALL | re.MULTILINE)
    exec(code.replace("sentence-transformers/all-MiniLM-L6-v2", tiny.as_posix()), {})
