"""`Recipe`: all settings that determine a vector, and the origin of each.

The model's own files state its configuration (modules, pooling, prompts, lengths); explicit arguments override them. The hash
of a recipe is the fingerprint, which distinguishes vectors that must not be mixed. This module reads only JSON: no graphs,
weights or sessions.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from penult.core.config.config_json import value_of
from penult.core.config.module_config import Dense, LayerNorm, Stated, Step, late_interaction, read_pooling, read_steps
from penult.core.config.modules import LATE_INTERACTION, RERANKER, Module, read_modules
from penult.core.config.tokenizer_config import stated_side
from penult.core.config.transformer_config import TransformerConfig, as_length, read_transformer
from penult.types import Pooling, Precision, Role, Truncate

__all__ = ["Dense", "LayerNorm", "Overrides", "Recipe", "Rows", "Step", "positions", "read"]

Origin = Mapping[str, str]
NOT_STATED = "not stated by any file"
_FORMAT = 1  # increase when the same recipe gives other vectors than before
_PLAIN = ("layer", "precision")  # arguments that no file can state
# Names of the prompt for each role; the first that the model has is used. If it has none of them, a query has no prompt, as in
# sentence-transformers' encode_query, and a document has the prompt of default_prompt_name.
_ROLE_PROMPTS: Mapping[Role, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}
# The same for adapters that an input of the graph selects (jina-embeddings-v3's lora_adaptations).
_ROLE_TASKS: Mapping[Role, tuple[str, ...]] = {
    "query": ("retrieval.query", "query"),
    "document": ("retrieval.passage", "retrieval.document", "passage", "document"),
}
# Maximum tokens per text if neither a file nor a position table of the graph states it: the length of current long-context
# models. Static embeddings have no attention, so their cost is linear in the length.
_UNSTATED, _STATIC = 8192, 131_072
_MOST_VALUES = 1_000_000  # upper bound of tokens per text and values per vector, far beyond any model
# Fields that are always hashed, as in the first version. Any other field is hashed only if it differs from its default, so that
# a new field does not change older fingerprints.
_ALWAYS = ("layer", "pooling", "steps", "dimensions", "max_length", "side", "prompts", "include_prompt", "precision", "rows",
           "batch_invariant", "calibration_sha256", "graph_sha256", "tokenizer_sha256")  # fmt: skip
_NEVER = ("origin", "named_prompts", "width", "vector_width", "hint", "made_unit", "static", "stated_length")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to pool, selected by token ids instead of the attention mask: all but `exclude_ids`, or only the first `only_id`."""

    exclude_ids: tuple[int, ...] = ()
    only_id: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """All settings that determine a vector.

    Attributes:
        layer: hidden state to pool: its number, a tensor's name, or None for the graph's own output.
        pooling: pooling mode; several are concatenated. None: the graph's own `sentence_embedding`.
        steps: steps after pooling, in order: dense layers, layer norms, "layer_norm" (without weights) and "normalize".
        dimensions: number of leading values to keep. None: all.
        max_length: maximum tokens per text for any role, special tokens included; longer texts are truncated on `side`.
        prompts: prompt of each role, put before the text.
        rows: rows to pool, selected by their token ids. None: by the attention mask.
        batch_invariant: whether a text's vector is independent of the other texts in its batch; False only for exports whose
            own 8-bit scales are computed per batch.
        calibration_sha256: hash of the int8 calibration texts; empty for fp32.
        include_prompt: whether pooling includes the prompt's tokens.
        token_steps: steps applied to every token before pooling, in order.
        lengths: maximum tokens per text of each role for which the files state it.
        renormalize: whether to normalize again after `dimensions` cuts.
        output: output of the graph to use, if a file names one.
        lowercase: whether to lowercase texts before the tokenizer.
        tokenizer: settings that override tokenizer_config.json.
        special_tokens: whether to add special tokens.
        padding: whether texts of different lengths may share a batch; False if padding changes the vectors of real tokens.
        position_offset: position of a text's first token, for graphs with positions as an input.
        tasks: adapter number of each role, for graphs with that input.
        query: recipe of queries, for models with separate query modules.
        own_tokens: output that the export names as its hidden state, if it differs from the last layer found in the graph.
        tokenizer_rules: tokenizer class and vocabulary size by which tokenizer_config.json changes tokenizer.json.
        origin: origin of each value; this and all attributes below are not part of the fingerprint.
        named_prompts: all prompts that the files name.
        width: H that the modules expect. None: not stated.
        vector_width: D of the modules' output. None: not stated.
        hint: description of a model that seems to have no text vectors.
        made_unit: whether the graph itself normalizes.
        static: whether the model is a static embedding: a table of token vectors without a transformer.
        stated_length: maximum tokens per text as the files state it, before explicit arguments.
    """

    layer: int | str | None
    pooling: Pooling | tuple[Pooling, ...] | None
    steps: tuple[Step, ...]
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
    token_steps: tuple[Step, ...] = ()
    lengths: Mapping[Role, int] = field(default_factory=dict)
    renormalize: bool = True
    output: str | None = None
    lowercase: bool = False
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    special_tokens: bool = True
    padding: bool = True
    position_offset: int = 0
    tasks: Mapping[Role, int] = field(default_factory=dict)
    query: "Recipe | None" = None
    own_tokens: str | None = None
    tokenizer_rules: str = ""
    origin: Origin = field(default_factory=dict, compare=False)
    named_prompts: Mapping[str, str] = field(default_factory=dict, compare=False)
    width: int | None = field(default=None, compare=False)
    vector_width: int | None = field(default=None, compare=False)
    hint: str = field(default="", compare=False)
    made_unit: bool = field(default=False, compare=False)
    static: bool = field(default=False, compare=False)
    stated_length: int | None = field(default=None, compare=False)

    @property
    def unit_length(self) -> bool:
        """Whether output vectors have length 1."""
        return self.ends_normalized and (self.dimensions is None or self.renormalize)

    @property
    def ends_normalized(self) -> bool:
        """Whether vectors are normalized before `dimensions` cuts them."""
        return self.made_unit or bool(self.steps and self.steps[-1] == "normalize")

    @property
    def normalized(self) -> bool:
        """Whether output vectors have length 1."""
        return self.unit_length

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The pooling modes, in order; empty if the graph pools."""
        return () if self.pooling is None else (self.pooling,) if isinstance(self.pooling, str) else tuple(self.pooling)

    def longest(self, role: Role) -> int:
        """Return the maximum tokens per text of a role, special tokens included."""
        if role == "query" and self.query is not None:
            return self.query.longest(role)
        return min(self.max_length, self.lengths.get(role, self.max_length))

    @property
    def fingerprint(self) -> str:
        """Hash of all settings that determine a vector, 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self._hashed(), sort_keys=True).encode()).hexdigest()[:32]

    def _hashed(self) -> dict[str, Any]:
        values: dict[str, Any] = {"format": _FORMAT}
        for one in fields(self):
            value = getattr(self, one.name)
            default = one.default_factory() if callable(one.default_factory) else one.default
            if one.name == "renormalize" and not self.ends_normalized:
                continue  # nothing to normalize again
            if one.name in _ALWAYS or (one.name not in _NEVER and value != default):
                values[one.name] = _plain(value)
        if self.made_unit and self.dimensions is not None and self.renormalize:
            values["renormalized"] = True  # older versions did not
        return values

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values."""
        values = {one.name: _plain(getattr(self, one.name)) for one in fields(self) if one.name != "query"}
        return values | ({"query": self.query.as_dict()} if self.query is not None else {})


def _plain(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """Return a value as JSON. A dense layer's `bias` is omitted: its weights are hashed with the graph."""
    if isinstance(value, Recipe):
        return value._hashed()
    if isinstance(value, Dense):
        residual = {"residual": value.residual} if value.residual else {}
        return {"folder": value.folder, "activation": value.activation, **residual}
    if isinstance(value, LayerNorm):
        return {"layer_norm": value.folder}
    if isinstance(value, Rows):
        return asdict(value)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class Overrides:
    """Explicit arguments, which override the model's files; see `Embedder.load`. None: from the files."""

    layer: int | str | None = -1
    pooling: Pooling | Sequence[Pooling] | None = None
    precision: Precision = "fp32"
    max_length: int | None = None
    truncate: Truncate = "warn"
    dimensions: int | None = None
    normalize: bool | None = None
    layer_norm: bool = False
    prompts: Mapping[str, str] | None = None
    task: str | int | None = None


