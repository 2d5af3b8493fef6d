"""Read the list of modules of a sentence-transformers folder, in order, for each role.

This module handles `modules.json`, `router_config.json` and the known classes. `module_config` reads the configuration of each
module, and `source` finds the graphs. An unknown class, or one of another kind of model (a reranker, a sparse encoder, late
interaction), is an error: ignoring it would change the vectors.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from penult.core.config.config_json import read_json, read_object, value_of
from penult.types import Role

ROLES: tuple[Role, ...] = ("document", "query")
INPUT_KINDS = ("Transformer", "StaticEmbedding", "CLIPModel")
_KINDS = (*INPUT_KINDS, "Pooling", "Dense", "Normalize", "LayerNorm", "Dropout", "Router", "Asym")
_SPARSE = ("MLMTransformer", "SpladePooling", "SparseAutoEncoder", "SparseStaticEmbedding", "CSRSparsity", "IDF")
_LATE_INTERACTION = ("MultiVectorMask", "TokenPooling")
_RERANKER = ("LogitScore",)
# Route names of each role, in the order of sentence-transformers.
_ROUTE_NAMES: Mapping[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus", "doc")}

_MOST_ROUTERS = 100  # models have one; small files could nest thousands

RERANKER = "a reranker (cross-encoder): it scores pairs of a query and a document, and has no text embeddings"
SPARSE = "a sparse encoder (SPLADE): its vectors have a weight for each word of the vocabulary"
LATE_INTERACTION = "a late-interaction model (ColBERT): it outputs one vector per token, not per text"
_MODEL_TYPES = {"CrossEncoder": RERANKER, "SparseEncoder": SPARSE, "MultiVectorEncoder": LATE_INTERACTION}


@dataclass(frozen=True, slots=True)
class Module:
    """A module: its class name, its folder inside the model's, and its full class path."""

    kind: str
    folder: str
    path: str

    @property
    def is_input(self) -> bool:
        """Whether the module turns text into embeddings."""
        return self.kind in INPUT_KINDS


def read_modules(folder: Path) -> dict[Role, tuple[Module, ...]]:
    """Return the modules of each role in order, with routers resolved; empty if there is no modules.json.

    Raises:
        ValueError: a file is invalid, a class is unknown, or the model is of a kind without text vectors.
    """
    _check_model_type(folder)
    path = folder / "modules.json"
    listed = read_json(path) if path.exists() or path.is_symlink() else []
    if not isinstance(listed, list):
        raise ValueError(f"{path} contains a {type(listed).__name__}; it must be a list of modules. Download it again.")  # noqa: TRY004
    modules = [_module(path, entry) for entry in listed]
    roles = {role: tuple(_flat(folder, path, modules, role)) for role in ROLES}
    for module in roles["document"] + roles["query"]:
        _check_kind(path, module)
    return roles


