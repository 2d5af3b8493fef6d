"""Apply the settings of tokenizer_config.json to the parts of tokenizer.json, as transformers does.

A tokenizer class of transformers applies its settings over tokenizer.json (or rebuilds the same parts from them); a generic
class does not change the file's parts. Each part (normalizer, pre-tokenizer, post-processor) is JSON here, as in the file.
These are pure functions without tokenizer imports, so that nothing depends on a library's version.
"""

from collections.abc import Callable, Mapping
from typing import Any

from penult.core.config.tokenizer_config import TokenizerConfig

Part = dict[str, Any]

# Classes whose BertNormalizer is built from do_lower_case (default true), strip_accents (null), tokenize_chinese_chars (true).
_BERT = (
    "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "SqueezeBertTokenizer", "MobileBertTokenizer",
    "FunnelTokenizer", "LxmertTokenizer", "LayoutLMTokenizer", "LayoutLMv2Tokenizer", "MPNetTokenizer", "SplinterTokenizer",
    "DPRQuestionEncoderTokenizer", "DPRContextEncoderTokenizer", "DPRReaderTokenizer",
)  # fmt: skip
# Classes whose normalizer is a sequence with Lowercase according to do_lower_case, and whether it has NFKD and StripAccents
# according to keep_accents.
_SEQUENCE: Mapping[str, bool] = {
    "AlbertTokenizer": True, "RemBertTokenizer": True, "DebertaV2Tokenizer": False, "XLNetTokenizer": False,
}  # fmt: skip
# The default special tokens of a class, if no file names them.
_BRACKETS = ("[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]")
_ANGLES = ("<s>", "</s>", "<unk>", "<pad>", "<mask>")
_DEFAULT_TOKENS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys((*_BERT, "DebertaTokenizer", "DebertaV2Tokenizer"), _BRACKETS),
    **dict.fromkeys(("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer", "MvpTokenizer"), _ANGLES),
    **dict.fromkeys(("XLMRobertaTokenizer", "CamembertTokenizer"), _ANGLES),
    **dict.fromkeys(("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer"), ("<|endoftext|>",)),
    "MPNetTokenizer": ("<s>", "</s>", "[UNK]", "<pad>", "<mask>"),
    "FunnelTokenizer": ("<unk>", "<sep>", "<pad>", "<cls>", "<mask>", "<s>", "</s>"),
    "AlbertTokenizer": ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    "BigBirdTokenizer": ("<s>", "</s>", "<unk>", "<pad>", "[CLS]", "[SEP]", "[MASK]"),
}
# Classes with a ByteLevel pre-tokenizer, and their default for add_prefix_space.
_BYTE_LEVEL: Mapping[str, bool] = {
    "RobertaTokenizer": False, "BartTokenizer": False, "LongformerTokenizer": False, "LEDTokenizer": False,
    "MvpTokenizer": False, "DebertaTokenizer": False, "GPT2Tokenizer": False, "CodeGenTokenizer": False,
    "GPTNeoXTokenizer": False, "Qwen2Tokenizer": False, "MarkupLMTokenizer": False, "WhisperTokenizer": False,
    "BlenderbotTokenizer": True, "LayoutLMv3Tokenizer": True,
}  # fmt: skip
# Classes whose Metaspace pre-tokenizer follows add_prefix_space, and the prepend scheme for false.
_METASPACE: Mapping[str, str] = {
    "XLMRobertaTokenizer": "never", "CamembertTokenizer": "never", "AlbertTokenizer": "never",
    "BigBirdTokenizer": "never", "RemBertTokenizer": "never", "BarthezTokenizer": "never", "XGLMTokenizer": "never",
    "LlamaTokenizer": "never", "CodeLlamaTokenizer": "never", "DebertaV2Tokenizer": "first",
}  # fmt: skip
# Classes whose post-processor is built from add_bos_token and add_eos_token: their BOS and EOS, and the default of the flags
# (None: as in the file).
_ENDS: Mapping[str, tuple[str, str, bool | None]] = {
    "LlamaTokenizer": ("<s>", "</s>", None),
    "CodeLlamaTokenizer": ("<s>", "</s>", None),
    "GemmaTokenizer": ("<bos>", "<eos>", None),
    "CohereTokenizer": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", None),
    "GPTNeoXTokenizer": ("<|endoftext|>", "<|endoftext|>", False),
}


