"""Read the configuration of each module of a sentence-transformers folder, as steps on the embeddings.

Every module has an allow-list of keys. A key that affects vectors is used, a key known to be harmless is skipped, and any other
is an error, because ignoring it would change the vectors. The order of the modules and the feature that each one reads
(`module_input_name`) determine whether a step is before or after pooling.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penult.core.config.config_json import read_object, value_of
from penult.core.config.modules import LATE_INTERACTION, Module
from penult.graph.activations import ACTIVATIONS
from penult.types import Pooling

TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"

_POOLINGS: Mapping[str, Pooling] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean",
    "lasttoken": "last",
    "last": "last",
}
# The older flags, in the order in which sentence-transformers concatenates their poolings.
_FLAGS: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}
_WIDTHS = ("embedding_dimension", "word_embedding_dimension")


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer: the folder of its weights (relative to the model's) and its activation.

    Attributes:
        residual: "" none, "same" x + f(x), "projected" x R + f(x).
        bias: whether the layer has a bias.
    """

    folder: str
    activation: str
    residual: str = ""
    bias: bool | None = None


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """A layer norm: the folder of its weights."""

    folder: str


Step = Dense | LayerNorm | str


@dataclass(frozen=True, slots=True)
class Stated:
    """Combined configuration of the modules.

    Attributes:
        token_steps: steps applied to every token before pooling, in order.
        pooling: pooling modes. None: no module pools.
        include_prompt: whether pooling includes the prompt's tokens.
        steps: steps after pooling, in order.
        width: H that the first of these modules expects. None: not stated.
        vector_width: D of the last module's output. None: not stated.
        pooling_file: file that states the pooling, relative to the model's folder.
    """

    token_steps: tuple[Step, ...] = ()
    pooling: tuple[Pooling, ...] | None = None
    include_prompt: bool = True
    steps: tuple[Step, ...] = ()
    width: int | None = None
    vector_width: int | None = None
    pooling_file: str = ""


@dataclass(slots=True)
class _Chain:
    """The modules read so far."""

    root: Path
    feature: str  # output feature of the last module
    pools: bool = True  # whether one of the modules pools
    explicit: tuple[Pooling, ...] | None = None  # the explicit argument, which overrides the module's own pooling
    tokens: list[Step] = field(default_factory=list)
    after: list[Step] = field(default_factory=list)
    pooling: tuple[Pooling, ...] | None = None
    include_prompt: bool = True
    pooling_file: str = ""
    widths: list[int | None] = field(default_factory=list)

    def expect(self, width: int | None, path: Path) -> None:
        """Record the width that a module expects; it must equal the output width of the previous module."""
        if not self.widths:
            self.widths.append(width)
        elif self.widths[-1] is None:
            self.widths[-1] = width
        elif width is not None and width != self.widths[-1]:
            raise ValueError(
                f"{path} expects embeddings of {width} values, but the module before it outputs {self.widths[-1]}. "
                + ("Pass another pooling, or omit it." if self.explicit else "Fix the files, or download them again.")
            )


def read_steps(root: Path, modules: Sequence[Module], pooling: tuple[Pooling, ...] | None = None) -> Stated:
    """Return the steps of the modules after the transformer; an explicit pooling overrides that of the files.

    Raises:
        FileNotFoundError: a module's folder or configuration is missing.
        ValueError: a configuration has an unknown key or value, or the widths of the modules do not match.
    """
    inputs = [module for module in modules if module.is_input]
    if modules and (not modules[0].is_input or len(inputs) > 1):
        raise ValueError(
            f"{root / 'modules.json'} lists {', '.join(m.kind for m in modules)}; penult supports one module that takes text, "
            "as the first, and the modules after it."
        )
    tokens = not modules or modules[0].kind == "Transformer"
    chain = _Chain(root, TOKENS if tokens else SENTENCE, any(module.kind == "Pooling" for module in modules), pooling)
    for module in modules[1:]:
        _READERS[module.kind](chain, module)
    return Stated(
        tuple(chain.tokens),
        chain.pooling,
        chain.include_prompt,
        tuple(chain.after),
        chain.widths[0] if chain.widths else None,
        chain.widths[-1] if chain.widths else None,
        chain.pooling_file,
    )


def read_pooling(root: Path) -> Stated:
    """Return the configuration in 1_Pooling of a folder without modules.json, as in some mirrors; empty if missing."""
    if not (root / "1_Pooling" / "config.json").exists():
        return Stated()
    chain = _Chain(root, TOKENS)
    _pooling(chain, Module("Pooling", "1_Pooling", "sentence_transformers.models.Pooling"))
    return Stated((), chain.pooling, chain.include_prompt, (), chain.widths[0], chain.widths[-1], chain.pooling_file)


def check_keys(path: Path, config: Iterable[str], known: Iterable[str]) -> None:
    """Raise an error for a key that is not in the allow-list.

    Raises:
        ValueError: there is such a key.
    """
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ValueError(
            f"{path} states {unknown[0][:80]!r}, which penult does not support: vectors could differ. Supported: "
            f"{', '.join(sorted(known))}."
        )


def late_interaction(root: Path, modules: Sequence[Module], stated: Stated) -> str:
    """Return a description of a model whose modules output one vector per token; empty if they pool or there are none."""
    if not modules or stated.pooling is not None or modules[0].kind != "Transformer":
        return ""
    return f"{root} is {LATE_INTERACTION} (modules.json has no Pooling). Load a text embedding model."


def _config(chain: _Chain, module: Module, known: Iterable[str], *, needed: bool = True) -> tuple[Path, dict[str, Any]]:
    path = chain.root / module.folder / "config.json"
    if not path.exists():
        if needed:
            raise FileNotFoundError(
                f"modules.json names the module {module.kind} in {module.folder!r}, but {path} is missing. Download the whole "
                "model."
            )
        return path, {}
    config = read_object(path)
    check_keys(path, config, known)
    return path, config


