"""The virtual environments of the Makefile: an unusable one is created again, and nothing is installed twice."""

import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, load_script

SCRIPT = ROOT / ".ci" / "environment.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A package that installs without an index."""
    file = tmp_path_factory.mktemp("wheels") / "leaf-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("leaf.py", "")
        archive.writestr("leaf-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: leaf\nVersion: 1.0\n")
        archive.writestr("leaf-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("leaf-1.0.dist-info/RECORD", "")
    return file


@pytest.fixture
def script():
    """The script as a module."""
    return load_script(SCRIPT)


def make(folder, *files, install):
    command = [sys.executable, SCRIPT, folder, "test", *files, "--", "--no-index", *install]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)


def test_an_environment_is_created_kept_and_created_again(tmp_path, wheel):
    """It is created once; pip runs again after a change of a file or an argument; an unusable environment is created again."""
    folder, project = tmp_path / "environment", tmp_path / "pyproject.toml"
    project.write_text("1")

    def messages():
        done = make(folder, project, install=[wheel])
        assert done.returncode == 0, done.stderr
        assert (folder / "lib" / f"python{version}" / "site-packages" / "leaf.py").exists()
        return done.stderr

    version = "{}.{}".format(*sys.version_info)
    first = messages()
    assert f"{folder} does not exist yet. Creating it with Python {version}." in first
    assert f"Installed 1 packages into {folder}" in first
    assert messages() == ""
    project.write_text("2")
    assert messages().startswith("Installed ")

    other = folder / "bin" / "python"
    other.unlink()
    other.write_text("#!/bin/sh\necho 3.10\n")
    other.chmod(0o755)
    (folder / "old").touch()
    assert f"{folder} has Python 3.10. Creating it with Python {version}.\n" in messages()
    assert not (folder / "old").exists()

    other.unlink()
    other.symlink_to(tmp_path / "a Python that was removed")
    assert f"{folder} does not run. Creating it with Python {version}.\n" in messages()

    (folder / "made-for.txt").write_text("Python 3.11 in /another/place")
    assert f"{folder} was created for another path of the checkout. Creating it with Python {version}.\n" in messages()


def test_an_installation_that_fails(tmp_path, wheel):
    """The last lines of pip are shown, the exit status is 1, and the next call tries again."""
    folder = tmp_path / "environment"
    for _ in range(2):
        done = make(folder, install=["no-such-package"])
        assert done.returncode == 1
        assert "No matching distribution found for no-such-package" in done.stderr
        assert f"pip failed. Its full output is in {folder / 'test.log'}." in done.stderr
    assert make(folder, install=[wheel]).returncode == 0


def test_a_python_that_is_too_old(script, monkeypatch, capsys):
    """A newer one on the PATH is used and reported; without one, the message names what to install."""
    monkeypatch.setattr(script.sys, "version_info", (3, 10, 2))
    monkeypatch.setattr(script, "NEWER", ["python3.99", "python3.12"])
    monkeypatch.setattr(script.shutil, "which", {"python3.12": "/opt/python3.12"}.get)
    monkeypatch.setattr(script, "probe", {"/opt/python3.12": "3.12"}.get)
    assert script.suitable_python() == ("/opt/python3.12", "3.12")
    assert capsys.readouterr().err == "Python 3.10 is too old for penult. Using /opt/python3.12, Python 3.12.\n"
    monkeypatch.setattr(script.shutil, "which", lambda _: None)
    with pytest.raises(
        SystemExit, match=r"is Python 3\.10; penult needs Python 3\.11 or newer\. .* make demo PYTHON=python3\.12"
    ):
        script.suitable_python()
