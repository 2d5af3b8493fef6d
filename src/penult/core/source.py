"""Resolve a model reference to local files.

A reference is a folder, an .onnx file, a Hub id (`org/name[@revision][/path/to/file.onnx]`, also as `hf:...`), weights
that are installed as a Python package (`package:NAME[/sub/folder]`) or a stub of the discontinued SparseZoo whose files are
still in the local cache (`zoo:NAME`). This module finds files and checks that they are complete. It does not parse graphs or
tokenizers, and never writes into a model's folder.
"""

import importlib.util
import mmap
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from penult.core import hub
from penult.core.config.config_json import check_content, value_of
from penult.core.config.modules import ROLES, Module, read_modules
from penult.core.config.transformer_config import FILES as TRANSFORMER_FILES
from penult.extras import install_hint
from penult.graph.wire_format import MOST_BYTES, layout

# Where exporters put the file, in order of preference; of an encoder-decoder pair, the encoder computes embeddings.
_USUAL_FILES = ("onnx/model.onnx", "model.onnx", "onnx/encoder_model.onnx", "encoder_model.onnx")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model", "bpe.codes",
)  # fmt: skip
# Files that mark the folder with a model's configuration.
_RECIPE_FILES = ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json", *TRANSFORMER_FILES)
STATIC_TABLE = "model.safetensors"  # of a static embedding, which does not need a graph
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_LARGEST_GRAPH = 2**31  # bytes: protobuf's limit
_ZOO_STUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")
_BASE_MODEL = re.compile(r"^base_model:\s*(?:-\s*)?[\"']?([\w.-]+/[\w.-]+)", re.MULTILINE)
# A graph names its data files as string pairs (field 1 "location", field 2 the name). The serialized bytes are searched, since
# parsing would import onnx at every start.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x7f])")


