"""Build the Dockerfile with buildah, and run the image as a container engine does, without one.

The process has namespaces of its own, with no network but the loopback, a read-only root, a tmpfs on /tmp, the image's user, and
no way to more rights. It is PID 1, so that its handling of signals is the same as in a container.

    python container_kit.py ROOT UID GID COMMAND...    (inside `unshare --mount --net --pid --fork`)
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from network_kit import raise_loopback

SUITE, MIRROR = "trixie", "http://deb.debian.org/debian"  # the Debian that python:3.12-slim is made of
TOOLS = ("buildah", "debootstrap", "unshare", "nsenter", "setpriv", "chroot")


def missing() -> str:
    """Return why images cannot be built and run here; empty if they can."""
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"needs {', '.join(absent)}"
    if os.geteuid() != 0:
        return "needs root, for a mount namespace and chroot"
    if subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True).returncode:
        return "needs a system that allows mount, network and PID namespaces"
    return ""


class Builder:
    """buildah with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._storage = ["--root", str(folder / "storage"), "--runroot", str(folder / "run")]

    def run(self, *arguments: str, seconds: float = 900) -> str:
        done = subprocess.run(
            ["buildah", *self._storage, *arguments],
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def base(self, tag: str) -> None:
        """Make a minimal Debian with Python, in place of the image that the Dockerfile starts from."""
        root = self._folder / "base" / "root"
        packages = "--include=python3,python3-venv,ca-certificates"
        command = ["debootstrap", "--variant=minbase", packages, SUITE, str(root), MIRROR]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        shutil.rmtree(root / "var" / "cache" / "apt")
        (root.parent / "Dockerfile").write_text('FROM scratch\nCOPY root /\nCMD ["python3"]\n')
        self.run("build", "--format", "docker", "--tag", tag, str(root.parent))
        shutil.rmtree(root)

    def build(self, context: Path, tag: str, model: Path, **arguments: str) -> float:
        """Build the Dockerfile of a folder; return the seconds."""
        words = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        if certificates := os.environ.get("PIP_CERT"):  # the build uses pip's settings of this machine
            words += ["--volume", f"{Path(certificates).parent}:{Path(certificates).parent}:ro"]
        words += ["--build-context", f"model={model}", "--ignorefile", str(context / ".dockerignore")]
        started = time.monotonic()
        self.run("build", "--format", "docker", "--tag", tag, *words, str(context))
        return time.monotonic() - started

    def image(self, tag: str) -> "Image":
        """Mount an image."""
        config = json.loads(self.run("inspect", "--type", "image", tag))["Docker"]["config"]
        container = self.run("from", tag).strip()
        return Image(config, Path(self.run("mount", container).strip()))

    def close(self) -> None:
        """Unmount and remove all images and containers."""
        self.run("rm", "--all")
        self.run("rmi", "--all", "--force")


class Image:
    """A mounted image: `config` as `docker inspect` shows it, and the folder of its files."""

    def __init__(self, config: dict, root: Path) -> None:
        self.config, self.root = config, root
        self.user, self.group = config["User"].split(":")

    def start(self, *arguments: str) -> "Container":
        """Start the ENTRYPOINT with further arguments."""
        return Container(self, [*self.config["Entrypoint"], *arguments])


class Container:
    """A running ENTRYPOINT."""

    def __init__(self, image: Image, command: list[str]) -> None:
        self._image = image
        self._environment = ["env", "-i", "--chdir", image.config["WorkingDir"], *image.config["Env"]]
        self.log = image.root.parent / f"log-{time.monotonic_ns()}"
        words = [sys.executable, __file__, str(image.root), image.user, image.group, *self._environment, *command]
        self.started = time.monotonic()
        with self.log.open("w") as log:
            self._unshare = subprocess.Popen(
                ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", *words], stdout=log, stderr=log
            )
        self.pid = self._first_process()

    def _first_process(self) -> int:
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        for _ in range(500):
            if self._unshare.poll() is None and (pids := children.read_text().split()):
                return int(pids[0])
            time.sleep(0.01)
        raise AssertionError(self.log.read_text())

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as `docker exec` does."""
        inside = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--root", "--wd=/tmp"]
        identity = ["--setuid", self._image.user, "--setgid", self._image.group]
        return subprocess.run([*inside, *identity, *self._environment, *command], capture_output=True, text=True, timeout=60)

    def health(self) -> bool:
        """Run the command of HEALTHCHECK."""
        test = self._image.config["Healthcheck"]["Test"]
        assert test[0] == "CMD"
        return self.run(*test[1:]).returncode == 0

    def wait_until_healthy(self, seconds: float) -> float:
        """Wait until HEALTHCHECK succeeds; return the seconds since the start."""
        while not self.health():
            assert self._unshare.poll() is None, self.log.read_text()
            assert time.monotonic() - self.started < seconds, self.log.read_text()
            time.sleep(0.1)
        return time.monotonic() - self.started

    def status(self, field: str) -> str:
        """Return a field of /proc/PID/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{field}:"))

    def stop(self, seconds: float = 30) -> int:
        """Send SIGTERM; return the exit status."""
        if self._unshare.poll() is None:
            os.kill(self.pid, 15)
        return self._unshare.wait(seconds)


def megabytes(folder: Path) -> int:
    """Return the size of a folder in MB, on disk."""
    done = subprocess.run(["du", "-sx", "--block-size=1MB", folder], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _enter(root: str, user: str, group: str, command: list[str]) -> None:
    """Mount what a container has, and become its process."""
    raise_loopback()
    _mount("--make-rprivate", "/")
    _mount("--bind", root, root)
    _mount("-o", "remount,bind,ro", root)
    _mount("-t", "proc", "proc", f"{root}/proc")
    _mount("--bind", "/dev", f"{root}/dev")
    _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{root}/tmp")
    chroot = ["chroot", f"--userspec={user}:{group}", "--groups=", root]
    os.execvp("setpriv", ["setpriv", "--no-new-privs", *chroot, *command])


if __name__ == "__main__":
    _enter(*sys.argv[1:4], sys.argv[4:])
