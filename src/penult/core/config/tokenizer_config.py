"""Tokenizer settings besides tokenizer.json: tokenizer_config.json and the two older files.

transformers applies these settings over tokenizer.json, so they affect token ids just as much. This module reads and merges
them without importing a tokenizer. `tokenizer_overrides` applies them.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any

from penult.core.config.config_json import check_content, read_object

_SIDES = ("right", "left")
_BOOLS = (
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "keep_accents",
    "add_prefix_space",
    "add_bos_token",
    "add_eos_token",
    "split_special_tokens",
)
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("extra_special_tokens", "additional_special_tokens")
USED = (*_BOOLS, *NAMED_TOKENS, *_LISTS, "added_tokens_decoder", "padding_side", "truncation_side", "model_max_length",
        "model_input_names")  # fmt: skip
# Origins of files, arguments of transformers and settings of decoding: none of them changes the ids of a text.
_HARMLESS = (
    "use_fast", "trust_remote_code", "cache_dir", "token", "use_auth_token", "revision", "code_revision", "local_files_only",
    "force_download", "resume_download", "proxies", "name_or_path", "padding", "truncation", "max_length", "max_len", "stride",
    "pad_to_multiple_of", "pad_token_type_id", "return_tensors", "verbose", "errors", "trim_offsets",
    "clean_up_tokenization_spaces", "chat_template", "processor_class", "use_default_system_prompt", "remove_space", "backend",
)  # fmt: skip

# All files that the first version of the fingerprint covered, in this order.
_LEGACY_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
_OLDER_FILES = (
    "vocab.json", "merges.txt", "tokenizer.model", "bpe.codes", "added_tokens.json", "special_tokens_map.json", "tekken.json",
)  # fmt: skip
VOCABULARIES = ("vocab.txt", "vocab.json", "bpe.codes", "tekken.json")


@dataclass(frozen=True, slots=True)
class Token:
    """An added token: its text and its matching flags (keys of tokenizers' AddedToken; absent: the default)."""

    content: str
    flags: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """The merged settings of a folder's tokenizer.

    Attributes:
        folder: folder of the files.
        tokenizer_class: class in transformers, without "Fast". None: no file states it.
        has_model_type: whether config.json states the architecture, by which transformers then chooses a class.
        flags: boolean settings. `strip_accents` may be None; all others are absent instead.
        named: special tokens by key (`pad_token` and the like).
        extra: further special tokens.
        decoder: added tokens by id, with their properties.
        from_file: file name of each setting's origin, "settings" for an argument.
        vocab_size: rows of the model's token embedding. None: config.json does not state it.
    """

    folder: Path
    tokenizer_class: str | None
    flags: Mapping[str, bool | None]
    named: Mapping[str, Token]
    extra: tuple[Token, ...]
    decoder: Mapping[int, Token]
    from_file: Mapping[str, str]
    vocab_size: int | None = None
    has_model_type: bool = False

    def place(self, key: str) -> str:
        """Return the origin of a setting, for an error."""
        return _place(self.folder, self.from_file.get(key, "tokenizer_config.json"))

    def token(self, office: str) -> str | None:
        """Return the special token of a key such as `pad_token`; None if no file names it."""
        return self.named[office].content if office in self.named else None


def read_config(folder: Path, settings: Mapping[str, object] | None = None) -> TokenizerConfig:
    """Read and merge the settings of the tokenizer in a folder, in the order of transformers.

    Args:
        folder: folder of tokenizer_config.json, if it exists.
        settings: keys that override those of tokenizer_config.json.

    Raises:
        ValueError: a file is not a JSON object, a value has the wrong type, or `settings` has an unsupported key.
    """
    config = read_object(folder / "config.json")
    values, from_file = _merged(folder, settings or {})
    stated = _stated_class(values, from_file, folder) or _text(config.get("tokenizer_class"))
    _check_settings(settings or {})
    where = {key: _place(folder, name) for key, name in from_file.items()}
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens")
    named = {
        key: _token(value, where[key], key)
        for key, value in values.items()
        if value and (key in NAMED_TOKENS or (_is_own_token(key) and isinstance(value, str | dict)))
    }
    named |= _named_extra(extra, where)
    return TokenizerConfig(
        folder,
        stated.removesuffix("Fast") if stated else None,
        {key: _flag(values[key], where[key], key) for key in _BOOLS if _is_stated(key, values)},
        named,
        _extra(extra, where),
        _decoder(values.get("added_tokens_decoder"), where),
        from_file,
        _vocab_size(config),
        _text(config.get("model_type")) is not None,
    )


def stated_side(folder: Path, settings: Mapping[str, object] | None = None) -> tuple[str | None, str]:
    """Return the truncation side, None if no file states it, and the name of the file that states it.

    Raises:
        ValueError: as `read_config`, or the side is neither "right" nor "left".
    """
    return _side(folder, settings, key="truncation_side", section="truncation")


def padding_side(folder: Path, settings: Mapping[str, object] | None = None) -> tuple[str | None, str]:
    """Return the padding side, None if no file states it, and the name of the file that states it."""
    return _side(folder, settings, key="padding_side", section="padding")


def gives_types(folder: Path, settings: Mapping[str, object] | None = None) -> bool:
    """Return whether the tokenizer returns segment ids; transformers omits them if model_input_names lacks them.

    Raises:
        ValueError: model_input_names is not a list.
    """
    path = folder / "tokenizer_config.json"
    names = (settings or {}).get("model_input_names") or read_object(path).get("model_input_names")
    if names is not None and not isinstance(names, list):
        raise ValueError(f"{path}: model_input_names is {short(names)}; it must be a list of names. Download the file again.")
    return names is None or "token_type_ids" in names


def decisive_files(folder: Path, settings: Mapping[str, object] | None = None) -> list[Path]:
    """Return every file of a folder that affects the ids of a text, in a fixed order, for the fingerprint.

    With a tokenizer.json, the older special_tokens_map.json and added_tokens.json are included only if they change something.
    """
    names = [name for name in _LEGACY_FILES if (folder / name).exists()]
    if "tokenizer.json" in names:
        names += _decisive_beside(folder, settings)
    else:
        models = sorted(path.name for path in folder.glob("*.model"))
        names += [name for name in (*_OLDER_FILES, *models) if (folder / name).exists() and name not in _LEGACY_FILES]
    return [folder / name for name in dict.fromkeys(names)]


def _merged(folder: Path, settings: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge the settings: arguments over special_tokens_map.json over tokenizer_config.json.

    The older special_tokens_map.json is used only if no `added_tokens_decoder` is stated, as in transformers.
    """
    values: dict[str, Any] = dict(read_object(folder / "tokenizer_config.json"))
    from_file = dict.fromkeys(values, "tokenizer_config.json")
    if "added_tokens_decoder" not in {**values, **settings}:
        for key, value in read_object(folder / "special_tokens_map.json").items():
            if key.endswith("_token") or key in _LISTS:
                values[key] = [*(values.get(key) or []), *value] if _both_lists(values.get(key), value) else value
                from_file[key] = "special_tokens_map.json"
    values |= settings
    from_file |= dict.fromkeys(settings, "settings")
    return values, from_file


def _both_lists(first: object, second: object) -> bool:
    return isinstance(first, list) and isinstance(second, list)


def _stated_class(values: Mapping[str, Any], from_file: Mapping[str, str], folder: Path) -> str | None:
    """Return the class that tokenizer_config.json states; a setting must equal it."""
    own = read_object(folder / "tokenizer_config.json").get("tokenizer_class")
    if from_file.get("tokenizer_class") != "settings":
        return _text(own)
    name = _text(values["tokenizer_class"])
    if own is not None and name is not None and name.removesuffix("Fast") != str(own).removesuffix("Fast"):
        raise ValueError(
            f"The tokenizer setting tokenizer_class is {name[:80]!r}, but {folder / 'tokenizer_config.json'} states "
            f"{str(own)[:80]!r}. Omit it."
        )
    return name


def _place(folder: Path, name: str) -> str:
    return "the tokenizer settings" if name == "settings" else str(folder / name)


def _check_settings(settings: Mapping[str, object]) -> None:
    unknown = [key for key in settings if key not in (*USED, *_HARMLESS, "tokenizer_class")]
    if unknown:
        raise ValueError(
            f"The tokenizer setting {str(unknown[0])[:80]!r} is not supported; supported: {', '.join(USED)}. "
            "Omitting it would give other vectors."
        )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _is_stated(key: str, values: Mapping[str, Any]) -> bool:
    return key in values and (values[key] is not None or key == "strip_accents")


def _flag(value: object, where: str, key: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{where}: {key} is {short(value)}; it must be true or false. Fix the file, or download it again.")
    return value


def _token(value: object, where: str, key: str) -> Token:
    """Parse a special token, written as a string or as an object with its properties."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise ValueError(f"{where}: {key} is {short(value)}; it must be a token. Fix the file, or download it again.")  # noqa: TRY004
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    flags = {name: value[name] for name in names if isinstance(value, dict) and isinstance(value.get(name), bool)}
    return Token(content, flags)


def _is_own_token(key: str) -> bool:
    """Return whether a key names a model-specific special token, such as `image_token`."""
    return key.endswith("_token") and key not in (*_BOOLS, *_HARMLESS)


def _named_extra(extra: object, where: Mapping[str, str]) -> dict[str, Token]:
    """Parse extra_special_tokens in its form with names."""
    place = next((where[name] for name in ("extra_special_tokens", *_LISTS) if name in where), "tokenizer_config.json")
    return {key: _token(value, place, key) for key, value in extra.items()} if isinstance(extra, dict) else {}


def _extra(extra: object, where: Mapping[str, str]) -> tuple[Token, ...]:
    if extra is None or isinstance(extra, dict):
        return ()
    key = next((name for name in _LISTS if name in where), "extra_special_tokens")
    if not isinstance(extra, list | tuple):
        raise ValueError(  # noqa: TRY004
            f"{where[key]}: {key} is {short(extra)}; it must be a list of tokens. Fix the file, or download it again."
        )
    return tuple(_token(value, where[key], key) for value in extra)


def _decoder(value: object, where: Mapping[str, str]) -> dict[int, Token]:
    key = "added_tokens_decoder"
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(
        str(index).isdecimal() and isinstance(item, dict) for index, item in value.items()
    ):
        raise ValueError(f"{where[key]}: {key} is {short(value)}; it must be tokens by id. Fix the file, or download it again.")
    return dict(sorted((int(index), _token(item, where[key], key)) for index, item in value.items()))


def _vocab_size(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config")
    for source in (config, text if isinstance(text, dict) else {}):
        size = source.get("vocab_size")
        if isinstance(size, int) and not isinstance(size, bool):
            return size
    return None


def _side(folder: Path, settings: Mapping[str, object] | None, *, key: str, section: str) -> tuple[str | None, str]:
    path = folder / "tokenizer_config.json"
    value, name, place = (settings or {}).get(key), "argument", "The tokenizer settings"
    if value is None:
        value, name, place = read_object(path).get(key), path.name, str(path)
        if key == "padding_side" and not (isinstance(value, str) and value):
            value = None  # tools write arbitrary values here; they do not affect vectors, since padding is masked
    if value is None:
        path = folder / "tokenizer.json"
        value, name, place, key = (_section(path, section) or {}).get("direction"), path.name, str(path), f"{section}.direction"
    if value is None:
        return None, "default"
    side = value.lower() if isinstance(value, str) and path.name == "tokenizer.json" else value
    if side not in _SIDES:
        raise ValueError(f"{place}: {key} is {short(value)}; it must be 'right' or 'left'. Fix the file.")
    return str(side), name


_HEAD = re.compile(r'\s*\{\s*"version"\s*:\s*"[^"]*"\s*,\s*"truncation"\s*:\s*')
_NEXT = re.compile(r'\s*,\s*"padding"\s*:\s*')
_HEAD_BYTES = 4096


def _section(path: Path, name: str) -> dict[str, Any] | None:
    """Return `truncation` or `padding` of tokenizer.json, from the head of the file, where tokenizers writes them."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    sections: dict[str, Any] = {}
    try:
        start = _HEAD.match(head)
        sections["truncation"], end = json.JSONDecoder().raw_decode(head, start.end() if start else len(head))
        start = _NEXT.match(head, end)
        sections["padding"], _ = json.JSONDecoder().raw_decode(head, start.end() if start else len(head))
    except ValueError:
        check_content(path, "tokenizer")
        sections = read_object(path)  # written by another program in another order
    value = sections.get(name)
    return value if isinstance(value, dict) else None


def _decisive_beside(folder: Path, settings: Mapping[str, object] | None) -> list[str]:
    """Return the older files that change something with a tokenizer.json."""
    stated = read_object(folder / "tokenizer_config.json") | dict(settings or {})
    if "added_tokens_decoder" in stated:
        return []  # then transformers reads neither file
    names = []
    added = read_object(folder / "added_tokens.json")
    older = read_object(folder / "special_tokens_map.json")
    named = {key: value for key, value in older.items() if _plain(value) != _plain(stated.get(key))}
    if not added and not named:
        return []
    check_content(folder / "tokenizer.json", "tokenizer")
    tokenizer = read_object(folder / "tokenizer.json")
    known = {_content(token) for token in _items(tokenizer.get("added_tokens"))}
    if not set(added) <= known:
        names.append("added_tokens.json")
    tokens = {_content(token) for value in named.values() for token in (_items(value) if isinstance(value, list) else [value])}
    if not tokens - {None} <= known or _decides_office(tokenizer, stated, named):
        names.append("special_tokens_map.json")
    return names


def _decides_office(tokenizer: Mapping[str, Any], stated: Mapping[str, Any], named: Mapping[str, Any]) -> bool:
    """Return whether a token that only the older file names replaces another token."""
    padding = tokenizer.get("padding")
    own = padding.get("pad_token") if isinstance(padding, dict) else None
    defaults: Mapping[str, Iterable[object]] = {"pad_token": (own, "[PAD]", "<pad>"), "cls_token": ("[CLS]", "<s>")}
    for office, names in defaults.items():
        known = {_content(token) for token in _items(tokenizer.get("added_tokens"))}
        without = _content(stated.get(office)) or next((name for name in names if name in known), None)
        if office in named and _content(named[office]) != without:
            return True
    return any(stated.get(f"add_{end}_token") is True and f"{end}_token" in named for end in ("bos", "eos"))


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _content(value: object) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _plain(value: object) -> object:
    """Return the text of a token, and any other value unchanged."""
    return value if _content(value) is None else _content(value)