class NoGraphError(FileNotFoundError):
    """A folder without an ONNX file; `folder` is the model's if it has weights that can be exported, else None."""

    def __init__(self, message: str, folder: Path | None = None) -> None:
        super().__init__(message)
        self.folder = folder


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one model.

    Attributes:
        reference: reference as the user wrote it.
        model: the .onnx file, or the table of a static embedding (model.safetensors).
        folder: folder of the model's configuration (modules.json and the files it names).
        revision: commit, for a model of the Hub.
        home: folder of the transformer's configuration; equal to `folder` in most models.
        tokenizer: folder of the tokenizer; equal to `home` in most models.
        query: files of the query model, if it is a separate one.
    """

    reference: str
    model: Path
    folder: Path
    revision: str | None = None
    home: Path = Path()
    tokenizer: Path = Path()
    query: "Source | None" = None

    def __post_init__(self) -> None:
        if self.home == Path():
            object.__setattr__(self, "home", self.folder)
        if self.tokenizer == Path():
            object.__setattr__(self, "tokenizer", self.home)

    def base_model(self) -> str | None:
        """Return the `base_model` of the model card, as ONNX mirrors state it; None if it states none."""
        card = next((p for p in (self.folder / "README.md", self.model.parent / "README.md") if p.is_file()), None)
        if card is None:
            return None
        with card.open(encoding="utf-8", errors="replace") as file:
            head = file.read(65_536)
        match = _BASE_MODEL.search(head.partition("\n---")[0]) if head.startswith("---") else None
        return match[1] if match else None


def resolve(
    reference: str | os.PathLike[str],
    *,
    refresh: bool = False,
    model_file: str | None = None,
    files_from: str | os.PathLike[str] | None = None,
) -> Source:
    """Find the files of a model; fetch them from the Hub only if they are not complete locally.

    Args:
        reference: a folder, an .onnx file, a Hub id, `package:NAME[/sub/folder]` or `zoo:NAME`.
        refresh: whether to query the Hub even if a snapshot looks complete (another program may have fetched only a part).
        model_file: graph in the folder or repository, for example "onnx/model_int8.onnx". None: the default graph.
        files_from: another folder or Hub id to read the configuration from (pooling, prompts, lengths), for mirrors that have
            only the graph. None: the model's own.

    Raises:
        FileNotFoundError: the model is missing, or a part is missing and cannot be fetched.
        TypeError: `model_file` or `files_from` is not a str or path.
        ValueError: the reference is invalid or ambiguous between several graphs, or a file is a git-LFS pointer.
    """
    for name, value in (("model_file", model_file), ("files_from", files_from)):
        if not isinstance(value, str | os.PathLike | None):
            raise TypeError(f"{name} is {value!r}; it must be a str.")
    model_file = None if model_file is None else os.fspath(model_file)
    if model_file is not None and not model_file.endswith(".onnx"):
        raise ValueError(f"model_file is {model_file[:80]!r}; pass an .onnx file of the model, such as onnx/model.onnx.")
    if files_from is not None and not os.fspath(files_from):
        raise ValueError("files_from is empty. Pass a folder or a Hub id, or omit it.")
    source = _resolve(os.fspath(reference), refresh=refresh, model_file=model_file)
    for one in (source, source.query):
        if one is not None:
            _check_complete(one.model)
    return source if files_from is None else _with_files(source, os.fspath(files_from), refresh=refresh)


def _resolve(text: str, *, refresh: bool, model_file: str | None) -> Source:
    if not text.strip():  # the empty path would be the current folder, which is not intended
        raise ValueError("The model is an empty string. Pass a folder, an .onnx file or a Hub id.")
    if text.startswith("package:"):
        return _local(text, _package_folder(text), model_file=model_file)
    if text.startswith("zoo:"):
        return _from_zoo(text)
    path = Path(text).expanduser()
    if not text.startswith("hf:") and _exists(path):
        return _local(text, path, model_file=model_file)
    if (hub_id := hub.parse(text)) is not None:
        return _from_hub(text, hub_id, refresh=refresh, model_file=model_file)
    raise FileNotFoundError(
        f"No model at {text!r}: it is not a local file or folder, a Hub id (org/name[@revision]) or "
        f"package:NAME[/sub/folder]. {hub.hint(text)}".rstrip()
    )


def _with_files(source: Source, reference: str, *, refresh: bool) -> Source:
    """Return the same graph with the configuration of another folder."""
    folder = Path(reference).expanduser()
    if reference.startswith("package:"):
        folder = _package_folder(reference)
    elif not folder.is_dir():
        folder = _hub_files(reference, refresh=refresh)
    modules = read_modules(folder)
    if modules["query"] != modules["document"]:
        raise ValueError(f"files_from={reference!r} has one model per role (query, document). Load it without files_from.")
    home = folder / modules["document"][0].folder if modules["document"] else folder
    types = [value_of(place / "config.json", "model_type", str, "a name") for place in (source.home, home)]
    if None not in types and types[0] != types[1]:
        raise ValueError(
            f"files_from={reference!r} has the model_type {types[1]}, but the graph's own config.json states {types[0]}. "
            "Pass the model that this mirror was made from."
        )
    own = next((place for place in (source.tokenizer, source.model.parent) if has_tokenizer(place)), home)
    return replace(source, folder=folder, home=home, tokenizer=own, query=None)


def missing_data(model: Path) -> list[str]:
    """Return the names of the external data files that a graph refers to and that are missing."""
    return [name for name in data_files(model) if not _exists(model.parent / name)]


def data_files(model: Path) -> list[str]:
    """Return the names of the external data files that a graph refers to, relative to its folder, without parsing it.

    Raises:
        ValueError: the file is larger than any graph, so that reading it would take too long.
    """
    size = model.stat().st_size
    if size == 0 or model.suffix == ".safetensors":
        return []
    if size > _LARGEST_GRAPH:
        raise ValueError(
            f"{model} has {size:,} bytes; an ONNX file has at most {_LARGEST_GRAPH:,}, and larger weights are external data. "
            "Download it or export it again."
        )
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        fields = layout(data)
        weights = [weight.data for weight in fields.weights] if fields else []  # most bytes of the file; they contain no names
        spans = zip([0, *(weight.end for weight in weights)], [*(weight.value for weight in weights), len(data)], strict=True)
        hits = [hit for span in spans for hit in _LOCATION.finditer(data, *span)]
        return sorted({data[hit.end() : hit.end() + _size(hit[1])].decode("utf-8", "replace") for hit in hits})


def data_home(source: Source, real: Mapping[str, Path]) -> Path:
    """Return the common parent folder of all weights: the real files of the external data, and the graph."""
    return Path(os.path.commonpath([file.parent for file in (source.model.resolve(), *real.values())]))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # an invalid file name
        return False


def _size(written: bytes) -> int:
    """Decode a protobuf varint: seven bits per byte, lowest first."""
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(written))


def _package_folder(text: str) -> Path:
    name, _, sub = text.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None  # a top-level name, so nothing is imported
    if spec is None:
        raise FileNotFoundError(f"{text!r}: the package {name!r} is not installed. Install the package that has the model.")
    root = Path(next(iter(spec.submodule_search_locations or [str(Path(spec.origin or "").parent)]))).resolve()
    folder = (root / sub).resolve()
    if not folder.is_relative_to(root):
        raise ValueError(f"{text!r} is outside the package {name!r}. Pass a folder inside it.")
    if not folder.exists():
        raise FileNotFoundError(f"{text!r}: the package {name!r} is installed, but has no {sub!r}.")
    return folder


def _from_zoo(text: str) -> Source:
    """Find a SparseZoo model in the cache of the sparsezoo package (from version 1.5): <cache>/<namespace>/<stub>.

    DeepSparse ran the `deployment` folder of a model. If that has no graph, `model.onnx` (a file, or a folder with the file) is
    beside it, and the tokenizer is in `deployment` or `training`.
    """
    stub = text.removeprefix("zoo:").partition("?")[0]
    cache = Path(os.path.expanduser(os.environ.get("SPARSEZOO_MODELS_PATH") or "~/.cache/sparsezoo"))  # noqa: PTH111 - does not raise for a user without a home
    for folder in [cache / stub, *sorted(cache.glob(f"*/{stub}"))] if _ZOO_STUB.fullmatch(stub) else []:
        for part in (folder / "deployment", folder):
            graph = next((path for path in (part / "model.onnx", part / "model.onnx" / "model.onnx") if path.is_file()), None)
            home = next((path for path in (part, folder / "deployment", folder / "training") if has_tokenizer(path)), None)
            if graph is not None and home is not None:
                return Source(text, graph, home)
    folders = [f for f in (*cache.glob("*"), *cache.glob("*/*")) if (f / "deployment").is_dir() or (f / "model.onnx").exists()]
    names = get_close_matches(
        stub, [f.relative_to(cache).as_posix() for f in folders if f.name != "deployment"], n=5, cutoff=0.0
    )
    existing = f"pass the folder `deployment` of one that it has: {', '.join(names)}" if names else "it has no models"
    raise FileNotFoundError(
        f"{text!r}: SparseZoo closed in June 2025, and this model is not complete in its cache {cache} ({existing}). Pass a "
        "folder, an .onnx file with its tokenizer beside it, or a Hub id such as sentence-transformers/all-MiniLM-L6-v2."
    )


def _local(reference: str, path: Path, revision: str | None = None, *, model_file: str | None = None) -> Source:
    if path.is_dir():
        return _in_folder(reference, path, revision, model_file)
    if path.suffix != ".onnx":
        raise ValueError(f"{reference!r} is a file, but not an .onnx file. Pass the model's folder or its .onnx file.")
    if model_file is not None:
        raise ValueError(f"{reference!r} names a graph, but model_file={model_file!r} names another. Pass one of them.")
    path = path.absolute()  # not resolved: in the Hub's cache every file is a symbolic link
    return _of_graph(reference, path, _root_of(path), revision)


def _in_folder(reference: str, root: Path, revision: str | None, model_file: str | None) -> Source:
    """Find the graph of each role in a model's folder."""
    modules = read_modules(root)
    if modules["query"] == modules["document"]:
        return _of_modules(reference, root, modules["document"], revision, model_file)
    homes = {root / modules[role][0].folder if modules[role] else root for role in ROLES}
    if len(homes) > 1 and model_file is not None:
        raise ValueError(
            f"{reference!r} has one graph for queries and one for documents, but model_file={model_file!r} names only one. "
            "Omit model_file."
        )
    own = len(homes) > 1  # a graph in the model's folder would be used for both roles
    document, query = (_of_modules(reference, root, modules[role], revision, model_file, own=own) for role in ROLES)
    return replace(document, query=query)


