"""`penult pull`: download a model from the Hub into its cache, or into a plain folder for a machine without network.

Handles folders and their replacement; `hub` decides which files are downloaded.
"""

import json
import os
import shutil
from pathlib import Path

from penult.atomic_files import sync_all
from penult.core import cache, hub, source
from penult.core.cache_entry import making

# Lists the files that `pull` wrote to a folder, so that a later pull replaces these files only.
_MARK = ".penult-pull.json"


def pull(reference: str | os.PathLike[str], *, to: Path | None = None, model_file: str | None = None) -> Path:
    """Download a model from the Hub, and return its folder.

    Args:
        reference: a Hub id or the URL of a model's page, as for `Embedder.load`.
        to: write the model's files to this folder, as files and not as links: it can be copied anywhere and loads without
            the Hub. A folder that an earlier pull of the same repository wrote is replaced. None: only the Hub's cache.
        model_file: the graph, for example "onnx/model_int8.onnx". None: the default one.

    Raises:
        FileNotFoundError: a file is missing in the repository, or the Hub cannot be queried for the revision of a branch.
        ValueError: the reference is not a Hub reference, a file does not match its hash on the Hub, or `to` contains
            something else.
    """
    text = os.fspath(reference)
    hub_id = hub.parse(text)
    if hub_id is None:
        raise ValueError(
            f"{text!r} is not a Hub id. Pass org/name, org/name@revision or the URL of a model page. {hub.hint(text)}".rstrip()
        )
    if to is not None:
        _check_free(to, hub_id.repo)
    snapshot = hub.fetch(
        text,
        hub_id,
        model_file=model_file,
        refresh=not hub.is_settled(hub_id),  # a branch may have moved
        choose=lambda names: source.choose_graph(names, text),
        data_files=source.data_files,
    )
    for name in snapshot.names:
        cache.hash_files([snapshot.folder / name])  # checks the sha256 by which the Hub names large files
    if to is None:
        return snapshot.folder
    _write(snapshot, to, hub_id.repo)
    return to


def _check_free(to: Path, repo: str) -> None:
    """Raise ValueError if a folder contains anything but the files of an earlier pull of this repository."""
    if not to.exists() and not to.is_symlink():
        return
    if not to.is_dir():
        raise ValueError(f"{to} is not a folder. Pass a new or an empty folder.")
    files = {path.relative_to(to).as_posix() for path in to.rglob("*") if not path.is_dir() or path.is_symlink()}
    owner, written = _read_mark(to)
    if files and (owner != repo or files - written):
        raise ValueError(f"{to} contains files that no earlier pull of {repo} wrote. Pass a new or an empty folder.")


def _read_mark(folder: Path) -> tuple[str, set[str]]:
    """Return the repository and the files of the earlier pull that wrote a folder; ("", empty set) if there was none."""
    try:
        mark = json.loads((folder / _MARK).read_text(encoding="utf-8"))
        return str(mark["repo"]), {_MARK, *map(str, mark["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        return "", set()


def _write(snapshot: hub.Snapshot, to: Path, repo: str) -> None:
    """Copy a snapshot to a temporary folder and rename it, so that the folder appears atomically."""
    with making(to.absolute().parent, f"pulling-{to.name}") as aside:
        new = aside / "new"
        for name in snapshot.names:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot.folder / name, new / name)
        mark = {"repo": repo, "revision": snapshot.revision, "graph": snapshot.graph, "files": sorted(snapshot.names)}
        (new / _MARK).write_text(json.dumps(mark, indent=1), encoding="utf-8")
        sync_all(new)
        old = aside / "old"
        if to.exists():
            to.rename(old)
        try:
            new.rename(to)
        except OSError:
            if old.exists():
                old.rename(to)
            raise
