"""All that decides a vector, and where each value came from.

A model's own folder says how it wants to be used (`modules.json`, `1_Pooling`, prompts, lengths); the caller may say
otherwise. The two together are a `Recipe`, and its hash, the fingerprint, tells vectors apart that must not be mixed.
This file reads JSON and nothing else: no graph, no weights, no session.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any, get_args

from penult.jsonfile import read_json, read_object, value_of
from penult.types import Pooling, Precision, Role, Truncate

Origin = Mapping[str, str]
WEIGHTS = "model.safetensors"  # of a dense layer, in its folder
_FORMAT = 1  # raise when the same recipe begins to give other vectors

_POOLING_NAMES: Mapping[str, Pooling] = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "lasttoken": "last",
    "last": "last",
}
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
_SIDES = ("right", "left")
_PLAIN = ("layer", "precision", "dimensions")  # wishes that no file answers
# Which of a model's prompts serves a role: the first name that it has, as in sentence-transformers' encode_query and
# encode_document.
_ROLE_PROMPTS: Mapping[Role, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer after the pooling: the folder of its weights (relative) and its activation."""

    folder: str
    activation: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows chosen by their ids instead of by the attention mask: all but `exclude_ids`, or only the first `only_id`."""

    exclude_ids: tuple[int, ...] = ()
    only_id: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a vector.

    Attributes:
        layer: the hidden state that is pooled: its number, a tensor's name, or None for the graph's own output.
        pooling: how the tokens become one vector. None: the graph's own pooled output `sentence_embedding`.
        steps: what follows the pooling, in order: dense layers and "normalize".
        dimensions: how many leading values are kept (then normalised again, if normalised). None: all.
        max_length: the most tokens of a text, specials included; what is longer is cut on `side`.
        prompts: what is put before a text, by role.
        rows: rows to pool, chosen by their ids. None: by the attention mask.
        batch_invariant: whether a text's vector is the same whatever it shares a batch with; no only for graphs that came
            with 8-bit scales measured on each batch.
        calibration_sha256: of the texts that int8 scales were found on; empty for fp32.
        include_prompt: whether the prompt's tokens count in the pooling.
        origin: where each value came from; not a part of the fingerprint.
    """

    layer: int | str | None
    pooling: Pooling | None
    steps: tuple[Dense | str, ...]
    dimensions: int | None
    max_length: int
    side: str
    prompts: Mapping[Role, str]
    include_prompt: bool
    precision: Precision
    rows: Rows | None = None
    batch_invariant: bool = True
    calibration_sha256: str = ""
    graph_sha256: str = ""
    tokenizer_sha256: str = ""
    origin: Origin = field(default_factory=dict, compare=False)

    @property
    def normalized(self) -> bool:
        """Whether vectors leave with length 1."""
        return bool(self.steps) and self.steps[-1] == "normalize"

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides a vector, 32 hexadecimal digits."""
        values = self.as_dict() | {"format": _FORMAT}
        del values["origin"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]

    def as_dict(self) -> dict[str, Any]:
        """Give the recipe as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a caller asks for, as in `Embedder.load`; None: as the model's files say."""

    layer: int | str | None = -1
    pooling: Pooling | None = None
    precision: Precision = "fp32"
    max_length: int | None = None
    truncate: Truncate = "warn"
    dimensions: int | None = None
    normalize: bool | None = None


def read(folder: Path, wishes: Wishes) -> Recipe:
    """Read how the model in a folder wants to be used; a wish that is not None stands above its files.

    Raises:
        ValueError: a wish is none of the allowed values, a file is no JSON, or the files name something that cannot
            be done (a pooling or a module penult does not have): vectors that are silently others are worse than none.
    """
    _check(wishes)
    given, default = asdict(wishes), asdict(Wishes())
    origin = {name: "argument" if given[name] != default[name] else "default" for name in _PLAIN}
    files = _Files(folder, origin)
    modules = files.modules()
    pooling, include_prompt = files.pooling(modules) if wishes.pooling is None else (wishes.pooling, True)
    if wishes.pooling is not None:
        origin["pooling"] = origin["include_prompt"] = "argument"
    return Recipe(
        layer=wishes.layer,
        pooling=pooling,
        steps=_normalized(files.steps(modules), wishes, origin),
        dimensions=wishes.dimensions,
        max_length=files.max_length(wishes.max_length),
        side=files.side(wishes.truncate),
        prompts=files.prompts(),
        include_prompt=include_prompt,
        precision=wishes.precision,
        origin=origin,
    )