def _of_modules(
    reference: str,
    root: Path,
    modules: Sequence[Module],
    revision: str | None,
    model_file: str | None,
    *,
    own: bool = False,
) -> Source:
    home = root / modules[0].folder if modules else root
    static = bool(modules) and modules[0].kind == "StaticEmbedding"
    if static and model_file is None and (home / STATIC_TABLE).exists():
        model = home / STATIC_TABLE
    else:
        if static and model_file is None and not _graphs(home):
            raise FileNotFoundError(f"{home} has no {STATIC_TABLE}, the static embedding's table. Download the whole model.")
        model = _graph(str(home) if own else reference, root, home, model_file, own=own)
        if modules and model_file is None and model.name == "encoder_model.onnx":
            _check_encoder(reference, root, home, model)
    return Source(reference, model, root, revision, home, _tokenizer_folder(home, root, model.parent))


def _check_encoder(reference: str, root: Path, home: Path, model: Path) -> None:
    """Raise an error for the encoder of an encoder-decoder pair if the module may be the whole pair.

    sentence-transformers uses only the encoder of T5 and its variants, and both parts of BART: only the class name shows which.
    """
    path = home / "config.json"
    pair: bool | None = value_of(path, "is_encoder_decoder", bool, "true or false")
    names: list[object] = value_of(path, "architectures", list, "a list of names") or []
    if pair and not any(str(name).endswith(("Encoder", "EncoderModel")) for name in names):
        raise ValueError(
            f"{reference!r} is an encoder-decoder model, and its files do not state whether only the encoder is used. For T5 "
            f"and its variants, pass model_file={model.relative_to(root).as_posix()!r}; for BART, export the whole model."
        )


