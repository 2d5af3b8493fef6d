"""Create one of the Makefile's virtual environments, and install missing packages into it.

    python .ci/environment.py FOLDER NAME FILE ... -- PIP ARGUMENTS

An environment of another Python, of another path of this checkout, or one that does not run is created again. pip runs if its
arguments or one of the files have changed since it last succeeded under this name. The syntax is that of Python 3.6, so that
an old Python can say what is missing.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

OLDEST = (3, 11)
NEWER = [f"python3.{minor}" for minor in (14, 13, 12, 11)]
CHECKOUT = os.path.realpath(str(Path(__file__).parent.parent))
PROBE = "import sys, pip, venv; print('%d.%d' % sys.version_info[:2])"
LINES_OF_A_FAILURE = 20


def main(folder, name, files, arguments):
    """Create the environment, install the packages, and exit with pip's status."""
    python, version = suitable_python()
    place = folder / "made-for.txt"
    identity = f"Python {version} in {CHECKOUT}"
    reason = stale(folder, place, identity, version)
    if reason:
        say(f"{reason}. Creating it with Python {version}.")
        if folder.is_symlink():
            sys.exit(f"{folder} is a symbolic link. Remove it, and run the command again.")
        status = subprocess.call([python, "-m", "venv", "--clear", str(folder)])
        if status:
            sys.exit(f"{python} cannot create a virtual environment in {folder}. See its message above.")
    place.write_text(identity)
    digest = hashlib.sha256(repr((identity, arguments)).encode())
    for file in files:
        digest.update(Path(file).read_bytes())
    stamp = folder / (name + ".stamp")
    if not stamp.is_file() or stamp.read_text() != digest.hexdigest():
        install(folder, name, arguments)
        stamp.write_text(digest.hexdigest())


def suitable_python():
    """Return this Python and its version; if it is too old, the newest one on the PATH."""
    here = "{}.{}".format(*sys.version_info)
    if sys.version_info >= OLDEST:
        return sys.executable, here
    for candidate in filter(None, map(shutil.which, NEWER)):
        version = probe(candidate)
        if version:
            say(f"Python {here} is too old for penult. Using {candidate}, Python {version}.")
            return candidate, version
    return sys.exit(
        f"{sys.executable} is Python {here}; penult needs Python 3.11 or newer. Install it and pass it: "
        "make demo PYTHON=python3.12"
    )


def stale(folder, place, identity, version):
    """Return why an environment must be created again, or None."""
    if not (folder / "pyvenv.cfg").is_file():
        return f"{folder} does not exist yet"
    actual = probe(str(folder / "bin" / "python"))
    if actual is None:
        return f"{folder} does not run"
    if actual != version:
        return f"{folder} has Python {actual}"
    if place.is_file() and place.read_text() != identity:
        return f"{folder} was created for another path of the checkout"
    return None


def probe(python):
    """Return the version of a Python; None if it does not run or has no pip or venv."""
    try:
        output = subprocess.check_output([python, "-c", PROBE], stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.decode().strip()


def install(folder, name, arguments):
    """Run pip with its progress on one line; if it fails, show the end of its output."""
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--progress-bar", "off", "--no-compile", *arguments]
    log = folder / (name + ".log")
    state = {"packages": 0, "megabytes": 0.0, "installing": False}
    started = time.time()

    def progress():
        action = "installing" if state["installing"] else "downloading"
        return "{action} {packages} packages, {megabytes:.0f} MB, {seconds:.0f} s".format(
            action=action, seconds=time.time() - started, **state
        )

    def read(lines):
        with log.open("wb") as copy:
            for line in lines:
                copy.write(line)
                text = line.decode("utf-8", "replace")
                size = re.match(r"\s*(?:Downloading|Using cached) \S+ \(([\d.]+) ([kMG]?B)\)", text)
                state["packages"] += text.startswith(("Collecting ", "Processing ", "Obtaining "))
                state["installing"] |= text.startswith("Installing collected")
                if size:
                    state["megabytes"] += float(size.group(1)) * {"kB": 1e-3, "MB": 1, "GB": 1e3}.get(size.group(2), 0)

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
    reader.start()
    terminal = sys.stderr.isatty()
    try:
        while process.returncode is None:
            try:
                process.wait(0.5 if terminal else max(10, (time.time() - started) / 4))
            except subprocess.TimeoutExpired:
                say("\r{}{}".format(progress(), " " * 8) if terminal else progress(), end="" if terminal else "\n")
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        sys.exit("\nInterrupted. Run the same command again to continue.")
    reader.join()
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_OF_A_FAILURE:]
        sys.exit("\n".join(["", *tail, f"pip failed. Its full output is in {log}."]))
    say(("\r" if terminal else "") + "Installed {} packages into {} in {:.0f} s.{}".format(
        state["packages"], folder, time.time() - started, " " * 20 if terminal else ""))  # fmt: skip


def say(text, end="\n"):
    """Write to standard error and flush."""
    sys.stderr.write(text + end)
    sys.stderr.flush()


if __name__ == "__main__":
    split = sys.argv.index("--")
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:split], sys.argv[split + 1 :])
