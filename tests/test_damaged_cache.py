"""A damaged cache file never changes vectors: the next load recreates the entry and logs it."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from damage_kit import DAMAGES, flip, shut
from folder_kit import static_model
from models import Size, bert_graph, bert_weights, tiny_model
from safetensors.numpy import save_file

from penult import Embedder
from penult.core import cache as caching
from penult.core.cache_entry import making

pytestmark = pytest.mark.usefixtures("warnings_alone")
TEXTS = ["the cat", "a dog sat on the mat"]


def inline(folder):
    return tiny_model(folder, size=Size(hidden=128))


def external(folder):
    graph = tiny_model(folder) / "onnx" / "model.onnx"
    onnx.save_model(onnx.load(graph), graph, save_as_external_data=True, location="weights.bin", size_threshold=100)
    return folder


def copied(folder):
    """A static table in half precision, which is converted into the cache."""
    table = static_model(folder, dimension=256)
    save_file({"embedding.weight": table.astype(np.float16)}, folder / "0_StaticEmbedding" / "model.safetensors")
    return folder


KINDS = {"small": (tiny_model, "fp32"), "inline": (inline, "fp32"), "external": (external, "fp32"), "copied": (copied, "fp32"),
         "int8": (tiny_model, "int8")}  # fmt: skip


def vectors_of(model, precision):
    calibration = TEXTS if precision == "int8" else None  # quicker than those that ship with penult
    with Embedder.load(model, precision=precision, calibration=calibration, threads=1) as e:
        return e.embed(TEXTS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_recreated(tmp_path, monkeypatch, caplog, kind):
    """Each file of the cache, damaged in each way: the vectors stay equal, the entry is recreated, and a line is logged."""
    make, precision = KINDS[kind]
    model = make(tmp_path / "model")
    monkeypatch.setattr(caching, "_SMALL", 0)  # so that there are notes of hashes
    monkeypatch.setattr(caching, "_RECENT", 0.0)
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "whole"))
    expected = vectors_of(model, precision)
    assert np.array_equal(vectors_of(model, precision), expected)
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file())
    assert {path.parts[0] for path in files} == {"graphs", "hashes"} | ({"processors"} if precision == "int8" else set())
    for name in files:
        if name.parts[0] == "hashes" and kind != "small":
            continue  # they are all of one kind
        for damage in DAMAGES:
            cache = tmp_path / f"{name.name[:8]} {damage.__name__}"
            shutil.copytree(tmp_path / "whole", cache)
            monkeypatch.setenv("PENULT_CACHE", str(cache))
            damage(cache / name)
            caplog.clear()
            assert np.array_equal(vectors_of(model, precision), expected), (name, damage)
            essential = name.parts[0] == "graphs" and (name.name != "padding" or damage is shut)
            assert ("preparing it again" in caplog.text) == essential, (name, damage)
            caplog.clear()
            if essential and damage in (flip, shut):
                assert np.array_equal(vectors_of(model, precision), expected)
                assert caplog.text == "", "the entry is whole again"
            shutil.rmtree(cache)


def test_a_folder_that_is_a_file(tmp_path, monkeypatch):
    """A cache that cannot be repaired is named in the error."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "graphs").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot be written: .*\. Set PENULT_CACHE to a writable folder"):
        vectors_of(tiny_model(tmp_path / "model"), "fp32")


@pytest.fixture
def large(monkeypatch, tmp_path):
    """A model whose hash is cached though it is small and recent, with its own cache."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(caching, "_SMALL", 0)
    monkeypatch.setattr(caching, "_RECENT", 0.0)
    return tiny_model(tmp_path / "model")


def forge(path):
    """Cache another hash for the file as it is now, as after silent disk corruption or a clock that was set back."""
    status = path.stat()
    state = (path.resolve(), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    note = caching.cache_folder() / "hashes" / hashlib.sha256("\0".join(map(str, state)).encode()).hexdigest()[:32]
    assert note.exists()
    caching.write_note(note, "0" * 64)


@pytest.mark.parametrize("file", ["onnx/model.onnx", "tokenizer.json"])
def test_a_pinned_load_ignores_cached_hashes(large, file):
    """`fingerprint=` hashes every byte; without it, a cached hash with the same path, size, inode and times is used."""
    with Embedder.load(large) as e:
        fingerprint = e.fingerprint
    forge(large / file)
    with Embedder.load(large) as e:
        assert e.fingerprint != fingerprint
    with Embedder.load(large, fingerprint=fingerprint) as e:
        assert e.fingerprint == fingerprint
    (large / file).write_bytes((large / file).read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"has the fingerprint|is not a complete ONNX file"):
        Embedder.load(large, fingerprint=fingerprint)


def test_a_pinned_load_checks_the_entry(large, tmp_path, caplog):
    """A pinned load recreates an entry whose bytes changed without any change of its times."""
    with Embedder.load(large) as e:
        expected, fingerprint = e.embed(TEXTS), e.fingerprint
    (graph,) = (tmp_path / "cache" / "graphs").glob("*/model.onnx")
    before = caching.hash_files([graph])
    flip(graph)
    caching.hash_files([graph])
    status = graph.stat()
    state = (graph.resolve(), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    name = hashlib.sha256("\0".join(map(str, state)).encode()).hexdigest()[:32]
    caching.write_note(tmp_path / "cache" / "hashes" / name, before)
    with Embedder.load(large, fingerprint=fingerprint) as e:
        assert np.array_equal(e.embed(TEXTS), expected)
    assert "preparing it again" in caplog.text


def test_recent_files_have_no_cached_hash(monkeypatch, tmp_path):
    """The hash of a file that was changed less than two seconds ago, or in the future, is not cached."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "file"
    file.write_bytes(b"a" * 2**20)
    now = time.time()
    first = caching.hash_files([file])
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(caching.time, "time", lambda: now + 3)
    assert caching.hash_files([file]) == first
    assert len(list((tmp_path / "cache" / "hashes").iterdir())) == 1
    forge(file)
    assert caching.hash_files([file]) == "0" * 64
    assert caching.hash_files([file], reread=True) == first
    forge(file)
    monkeypatch.setattr(caching.time, "time", lambda: now - 3600)
    assert caching.hash_files([file]) == first
    monkeypatch.setattr(caching.time, "time", lambda: now + 3)
    os.utime(file, (now + 1000, now + 1000))
    assert caching.hash_files([file]) == first
    assert len(list((tmp_path / "cache" / "hashes").iterdir())) == 1