def _graph(reference: str, root: Path, home: Path, model_file: str | None, *, own: bool) -> Path:
    """Find the graph of one transformer: beside its configuration or, unless `own`, in the model's folder."""
    for folder in dict.fromkeys((home, home if own else root)):
        names = [p.relative_to(folder).as_posix() for p in _graphs(folder)]
        if model_file is not None:
            match = next((n for n in names if n == model_file), None) or _only(n for n in names if Path(n).name == model_file)
            if match is not None:
                return folder / match
            if ".." not in Path(model_file).parts and not Path(model_file).is_absolute() and (folder / model_file).is_file():
                return folder / model_file
        elif names:
            return folder / choose_graph(names, reference)
    existing = [p.relative_to(root).as_posix() for p in (*_graphs(home), *_graphs(root))]
    if model_file is not None and existing:
        raise FileNotFoundError(f"{reference!r} has no {model_file!r}; it has {', '.join(dict.fromkeys(existing))}.")
    raise _no_graph(reference, root, home)


def _only(names: Iterable[str]) -> str | None:
    listed = list(names)
    return listed[0] if len(listed) == 1 else None


def _no_graph(reference: str, root: Path, home: Path) -> NoGraphError:
    if any((home / name).exists() for name in _WEIGHTS) and (home / "config.json").exists():
        return NoGraphError(f"{reference!r} has no .onnx file, only weights for torch.", root)
    openvino = any(root.glob("openvino/*.xml")) or any(root.glob("*.xml"))
    remark = " (only a graph for OpenVINO)" if openvino else ""
    return NoGraphError(f"{reference!r} has no .onnx file{remark}. Export the model to ONNX, or pass another folder.")


def _of_graph(reference: str, path: Path, root: Path, revision: str | None) -> Source:
    """Return the source of a graph given by its path; files in the folder above apply to it, too."""
    modules = read_modules(root)
    homes = {role: root / modules[role][0].folder if modules[role] else root for role in ROLES}
    if homes["query"] != homes["document"]:
        raise ValueError(
            f"{reference!r} is one graph of a model that has one for queries and one for documents. Pass the folder {root}."
        )
    home = homes["document"]
    source = Source(reference, path, root, revision, home, _tokenizer_folder(home, root, path.parent))
    return source if modules["query"] == modules["document"] else replace(source, query=source)


def _root_of(path: Path) -> Path:
    """Return the folder of a graph's configuration: its own, or a parent.

    1. The nearest of three folders with modules.json: its own, its parent, or its grandparent if the graph is in the folder of
       one of its modules (`0_Transformer/onnx/model.onnx`).
    2. Else the nearest of the first two with another configuration file, such as 1_Pooling/config.json.
    3. Else the parent, if it has a tokenizer and the graph's own folder has none or is named onnx.
    """
    own, above, further = path.parent, path.parent.parent, path.parent.parent.parent
    if (further / "modules.json").exists() and not (own / "modules.json").exists():
        modules = read_modules(further)
        if any(further / module.folder == above != further for role in ROLES for module in modules[role]):
            return further
    for name in ("modules.json", *_RECIPE_FILES):
        for folder in (own, above):
            if (folder / name).exists():
                return folder
    return above if (not has_tokenizer(own) or own.name == "onnx") and has_tokenizer(above) else own


