"""Do all of a release but the upload: build the three distributions from HEAD, check them, install them on every Python.

    python .ci/release_check.py [--release] [--require 3.11,3.12,3.13] [--output FOLDER]
    python .ci/release_check.py --notes

The build runs in a temporary clone of HEAD, and three things are rewritten there. Extras that name a folder of this checkout
become plain names. `project.urls` and absolute links of the READMEs are made from `repository` in [tool.release] of
pyproject.toml. The working tree is not touched. `make release-check` installs what it needs: build, hatchling, twine.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# Each distribution: its folder, its package, and the folder below which the package is.
DISTRIBUTIONS = {
    "penult": ("", "penult", "src"),
    "langchain-penult": ("integrations/langchain-penult", "langchain_penult", ""),
    "llama-index-embeddings-penult": ("integrations/llama-index-embeddings-penult", "llama_index/embeddings/penult", ""),
}
DEVELOPMENT = {"dev", "docs", "notebooks", "demo"}  # extras for a checkout
# torch from an index comes with gigabytes for graphics cards; tests/test_export.py covers this extra.
NOT_INSTALLED = {"export": "installs torch, which tests/test_export.py covers"}
LARGEST_SDIST = 4_000_000  # bytes; the models of the tests are left out of it
LINK = re.compile(r"(?P<start>\]\(|(?:src|srcset|href)=\")(?P<target>[^)\s\"#]+)(?P<rest>(?:#[^)\s\"]*)?[)\"])")
REFERENCE = re.compile(r'"([\w-]+) @ \{root:uri\}/[^"]*"')

Row = tuple[str, str, str]  # status, subject, detail


def main() -> None:
    """Check, print a table, and exit with 1 where a check failed."""
    options = parse()
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if options.notes:
        print(section(changelog))
        return
    before = run("git", "status", "--porcelain", cwd=ROOT)
    rows: list[Row] = []
    if before:
        rows.append(("warning", "working tree", "has uncommitted changes; only HEAD is checked"))
    with tempfile.TemporaryDirectory(prefix="penult-release-") as name:
        folder = Path(name)
        clone, dist = folder / "clone", folder / "dist"
        run("git", "clone", "-q", "--depth", "1", ROOT.as_uri(), clone)
        rows += check_sources(clone, release=options.release, tag=options.tag)
        rows += build(clone, dist)
        rows += check_files(clone, dist)
        if not failed(rows):
            rows += check_pythons(clone, dist, folder, options.require)
        if options.output and not failed(rows):
            shutil.copytree(dist, options.output, dirs_exist_ok=True)
    if run("git", "status", "--porcelain", cwd=ROOT) != before:
        rows.append(("FAILED", "working tree", "the check changed it"))
    print(table(rows))
    sys.exit(1 if failed(rows) else 0)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description="Check a release: everything but the upload.")
    parser.add_argument("--release", action="store_true", help="fail where something is missing that only a release needs")
    parser.add_argument("--require", default="", help="Python versions that must be there, as 3.11,3.12")
    parser.add_argument("--tag", default="", help="the tag of this release; it must be v and the version")
    parser.add_argument("--output", type=Path, help="copy the checked files into this folder")
    parser.add_argument("--notes", action="store_true", help="only print the newest section of CHANGELOG.md")
    return parser.parse_args()


def failed(rows: list[Row]) -> bool:
    """Return whether a check failed."""
    return any(status == "FAILED" for status, _, _ in rows)


# The sources: versions, changelog, and what is rewritten for an index.


def check_sources(clone: Path, *, release: bool, tag: str) -> list[Row]:
    """Check versions and changelog, and rewrite the clone's projects and READMEs for an index."""
    versions = {name: version_of(clone / folder / below / package) for name, (folder, package, below) in DISTRIBUTIONS.items()}
    version = versions["penult"]
    number, date = heading((clone / "CHANGELOG.md").read_text(encoding="utf-8"))
    # Before a release these are warnings: they are normal then.
    later = "FAILED" if release else "warning"
    rows = []
    if set(versions.values()) != {number}:
        rows.append(("FAILED", "versions", f"{versions}, CHANGELOG.md: {number}. Set all four to one version."))
    else:
        rows.append(("ok", "versions", f"{version} in three distributions and in CHANGELOG.md"))
    if tag and tag != f"v{version}":
        rows.append(("FAILED", "tag", f"{tag} is not v{version}"))
    if date == "unreleased":
        rows.append((later, "changelog", "the newest section is unreleased. Set its date: ## VERSION (YYYY-MM-DD)"))
    repository = tomllib.loads((clone / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["release"]["repository"]
    if not repository:
        rows.append((later, "project.urls", "no public address yet. Set repository in pyproject.toml's [tool.release]."))
    for folder, _, _ in DISTRIBUTIONS.values():
        project, readme = clone / folder / "pyproject.toml", clone / folder / "README.md"
        project.write_text(for_index(project.read_text(encoding="utf-8"), repository), encoding="utf-8")
        text = readme.read_text(encoding="utf-8")
        missing = [target for target in relative_links(text) if not (clone / resolve(folder, target)).exists()]
        if missing:
            rows.append(("FAILED", f"{folder}/README.md", f"links to files that do not exist: {', '.join(missing)}"))
        readme.write_text(absolute_links(text, folder, repository, version), encoding="utf-8")
    return rows


def version_of(package: Path) -> str:
    """Return the version that a package states."""
    text = (package / "_version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)[1]


def heading(changelog: str) -> tuple[str, str]:
    """Return version and date of the newest section."""
    match = re.search(r"^## (\S+) \(([^)]+)\)$", changelog, re.MULTILINE)
    if match is None:
        sys.exit("CHANGELOG.md has no heading of the form: ## VERSION (DATE)")
    return match[1], match[2]


def section(changelog: str) -> str:
    """Return the newest section without its heading."""
    return re.split(r"^## .*\n", changelog, flags=re.MULTILINE)[1].strip()


def for_index(project: str, repository: str) -> str:
    """Return pyproject.toml as an index needs it: no reference to a folder, the addresses of the project."""
    project = REFERENCE.sub(r'"\1"', project).replace("allow-direct-references = true", "allow-direct-references = false")
    if not repository:
        return project
    urls = {
        "Source": repository,
        "Documentation": f"{repository}/tree/main/docs",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    return project + "\n[project.urls]\n" + "".join(f'{name} = "{url}"\n' for name, url in urls.items())


def relative_links(text: str) -> list[str]:
    """Return the targets of a page's links and pictures that are files beside it."""
    return [link["target"] for link in LINK.finditer(text) if not re.match(r"\w+:", link["target"])]


def resolve(folder: str, target: str) -> str:
    """Return the path from the repository's root of a link in a page of this folder."""
    return os.path.normpath(PurePosixPath(folder, target))


def absolute_links(text: str, folder: str, repository: str, version: str) -> str:
    """Return a page whose relative links lead to the release's tag in the repository; unchanged without a repository."""

    def absolute(link: re.Match[str]) -> str:
        if not repository or re.match(r"\w+:", link["target"]):
            return link[0]
        path = resolve(folder, link["target"])
        kind = "raw" if path.endswith((".svg", ".png")) else "blob"
        return f"{link['start']}{repository}/{kind}/v{version}/{path}{link['rest']}"

    return LINK.sub(absolute, text)


# The files: wheels and source distributions.


def build(clone: Path, dist: Path) -> list[Row]:
    """Build each source distribution, and each wheel from it, and check their metadata."""
    time = run("git", "log", "-1", "--format=%ct", cwd=clone).strip()
    environment = {**os.environ, "SOURCE_DATE_EPOCH": time}
    for folder, _, _ in DISTRIBUTIONS.values():
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, clone / folder, env=environment)
    files = sorted(dist.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    return [("ok", file.name, f"{file.stat().st_size / 1000:,.0f} kB, twine check --strict") for file in files]


def check_files(clone: Path, dist: Path) -> list[Row]:
    """Check what is in the wheels and the source distributions."""
    rows = []
    for name, (folder, package, below) in DISTRIBUTIONS.items():
        stem = name.replace("-", "_")
        wheel, sdist = next(dist.glob(f"{stem}-*.whl")), next(dist.glob(f"{stem}-*.tar.gz"))
        base = Path(folder, below)
        tracked = run("git", "ls-files", "--", base / package, cwd=clone).split()
        sources = {PurePosixPath(path).relative_to(base.as_posix()).as_posix() for path in tracked}
        with zipfile.ZipFile(wheel) as archive:
            contents = {entry: archive.read(entry) for entry in archive.namelist()}
        problems = wheel_problems(contents, sources, package)
        with tarfile.open(sdist) as archive:
            members = [member.name.partition("/")[2] for member in archive.getmembers()]
        problems += sdist_problems(members, {Path(below, path).as_posix() for path in sources})
        if sdist.stat().st_size > LARGEST_SDIST:
            problems.append(f"{sdist.name} has {sdist.stat().st_size:,} bytes, more than {LARGEST_SDIST:,}")
        problems += [f"{entry} names the build's folder" for entry, data in contents.items() if bytes(clone.parent) in data]
        rows += [("FAILED", name, problem) for problem in problems]
        if not problems:
            rows.append(("ok", f"{name}: contents", f"{len(contents)} files in the wheel, {len(members)} in the sdist"))
    return rows


def wheel_problems(contents: dict[str, bytes], sources: set[str], package: str) -> list[str]:
    """Return what is wrong with a wheel: its files, and its metadata."""
    info = next(entry for entry in contents if entry.endswith(".dist-info/METADATA"))
    folder = info.partition("/")[0]
    metadata = message_from_bytes(contents[info])
    needed = sources | {f"{package}/py.typed", f"{folder}/licenses/LICENSE"}
    problems = [f"the wheel lacks {path}" for path in sorted(needed - set(contents))]
    other = [path for path in contents if not path.startswith((f"{package}/", f"{folder}/"))]
    other += [path for path in contents if re.search(r"(^|/)(tests?|notebooks)/|__pycache__|\.ipynb$|\.\.", path)]
    problems += [f"the wheel must not have {path}" for path in sorted(other)]
    problems += [f"direct reference: {line}" for line in metadata.get_all("Requires-Dist", []) if " @ " in line]
    problems += [f"no {field}" for field in ("License-Expression", "Requires-Python", "Author") if not metadata[field]]
    if metadata.get_all("Project-URL"):
        problems += [f"relative link in the description: {link}" for link in relative_links(metadata.get_payload())]
    return problems


def sdist_problems(members: list[str], sources: set[str]) -> list[str]:
    """Return what is wrong with the files of a source distribution."""
    needed = sources | {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"}
    problems = [f"the sdist lacks {path}" for path in sorted(needed - set(members))]
    other = [path for path in members if (path.startswith(("/", "notebooks/", ".")) and path != ".gitignore") or ".." in path]
    return problems + [f"the sdist must not have {path}" for path in sorted(other)]


# The installations: each Python, without the checkout.


def check_pythons(clone: Path, dist: Path, folder: Path, require: str) -> list[Row]:
    """Install the wheels into a fresh environment of each Python, and use them there."""
    rows: list[Row] = []
    digests = set()
    required = set(filter(None, require.split(",")))
    for version in sorted({*PYTHONS, *required}, key=lambda text: int(text.partition(".")[2])):
        python = find_python(version)
        if python is None:
            status = "FAILED" if version in required else "skipped"
            rows.append((status, f"Python {version}", f"no interpreter on the PATH or in pyenv. Install Python {version}."))
            continue
        print(f"Python {version} ...", file=sys.stderr, flush=True)
        venv = folder / f"venv-{version}"
        try:
            digest, installed, absent = check_python(python, venv, clone, dist)
        except subprocess.CalledProcessError as error:
            end = "\n".join(f"{error.stdout}\n{error.stderr}".splitlines()[-20:])
            rows.append(("FAILED", f"Python {version}", f"{' '.join(map(str, error.cmd))}\n{end}"))
            continue
        digests.add(digest)
        rows.append(("ok", f"Python {version}", f"three wheels, vectors {digest}, extras {' '.join(installed)}"))
        rows += [("skipped", f"Python {version}, {extra}", reason) for extra, reason in absent.items()]
        shutil.rmtree(venv)
    if len(digests) > 1:
        rows.append(("FAILED", "vectors", "differ between Pythons"))
    return rows


def check_python(python: str, venv: Path, clone: Path, dist: Path) -> tuple[str, list[str], dict[str, str]]:
    """Return the digest of the vectors, the extras that import, and why the others are not there."""
    run(python, "-m", "venv", venv)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"XDG_CACHE_HOME": str(venv / "cache"), "HF_HUB_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    wheels = {name: next(dist.glob(f"{name.replace('-', '_')}-*.whl")) for name in DISTRIBUTIONS}
    pip = [venv / "bin" / "python", "-m", "pip", "install", "-q", "--no-compile", "--only-binary", ":all:"]
    adapters = [wheel for name, wheel in wheels.items() if name != "penult"]
    # Files before names: no other package of these names can be taken from an index.
    run(*pip, f"{wheels['penult']}[langchain,llama-index,server]", *adapters, env=environment)
    smoke = [venv / "bin" / "python", "-I", clone / ".ci" / "release_smoke.py"]
    digest = run(*smoke, "use", clone / "tests", venv, env=environment, cwd=venv).strip()
    installed, absent = ["langchain", "llama-index", "server"], dict(NOT_INSTALLED)
    project = tomllib.loads((clone / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in sorted(set(project["optional-dependencies"]) - DEVELOPMENT - set(installed) - set(absent)):
        try:
            run(*pip, f"{wheels['penult']}[{extra}]", *adapters, env=environment)
        except subprocess.CalledProcessError as error:
            if "No matching distribution" not in error.stderr:
                raise
            absent[extra] = "no wheel: " + error.stderr.strip().splitlines()[-1]
            continue
        run(*smoke, "extra", extra, env=environment, cwd=venv)
        installed.append(extra)
    return digest, installed, absent


def find_python(version: str, path: str | None = None, pyenv: Path | None = None) -> str | None:
    """Return an interpreter of this version, from the PATH or else from pyenv, or None."""
    root = pyenv or Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    patches = sorted(root.glob(f"versions/{version}.*"), key=lambda folder: int(re.sub(r"\D", "", folder.name.split(".")[-1])))
    for python in [shutil.which(f"python{version}", path=path), *(str(folder / "bin/python") for folder in reversed(patches))]:
        if python and works(python, version):
            return python
    return None


def works(python: str, version: str) -> bool:
    """Return whether an interpreter runs, has this version and can make environments."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.stdout.strip() == version


def run(*command: object, **options: object) -> str:
    """Run a command and return what it printed; on failure raise CalledProcessError with its output."""
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, **options).stdout


def table(rows: list[Row]) -> str:
    """Return the rows as lines of aligned columns."""
    width = max(len(subject) for _, subject, _ in rows)
    return "\n".join(f"{status:<8} {subject:<{width}}  {detail}" for status, subject, detail in rows)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"FAILED: {' '.join(map(str, error.cmd))}\n{error.stdout}\n{error.stderr}")
