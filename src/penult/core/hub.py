"""The Hugging Face Hub: references, the local cache, and the selection of the files that a model needs.

The cache has the layout of huggingface_hub (blobs, snapshots, refs), so the two share downloaded models. Only the selected
graph, its external data and the configuration files are fetched (`hub_client`). This module works with file names only: it does
not parse graphs or tokenizers, and the caller chooses the default graph.
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

README = "README.md"  # its `base_model` names the original of a mirror; optional
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")

_WORD = r"\w(?:[\w.-]*\w)?"
_REPO = re.compile(rf"{_WORD}(?:/{_WORD})?", re.ASCII)
_REVISION = re.compile(r"[^\s\\:?*\[~^@]+")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_SMALL = 2**22  # bytes; smaller files are compared with the sha1 in their name at each load: 2.5 ms at 1.6 GB/s
_ABANDONED = 24 * 3600.0  # seconds since the last write, after which a partial download is removed
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE_NAME = re.compile(r"\.[a-z]{2,11}$")  # such as notes.txt; model names end in v1.5 or v2
_KNOWN_REVISION = re.compile(r"refs/(?:pr|convert)/[^/]+|main|master|[0-9a-f]{7,40}")
# A path at the end of a reference that must be a graph, optionally in `onnx/` or in a module's folder.
_TRAILING_FILE = re.compile(r"/((?:[\w.-]*\d_\w+/)?(?:onnx/)?[^/]+\.onnx)")

_RECIPE_SUFFIXES = (".json", ".txt", ".model", ".codes", ".spm", ".jinja")
_MODULE_FOLDER = re.compile(r"(?:.*[_-])?\d+_[\w-]+")  # 1_Pooling, query_0_Transformer
_TOKENIZER = re.compile(r"(?:.*/)?(?:tokenizer\.json|tokenizer_config\.json|vocab\.txt|vocab\.json|[^/]+\.(?:model|codes))")
_CONFIGURED = ("Pooling", "Dense", "LayerNorm")  # modules that require their config.json
_WEIGHTED = ("Dense", "LayerNorm", "StaticEmbedding")  # modules with their own weights
_SAFETENSORS = re.compile(r"model(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?")
_PICKLED = re.compile(r"pytorch_model(?:-\d+-of-\d+)?\.bin(?:\.index\.json)?")

Choose = Callable[[list[str]], str]
DataFiles = Callable[[Path], list[str]]


@dataclass(frozen=True, slots=True)
class HubId:
    """A model of the Hub: the repository, its revision (None: main) and the graph's path in it (None: the default graph)."""

    repo: str
    revision: str | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of one model in the cache.

    Attributes:
        folder: snapshot folder, with the layout of the repository.
        revision: commit.
        graph: name of the selected graph. None: no graph was requested, the model does not need one (a static embedding), or
            queries and documents have separate models.
        names: names of all local files of the model, including graphs and their data.
    """

    folder: Path
    revision: str
    graph: str | None
    names: tuple[str, ...]


def parse(text: str) -> HubId | None:
    """Parse a reference to the Hub; return None for any other text.

    `org/name`, `org/name@revision` and either of them followed by `/path/to/file.onnx`; the same after `hf:`; the URL of a
    model's page; a bare `name` whose repository (`sentence-transformers/name`, else `name`) is in the cache. A revision may
    contain slashes (`refs/pr/21`). No network access; the caller checks for a file or folder of this name first.

    Raises:
        ValueError: the text can only be a reference to the Hub (`hf:`, a URL), but is not valid.
    """
    if text.startswith("hf:"):
        hub_id = _plain(text.removeprefix("hf:").removeprefix("//").removeprefix("models/"))
        if hub_id is None:
            raise ValueError(f"{text!r} is not a Hub id. Pass org/name, org/name@revision or org/name/file.onnx.")
        return hub_id if "/" in hub_id.repo else _cached(hub_id) or hub_id
    if text.lower().startswith(("https://", "http://", *(f"{host}/" for host in _HOSTS))):
        return _from_url(text)
    hub_id = _plain(text)
    if hub_id is None:
        return None
    if "/" not in hub_id.repo:
        return _cached(hub_id)
    # A file below an existing local folder is a mistyped local path, not a repository of the same name.
    return None if hub_id.file and hub_id.revision is None and Path(hub_id.repo).is_dir() else hub_id


def hint(text: str) -> str:
    """Return a sentence with the Hub id for a bare name; empty if the text is not a bare name."""
    hub_id = _plain(text)
    if hub_id is None or "/" in hub_id.repo or _FILE_NAME.search(hub_id.repo):
        return ""
    return f"For a Hub model, add its owner, such as {OWNER}/{text}."


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
    """Return the files of a model; fetch them from the Hub only if they are not complete in the cache.

    Args:
        reference: reference as the user wrote it, for messages.
        hub: the parsed reference.
        model_file: graph, as a path in the repository or a bare file name. None: `hub.file`, else `choose`.
        refresh: whether to query the Hub for the revision's files, even if those in the cache look complete.
        weights: whether to fetch the transformer's weights for torch instead of a graph.
        choose: selects one of the names of a folder's graphs (relative to that folder); raises if it cannot, also for an empty
            list. None: fetch only a graph that is named.
        data_files: returns the names of a graph's external data files, relative to its folder.

    Raises:
        FileNotFoundError: a file is missing in the repository, or missing in the cache and cannot be fetched.
        ValueError: two different graphs are named, or the model is of an unsupported kind.
    """
    if hub.file is not None and model_file is not None and model_file not in (hub.file, posixpath.basename(hub.file)):
        raise ValueError(f"{reference!r} names {hub.file}, but model_file={model_file!r} names another file. Pass one of them.")
    cache = _Cache(settings().HF_HUB_CACHE, hub.repo)
    request = _Wanted(reference, hub.file, model_file, weights, choose, data_files)
    revision = hub.revision or "main"
    if not refresh and (snapshot := _complete(cache, revision, request)) is not None:
        return snapshot
    with Client(reference, hub.repo) as client, _on_disk(reference, cache):
        return _download(client, cache, revision, request)


def is_settled(hub: HubId) -> bool:
    """Return whether the cached state of a revision is final: it is a commit, or HF_HUB_OFFLINE is set."""
    return bool(settings().HF_HUB_OFFLINE) or _COMMIT.fullmatch(hub.revision or "") is not None


# References


def _plain(text: str) -> HubId | None:
    """Parse `[org/]name[@revision][/file.onnx]`."""
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
    """Split `revision[/path/to/file.onnx]`, where both may contain slashes; None if no revision is left."""
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
    """Return whether a path of the Hub stays inside the folder that it is joined to."""
    return len(name) < 1024 and "\0" not in name and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def _cached(bare: HubId) -> HubId | None:
    """Complete a bare name with the repository of that name in the cache."""
    for repo in (f"{OWNER}/{bare.repo}", bare.repo):
        if (_Cache(settings().HF_HUB_CACHE, repo).folder / "snapshots").is_dir():
            return HubId(repo, bare.revision, bare.file)
    return None


def _from_url(text: str) -> HubId:
    """Parse the URL of a model's page, or of one of its graphs."""
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
    hub_id = None
    if repo and repo[0] not in ("datasets", "spaces", "models", "docs", "collections", "papers", "api") and len(rest) != 1:
        hub_id = _checked("/".join(repo), *_of_page(rest)) if not rest or at is not None else None
    if hub_id is None:
        raise ValueError(
            f"{text!r} is not the page of a model or of its .onnx file. Pass org/name, org/name@revision (of a pull request: "
            "org/name@refs/pr/NUMBER) or org/name/file.onnx."
        )
    return hub_id