def _graphs(folder: Path) -> list[Path]:
    """Return the graphs of a folder; hidden files (of the operating system) are not graphs."""
    return sorted(p for p in (*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")) if not p.name.startswith("."))


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has tokenizer files."""
    return any((folder / name).exists() for name in _TOKENIZER_FILES)


def _tokenizer_folder(home: Path, *others: Path) -> Path:
    """Return the first folder with a tokenizer; the transformer's own if there is none."""
    return next((folder for folder in (home, *others) if has_tokenizer(folder)), home)


def choose_graph(names: Sequence[str], reference: str) -> str:
    """Return the default graph of a folder: a conventional name, or the only graph."""
    for usual in _USUAL_FILES:
        if usual in names:
            return usual
    if len(names) == 1:
        return names[0]
    if not names:
        raise NoGraphError(f"{reference!r} has no .onnx file. Export the model to ONNX, or pass another folder.")
    raise ValueError(
        f"{reference!r} has several graphs, none with a standard name: {', '.join(names)}. Pass the path of one, or its "
        "name as model_file=."
    )


def _from_hub(reference: str, hub_id: hub.HubId, *, refresh: bool, model_file: str | None) -> Source:
    try:
        snapshot = hub.fetch(
            reference,
            hub_id,
            model_file=model_file,
            refresh=refresh,
            choose=lambda names: choose_graph(names, reference),
            data_files=data_files,
        )
    except NoGraphError:  # the repository has no .onnx file: fetch the weights for an export
        if importlib.util.find_spec("torch") is None:
            raise NoGraphError(
                f"{reference!r} has no .onnx file, locally or on the Hub (HF_HUB_OFFLINE is "
                f"{os.environ.get('HF_HUB_OFFLINE', 'unset')}), and exporting its weights needs torch, which is not installed. "
                f"Install {install_hint('export')}, or run `penult export` on another machine and pass the folder "
                "that it writes."
            ) from None
        snapshot = hub.fetch(reference, hub_id, refresh=refresh, weights=True, data_files=data_files)
    if hub_id.file is not None:
        return _of_graph(reference, snapshot.folder / hub_id.file, snapshot.folder, snapshot.revision)
    return _in_folder(reference, snapshot.folder, snapshot.revision, snapshot.graph or model_file)


def weights_folder(reference: str) -> Path:
    """Return the folder of a model with weights for torch, fetched from the Hub if it is not local.

    Raises:
        FileNotFoundError: neither the folder nor a model of this name on the Hub exists.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    hub_id = hub.parse(reference)
    if hub_id is None:
        raise FileNotFoundError(
            f"No model at {reference!r}: it is not a local folder or a Hub id. {hub.hint(reference)}".rstrip()
        )
    return hub.fetch(reference, hub_id, weights=True, data_files=data_files).folder


def _hub_files(reference: str, *, refresh: bool) -> Path:
    """Return the folder with the configuration files of a Hub id."""
    hub_id = hub.parse(reference)
    if hub_id is None:
        raise FileNotFoundError(f"files_from={reference!r} is not a local folder or a Hub id. {hub.hint(reference)}".rstrip())
    return hub.fetch(reference, hub_id, refresh=refresh, data_files=data_files).folder


def _check_complete(model: Path) -> None:
    if not model.is_file():
        raise ValueError(f"{model} is not a file. Pass the model's folder or its .onnx file.")
    check_content(model, "model")
    if model.suffix == ".onnx" and (size := model.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{model} has {size:,} bytes; an ONNX file has at most {MOST_BYTES:,}. Download it again.")
    if missing := missing_data(model):
        raise FileNotFoundError(f"{model} has its weights in {', '.join(missing)}, which is missing. Download that file, too.")
    for name in data_files(model):
        if (model.parent / name).is_file():
            check_content(model.parent / name, "model's weights")
