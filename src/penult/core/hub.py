"""The Hugging Face Hub: references to it, its cache on this disk, and which files of a repository a model needs.

The cache has the layout of huggingface_hub (blobs, snapshots, refs), so models fetched by one are found by the other. Only the
graph that is meant, its external data and the files that say how the model is used are fetched (`hub_client`). This file knows
names of files; it knows nothing of what is in a graph or a tokenizer, and which graph is the usual one the caller decides.
"""

import json
import os
import posixpath
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from penult.atomic_files import atomic_write
from penult.core.config.modules import ROLES, Module, read_modules
from penult.core.hub_client import NAME, OWNER, Client, Remote, git_sha1s, host, settings

README = "README.md"  # its `base_model` names the model that a mirror was made from; nothing needs it
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")

_WORD = r"\w(?:[\w.-]*\w)?"
_REPO = re.compile(rf"{_WORD}(?:/{_WORD})?", re.ASCII)
_REVISION = re.compile(r"[^\s\\:?*\[~^@]+")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_SMALL = 2**22  # bytes of a file that is compared with the sha1 that names it, at each load: 2.5 ms at 1.6 GB/s
_ABANDONED = 24 * 3600.0  # seconds since the last byte of a download that a killed process left
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE_NAME = re.compile(r"\.[a-z]{2,11}$")  # notes.txt; models are called v1.5 or v2
_KNOWN_REVISION = re.compile(r"refs/(?:pr|convert)/[^/]+|main|master|[0-9a-f]{7,40}")
# The end of a reference that is surely a file: a graph, in `onnx/` or in a module's folder where it has one.
_TRAILING_FILE = re.compile(r"/((?:[\w.-]*\d_\w+/)?(?:onnx/)?[^/]+\.onnx)")

_RECIPE_SUFFIXES = (".json", ".txt", ".model", ".codes", ".spm", ".jinja")
_MODULE_FOLDER = re.compile(r"(?:.*[_-])?\d+_[\w-]+")  # 1_Pooling, query_0_Transformer
_TOKENIZER = re.compile(r"(?:.*/)?(?:tokenizer\.json|tokenizer_config\.json|vocab\.txt|vocab\.json|[^/]+\.(?:model|codes))")
_CONFIGURED = ("Pooling", "Dense", "LayerNorm")  # modules that mean nothing without their config.json
_WEIGHTED = ("Dense", "LayerNorm", "StaticEmbedding")  # modules with weights of their own
_SAFETENSORS = re.compile(r"model(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?")
_PICKLED = re.compile(r"pytorch_model(?:-\d+-of-\d+)?\.bin(?:\.index\.json)?")

Choose = Callable[[list[str]], str]
DataFiles = Callable[[Path], list[str]]