def positions(folder: Path) -> int | None:
    """Read how many tokens of a text the model has positions for; None where no file says."""
    return _Files(folder, {}).positions()


def _check(wishes: Wishes) -> None:
    for name, given, allowed in (
        ("pooling", wishes.pooling, (None, *get_args(Pooling))),
        ("precision", wishes.precision, get_args(Precision)),
        ("truncate", wishes.truncate, get_args(Truncate)),
    ):
        if given not in allowed:
            raise ValueError(f"{name} is {given!r}; it must be one of {', '.join(map(repr, allowed))}.")
    for name, value in (("max_length", wishes.max_length), ("dimensions", wishes.dimensions)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")


def _normalized(steps: tuple[Dense | str, ...], wishes: Wishes, origin: dict[str, str]) -> tuple[Dense | str, ...]:
    if wishes.normalize is None:
        return steps
    origin["normalize"] = "argument"
    bare = steps[:-1] if steps and steps[-1] == "normalize" else steps
    return (*bare, "normalize") if wishes.normalize else bare


class _Files:
    """The configuration files of one folder; each answer notes its origin."""

    def __init__(self, folder: Path, origin: dict[str, str]) -> None:
        self._folder = folder
        self._origin = origin

    def _length(self, name: str, key: str) -> int | None:
        return _length(value_of(self._folder / name, key, int | float, "a number"))

    def modules(self) -> list[tuple[str, str]]:
        """List (kind, folder) of the sentence-transformers modules, in order; empty where there is no such file."""
        path = self._folder / "modules.json"
        listed = read_json(path) if path.exists() else []
        if not isinstance(listed, list):
            raise ValueError(f"{path} holds a {type(listed).__name__}; it must be a list of modules. Fetch it again.")  # noqa: TRY004
        found = []
        for module in listed:
            kind, folder = (module.get("type"), module.get("path", "")) if isinstance(module, dict) else (None, None)
            if not (isinstance(kind, str) and isinstance(folder, str)):
                raise ValueError(f"{path} lists a module without a type and a path that are strings; fetch it again.")  # noqa: TRY004
            if PurePath(folder).is_absolute() or ".." in PurePath(folder).parts or "\0" in folder or len(folder) > 255:
                raise ValueError(f"{path} names the folder {folder[:80]!r}, outside the model's own; put it inside.")
            found.append((kind.rpartition(".")[2], folder))
        return found

    def pooling(self, modules: list[tuple[str, str]]) -> tuple[Pooling | None, bool]:
        """Find the pooling and whether prompts count in it; (None, True) where no file says."""
        folders = [path for kind, path in modules if kind == "Pooling"]
        if not folders and (self._folder / "1_Pooling" / "config.json").exists():
            folders = ["1_Pooling"]
        if not folders:
            self._origin["pooling"] = "not stated by any file"
            return None, True
        name = f"{folders[0]}/config.json"
        path = self._folder / name
        config = read_object(path)
        stated = value_of(path, "pooling_mode", str | list, "a name or a list of names")
        modes = [stated] if isinstance(stated, str) else list(map(str, stated or []))
        for key, value in config.items():
            if key.startswith("pooling_mode_") and value is True:
                modes.append(key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token"))
        if len(modes) != 1 or modes[0] not in _POOLING_NAMES:
            raise ValueError(
                f"{self._folder / name} asks for the pooling {' + '.join(modes) or 'of no kind'}, which penult does not "
                f"have; it has {', '.join(get_args(Pooling))}. Name one with pooling=, knowing that vectors will differ."
            )
        self._origin["pooling"] = self._origin["include_prompt"] = name
        include_prompt = value_of(path, "include_prompt", bool, "true or false")
        return _POOLING_NAMES[modes[0]], include_prompt is not False

    def steps(self, modules: list[tuple[str, str]]) -> tuple[Dense | str, ...]:
        """List what follows the pooling."""
        self._origin["normalize"] = "modules.json" if modules else "default"
        found: list[Dense | str] = []
        for kind, path in modules:
            if kind == "Normalize":
                found.append("normalize")
            elif kind == "Dense":
                activation = str(
                    read_object(self._folder / path / "config.json").get("activation_function", "Tanh")
                ).rpartition(".")[2]
                if activation not in _ACTIVATIONS:
                    raise ValueError(
                        f"{self._folder / path} asks for the activation {activation!r}; penult has {', '.join(_ACTIVATIONS)}."
                    )
                found.append(Dense(path, activation))
            elif kind not in {"Transformer", "Pooling", "Dropout"}:
                raise ValueError(
                    f"{self._folder / 'modules.json'} has a module {kind!r}, which penult does not have; it has Transformer, "
                    "Pooling, Dense and Normalize. Leaving it out would give other vectors."
                )
        return tuple(found)

    def max_length(self, given: int | None) -> int:
        """Find the most tokens of a text: the caller's word, else the model's, never above its positions."""
        most = self.positions()
        if given is not None:
            if most is not None and given > most:
                raise ValueError(f"max_length is {given}; the model has {most} positions, that is the most.")
            self._origin["max_length"] = "argument"
            return given
        tokenizer = self._length("tokenizer_config.json", "model_max_length")
        own = self._length("sentence_bert_config.json", "max_seq_length")
        unknown = own is tokenizer is most is None
        truncation = value_of(self._folder / "tokenizer.json", "truncation", dict, "an object") if unknown else None
        for name, value in (
            ("sentence_bert_config.json", own),
            ("tokenizer_config.json", tokenizer),
            ("config.json", most),
            ("tokenizer.json", _length((truncation or {}).get("max_length"))),
        ):
            if value is not None:
                self._origin["max_length"] = name
                return value if most is None else min(value, most)
        self._origin["max_length"] = "default"
        return 512

    def positions(self) -> int | None:
        """Find how many positions the model has."""
        found = self._length("config.json", "max_position_embeddings") or self._length("config.json", "n_positions")
        # A table that is a few rows longer than a power of two keeps the extra ones for padding (514 = 512 + 2): positions
        # are then counted from the padding id + 1, and configurations do not all state that id.
        if found is not None and 1 <= found - (power := 1 << found.bit_length() - 1) <= 4:
            return power
        return found

    def side(self, truncate: Truncate) -> str:
        """Find the side on which a long text is cut."""
        if truncate in ("right", "left"):
            self._origin["side"] = "argument"
            return truncate
        path = self._folder / "tokenizer_config.json"
        stated: str | None = value_of(path, "truncation_side", str, "'right' or 'left'")
        if stated not in (None, *_SIDES):
            raise ValueError(f"{path}: truncation_side is {stated!r}; it must be 'right' or 'left'. Mend the file.")
        self._origin["side"] = "default" if stated is None else path.name
        return stated or "right"

    def prompts(self) -> dict[Role, str]:
        """Find the prompt of each role, "" where there is none."""
        path = self._folder / "config_sentence_transformers.json"
        named: dict[str, str] = value_of(path, "prompts", dict, "an object of strings") or {}
        default: str | None = value_of(path, "default_prompt_name", str, "the name of a prompt")
        wrong = [name for name, prompt in named.items() if not isinstance(prompt, str)]
        if wrong or default not in (None, *named):
            raise ValueError(
                f"{path}: prompts must be strings and default_prompt_name one of them; wrong is "
                f"{repr(wrong[0] if wrong else default)[:80]}. Mend the file."
            )
        self._origin["prompts"] = path.name if named else "default"
        other = "" if default is None else named[default]
        return {role: next((named[name] for name in names if name in named), other) for role, names in _ROLE_PROMPTS.items()}


def _length(value: object) -> int | None:
    """Take a stated length seriously only if it is one: files also hold 0, null and 1e30 for "no limit"."""
    return int(value) if isinstance(value, int | float) and 1 <= value <= 1_000_000 else None
