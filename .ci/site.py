# ruff: noqa: INP001 - a script
"""Build the documentation site: `python .ci/site.py [FOLDER]`, by default into site/.

The pages of docs/ are copied to a temporary folder, together with pages that are generated there: the command line from its
typer app, the notebooks with their outputs, the changelog, CONTRIBUTING.md and SECURITY.md. Then Zensical builds the folder.
Links to other files of the repository lead to their pages, or to copies in the site.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer  # noqa: TID251 - the reference of the command line is generated from its app

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "integrations/langchain-penult/README.md": "langchain.md",
    "integrations/llama-index-embeddings-penult/README.md": "llama-index.md",
}
"""Page by file of the repository, beside docs/*.md and the notebooks."""
COPIED = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")

_FENCE = r"^(?P<fence> *(?:```+|~~~+)).*?^(?P=fence)`* *$"
_FENCE_OR_LINK = re.compile(rf"{_FENCE}|(?<!!)\[(?P<text>[^\]]*)\]\((?P<url>[^)\s]+)\)", re.MULTILINE | re.DOTALL)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_VALUES = {"str": " TEXT", "int": " NUMBER", "float": " NUMBER", "path": " PATH"}
_IMAGES = {"image/svg+xml": "svg", "image/png": "png"}


def main(out: Path) -> None:
    """Build the site into a folder, which is replaced."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        stage(work)
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        status = subprocess.run(command, cwd=work, check=False).returncode  # noqa: S603 - it prints what is wrong
        if status:
            sys.exit(status)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(work / "site", out)


def stage(work: Path) -> None:
    """Write the site's sources into an empty folder: docs/ and zensical.toml, with links to the Python sources."""
    docs = work / "docs"
    shutil.copytree(ROOT / "docs", docs)
    for name in ("src", "integrations"):
        (work / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "zensical.toml", work)
    for page in docs.rglob("*.md"):
        source = ROOT / "docs" / page.relative_to(docs)
        page.write_text(linked(page.read_text(encoding="utf-8"), source, page, docs), encoding="utf-8")
    for name in COPIED:
        page = docs / PAGES[name]
        page.write_text(linked((ROOT / name).read_text(encoding="utf-8"), ROOT / name, page, docs), encoding="utf-8")
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = docs / "notebooks" / f"{notebook.stem}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(linked(notebook_page(notebook, page.parent), notebook, page, docs), encoding="utf-8")
    with (docs / "reference" / "cli.md").open("a", encoding="utf-8") as page_of_commands:
        page_of_commands.write(cli_reference())


def linked(text: str, source: Path, page: Path, docs: Path) -> str:
    """Return a page whose links to files outside docs/ lead to pages or copies of the site.

    Args:
        text: the page as Markdown.
        source: its file in the repository, which its links are relative to.
        page: its file in the site's sources.
        docs: folder of the site's sources.
    """

    def replace(match: re.Match[str]) -> str:
        url = match["url"]
        if url is None or url.startswith(("#", "http:", "https:", "mailto:")):
            return match[0]
        path, _, anchor = url.partition("#")
        target = Path(os.path.normpath(source.parent / path))
        if not target.is_relative_to(ROOT) or not target.is_file():
            return match["text"] if target.is_dir() else match[0]  # tests/test_site.py reports a missing file
        name = target.relative_to(ROOT)
        place = docs / _place(name)
        if place.is_relative_to(docs / "files"):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, place)
        return f"[{match['text']}]({os.path.relpath(place, page.parent)}{'#' * bool(anchor)}{anchor})"

    return _FENCE_OR_LINK.sub(replace, text)


def _place(path: Path) -> Path:
    """Return the place in the site's sources of a file of the repository."""
    name = path.as_posix()
    if name in PAGES:
        return Path(PAGES[name])
    if path.suffix == ".ipynb":
        return path.with_suffix(".md")
    if path.parts[0] == "docs":
        return path.relative_to("docs")
    return Path("files", f"{name}.txt" if path.suffix in ("", ".md") else name)


def notebook_page(file: Path, folder: Path) -> str:
    """Return a notebook as Markdown with its outputs; its images and a copy of it are written into a folder."""
    shutil.copy(file, folder)
    parts, heading = [], file.stem
    for number, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = next((line.lstrip("# ") for line in source.splitlines() if line.startswith("#")), heading)
            parts.append(source)
        elif source.strip():
            parts.append(_fence(source, "python"))
            for index, output in enumerate(cell["outputs"]):
                parts += _output(output, f"{file.stem}-{number}-{index}", heading, folder)
    download = f'<p class="notebook"><a href="{file.name}" download>Download this notebook</a> to run it yourself.</p>'
    parts.insert(1, download)
    return "\n\n".join(parts) + "\n"


def _output(output: Mapping[str, Any], stem: str, heading: str, folder: Path) -> Iterator[str]:
    """Yield one output of a cell as Markdown: its image, else its text."""
    data = {"text/plain": output["text"]} if "text" in output else output.get("data", {})
    kind = next((kind for kind in (*_IMAGES, "text/plain") if kind in data), None)
    if kind is None:
        return
    value = "".join(data[kind])
    if kind in _IMAGES:
        name = f"{stem}.{_IMAGES[kind]}"
        (folder / name).write_bytes(value.encode() if kind == "image/svg+xml" else base64.b64decode(value))
        yield f'<figure class="chart" markdown><img src="{name}" alt="Chart: {heading}"></figure>'
    elif value.strip():
        yield _fence(_ANSI.sub("", value).rstrip(), "{ .text .output }")


def _fence(text: str, language: str) -> str:
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def cli_reference() -> str:
    """Return the reference of every command, with its arguments and options."""
    from penult.cli import app  # noqa: PLC0415 - the other pages do not need penult's dependencies

    group: Any = typer.main.get_command(app)  # typer has a copy of click, without public types
    lines = [""]
    for name, command in sorted(group.commands.items()):
        lines += [f"## penult {name}", " ".join((command.help or "").split())]
        context = command.context_class(command, info_name=f"penult {name}")
        usage = re.sub(r"[{}]|^Usage: ", "", command.get_usage(context)).replace("......", "...")
        lines.append(_fence(usage, "text"))
        records = [(one, one.get_help_record(context)) for one in command.params]
        lines += [_parameter(*record) for _, record in records if record is not None]
        hidden = [f"`{option}`" for one, record in records if record is None for option in one.opts]
        if hidden:
            lines.append(f"Options of DeepSparse that are ignored, because they have no effect in penult: {', '.join(hidden)}.")
    return "\n\n".join(lines) + "\n"


def _parameter(names: str, text: str) -> str:
    """Return an argument or option and its help, as an item of a definition list."""
    value = re.fullmatch(r"(?P<text>.*?)(?:  \[(?:required|default: (?P<default>.*?))(?P<range>; [^]]*)?\])?", text)
    if value is None:
        raise ValueError(f"The help text of {names} has several lines.")
    default = f" Default: `{value['default']}`." if value["default"] else " Required." if text.endswith("[required]") else ""
    help_text = re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)", r"`\1`", re.sub(r"([\[\]*<])", r"\\\1", value["text"]))
    if names.startswith("--"):
        names = re.sub(r" <([a-z]+)( range)?>$", lambda match: _VALUES.get(match[1], match[0]), names)
    else:
        names = names.partition(" <")[0]
    return f"`{names}`\n:   {help_text}{default}"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site")