@dataclass(frozen=True, slots=True)
class HubId:
    """A model of the Hub: the repository, its revision (None: main) and the graph's path in it (None: the usual one)."""

    repo: str
    revision: str | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of one model in the cache.

    Attributes:
        folder: the folder of the revision, laid out as the repository.
        revision: the commit.
        graph: the name of the graph that is meant. None: no graph was asked for, the model needs none (a static embedding), or
            queries and documents have models of their own.
        names: names of all files that belong to the model and are there, graphs and their data among them.
    """

    folder: Path
    revision: str
    graph: str | None
    names: tuple[str, ...]


def parse(text: str) -> HubId | None:
    """Read a reference to the Hub; None for what is none.

    `org/name`, `org/name@revision` and either of them with `/path/to/file.onnx` behind; the same after `hf:`; the URL of a
    model's page; a bare `name` whose repository (`sentence-transformers/name`, else `name`) is in the cache. A revision may
    hold slashes (`refs/pr/21`). Nothing is asked of the network, and the caller looks for a file or folder of this name first.

    Raises:
        ValueError: it can only be a reference to the Hub (`hf:`, a URL), and is not a valid one.
    """
    if text.startswith("hf:"):
        found = _plain(text.removeprefix("hf:").removeprefix("//").removeprefix("models/"))
        if found is None:
            raise ValueError(f"{text!r} is not a Hub id; write org/name, org/name@revision or org/name/file.onnx.")
        return found if "/" in found.repo else _cached(found) or found
    if text.lower().startswith(("https://", "http://", *(f"{host}/" for host in _HOSTS))):
        return _from_url(text)
    found = _plain(text)
    if found is None:
        return None
    if "/" not in found.repo:
        return _cached(found)
    # A file below a folder that is here is a slip in a local path, not a repository of the same name.
    return None if found.file and found.revision is None and Path(found.repo).is_dir() else found


def hint(text: str) -> str:
    """Return how a bare name would be written for the Hub, as a sentence; empty for what is no such name."""
    found = _plain(text)
    if found is None or "/" in found.repo or _FILE_NAME.search(found.repo):
        return ""
    return f"For a model of the Hub, write its owner too, for example {OWNER}/{text}."


def fetch(
    reference: str,
    hub: HubId,
    *,
    model_file: str | None = None,
    refresh: bool = False,
    weights: bool = False,
    choose: Choose | None = None,
    data_files: DataFiles,
) -> Snapshot:
    """Return the files of a model, from the Hub only where they are not complete in its cache.

    Args:
        reference: what the user wrote, for messages.
        hub: the same, as `parse` gives it.
        model_file: which graph, as a path in the repository or the file's name alone. None: as `hub.file`, else `choose`.
        refresh: ask the Hub for the revision's files, even though those in the cache look complete.
        weights: fetch the transformer's weights for torch, and no graph.
        choose: picks one of the names of a folder's graphs (relative to that folder); raises where it cannot, also for an
            empty list. None: no graph is fetched unless it is named.
        data_files: names the external data files of a graph, relative to its folder.

    Raises:
        FileNotFoundError: a file is missing in the repository, or in the cache and cannot be fetched.
        ValueError: two graphs are named, or the model is of a kind that penult does not have.
    """
    if hub.file is not None and model_file is not None and model_file not in (hub.file, posixpath.basename(hub.file)):
        raise ValueError(f"{reference!r} names the graph {hub.file} and model_file={model_file!r} another; name one of them.")
    cache = _Cache(settings().HF_HUB_CACHE, hub.repo)
    wanted = _Wanted(reference, hub.file, model_file, weights, choose, data_files)
    revision = hub.revision or "main"
    if not refresh and (snapshot := _complete(cache, revision, wanted)) is not None:
        return snapshot
    with Client(reference, hub.repo) as client, _on_disk(reference, cache):
        return _download(client, cache, revision, wanted)


def is_settled(hub: HubId) -> bool:
    """Return whether what the cache has of a revision is all there is to know: it is a commit, or HF_HUB_OFFLINE is set."""
    return bool(settings().HF_HUB_OFFLINE) or _COMMIT.fullmatch(hub.revision or "") is not None


# References


def _plain(text: str) -> HubId | None:
    """Read `[org/]name[@revision][/file.onnx]`."""
    head, at, tail = text.partition("@")
    if at:
        split = _split_revision(tail)
        return None if split is None else _checked(head, *split)
    parts = head.split("/")
    file = "/".join(parts[2:]) or None
    if file is not None and not file.endswith(".onnx"):
        return None
    return _checked("/".join(parts[:2]), None, file)


def _split_revision(text: str) -> tuple[str, str | None] | None:
    """Split `revision[/path/to/file.onnx]`, where both may hold slashes; None where no revision is left."""
    known = _KNOWN_REVISION.match(text)
    if known is not None and text[known.end() :].startswith("/") and text.endswith(".onnx"):
        return known[0], text[known.end() + 1 :]
    for place in range(len(text)):
        if place and (file := _TRAILING_FILE.fullmatch(text, place)):
            return text[:place], file[1]
    return (text, None) if text and not text.endswith(".onnx") else None


def _checked(repo: str, revision: str | None, file: str | None) -> HubId | None:
    bare = "/" not in repo
    if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo or (bare and repo.endswith(".onnx")):
        return None
    if revision is not None and not (_REVISION.fullmatch(revision) and _is_inside(revision)):
        return None
    return HubId(repo, revision, file) if file is None or _is_inside(file) else None


def _is_inside(name: str) -> bool:
    """Return whether a path of the Hub stays in the folder it is joined to."""
    return len(name) < 1024 and "\0" not in name and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def _cached(bare: HubId) -> HubId | None:
    """Complete a bare name by what the cache holds of that name."""
    for repo in (f"{OWNER}/{bare.repo}", bare.repo):
        if (_Cache(settings().HF_HUB_CACHE, repo).folder / "snapshots").is_dir():
            return HubId(repo, bare.revision, bare.file)
    return None


def _from_url(text: str) -> HubId:
    """Read the URL of a model's page, or of one of its graphs."""
    url = urlsplit(text if "://" in text else f"https://{text}")
    endpoint = urlsplit(settings().ENDPOINT)
    path = url.path
    if url.netloc.lower() == endpoint.netloc.lower() and path.startswith(endpoint.path):
        path = path.removeprefix(endpoint.path)
    elif url.netloc.lower() not in _HOSTS:
        raise ValueError(
            f"{text!r} is not a URL of the Hub ({_HOSTS[0]}, or HF_ENDPOINT, now {host(endpoint.netloc)}). Download the "
            "model's files and pass their folder, or set HF_ENDPOINT to that host."
        )
    parts = [unquote(part) for part in path.split("/") if part]
    at = next((i for i in (2, 1) if parts[i : i + 1] and parts[i] in ("tree", "blob", "resolve", "raw")), None)
    repo, rest = parts[:2] if at is None else parts[:at], parts[2:] if at is None else parts[at:]
    found = None
    if repo and repo[0] not in ("datasets", "spaces", "models", "docs", "collections", "papers", "api") and len(rest) != 1:
        found = _checked("/".join(repo), *_of_page(rest)) if not rest or at is not None else None
    if found is None:
        raise ValueError(
            f"{text!r} is not the page of a model or of its .onnx file. Write org/name, org/name@revision (of a pull request: "
            "org/name@refs/pr/NUMBER) or org/name/file.onnx."
        )
    return found