def default_tokens(config: TokenizerConfig) -> tuple[str, ...]:
    """Return the default special tokens of the tokenizer's class, for those that no file names."""
    return () if config.named else _DEFAULT_TOKENS.get(config.tokenizer_class or "", ())


def lowercase_first(normalizer: Part | None) -> Part | None:
    """Return a normalizer that lowercases first, unless it already has a Lowercase."""
    parts = _parts(normalizer)
    if any(part["type"] == "Lowercase" for part in parts):
        return normalizer
    return {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *parts]}


def _parts(normalizer: Part | None) -> list[Part]:
    """Return the parts of a sequence, or a single part as a list."""
    if normalizer is None:
        return []
    parts: list[Part] = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    return parts


def _mapped(part: Part | None, key: str, change: Callable[[Part], Part | None]) -> Part | None:
    """Apply a change to a part, or to each part of a sequence; None removes a part."""
    if part is None:
        return None
    if part["type"] != "Sequence":
        return change(part)
    parts = [new for inner in part[key] if (new := _mapped(inner, key, change)) is not None]
    return {**part, key: parts}


def normalizer(part: Part | None, config: TokenizerConfig) -> Part | None:
    """Return the normalizer according to do_lower_case, strip_accents, tokenize_chinese_chars and keep_accents."""
    name, flags = config.tokenizer_class, config.flags
    if name in _BERT or (name is None and config.has_model_type):  # only these classes have a BertNormalizer
        values = {
            "lowercase": flags.get("do_lower_case", True),
            "strip_accents": flags.get("strip_accents"),
            "handle_chinese_chars": flags.get("tokenize_chinese_chars", True),
        }
        return _mapped(part, "normalizers", lambda inner: inner | values if inner["type"] == "BertNormalizer" else inner)
    if name == "LlamaTokenizer" and flags.get("add_prefix_space") is False:
        return _mapped(part, "normalizers", lambda inner: None if inner["type"] == "Prepend" else inner)
    if name is not None and name in _SEQUENCE:
        parts = _parts(part)
        changed = _accents(parts, flags.get("keep_accents")) if _SEQUENCE[name] else parts
        changed = _lowercase(changed, flags.get("do_lower_case"))
        return part if changed == parts else {"type": "Sequence", "normalizers": changed}
    return part


def _accents(parts: list[Part], keep: bool | None) -> list[Part]:  # noqa: FBT001
    """Remove NFKD and StripAccents, or insert them before parts that lowercase and map characters."""
    present = any(part["type"] == "StripAccents" for part in parts)
    if keep and present:
        return [part for part in parts if part["type"] not in ("NFKD", "StripAccents")]
    if keep is False and not present:
        place = next((i for i, part in enumerate(parts) if part["type"] in ("Lowercase", "Precompiled")), len(parts))
        return [*parts[:place], {"type": "NFKD"}, {"type": "StripAccents"}, *parts[place:]]
    return parts


def _lowercase(parts: list[Part], setting: bool | None) -> list[Part]:  # noqa: FBT001
    """Remove Lowercase, or insert it: after StripAccents if there is one, since NFKD can produce capitals."""
    present = any(part["type"] == "Lowercase" for part in parts)
    if setting is False and present:
        return [part for part in parts if part["type"] != "Lowercase"]
    if setting and not present:
        place = next((i + 1 for i, part in enumerate(parts) if part["type"] == "StripAccents"), 0)
        return [*parts[:place], {"type": "Lowercase"}, *parts[place:]]
    return parts


def pre_tokenizer(part: Part | None, config: TokenizerConfig) -> Part | None:
    """Return the pre-tokenizer according to add_prefix_space."""
    name = config.tokenizer_class or ""
    stated = config.flags.get("add_prefix_space")
    prefix = _BYTE_LEVEL.get(name) if stated is None else stated

    def change(inner: Part) -> Part:
        if inner["type"] == "ByteLevel" and name in _BYTE_LEVEL:
            return inner | {"add_prefix_space": prefix}
        if inner["type"] == "Metaspace" and name in _METASPACE and stated is not None:
            return inner | {"prepend_scheme": _scheme(inner, name, stated=stated)}
        return inner

    return _mapped(part, "pretokenizers", change)