def read(folder: Path, overrides: Overrides, tokenizers: Mapping[Role, Path] | None = None) -> Recipe:
    """Read the configuration of the model in a folder; explicit arguments override it.

    Args:
        folder: folder of the model.
        overrides: explicit arguments.
        tokenizers: tokenizer folder of each role, if it is not the transformer's own.

    Raises:
        FileNotFoundError: a module's file is missing.
        ValueError: an argument has an invalid value, a file is not JSON, or the files state something that penult does not
            support (a module, a key, a pooling), so that the vectors would differ.
    """
    _check(overrides)
    modules = read_modules(folder)
    static = any(listed and listed[0].kind == "StaticEmbedding" for listed in modules.values())
    if static and (overrides.layer != -1 or overrides.pooling is not None):
        raise ValueError(f"{folder} is a static embedding: it has no layers and does its own pooling. Omit layer and pooling.")
    tokenizers = tokenizers or {}
    document = _Reader(folder, modules["document"], overrides, tokenizers.get("document")).recipe()
    if modules["query"] == modules["document"]:
        return document
    return replace(document, query=_Reader(folder, modules["query"], overrides, tokenizers.get("query")).recipe())


def positions(folder: Path) -> int | None:
    """Return the maximum tokens per text by the positions that config.json states; None if it states none."""
    rows = stated_positions(folder)
    return None if rows is None else usable_rows(rows)