def _check_model_type(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    model_type: str | None = value_of(path, "model_type", str, "the name of a class")
    if model_type in (None, "SentenceTransformer"):
        return
    kind = _MODEL_TYPES.get(str(model_type))
    kind = kind or f"a {model_type}, which penult does not support"
    raise ValueError(f"{path.parent} is {kind}. Load a text embedding model.")


def _module(path: Path, entry: object) -> Module:
    kind, folder = (entry.get("type"), entry.get("path", "")) if isinstance(entry, dict) else (None, None)
    if not (isinstance(kind, str) and isinstance(folder, str)):
        raise ValueError(f"{path} lists a module whose type and path are not strings. Download it again.")  # noqa: TRY004
    return _named(path, kind, folder)


def _named(path: Path, kind: str, folder: str) -> Module:
    if PurePath(folder).is_absolute() or ".." in PurePath(folder).parts or "\0" in folder or len(folder) > 255:
        raise ValueError(f"{path} names the folder {folder[:80]!r}, outside the model's folder. Put it inside.")
    return Module(kind.rpartition(".")[2], folder, kind)


def _check_kind(path: Path, module: Module) -> None:
    for kinds, description in ((_SPARSE, SPARSE), (_LATE_INTERACTION, LATE_INTERACTION), (_RERANKER, RERANKER)):
        if module.kind in kinds:
            raise ValueError(f"{path.parent} is {description} (module {module.kind!r}). Load a text embedding model.")
    if module.path.startswith("pylate."):
        raise ValueError(f"{path.parent} is {LATE_INTERACTION} (module {module.path!r}). Load a text embedding model.")
    own = module.path.startswith("sentence_transformers.") or "." not in module.path
    if module.kind not in _KINDS or not (own or module.kind == "Transformer"):
        raise ValueError(
            f"{path} has a module {module.kind!r} ({module.path}); penult supports {', '.join(_KINDS)} of "
            "sentence-transformers. Omitting the module would give other vectors."
        )


def _flat(
    root: Path, path: Path, modules: list[Module], role: Role, *, depth: int = 0, routers: list[Path] | None = None
) -> list[Module]:
    """Return the modules of a role, each router replaced by the modules of its route; `routers` has those seen so far."""
    if depth > 4:  # no model nests routers so deeply
        raise ValueError(f"{path} nests routers more than four deep. Download it again.")
    flat: list[Module] = []
    routers = [] if routers is None else routers
    for module in modules:
        if module.kind not in ("Router", "Asym"):
            flat.append(module)
            continue
        config_path, config = _router_config(root / module.folder)
        routers.append(config_path)
        if len(routers) > _MOST_ROUTERS:
            raise ValueError(f"{path.parent} has more than {_MOST_ROUTERS} routers. Download it again.")
        types: Mapping[str, Any] = config["types"]
        route = _route(config_path, config, role)
        inner = []
        for name in config["structure"][route]:
            if not isinstance(name, str) or not isinstance(types.get(name), str):
                raise ValueError(f"{config_path} states no type for the module {str(name)[:80]!r}. Download it again.")  # noqa: TRY004
            place = (PurePosixPath(module.folder) / str(name)).as_posix()
            inner.append(_named(config_path, types[name], place))
        flat.extend(_flat(root, config_path, inner, role, depth=depth + 1, routers=routers))
    return flat


def _router_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Read a router's configuration; before sentence-transformers 4 the file was named config.json."""
    path = next((p for p in (folder / "router_config.json", folder / "config.json") if p.exists()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has no router_config.json, which modules.json needs. Download the whole model.")
    config = read_object(path)
    types, structure = config.get("types"), config.get("structure")
    lists = isinstance(structure, dict) and structure and all(isinstance(names, list) for names in structure.values())
    if not isinstance(types, dict) or not lists or not isinstance(config.get("parameters", {}), dict):
        raise ValueError(f"{path} must have the objects `types`, `structure` and `parameters`. Download it again.")
    return path, config


def _route(path: Path, config: Mapping[str, Any], role: Role) -> str:
    """Return the name of a role's route, as sentence-transformers' Router resolves it."""
    structure: Mapping[str, Any] = config["structure"]
    parameters: Mapping[str, Any] = config.get("parameters") or {}
    unknown = set(parameters) - {"default_route", "allow_empty_key", "route_mappings"}
    if unknown:
        raise ValueError(f"{path}: the router has the parameter {min(unknown)!r}, which penult does not support.")
    mappings = _route_mappings(path, parameters.get("route_mappings"))
    keys: tuple[tuple[object, object], ...] = ((role, "text"), (role, None), (None, "text"), (None, None))
    mapped = [mappings[key] for key in keys if key in mappings]
    named = [name for name in (*_ROUTE_NAMES[role], "text") if name in structure]
    route = next(iter(mapped + named), None)
    if route is None or route not in structure:
        raise ValueError(
            f"{path} has no route for a {role}; its routes are {', '.join(map(str, structure))}. Rename one of "
            f"them to {role!r}."
        )
    return route


def _route_mappings(path: Path, stated: object) -> dict[tuple[object, object], str]:
    """Parse keys like "('query', 'text')", the saved form of a tuple."""
    if not stated:
        return {}
    if not isinstance(stated, dict):
        raise ValueError(f"{path}: route_mappings must be an object. Download it again.")  # noqa: TRY004
    mappings: dict[tuple[object, object], str] = {}
    for key, route in stated.items():
        pair = _literal(key)
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(map(_is_name, pair)):
            raise ValueError(f"{path}: the route {key[:80]!r} is not a pair of task and modality. Download it again.")
        task, modality = pair
        if not isinstance(modality, tuple):  # several modalities at once: not plain text
            mappings[task, modality] = str(route)
    return mappings


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _is_name(value: object) -> bool:
    """Return whether a value is a name of a task or of modalities."""
    return value is None or isinstance(value, str) or (isinstance(value, tuple) and all(isinstance(v, str) for v in value))
