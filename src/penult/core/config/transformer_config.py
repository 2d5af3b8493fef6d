"""Read the configuration file of a Transformer module: lengths, lowercasing, tokenizer arguments, the output.

sentence-transformers stores it in `sentence_bert_config.json` or under one of six older names. As in `module_config`, a key
that affects vectors is used, a key known to be harmless is skipped, and any other is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penult.core.config.config_json import read_object, value_of
from penult.core.config.module_config import check_keys
from penult.core.config.modules import LATE_INTERACTION, RERANKER, SPARSE
from penult.types import Role

FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_KNOWN = (
    "max_seq_length", "do_lower_case", "query_length", "document_length", "query_expansion", "processing_kwargs",
    "transformer_task", "modality_config", "module_output_name", "tokenizer_args", "processor_kwargs",
    "model_args", "model_kwargs", "config_args", "config_kwargs", "unpad_inputs", "tokenizer_name_or_path", "backend",
)  # fmt: skip
# How torch loads and runs the weights; none of it affects an exported graph.
_HARMLESS_MODEL = (
    "torch_dtype", "dtype", "attn_implementation", "device_map", "trust_remote_code", "provider", "file_name", "export",
    "subfolder", "revision", "token", "cache_dir", "local_files_only", "use_safetensors", "low_cpu_mem_usage",
    "add_pooling_layer", "use_memory_efficient_attention", "unpad_inputs", "code_revision",
)  # fmt: skip
_HARMLESS_CONFIG = ("trust_remote_code", "use_cache", "revision", "token", "cache_dir", "local_files_only", "code_revision",
                    "use_memory_efficient_attention", "unpad_inputs")  # fmt: skip
_HARMLESS_TEXT = ("padding", "pad_to_multiple_of", "padding_side", "return_tensors", "return_attention_mask",
                  "return_token_type_ids", "return_length", "verbose", "logits_to_keep",
                  "truncation_side")  # fmt: skip
_TASKS = {"sequence-classification": RERANKER, "text-generation": RERANKER, "any-to-any": RERANKER,
          "fill-mask": SPARSE, "retrieval": LATE_INTERACTION}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Content of the file; `name` is empty if the file does not exist.

    Attributes:
        max_seq_length: maximum tokens per text.
        lengths: maximum tokens per text by role, which override `max_seq_length`.
        lowercase: whether to lowercase texts before the tokenizer.
        tokenizer: settings that override tokenizer_config.json.
        special_tokens: whether to add special tokens.
        output: output of the graph that the module returns, if it is not the last hidden state.
        layer: hidden state that the module returns, if it is not the last.
    """

    name: str = ""
    max_seq_length: int | None = None
    lengths: Mapping[Role, int] = field(default_factory=dict)
    lowercase: bool = False
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    special_tokens: bool = True
    output: str | None = None
    layer: int | None = None


def read_transformer(folder: Path) -> TransformerConfig:
    """Read the file in the folder of a Transformer module.

    Raises:
        ValueError: a key or a value is unknown, or states that the model has no text vectors.
    """
    path = next((folder / name for name in FILES if read_object(folder / name)), None)
    if path is None:
        return TransformerConfig()
    config = read_object(path)
    check_keys(path, config, _KNOWN)
    _check_task(path)
    for name in ("model_args", "model_kwargs"):
        check_keys(path, _object(path, name), _HARMLESS_MODEL)
    for name in ("config_args", "config_kwargs"):
        check_keys(path, _object(path, name), _HARMLESS_CONFIG)
    if config.get("query_expansion"):
        raise ValueError(f"{path.parent} is {LATE_INTERACTION} ({path.name} states query_expansion).")
    if value_of(path, "tokenizer_name_or_path", str, "a name") not in (None, "", "."):
        raise ValueError(f"{path} names the tokenizer of another model (tokenizer_name_or_path). Copy its files here.")
    common, text = _processing(path)
    lengths = _lengths(path, common, text)
    output, layer = _output(path)
    tokenizer = _object(path, "tokenizer_args") | _object(path, "processor_kwargs")
    return TransformerConfig(
        path.name,
        _length(path, config.get("max_seq_length"), "max_seq_length"),
        lengths,
        value_of(path, "do_lower_case", bool, "true or false") or False,
        tokenizer,
        (text | common).get("add_special_tokens") is not False,
        output,
        layer,
    )