def stated_positions(folder: Path) -> int | None:
    """Return the number of rows of the position table, as config.json states it."""
    path = folder / "config.json"
    return _length(path, "max_position_embeddings") or _length(path, "n_positions")


def usable_rows(rows: int) -> int:
    """Return the maximum tokens for a position table whose first position is unknown.

    A table a few rows longer than a power of two reserves the extra rows for padding (514 = 512 + 2): positions then count from
    the padding id + 1, and not every configuration states that id.
    """
    power = 1 << rows.bit_length() - 1
    return power if 1 <= rows - power <= 4 else rows


def pad_token_id(folder: Path) -> int | None:
    """Return the padding token id that config.json states."""
    token_id: int | None = value_of(folder / "config.json", "pad_token_id", int, "an integer")
    return token_id


def _check(overrides: Overrides) -> None:
    for name, value, allowed in (
        ("precision", overrides.precision, get_args(Precision)),
        ("truncate", overrides.truncate, get_args(Truncate)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")
    poolings = ", ".join(map(repr, get_args(Pooling)))
    listed = list(overrides.pooling) if isinstance(overrides.pooling, list | tuple) else [overrides.pooling]
    for pooling in listed or ["nothing"]:
        if pooling is not None and pooling not in get_args(Pooling):
            raise ValueError(f"pooling is {pooling!r}; it must be one of None, {poolings}, or a list of them.")
    if isinstance(overrides.layer, bool) or not isinstance(overrides.layer, int | str | None):
        raise TypeError(f"layer is {overrides.layer!r}; it must be an integer, a name or None.")
    for name, switch in (("normalize", overrides.normalize), ("layer_norm", overrides.layer_norm)):
        if not isinstance(switch, bool | None):
            raise TypeError(f"{name} is {switch!r}; it must be True or False.")
    _check_numbers(overrides)
    if overrides.task is not None and (isinstance(overrides.task, bool) or not isinstance(overrides.task, int | str)):
        raise TypeError(f"task is {overrides.task!r}; it must be a name or an integer.")
    _check_prompts(overrides.prompts)


def _check_numbers(overrides: Overrides) -> None:
    for name, value in (("max_length", overrides.max_length), ("dimensions", overrides.dimensions)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}; it must be an integer.")
        if not 1 <= value <= _MOST_VALUES:
            raise ValueError(f"{name} is {value}; it must be from 1 to {_MOST_VALUES:,}.")


def _check_prompts(prompts: object) -> None:
    if prompts is None:
        return
    if not isinstance(prompts, Mapping):
        raise TypeError(f"prompts is {repr(prompts)[:80]}; it must be a dict such as {{'query': 'query: ', 'document': ''}}.")
    for role, prompt in prompts.items():
        if role not in get_args(Role):
            raise ValueError(f"prompts has the role {str(role)[:40]!r}; it must be 'query' or 'document'.")
        if not isinstance(prompt, str):
            raise TypeError(f"the prompt of {role!r} is a {type(prompt).__name__}; it must be a str.")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"prompts has a lone surrogate in the prompt of {role!r}, which is not valid Unicode. Fix it."
            ) from None


class _Reader:
    """Reader of one folder's files for one list of modules; it records the origin of each value."""

    def __init__(self, root: Path, modules: Sequence[Module], overrides: Overrides, tokenizer: Path | None) -> None:
        self._root = root
        self._home = root / modules[0].folder if modules else root
        self._tokenizer = tokenizer or self._home
        self._modules = modules
        self._overrides = overrides
        default = Overrides()
        self._origin = {
            name: "argument" if getattr(overrides, name) != getattr(default, name) else "default" for name in _PLAIN
        }

    def recipe(self) -> Recipe:
        """Read all files and return the recipe."""
        overrides, kind = self._overrides, self._modules[0].kind if self._modules else "Transformer"
        static = kind == "StaticEmbedding"
        transformer = TransformerConfig(special_tokens=False) if static else read_transformer(self._home)
        stated = self._stated()
        pooling, include_prompt = self._pooling(stated)
        stated_length, origin = self._static_length() if static else self._base_length(transformer)
        max_length, lengths = self._lengths(transformer, stated_length, origin)
        dimensions, renormalize = self._dimensions()
        prompts, named = self._prompts()
        output = "text_embeds" if kind == "CLIPModel" and transformer.output is None else transformer.output
        layer = transformer.layer if overrides.layer == -1 and transformer.layer is not None else overrides.layer
        if layer != overrides.layer:
            self._origin["layer"] = transformer.name
        return Recipe(
            layer=layer,
            pooling=pooling,
            steps=self._after(stated.steps),
            dimensions=dimensions,
            max_length=max_length,
            side=self._side(transformer),
            prompts=prompts,
            include_prompt=include_prompt,
            precision=overrides.precision,
            token_steps=stated.token_steps,
            lengths=lengths,
            renormalize=renormalize,
            output=output,
            lowercase=transformer.lowercase,
            tokenizer=transformer.tokenizer,
            special_tokens=transformer.special_tokens,
            tasks=self._tasks(),
            origin=self._origin,
            named_prompts=named,
            width=stated.width,
            vector_width=stated.vector_width,
            hint=self._hint() or (late_interaction(self._root, self._modules, stated) if output is None else ""),
            static=static,
            stated_length=None if static else stated_length,
        )

    def _stated(self) -> Stated:
        pooling = self._overrides.pooling
        explicit = None if pooling is None else (pooling,) if isinstance(pooling, str) else tuple(pooling)
        if self._modules:
            return read_steps(self._root, self._modules, explicit)
        return read_pooling(self._root) if explicit is None else Stated(pooling=explicit)

    def _pooling(self, stated: Stated) -> tuple[Pooling | tuple[Pooling, ...] | None, bool]:
        """Return the pooling and whether it includes prompts; (None, True) if no file states it."""
        pooling = stated.pooling
        if self._overrides.pooling is not None:
            self._origin["pooling"] = "argument"
            self._origin["include_prompt"] = stated.pooling_file or "default"
            pooling = (self._overrides.pooling,) if isinstance(self._overrides.pooling, str) else tuple(self._overrides.pooling)
        elif pooling is None:
            self._origin["pooling"] = NOT_STATED
            return None, True
        else:
            self._origin["pooling"] = self._origin["include_prompt"] = stated.pooling_file
        return pooling[0] if len(pooling) == 1 else pooling, stated.include_prompt

    def _after(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """Return the steps after pooling, with the explicit arguments applied."""
        normalize, layer_norm = self._overrides.normalize, self._overrides.layer_norm
        if layer_norm:
            self._origin["layer_norm"] = "argument"
        asked = layer_norm or normalize is not None
        self._origin["normalize"] = "argument" if asked else "modules.json" if self._modules else "default"
        if not asked:
            return steps
        bare = steps[:-1] if steps and steps[-1] == "normalize" else steps
        bare = (*bare, "layer_norm") if layer_norm else bare
        return bare if normalize is False else (*bare, "normalize")

    def _lengths(self, transformer: TransformerConfig, base: int, origin: str) -> tuple[int, dict[Role, int]]:
        """Return the maximum tokens per text, and those of each role for which the files state them.

        Args:
            transformer: configuration that may state a length for a role.
            base: maximum tokens per text for all other roles.
            origin: file that states it.
        """
        argument = self._overrides.max_length
        if argument is not None:
            self._origin["max_length"] = "argument"
            return argument, {}
        lengths = {role: transformer.lengths.get(role, base) for role in get_args(Role)}
        if lengths["query"] == lengths["document"]:
            self._origin["max_length"] = transformer.name if transformer.lengths else origin
            return lengths["document"], {}
        self._origin["max_length"] = self._origin["lengths"] = transformer.name
        return max(lengths.values()), lengths

    def _static_length(self) -> tuple[int, str]:
        """Return the maximum tokens per text of a static embedding: the truncation in its tokenizer.json."""
        truncation = value_of(self._home / "tokenizer.json", "truncation", dict, "an object") or {}
        stated = as_length(truncation.get("max_length"))
        return (_STATIC, "default") if stated is None else (stated, "tokenizer.json")

    def _base_length(self, transformer: TransformerConfig) -> tuple[int, str]:
        """Return the maximum tokens per text for any role, and the file that states it.

        As in sentence-transformers, the positions of config.json only cap a length that the tokenizer states: models with
        rotary positions state lengths far beyond those of their initial training. A position table in the graph caps every
        length (`Embedder`).
        """
        home = self._home
        stated = stated_positions(home)
        tokenizer = _length(self._tokenizer / "tokenizer_config.json", "model_max_length")
        for value, name in (
            (as_length(transformer.tokenizer.get("model_max_length")), transformer.name),
            (transformer.max_seq_length, transformer.name),
        ):
            if value is not None:
                return value, name
        if tokenizer is not None:
            return (tokenizer if stated is None else min(tokenizer, stated)), "tokenizer_config.json"
        if stated is not None:
            return stated, "config.json"
        truncation = value_of(self._tokenizer / "tokenizer.json", "truncation", dict, "an object") or {}
        if (cut := as_length(truncation.get("max_length"))) is not None:
            return cut, "tokenizer.json"
        return _UNSTATED, "default"

    def _side(self, transformer: TransformerConfig) -> str:
        """Return the truncation side."""
        if self._overrides.truncate in ("right", "left"):
            self._origin["side"] = "argument"
            return self._overrides.truncate
        if self._modules and self._modules[0].kind == "StaticEmbedding":  # only its tokenizer.json is used
            truncation = value_of(self._home / "tokenizer.json", "truncation", dict, "an object") or {}
            self._origin["side"] = "tokenizer.json" if truncation else "default"
            return "left" if str(truncation.get("direction", "")).lower() == "left" else "right"
        side, name = stated_side(self._tokenizer, transformer.tokenizer)
        self._origin["side"] = "default" if side is None else name
        return side or "right"

    def _dimensions(self) -> tuple[int | None, bool]:
        """Return the number of values to keep, and whether to normalize them again.

        sentence-transformers cuts at `truncate_dim` after the last module and does not normalize again.
        """
        overrides = self._overrides
        path = self._root / "config_sentence_transformers.json"
        stated = value_of(path, "truncate_dim", int, "an integer")
        if overrides.dimensions is not None or stated is None:
            over = "" if stated is None else f", over truncate_dim of {path.name}"
            self._origin["dimensions"] = "default" if overrides.dimensions is None else f"argument{over}"
            return overrides.dimensions, True
        if not 1 <= stated <= _MOST_VALUES:
            raise ValueError(f"{path}: truncate_dim is {stated}; it must be from 1 to {_MOST_VALUES:,}. Fix the file.")
        self._origin["dimensions"] = path.name
        return int(stated), overrides.normalize is True

    def _prompts(self) -> tuple[dict[Role, str], dict[str, str]]:
        """Return the prompt of each role ("" for none), and all prompts that the files name."""
        path = self._root / "config_sentence_transformers.json"
        named: dict[str, str] = value_of(path, "prompts", dict, "an object of strings") or {}
        default: str | None = value_of(path, "default_prompt_name", str, "the name of a prompt")
        wrong = [name for name, prompt in named.items() if not isinstance(prompt, str)]
        if wrong or default not in (None, *named):
            raise ValueError(
                f"{path}: prompts must be strings, and default_prompt_name one of their names; invalid: "
                f"{repr(wrong[0] if wrong else default)[:80]}. Fix the file."
            )
        other = {"query": "", "document": "" if default is None else named[default]}
        prompts = {
            role: next((named[name] for name in names if name in named), other[role]) for role, names in _ROLE_PROMPTS.items()
        }
        self._origin["prompts"] = path.name if named else NOT_STATED
        for role in get_args(Role):
            if role in (self._overrides.prompts or {}):
                prompts[role] = (self._overrides.prompts or {})[role]
                self._origin["prompts"] = "argument"
        return prompts, named

    def _tasks(self) -> dict[Role, int]:
        """Return the adapter number of each role, if the files or an argument state it."""
        path, task = self._home / "config.json", self._overrides.task
        names: list[Any] = value_of(path, "lora_adaptations", list, "a list of names") or []
        if task is not None:
            self._origin["tasks"] = "argument"
            if isinstance(task, str):
                if task not in names:
                    known = ", ".join(map(repr, names)) or "none (pass its number)"
                    raise ValueError(f"task is {task!r}; the tasks in {path} are {known}.")
                task = names.index(task)
            if not 0 <= task < (len(names) or 1024):
                raise ValueError(f"task is {task}; it must be from 0 to {(len(names) or 1024) - 1}.")
            return dict.fromkeys(get_args(Role), int(task))
        tasks = {
            role: names.index(name)
            for role, candidates in _ROLE_TASKS.items()
            for name in reversed(candidates)
            if name in names
        }
        if tasks:
            self._origin["tasks"] = path.name
        return tasks

    def _hint(self) -> str:
        """Return a description of a model without modules whose configuration shows that it has no text vectors."""
        path = self._home / "config.json"
        named: list[Any] = value_of(path, "architectures", list, "a list of names") or []
        name = str(named[0]) if named else ""
        if self._modules:
            return ""
        instead = "Load a text embedding model."
        if name.endswith("ForSequenceClassification"):
            return f"{self._root} ({name}) is a classifier, or {RERANKER}. {instead}"
        if name.endswith(("ForTokenClassification", "ForQuestionAnswering")):
            return f"{self._root} is a token classifier ({name}), not a text embedding model. {instead}"
        if name.endswith(("ColBERT", "ForRetrieval")):
            return f"{self._root} is {LATE_INTERACTION} ({name}). {instead}"
        if name.endswith(("ForMultipleChoice", "ForNextSentencePrediction", "ForImageClassification")):
            return f"{self._root} is a classifier ({name}), not a text embedding model. {instead}"
        if name == "StaticModel":  # as model2vec saves it; its tokenizer and table state no settings
            return (
                f"{self._root} is a static embedding without a modules.json ({name}). Save it as a model of "
                "sentence-transformers (SentenceTransformer(modules=[StaticEmbedding.from_model2vec(FOLDER)])), and load "
                "that folder."
            )
        kinds = ("vision_config", "audio_config")
        if any(value_of(path, key, dict, "an object") for key in kinds) and value_of(path, "text_config", dict, "an object"):
            return (
                f"{self._root} takes texts and images or audio ({name or 'like CLIP'}), and no file states which output is "
                "the vector of a text. Export its text encoder with that output first (text_embeds), and pass layer=None."
            )
        return ""


def _length(path: Path, key: str) -> int | None:
    return as_length(value_of(path, key, int | float, "a number"))