def _of_page(rest: list[str]) -> tuple[str | None, str | None]:
    """Parse the rest of a URL after the repository: (revision, file); a path that is not allowed becomes ".."."""
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
    """Arguments of `fetch`."""

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
        """Return the graph of one transformer: beside its configuration, or in the model's folder."""
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
        existing = f"; it has {', '.join(graphs[:20])}" if graphs else ""
        return FileNotFoundError(f"{self.reference!r}: the repository has no {file!r}{existing}.")


def _below(names: Iterable[str], folder: str) -> list[str]:
    prefix = f"{folder}/" if folder else ""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _is_graph(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder in ("", "onnx") and file.endswith(".onnx") and not file.startswith(".")


def _first_files(names: Iterable[str]) -> list[str]:
    """Return the files that describe the model: settings and vocabularies in its folder and in folders like 1_Pooling."""
    return [
        name
        for name in names
        if name.endswith(_RECIPE_SUFFIXES)
        and not name.endswith(".index.json")
        and ("/" not in name or _MODULE_FOLDER.fullmatch(name.partition("/")[0]))
    ]


def _other_files(names: Sequence[str], modules: Sequence[Module], graphs: Sequence[str], *, weights: bool) -> list[str]:
    """Return the files that modules and graphs need in addition to `_first_files`, except the graphs and their data."""
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
    """Return whether a file is in one of the folders; for all but the model's own folder, also in subfolders."""
    parent = posixpath.dirname(name)
    return any(parent == folder or (folder and parent.startswith(f"{folder}/")) for folder in folders)


def _weights(names: Sequence[str], folder: str) -> list[str]:
    """Return the names of a folder's weight files: safetensors, if there are any."""
    for pattern in (_SAFETENSORS, _PICKLED):
        weight_names = [posixpath.join(folder, name) for name in _below(names, folder) if pattern.fullmatch(name)]
        if weight_names:
            return weight_names
    return []


def _data_of(graph: str, folder: Path, data_files: DataFiles) -> dict[str, str]:
    """Return the external data of a graph: name in the repository -> name in the graph."""
    parent = posixpath.dirname(graph)
    return {posixpath.normpath(posixpath.join(parent, name)): name for name in data_files(folder / graph)}


# The cache


class _Cache:
    """The folder of one repository in the Hub's cache."""

    def __init__(self, root: str, repo: str) -> None:
        self.root = Path(root)
        self.folder = self.root / f"models--{repo.replace('/', '--')}"

    def commit(self, revision: str) -> str | None:
        """Return the commit of a revision according to the cache."""
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            commit = (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return commit if NAME.fullmatch(commit) else None

    def snapshot(self, commit: str) -> Path:
        """Return the path of a commit's snapshot folder."""
        return self.folder / "snapshots" / commit

    def listing(self, commit: str) -> list[str] | None:
        """Return the names of all files of the repository at a commit; None if they were not recorded.

        penult records them before it fetches the first file, and huggingface_hub (from 2.0) in `trees`. They distinguish a
        partial snapshot from a complete one, and the only graph in the cache from the default graph.
        """
        for place in ("penult", "trees"):
            with suppress(OSError, ValueError):
                files = json.loads((self.folder / place / f"{commit}.json").read_text(encoding="utf-8"))["files"]
                return [name for name in files if isinstance(name, str) and _is_inside(name)]
        return None

    def note(self, commit: str, names: Sequence[str]) -> None:
        """Record the names of all files of the repository at a commit."""
        _write(self.folder / "penult" / f"{commit}.json", json.dumps({"files": list(names)}))

    def point(self, revision: str, commit: str) -> None:
        """Record the commit of a revision."""
        if revision != commit and self.commit(revision) != commit:
            _write(self.folder / "refs" / revision, commit)

    def blob(self, remote: Remote) -> Path:
        """Return the path of the blob of a file of the Hub."""
        return self.folder / "blobs" / remote.etag

    def lock(self, remote: Remote) -> Path:
        """Return the path of the lock that huggingface_hub uses for the same file."""
        return self.root / ".locks" / self.folder.name / f"{remote.etag}.lock"

    def link(self, blob: Path, path: Path) -> None:
        """Add a blob to a snapshot under its name: as a symbolic link, or as a copy if the disk does not support links."""
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
        """Remove partial downloads that were killed long ago."""
        for path in (self.folder / "blobs").glob("*.incomplete"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()


def _write(path: Path, text: str) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, uuid.uuid4().hex[:8]) as file:
        file.write(text.encode())


def _complete(cache: _Cache, revision: str, request: _Wanted) -> Snapshot | None:
    """Return the cached snapshot if it has every file of the model; None if a file must be fetched."""
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
        graphs = request.graphs(names, modules)
    except (FileNotFoundError, ValueError) as error:
        if _may_differ(error, request, listed=listed is not None, pinned=commit == revision):
            return None
        raise
    files = [*first, *_other_files(names, modules, graphs, weights=request.weights), *graphs]
    if not present.issuperset(files) or (listed is None and not _looks_complete(present, modules, request)):
        return None
    data = [name for graph in graphs for name in _data_of(graph, folder, request.data_files)]
    if not present.issuperset(data):
        return None
    return _snapshot(folder, modules, graphs, [*files, *data, *({README} & present)])


def _may_differ(error: Exception, request: _Wanted, *, listed: bool, pinned: bool) -> bool:
    """Return whether the Hub may have a graph that the cache does not list."""
    if listed:  # then only a later commit may have it, and only a named graph is worth a request
        return isinstance(error, FileNotFoundError) and request.is_named and not (pinned or settings().HF_HUB_OFFLINE)
    return not settings().HF_HUB_OFFLINE


def _snapshot(folder: Path, modules: Sequence[Module], graphs: Sequence[str], names: Iterable[str]) -> Snapshot:
    routes = sum(module.is_input for module in modules) > 1
    return Snapshot(folder, folder.name, None if routes or not graphs else graphs[0], tuple(dict.fromkeys(names)))


def _present(folder: Path) -> set[str]:
    """Return the names of the files of a snapshot, except damaged ones."""
    files = (path for path in folder.rglob("*") if path.is_file() and not _is_damaged(path))
    return {path.relative_to(folder).as_posix() for path in files}


def _is_damaged(path: Path) -> bool:
    """Return whether a small file of a snapshot differs from its hash; large files are checked when they are hashed."""
    blob = path.resolve()
    if blob.parent.name != "blobs" or not _SHA1.fullmatch(blob.name) or blob.stat().st_size > _SMALL:
        return False
    return blob.name not in git_sha1s(blob.read_bytes())


def _modules(folder: Path) -> tuple[Module, ...]:
    """Return the modules of all roles without duplicates; empty if no file lists them."""
    modules = read_modules(folder)
    return tuple(dict.fromkeys(module for role in ROLES for module in modules[role]))


def _looks_complete(present: set[str], modules: Sequence[Module], request: _Wanted) -> bool:
    """Return whether a snapshot without a recorded file list has every file that its own files refer to."""
    names = sorted(present)
    if request.weights and not any(_weights(names, folder) for folder in ("", *(module.folder for module in modules))):
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
    """Convert errors in the cache folder into one error that says what to do."""
    if cache.root.parts[:1] == ("~",):  # a user without a home: the folder would be created in the working directory
        raise OSError(
            f"{reference!r} cannot be cached: this user has no home directory. Set HF_HUB_CACHE to a persistent folder."
        )
    try:
        yield
    except FileNotFoundError:
        raise  # errors of the Hub
    except OSError as error:
        raise OSError(
            f"{reference!r} could not be written to the Hub's cache {cache.root}: {error.strerror or error}. Set HF_HUB_CACHE "
            "to a writable folder with free space, or pass a local folder with the model."
        ) from None


def _download(client: Client, cache: _Cache, revision: str, request: _Wanted) -> Snapshot:
    """Fetch the missing files: first the configuration, then the graphs, then their data."""
    commit, listed = client.listing(revision)
    names = [name for name in listed if _is_inside(name)]
    folder = cache.snapshot(commit)
    cache.note(commit, names)
    cache.sweep()
    first = _first_files(names)
    _get(client, cache, commit, first)
    modules = _modules(folder)
    graphs = request.graphs(names, modules)
    other = _other_files(names, modules, graphs, weights=request.weights)
    _get(client, cache, commit, [*other, *graphs])
    data = _data(graphs, names, folder, request)
    readme = [README] if README in names else []
    _get(client, cache, commit, [*data, *readme])
    cache.point(revision, commit)
    return _snapshot(folder, modules, graphs, [*first, *other, *graphs, *data, *readme])


def _data(graphs: Sequence[str], names: Sequence[str], folder: Path, request: _Wanted) -> list[str]:
    data: list[str] = []
    for graph in graphs:
        files = _data_of(graph, folder, request.data_files)
        if missing := [written for name, written in files.items() if name not in names]:
            raise FileNotFoundError(
                f"{request.reference!r}: the repository has no {', '.join(missing)}, the external data of "
                f"{graph}. Pass another graph as model_file=."
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