def _of_page(rest: list[str]) -> tuple[str | None, str | None]:
    """Read what follows the repository in a URL: (revision, file); a file that is not a graph is given as it is not allowed."""
    if not rest:
        return None, None
    kind, parts = rest[0], rest[1:]
    count = 3 if parts[0] == "refs" else 1
    revision, path = "/".join(parts[:count]), "/".join(parts[count:])
    if kind == "tree":
        return revision, None if path in ("", "onnx") else ".."
    return revision, path if path.endswith(".onnx") else ".."


# Which files


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a caller of `fetch` asks for."""

    reference: str
    file: str | None
    model_file: str | None
    weights: bool
    choose: Choose | None
    data_files: DataFiles

    @property
    def is_named(self) -> bool:
        """Whether the caller names the graph."""
        return self.file is not None or self.model_file is not None

    def graphs(self, names: Sequence[str], modules: Sequence[Module]) -> tuple[str, ...]:
        """Return the names of the graphs: one, or one for each transformer of a router."""
        if self.weights or (self.choose is None and not self.is_named):
            return ()
        if self.file is not None:
            if self.file not in names:
                raise self._no_such(self.file, [name for name in names if name.endswith(".onnx")])
            return (self.file,)
        inputs = [module for module in modules if module.is_input]
        homes = [module.folder for module in inputs if not self._is_static(module, names)] if inputs else [""]
        return tuple(dict.fromkeys(self._graph(names, home) for home in homes))

    def _is_static(self, module: Module, names: Sequence[str]) -> bool:
        return (
            module.kind == "StaticEmbedding"
            and self.model_file is None
            and posixpath.join(module.folder, "model.safetensors") in names
        )

    def _graph(self, names: Sequence[str], home: str) -> str:
        """Return the graph of one transformer: beside its configuration, or in the model's own folder."""
        for folder in dict.fromkeys((home, "")):
            graphs = [name for name in _below(names, folder) if _is_graph(name)]
            if self.model_file is not None:
                exact = [name for name in _below(names, folder) if name == self.model_file]
                same = exact or [name for name in graphs if posixpath.basename(name) == self.model_file]
                if len(same) == 1:
                    return posixpath.join(folder, same[0])
            elif graphs and self.choose is not None:
                return posixpath.join(folder, self.choose(graphs))
        if self.model_file is not None or self.choose is None:
            raise self._no_such(self.model_file or "", [name for name in names if name.endswith(".onnx")])
        return self.choose([])

    def _no_such(self, file: str, graphs: list[str]) -> FileNotFoundError:
        held = f"; it has {', '.join(graphs[:20])}" if graphs else ""
        return FileNotFoundError(f"{self.reference!r}: the repository holds no {file!r}{held}.")