@pytest.mark.parametrize("external", [False, True])
def test_another_model_of_the_same_size_and_times(tmp_path, monkeypatch, external):
    """A reproducible archive unpacked over the model gives the new vectors, and a pinned load is an error."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    models = []
    for seed in (0, 1):
        folder = inline(tmp_path / f"v{seed}")
        graph = folder / "onnx" / "model.onnx"
        onnx.save(bert_graph(bert_weights(Size(hidden=128), seed=seed), 4), graph)
        if external:
            onnx.save_model(onnx.load(graph), graph, save_as_external_data=True, location="weights.bin", size_threshold=100)
        models.append(folder)
    expected = [vectors_of(model, "fp32") for model in models]
    target = tmp_path / "model"

    def unpack(model):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(model, target)
        for path in (target, *target.rglob("*")):
            os.utime(path, (10**9, 10**9))

    unpack(models[0])
    with Embedder.load(target) as e:
        pin = e.fingerprint
        assert np.array_equal(e.embed(TEXTS), expected[0])
    unpack(models[1])
    assert np.array_equal(vectors_of(target, "fp32"), expected[1])
    with pytest.raises(ValueError, match="has the fingerprint"):
        Embedder.load(target, fingerprint=pin)


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    """A folder left by a dead process is removed at once, one of another machine after a day; one in use stays."""
    code = "import os, sys; from pathlib import Path; from penult.core.cache_entry import making\n"
    code += "with making(Path(sys.argv[1]), 'making') as folder: print(folder, flush=True); sys.stdin.read()"
    children = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=-1, stdout=-1, text=True) for _ in range(2)
    ]  # fmt: skip
    alive, dead = (Path(child.stdout.readline().strip()) for child in children)
    children[1].send_signal(signal.SIGKILL)
    children[1].communicate()
    (dead / "half").write_bytes(b"half")
    for name, age in ((".making-elsewhere-1", 3600), (".making-elsewhere-2", 2 * 86400), (".other", 9 * 86400)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with making(tmp_path, "making") as mine:
        assert {path.name for path in tmp_path.iterdir()} == {alive.name, mine.name, ".making-elsewhere-1", ".other"}
    children[0].communicate("")
    assert not mine.exists()
    assert {path.name for path in tmp_path.iterdir()} == {".making-elsewhere-1", ".other"}


def test_a_load_after_a_killed_load(tmp_path, monkeypatch):
    """After `kill -9` during the creation of an entry, the next load leaves one complete entry and nothing else."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    model = tiny_model(tmp_path / "model")
    code = "import os, signal, sys; from penult import Embedder; from penult.core import cache_entry, prepare\n"
    code += "prepare.install = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nEmbedder.load(sys.argv[1])"
    assert subprocess.run([sys.executable, "-c", code, model]).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "cache" / "graphs").iterdir())) == 1
    vectors_of(model, "fp32")
    (entry,) = (tmp_path / "cache" / "graphs").iterdir()
    assert not entry.name.startswith(".")


def test_a_folder_that_is_removed_before_it_is_locked(tmp_path, monkeypatch):
    """Another process may remove a folder before it is locked; then another folder is created."""
    result = []
    opened = os.open

    def swept(path, *arguments, **options):
        if Path(path).parent == tmp_path and not result:
            result.append(path)
            Path(path).rmdir()
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", swept)
    with making(tmp_path, "making") as folder:
        assert folder.is_dir()
        assert folder not in result
    assert result
    assert list(tmp_path.iterdir()) == []