def _scheme(part: Part, name: str, *, stated: bool) -> str:
    if not stated:
        return _METASPACE[name]
    return "always" if part.get("prepend_scheme") == _METASPACE[name] else str(part.get("prepend_scheme", "always"))


def post_processor(part: Part | None, config: TokenizerConfig, token_id: Callable[[str], int | None]) -> Part | None:
    """Return the post-processor according to add_bos_token and add_eos_token.

    A template with CLS or SEP is kept. A false flag removes its token only if the class builds its template from the flags; for
    other classes (Qwen2, GPT-2) the file's template is the author's choice.

    Args:
        part: the file's own post-processor.
        config: the settings.
        token_id: returns the id of a token, or None if the vocabulary lacks it.

    Raises:
        ValueError: the vocabulary lacks a token to add.
    """
    bos, eos, absent = _ENDS.get(config.tokenizer_class or "", (None, None, None))
    for flag, office, default, at in (("add_bos_token", "bos_token", bos, 0), ("add_eos_token", "eos_token", eos, -1)):
        setting = config.flags.get(flag, absent)
        token = config.token(office) or (default if default is not None and token_id(default) is not None else None)
        if setting is None or token is None or (setting is False and bos is None) or _is_bert_like(part, config):
            continue
        index = token_id(token)
        if setting and index is None:
            raise ValueError(
                f"{config.place(flag)}: {flag} is true, but the vocabulary has no {office} {token[:80]!r}. Download the "
                "tokenizer's files again."
            )
        part = _with_end(part, token, index, at=at) if setting else _without_end(part, token, at=at)
    return part


def _is_bert_like(part: Part | None, config: TokenizerConfig) -> bool:
    """Return whether a post-processor adds CLS or SEP to a text."""
    if part is None:
        return False
    if part["type"] == "Sequence":
        return any(_is_bert_like(inner, config) for inner in part["processors"])
    ends = {config.token("cls_token"), config.token("sep_token"), "[CLS]", "[SEP]"} - {None}
    pieces = [piece.get("SpecialToken", {}).get("id") for piece in part.get("single", [])]
    return part["type"] in ("BertProcessing", "RobertaProcessing") or not ends.isdisjoint(pieces)


def _with_end(processor: Part | None, token: str, index: int | None, *, at: int) -> Part | None:
    """Add a token at the start (`at` 0) or the end (-1) of the template, unless it already has a special token there."""
    if processor is None or processor["type"] == "ByteLevel":
        template: Part = {"type": "TemplateProcessing", "special_tokens": {}, "single": [_sequence("A", 0)]}
        template["pair"] = [_sequence("A", 0), _sequence("B", 1)]
        added = _with_end(template, token, index, at=at)
        return added if processor is None else {"type": "Sequence", "processors": [processor, added]}
    if processor["type"] == "Sequence":
        parts: list[Part] = processor["processors"]
        place = next((i for i, part in enumerate(parts) if part["type"] not in ("ByteLevel", "Sequence")), None)
        if place is None:
            return {**processor, "processors": [*parts, _with_end(None, token, index, at=at)]}
        return {**processor, "processors": [*parts[:place], _with_end(parts[place], token, index, at=at), *parts[place + 1 :]]}
    if processor["type"] != "TemplateProcessing" or (processor["single"] and "SpecialToken" in processor["single"][at]):
        return processor
    piece = {"SpecialToken": {"id": token, "type_id": 0}}
    single = [piece, *processor["single"]] if at == 0 else [*processor["single"], piece]
    tokens = processor["special_tokens"] | {token: {"id": token, "ids": [index], "tokens": [token]}}
    return {**processor, "single": single, "special_tokens": tokens}


def _without_end(processor: Part | None, token: str, *, at: int) -> Part | None:
    """Remove a token from the start or the end of the template, if it is exactly this token."""

    def change(part: Part) -> Part:
        single = part.get("single") if part["type"] == "TemplateProcessing" else None
        if single and single[at].get("SpecialToken", {}).get("id") == token:
            return {**part, "single": single[1:] if at == 0 else single[:-1]}
        return part

    return _mapped(processor, "processors", change)


def _sequence(name: str, type_id: int) -> Part:
    return {"Sequence": {"id": name, "type_id": type_id}}