def _feature(path: Path, default: str) -> str:
    """Return the feature that a module changes; raise an error if it reads one and writes another."""
    name = value_of(path, "module_input_name", str, "the name of a feature") or default
    output = value_of(path, "module_output_name", str, "the name of a feature") or name
    if name not in (TOKENS, SENTENCE) or output != name:
        raise ValueError(
            f"{path}: the module reads {name[:80]!r} and writes {output[:80]!r}; penult supports modules that change "
            f"{TOKENS!r} or {SENTENCE!r} in place."
        )
    return str(name)


def _pooling(chain: _Chain, module: Module) -> None:
    known = (*_FLAGS, *_WIDTHS, "pooling_mode", "include_prompt")
    path, config = _config(chain, module, known, needed=chain.explicit is None)
    if chain.feature != TOKENS:
        raise ValueError(f"{path}: the input of this module is already pooled; penult supports one pooling.")
    chain.pooling = chain.explicit or _modes(path, config)
    chain.include_prompt = value_of(path, "include_prompt", bool, "true or false") is not False
    chain.pooling_file = f"{module.folder}/config.json"
    width = next((_width(path, key) for key in _WIDTHS if key in config), None)
    chain.expect(width, path)
    chain.feature = SENTENCE
    chain.widths.append(None if width is None else width * len(chain.pooling))


def _modes(path: Path, config: Mapping[str, Any]) -> tuple[Pooling, ...]:
    """Return the poolings; the newer key overrides the older flags, and without any flag it is the mean."""
    stated = value_of(path, "pooling_mode", str | list, "a name or a list of names")
    if stated:
        names = [stated] if isinstance(stated, str) else list(map(str, stated))
        wrong = [name for name in names if name not in _POOLINGS]
        if wrong:
            raise ValueError(
                f"{path} states the pooling {wrong[0][:80]!r}; penult supports {', '.join(_POOLINGS)}. "
                "To replace it, pass pooling=: vectors will differ."
            )
        if len(names) > len(_FLAGS):
            raise ValueError(f"{path} concatenates {len(names)} poolings; penult supports at most {len(_FLAGS)}.")
        return tuple(_POOLINGS[name] for name in names)
    return tuple(mode for flag, mode in _FLAGS.items() if config.get(flag)) or ("mean",)


def _dense(chain: _Chain, module: Module) -> None:
    known = ("in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name",
             "use_residual")  # fmt: skip
    path, config = _config(chain, module, known)
    steps = _steps_of(chain, path, _feature(path, SENTENCE))
    inputs, outputs = _width(path, "in_features"), _width(path, "out_features")
    chain.expect(inputs, path)
    chain.widths.append(outputs)
    residual = value_of(path, "use_residual", bool, "true or false") or False
    if residual and (inputs is None or outputs is None):
        raise ValueError(f"{path} has use_residual without in_features and out_features. Add both.")
    bias = value_of(path, "bias", bool, "true or false")
    steps.append(Dense(module.folder, _activation(path, config), _residual(inputs, outputs) if residual else "", bias))


def _residual(inputs: int | None, outputs: int | None) -> str:
    return "same" if inputs == outputs else "projected"


def _activation(path: Path, config: Mapping[str, Any]) -> str:
    """Return the name of the torch.nn class; sentence-transformers replaces all other classes by Tanh, with a warning."""
    stated = value_of(path, "activation_function", str, "the name of a class")
    if stated is None:
        return "Identity" if "activation_function" in config else "Tanh"
    package, _, name = str(stated).rpartition(".")
    if name not in ACTIVATIONS or package not in ("", "torch.nn", "torch.nn.modules.activation", "torch.nn.modules.linear"):
        raise ValueError(
            f"{path} states the activation {stated[:80]!r}; penult supports {', '.join(ACTIVATIONS)} of torch.nn. Omitting it "
            "would give other vectors."
        )
    return name


def _normalize(chain: _Chain, module: Module) -> None:
    path, _ = _config(chain, module, ("module_input_name", "module_output_name"), needed=False)
    feature = _feature(path, SENTENCE)
    if feature == SENTENCE and chain.feature == TOKENS:
        # sentence-transformers normalizes only existing features, and there is no sentence embedding before pooling. If no
        # module pools, the graph does.
        if not chain.pools:
            chain.after.append("normalize")
        return
    _steps_of(chain, path, feature).append("normalize")


def _layer_norm(chain: _Chain, module: Module) -> None:
    path, _ = _config(chain, module, ("dimension",))
    steps = _steps_of(chain, path, SENTENCE)
    width = _width(path, "dimension")
    chain.expect(width, path)
    steps.append(LayerNorm(module.folder))


def _dropout(chain: _Chain, module: Module) -> None:
    _config(chain, module, ("dropout",), needed=False)  # it has no effect at inference


def _steps_of(chain: _Chain, path: Path, feature: str) -> list[Step]:
    """Return the list of steps on a feature."""
    if feature != chain.feature:
        order = "before" if feature == SENTENCE else "after"
        raise ValueError(f"{path}: the module changes {feature!r} {order} the pooling, which penult does not support.")
    return chain.tokens if feature == TOKENS else chain.after


def _width(path: Path, key: str) -> int | None:
    value = value_of(path, key, int, "an integer")
    if value is not None and not 1 <= value <= 1_000_000:
        raise ValueError(f"{path}: {key} is {value}; it must be from 1 to 1,000,000. Download the file again.")
    return value if value is None else int(value)


_READERS = {"Pooling": _pooling, "Dense": _dense, "Normalize": _normalize, "LayerNorm": _layer_norm, "Dropout": _dropout}