def _below(names: Iterable[str], folder: str) -> list[str]:
    prefix = f"{folder}/" if folder else ""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _is_graph(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder in ("", "onnx") and file.endswith(".onnx") and not file.startswith(".")


def _first_files(names: Iterable[str]) -> list[str]:
    """Return the files that say what the model is: settings and vocabularies of its folder and of folders as 1_Pooling."""
    return [
        name
        for name in names
        if name.endswith(_RECIPE_SUFFIXES)
        and not name.endswith(".index.json")
        and ("/" not in name or _MODULE_FOLDER.fullmatch(name.partition("/")[0]))
    ]


def _other_files(names: Sequence[str], modules: Sequence[Module], graphs: Sequence[str], *, weights: bool) -> list[str]:
    """Return the files that the modules and the graphs need beside `_first_files`, except the graphs and their data."""
    folders = {module.folder for module in modules} | {posixpath.dirname(graph) for graph in graphs} | {""}
    files = [
        name for name in names if name.endswith(_RECIPE_SUFFIXES) and not name.endswith(".index.json") and _is_in(name, folders)
    ]
    for module in modules:
        if module.kind in _WEIGHTED:
            files += _weights(names, module.folder)
    if weights:
        homes = [module.folder for module in modules if module.is_input] or [""]
        files += [name for home in homes for name in _weights(names, home) or _weights(names, "")]
    return list(dict.fromkeys(files))


def _is_in(name: str, folders: Iterable[str]) -> bool:
    """Return whether a file is in one of the folders, or anywhere below one that is not the model's own."""
    parent = posixpath.dirname(name)
    return any(parent == folder or (folder and parent.startswith(f"{folder}/")) for folder in folders)


def _weights(names: Sequence[str], folder: str) -> list[str]:
    """Return the names of a folder's weights, as safetensors if there are any."""
    for pattern in (_SAFETENSORS, _PICKLED):
        found = [posixpath.join(folder, name) for name in _below(names, folder) if pattern.fullmatch(name)]
        if found:
            return found
    return []


def _data_of(graph: str, folder: Path, data_files: DataFiles) -> dict[str, str]:
    """Return the external data of a graph: name in the repository -> name as the graph writes it."""
    parent = posixpath.dirname(graph)
    return {posixpath.normpath(posixpath.join(parent, name)): name for name in data_files(folder / graph)}


# The cache


class _Cache:
    """The folder of one repository in the Hub's cache."""

    def __init__(self, root: str, repo: str) -> None:
        self.root = Path(root)
        self.folder = self.root / f"models--{repo.replace('/', '--')}"

    def commit(self, revision: str) -> str | None:
        """Return the commit of a revision as far as the cache knows it."""
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            commit = (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return commit if NAME.fullmatch(commit) else None

    def snapshot(self, commit: str) -> Path:
        """Name the folder of a commit."""
        return self.folder / "snapshots" / commit

    def listing(self, commit: str) -> list[str] | None:
        """Return the names of all files of the repository at a commit; None where nobody noted them.

        penult notes them before it fetches the first file, and huggingface_hub (from 2.0) in `trees`. They tell a snapshot of
        which a part was fetched from a complete one, and a graph that is alone in the cache from the usual one.
        """
        for place in ("penult", "trees"):
            with suppress(OSError, ValueError):
                files = json.loads((self.folder / place / f"{commit}.json").read_text(encoding="utf-8"))["files"]
                return [name for name in files if isinstance(name, str) and _is_inside(name)]
        return None

    def note(self, commit: str, names: Sequence[str]) -> None:
        """Write down the names of all files of the repository at a commit."""
        _write(self.folder / "penult" / f"{commit}.json", json.dumps({"files": list(names)}))

    def point(self, revision: str, commit: str) -> None:
        """Write down the commit of a revision."""
        if revision != commit and self.commit(revision) != commit:
            _write(self.folder / "refs" / revision, commit)

    def blob(self, remote: Remote) -> Path:
        """Name the file that holds the bytes of a file of the Hub."""
        return self.folder / "blobs" / remote.etag

    def lock(self, remote: Remote) -> Path:
        """Name the lock that huggingface_hub takes for the same file."""
        return self.root / ".locks" / self.folder.name / f"{remote.etag}.lock"

    def link(self, blob: Path, path: Path) -> None:
        """Put a blob under its name into a snapshot: as a link, or as a copy where the disk has no links."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() and not path.exists():
            path.unlink()
        try:
            path.symlink_to(os.path.relpath(blob, path.parent))
        except FileExistsError:
            pass  # another process was faster
        except OSError:
            with blob.open("rb") as source, atomic_write(path, uuid.uuid4().hex[:8]) as file:
                shutil.copyfileobj(source, file)

    def sweep(self) -> None:
        """Remove what downloads left that were killed long ago."""
        for path in (self.folder / "blobs").glob("*.incomplete"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, uuid.uuid4().hex[:8]) as file:
        file.write(text.encode())


def _complete(cache: _Cache, revision: str, wanted: _Wanted) -> Snapshot | None:
    """Return the snapshot in the cache if every file of the model is there; None if one must be fetched."""
    commit = cache.commit(revision)
    if commit is None or not (folder := cache.snapshot(commit)).is_dir():
        return None
    listed = cache.listing(commit)
    present = _present(folder)
    names = sorted(present) if listed is None else listed
    first = _first_files(names)
    if not present.issuperset(first):
        return None
    modules = _modules(folder)
    try:
        graphs = wanted.graphs(names, modules)
    except (FileNotFoundError, ValueError) as error:
        if _may_differ(error, wanted, listed=listed is not None, pinned=commit == revision):
            return None
        raise
    files = [*first, *_other_files(names, modules, graphs, weights=wanted.weights), *graphs]
    if not present.issuperset(files) or (listed is None and not _looks_complete(present, modules, wanted)):
        return None
    data = [name for graph in graphs for name in _data_of(graph, folder, wanted.data_files)]
    if not present.issuperset(data):
        return None
    return _snapshot(folder, modules, graphs, [*files, *data, *({README} & present)])


def _may_differ(error: Exception, wanted: _Wanted, *, listed: bool, pinned: bool) -> bool:
    """Return whether the Hub may have the graph that the cache knows nothing of."""
    if listed:  # then only a later commit may, and only a graph that is named is worth the question
        return isinstance(error, FileNotFoundError) and wanted.is_named and not (pinned or settings().HF_HUB_OFFLINE)
    return not settings().HF_HUB_OFFLINE


def _snapshot(folder: Path, modules: Sequence[Module], graphs: Sequence[str], names: Iterable[str]) -> Snapshot:
    routes = sum(module.is_input for module in modules) > 1
    return Snapshot(folder, folder.name, None if routes or not graphs else graphs[0], tuple(dict.fromkeys(names)))


def _present(folder: Path) -> set[str]:
    """Return the names of the files of a snapshot, except damaged ones."""
    files = (path for path in folder.rglob("*") if path.is_file() and not _is_damaged(path))
    return {path.relative_to(folder).as_posix() for path in files}


def _is_damaged(path: Path) -> bool:
    """Return whether a small file of a snapshot is not what the Hub stated; large ones are compared when they are hashed."""
    blob = path.resolve()
    if blob.parent.name != "blobs" or not _SHA1.fullmatch(blob.name) or blob.stat().st_size > _SMALL:
        return False
    return blob.name not in git_sha1s(blob.read_bytes())


def _modules(folder: Path) -> tuple[Module, ...]:
    """Return the modules of all roles, each once; empty where no file lists them."""
    modules = read_modules(folder)
    return tuple(dict.fromkeys(module for role in ROLES for module in modules[role]))


def _looks_complete(present: set[str], modules: Sequence[Module], wanted: _Wanted) -> bool:
    """Return whether a snapshot of which nobody noted the files has all that its own files speak of."""
    names = sorted(present)
    if wanted.weights and not any(_weights(names, folder) for folder in ("", *(module.folder for module in modules))):
        return False
    for module in modules:
        if module.kind in _CONFIGURED and posixpath.join(module.folder, "config.json") not in present:
            return False
        if module.kind in ("Dense", "StaticEmbedding") and not _weights(names, module.folder):
            return False
    return any(map(_TOKENIZER.fullmatch, names))


# The download


@contextmanager
def _on_disk(reference: str, cache: _Cache) -> Iterator[None]:
    """Turn what fails below the cache's folder into one error that says what to do."""
    if cache.root.parts[:1] == ("~",):  # of a user without a home; it would be made in the working folder
        raise OSError(f"{reference!r} has no place: this user has no home folder. Set HF_HUB_CACHE to a folder that lasts.")
    try:
        yield
    except FileNotFoundError:
        raise  # of the Hub
    except OSError as error:
        raise OSError(
            f"{reference!r} could not be written to the Hub's cache {cache.root}: {error.strerror or error}. Set HF_HUB_CACHE "
            "to a folder that can be written and has room, or pass a folder that holds the model."
        ) from None


def _download(client: Client, cache: _Cache, revision: str, wanted: _Wanted) -> Snapshot:
    """Fetch what is missing: first what says which model it is, then its graphs, then their data."""
    commit, listed = client.listing(revision)
    names = [name for name in listed if _is_inside(name)]
    folder = cache.snapshot(commit)
    cache.note(commit, names)
    cache.sweep()
    first = _first_files(names)
    _get(client, cache, commit, first)
    modules = _modules(folder)
    graphs = wanted.graphs(names, modules)
    other = _other_files(names, modules, graphs, weights=wanted.weights)
    _get(client, cache, commit, [*other, *graphs])
    data = _data(graphs, names, folder, wanted)
    readme = [README] if README in names else []
    _get(client, cache, commit, [*data, *readme])
    cache.point(revision, commit)
    return _snapshot(folder, modules, graphs, [*first, *other, *graphs, *data, *readme])


def _data(graphs: Sequence[str], names: Sequence[str], folder: Path, wanted: _Wanted) -> list[str]:
    data: list[str] = []
    for graph in graphs:
        files = _data_of(graph, folder, wanted.data_files)
        if missing := [written for name, written in files.items() if name not in names]:
            raise FileNotFoundError(
                f"{wanted.reference!r}: the repository lacks {', '.join(missing)}, which {graph} points to. Name another graph."
            )
        data += files
    return data


def _get(client: Client, cache: _Cache, commit: str, names: Iterable[str]) -> None:
    """Fetch files of a commit that are not in the cache."""
    for name in names:
        path = cache.snapshot(commit) / name
        if path.exists() and not _is_damaged(path):
            continue
        remote = client.stat(commit, name)
        blob = cache.blob(remote)
        client.download(remote, blob, cache.lock(remote))
        cache.link(blob, path)