def _check_task(path: Path) -> None:
    task = value_of(path, "transformer_task", str, "the name of a task")
    if task in (None, "feature-extraction"):
        return
    kind = _TASKS.get(task, f"a model for {task[:80]!r}")
    raise ValueError(f"{path.parent} is {kind} ({path.name} states the task {task[:80]!r}). Load a text embedding model.")


def _object(path: Path, name: str) -> dict[str, Any]:
    return dict(value_of(path, name, dict, "an object") or {})


def _processing(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tokenizer's call arguments: those of every modality, and those of text."""
    processing = _object(path, "processing_kwargs")
    check_keys(path, processing, ("common", "text", "audio", "image", "video", "chat_template"))
    known = ("max_length", "truncation", "add_special_tokens", *_HARMLESS_TEXT)
    parts = []
    for name in ("common", "text"):
        part = processing.get(name) or {}
        if not isinstance(part, dict):
            raise ValueError(  # noqa: TRY004
                f"{path}: processing_kwargs.{name} is {str(part)[:80]!r}; it must be an object. Download the file again."
            )
        check_keys(path, part, known)
        if part.get("truncation", True) in (None, False, "do_not_truncate"):
            raise ValueError(f"{path} disables truncation; penult always limits the length of a text.")
        parts.append(part)
    return parts[0], parts[1]


def _lengths(path: Path, common: Mapping[str, Any], text: Mapping[str, Any]) -> dict[Role, int]:
    """Return the maximum tokens per text by role; the tokenizer's call arguments override the role's own length."""
    called = {**text, **common}
    if "max_length" in called:
        length = _length(path, called["max_length"], "max_length")
        return {} if length is None else {"document": length, "query": length}
    keys: tuple[tuple[Role, str], ...] = (("document", "document_length"), ("query", "query_length"))
    stated = {role: _length(path, value_of(path, key, int, "an integer"), key) for role, key in keys}
    return {role: length for role, length in stated.items() if length is not None}


def as_length(value: object) -> int | None:
    """Return a stated length, or None if it is not one: files also contain 0, null and 1e30 for "no limit"."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 1_000_000 else None


def _length(path: Path, value: object, key: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{path}: {key} is {str(value)[:80]!r}; it must be a number. Fix the file, or download it again.")
    return as_length(value)


def _output(path: Path) -> tuple[str | None, int | None]:
    """Return the output, or the hidden state, of the text modality."""
    modalities = _object(path, "modality_config")
    if "message" in modalities:
        raise ValueError(
            f"{path} applies a chat template to every text (modality `message`), which penult does not support. Apply it to "
            "the texts yourself, and load a copy of the folder without `message` in modality_config."
        )
    if not modalities:
        return None, None
    if not isinstance(modalities.get("text"), dict):
        raise ValueError(  # noqa: TRY004 - a file is wrong, not an argument
            f"{path} has no modality `text` (it has {', '.join(map(str, modalities))}): the model does not take text."
        )
    text = modalities["text"]
    check_keys(path, text, ("method", "method_output_name", "format"))
    name, method = text.get("method_output_name"), text.get("method", "forward")
    feature = value_of(path, "module_output_name", str, "the name of a feature") or "token_embeddings"
    if feature not in ("token_embeddings", "sentence_embedding"):
        raise ValueError(
            f"{path}: the module outputs {feature[:80]!r}; penult supports token_embeddings or sentence_embedding."
        )
    if (method, name, feature) == ("forward", "last_hidden_state", "token_embeddings"):
        return None, None
    if isinstance(name, list) and len(name) == 2 and name[0] == "hidden_states" and type(name[1]) is int:
        return None, name[1]
    if feature == "sentence_embedding" and method in ("forward", "get_text_features"):
        return {"get_text_features": "text_embeds"}.get(method, str(name)), None
    raise ValueError(
        f"{path}: text goes through {str(method)[:80]!r} and gives {str(name)[:80]!r} as {feature}; penult supports forward's "
        "last_hidden_state, one of its hidden_states, or a vector that the graph outputs."
    )
