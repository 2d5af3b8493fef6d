"""The model's own tokenizer: text to token ids, with prompts, padding and counted truncation.

`tokenizer.json` is loaded and changed as tokenizer_config.json says. Its own padding and truncation are switched off (some
files pad everything to 128 tokens). Without a `tokenizer.json`, transformers builds the tokenizer from the older files. This
module does not depend on graphs.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as FastTokenizer

from penult.core.config import tokenizer_overrides
from penult.core.config.config_json import check_content, check_size, read_text
from penult.core.config.tokenizer_config import (
    USED,
    VOCABULARIES,
    Token,
    TokenizerConfig,
    gives_types,
    padding_side,
    read_config,
)
from penult.core.config.tokenizer_limits import MOST_WORD, check_normalizer
from penult.core.model_inputs import Padded
from penult.core.shutdown_guard import ShutdownGuard
from penult.core.text_cuts import AddedText, Cuts, cuts_of
from penult.core.tokenized import Tokenized
from penult.core.truncation import Truncation, around
from penult.core.word_places import WordPlaces
from penult.extras import install_hint
from penult.types import PromptError

BARE = TokenizerConfig(Path(), None, {}, {}, (), {}, {})  # tokenizer.json only, as for a static embedding
BEYOND_FILE = ("RoFormerTokenizer",)  # classes with a step that tokenizer.json cannot represent: word segmentation by jieba


@dataclass(frozen=True, slots=True)
class Piece:
    """A token and its offsets in the text.

    Attributes:
        id: token id.
        text: the part of the text that the token covers, or the name of a special token.
        start: index of its first character. None: a special token, or the tokenizer has no offsets.
        stop: index after its last character.
        special: whether the template added the token (CLS, SEP, BOS, EOS).
    """

    id: int
    text: str
    start: int | None = None
    stop: int | None = None
    special: bool = False


class Tokenizer:
    """The tokenizer of a model. Thread-safe; its methods are pure.

    Args:
        folder: folder of the tokenizer's files.
        max_length: maximum tokens per text, special tokens included.
        side: side on which a longer text is truncated, "right" or "left".
        settings: keys that override those of tokenizer_config.json.
        lowercase: lowercase every text before the tokenizer's own normalizer, as `do_lower_case` of
            sentence_bert_config.json does.
        add_special_tokens: whether to add the special tokens of the template (CLS, SEP, BOS, EOS).
        alone: whether to read only tokenizer.json, without the files beside it, as for a static embedding.
        may_be_bare: whether a length may leave room for special tokens only, as in DeepSparse.

    Attributes:
        special_tokens: number of special tokens added to each text.
        pad_token_id: id of the padding token. None: the tokenizer has none, and rows are padded with `pad_id` all the same.
        overridden: tokenizer class and vocabulary size by which tokenizer_config.json changes the behavior of tokenizer.json;
            empty if it does not.
        cls_token_id: id of the CLS token. None: the tokenizer has none.

    Raises:
        FileNotFoundError: the folder has no tokenizer.
        ValueError: a file or a setting is invalid, the template repeats the text, or `max_length` leaves no room beside the
            special tokens.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_length: int,
        side: str = "right",
        settings: Mapping[str, object] | None = None,
        lowercase: bool = False,
        add_special_tokens: bool = True,
        alone: bool = False,
        may_be_bare: bool = False,
    ) -> None:
        self._guard = ShutdownGuard()
        self._folder = folder
        config = BARE if alone else read_config(folder, settings)
        self._tokenizer, self.overridden = _load(folder, config, settings or {}, lowercase=lowercase)
        self._special_ids = frozenset(
            index for token in (*config.named.values(), *config.extra) if (index := self.token_id(token.content)) is not None
        )
        self._add_special_tokens = add_special_tokens
        self._may_be_bare = may_be_bare
        self.max_length = max_length
        self.special_tokens = 0
        if add_special_tokens:
            self.special_tokens = _count(lambda: self._tokenizer.num_special_tokens_to_add(is_pair=False), folder)
        self._check_length("max_length", max_length)
        own = self._tokenizer.padding or {}
        self._typed = alone or gives_types(folder, settings)
        self.pad_side = "right" if alone else padding_side(folder, settings)[0] or "right"
        self.pad_token_id = self._first_id(config.token("pad_token"), own.get("pad_token"), "[PAD]", "<pad>")
        self.pad_id = int(own.get("pad_id") or 0) if self.pad_token_id is None else self.pad_token_id
        self.cls_token_id = self._first_id(config.token("cls_token"), _stated_cls(self._tokenizer), "[CLS]")
        self._tokenizer.no_padding()
        if not isinstance(self._tokenizer, _Slow):
            self._check_template(self._tokenizer)
        self._side = side
        self._truncation = Truncation(
            self._encode,
            partial(_cuts_of, self._tokenizer),
            partial(_word_places_of, self._tokenizer),
            side=side,
            special_tokens=self.special_tokens,
        )

    def tokenize(self, texts: Sequence[str], prompt: str = "", limit: int | None = None) -> Tokenized:
        """Return texts as token ids, the prompt put before each.

        Args:
            texts: the texts.
            prompt: put before each text.
            limit: maximum tokens per text, if it is less than `max_length`.

        Raises:
            TypeError: a text is not a str, or contains a lone surrogate; see `unencodable`.
            PromptError: the prompt leaves no room for a text.
            TextError: a text is too long and has no place where it may be cut; see `truncation`.
            ValueError: the vocabulary lacks a part of a text and has no unknown token, or `limit` leaves no room beside the
                special tokens.
        """
        most = self.max_length
        if limit is not None:
            self._check_length("limit", limit)
            most = min(limit, most)
        if not all(isinstance(text, str) for text in texts):
            self._encode(list(texts))  # raises the error of tokenizers
        rows = self._truncation.read((prompt + text for text in texts) if prompt else texts, most)
        prompt_tokens = self._prompt_tokens(prompt, most) if prompt else 0
        return Tokenized.of(
            [row.ids for row in rows],
            [row.types for row in rows] if self._typed else None,
            [row.dropped for row in rows],
            prompt_tokens,
            [not row.whole for row in rows],
        )

    def token_id(self, token: str) -> int | None:
        """Return the id of a token; None if the vocabulary lacks it."""
        index: int | None = self._tokenizer.token_to_id(token)
        return index

    def pieces(self, text: str, *, special_tokens: bool = True) -> list[Piece]:
        """Return all tokens of a text, without truncation.

        Args:
            text: the text.
            special_tokens: whether to add the special tokens of the template.
        """
        add = special_tokens and self._add_special_tokens
        if isinstance(self._tokenizer, _Slow):
            return self._tokenizer.pieces(text, add_special_tokens=add)
        with self._guard:
            encoding = self._tokenizer.encode(text, add_special_tokens=add)
        pieces = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
        return [
            Piece(index, token, special=True) if special else Piece(index, text[start:stop] or token, start, stop)
            for index, token, (start, stop), special in pieces
        ]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; unknown ids are left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def pad(
        self, tokenized: Tokenized, rows: Sequence[int], length: int, *, pool_prompt: bool = True, side: str | None = None
    ) -> Padded:
        """Return B texts, padded to (B, `length`).

        Args:
            tokenized: texts tokenized by this tokenizer.
            rows: indices of the B texts.
            length: T; no row may be longer.
            pool_prompt: whether the pooling mask includes the prompt's tokens.
            side: padding side, "right" or "left". None: from the model's files.
        """
        shape = (len(rows), length)
        ids, mask, types = np.full(shape, self.pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        pooling: NDArray[np.int64] | None = None if pool_prompt else np.zeros(shape, np.int64)
        for b, row in enumerate(rows):
            begin, end = tokenized.starts[row], tokenized.starts[row + 1]
            count = end - begin
            start = length - count if (side or self.pad_side) == "left" else 0
            ids[b, start : start + count] = tokenized.flat_ids[begin:end]
            types[b, start : start + count] = tokenized.flat_types[begin:end]
            mask[b, start : start + count] = 1
            if pooling is not None:
                pooling[b, start + min(tokenized.prompt_tokens[row], count) : start + count] = 1
        return Padded(ids, mask, types, pooling)

    def _check_template(self, tokenizer: FastTokenizer) -> None:
        # Truncation counts a text once; a template that repeats it would exceed the model's length.
        most = self.special_tokens + 1
        tokenizer.enable_truncation(most)
        if (count := len(self._encode(["a b c d"])[0].ids)) > most:
            raise ValueError(
                f"{self._folder}: the tokenizer returns {count} tokens where at most {most} are possible; its post-processor "
                "must contain the text once. Download tokenizer.json again."
            )
        tokenizer.no_truncation()  # `Truncation` truncates instead

    def _check_length(self, name: str, length: int) -> None:
        if length < max(1, self.special_tokens + (not self._may_be_bare)):
            raise ValueError(
                f"{name} is {length}, but every text has {self.special_tokens} special tokens, which leaves no room for "
                f"the text. Pass {name}>={self.special_tokens + 1}."
            )

    def _encode(self, texts: Sequence[str]) -> "list[Encoding] | list[_SlowEncoding]":
        try:
            with self._guard:
                return self._tokenizer.encode_batch_fast(texts, add_special_tokens=self._add_special_tokens)
        except BaseException as error:
            # tokenizers raises bare Exception where its model fails, and panics if the template lacks a token
            if type(error) is not Exception and not _is_panic(error):
                raise
            raise ValueError(
                f"{self._folder}: the tokenizer cannot encode every text: {error}. Fix its files, or download them again."
            ) from error

    def _first_id(self, *candidates: str | None) -> int | None:
        """Return the id of the first candidate that the vocabulary has."""
        token_ids = (self.token_id(token) for token in candidates if token is not None)
        return next((token_id for token_id in token_ids if token_id is not None), None)

    def _prompt_tokens(self, prompt: str, limit: int) -> int:
        """Return the number of leading prompt tokens, as in sentence-transformers: without the last token if it is special.

        The last token is the template's [SEP] or </s>, or a special token at the end of the prompt itself.
        """
        encoding = self._tokenizer.encode(prompt, add_special_tokens=self._add_special_tokens)
        # The end of a prompt may merge into one token with the text. Truncation on the left cuts off the prompt itself.
        if len(encoding.ids) >= limit < len(self._encode([prompt + "a"])[0].ids) and self._side == "right":
            raise PromptError(
                f"The prompt {short(prompt)} has {len(encoding.ids)} tokens with the special tokens; the maximum is {limit}, "
                f"which leaves no room for the text. Shorten the prompt, or pass max_length>={len(encoding.ids) + 1}."
            )
        length = min(len(encoding.ids), limit)
        if length == self.special_tokens:
            return 0
        after = around(encoding.special_tokens_mask)[1]
        return length - (after or int(encoding.ids[-1] in self._special_ids))


def _load(
    folder: Path, config: TokenizerConfig, settings: Mapping[str, object], *, lowercase: bool
) -> tuple["FastTokenizer | _Slow", str]:
    """Return the tokenizer of a folder, and the rules by which tokenizer_config.json changes tokenizer.json."""
    path = folder / "tokenizer.json"
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to a file that does not exist. Download the whole model.")
    if not path.exists() or config.tokenizer_class in BEYOND_FILE:
        return _from_older_files(folder, settings, lowercase=lowercase), ""
    check_size(path)
    check_content(path, "tokenizer")
    text = read_text(path)
    check_normalizer(path, text)
    try:
        tokenizer = FastTokenizer.from_str(text)
    except Exception as error:
        raise ValueError(f"{path} is not a tokenizer file ({error}). Download it again.") from error
    if (longest := getattr(tokenizer.model, "max_input_chars_per_word", 0)) > MOST_WORD:
        raise ValueError(f"{path}: max_input_chars_per_word is {longest:,}; it must be at most {MOST_WORD:,}. Fix the file.")
    overridden = _override(tokenizer, config, lowercase=lowercase)
    return tokenizer, f"{config.tokenizer_class} {config.vocab_size}" if overridden else ""


def _override(tokenizer: FastTokenizer, config: TokenizerConfig, *, lowercase: bool) -> bool:
    """Apply the settings to a tokenizer (see `tokenizer_overrides`); return whether tokenizer_config.json changed it."""
    before = _state(tokenizer.normalizer)
    normalizer = tokenizer_overrides.normalizer(before, config)
    overridden = normalizer != before
    if lowercase:
        normalizer = tokenizer_overrides.lowercase_first(normalizer)
    if normalizer != before:
        tokenizer.normalizer = _part("normalizer", normalizer)
    before = _state(tokenizer.pre_tokenizer)
    if (changed := tokenizer_overrides.pre_tokenizer(before, config)) != before:
        tokenizer.pre_tokenizer = _part("pre_tokenizer", changed)
        overridden = True
    tokens = tokenizer.get_added_tokens_decoder()
    _add_tokens(tokenizer, config)
    overridden = overridden or tokenizer.get_added_tokens_decoder().keys() != tokens.keys()
    before = _state(tokenizer.post_processor)
    if (changed := tokenizer_overrides.post_processor(before, config, tokenizer.token_to_id)) != before:
        tokenizer.post_processor = _part("post_processor", changed)
        overridden = True
    tokenizer.encode_special_tokens = bool(config.flags.get("split_special_tokens"))
    return overridden or tokenizer.encode_special_tokens


def _state(part: Any) -> dict[str, Any] | None:  # noqa: ANN401 - tokenizers has no common class for its parts
    """Return a part of a tokenizer in the format of tokenizer.json.

    It is read from the pickled state: older versions of tokenizers lack attributes for some values.
    """
    state: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return state


def _part(name: str, state: dict[str, Any] | None) -> Any:  # noqa: ANN401
    """Build a part of a tokenizer from its JSON, through a tokenizer with one token."""
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    return getattr(FastTokenizer.from_str(json.dumps({"version": "1.0", "model": model, name: state})), name)


def _add_tokens(tokenizer: FastTokenizer, config: TokenizerConfig) -> None:
    """Add the special tokens that the files name but tokenizer.json does not list, so that each becomes one id in a text.

    A token is added only if the model has an embedding row for its id.
    """
    present = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    special = {token.content for token in config.named.values()}
    tokens_by_content: dict[str, AddedToken] = {}
    for token in config.decoder.values():
        if token.content not in present or not _same(_added(token), present[token.content]):
            tokens_by_content[token.content] = _added(token, special=token.content in special)
    for token in (*config.named.values(), *config.extra):
        if token.content not in present:
            tokens_by_content.setdefault(token.content, _added(token, special=True))
    for content in tokenizer_overrides.default_tokens(config):
        if content not in present and tokenizer.token_to_id(content) is not None:
            tokens_by_content.setdefault(content, AddedToken(content, special=True))
    for content, added in tokens_by_content.items():
        has_row = config.vocab_size is not None and tokenizer.get_vocab_size(with_added_tokens=True) < config.vocab_size
        if content and (has_row or tokenizer.token_to_id(content) is not None):
            tokenizer.add_tokens([added])


def _added(token: Token, *, special: bool = False) -> AddedToken:
    flags = {name: value for name, value in token.flags.items() if name != "special"}
    return AddedToken(token.content, special=special or token.flags.get("special", False), **flags)


def _same(first: AddedToken, second: AddedToken) -> bool:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return all(getattr(first, name) == getattr(second, name) for name in names)


def _from_older_files(folder: Path, settings: Mapping[str, object], *, lowercase: bool) -> "FastTokenizer | _Slow":
    """Load the tokenizer of a folder without tokenizer.json through transformers, which applies the settings itself."""
    vocabularies = [path for name in VOCABULARIES if (path := folder / name).exists()] + sorted(folder.glob("*.model"))
    if not vocabularies and not (folder / "tokenizer_config.json").exists():
        raise FileNotFoundError(f"{folder} has no tokenizer. Add tokenizer.json, or the vocabulary file of an older tokenizer.")
    for path in vocabularies:
        check_content(path, "tokenizer", may_be_empty=True)
        _check_package(path)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # silences "PyTorch was not found", which is expected here
    from transformers import AutoTokenizer  # noqa: PLC0415 - 1 s and 100 MB that most models do not need

    arguments = {key: value for key, value in settings.items() if key in USED}
    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **arguments)
    except Exception as error:  # the class depends on the file and the versions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{folder} has no tokenizer.json, and transformers cannot create one from its older files without running the "
            f"model's own code ({reason}). Download or create tokenizer.json."
        ) from error
    fast: FastTokenizer | None = getattr(loaded, "backend_tokenizer", None)
    if fast is None:
        return _Slow(loaded, folder, lowercase=lowercase)
    if lowercase:
        fast.normalizer = _part("normalizer", tokenizer_overrides.lowercase_first(_state(fast.normalizer)))
    return fast


def _check_package(vocabulary: Path) -> None:
    """Raise ValueError if the package that reads a vocabulary is not installed.

    The message of transformers is unclear, or it mistakes a SentencePiece model for a tiktoken vocabulary.
    """
    if vocabulary.suffix != ".model":
        return
    with vocabulary.open("rb") as file:
        is_sentencepiece = file.read(1) == b"\n"  # the first field of a protobuf message; tiktoken files are lines of base64
    package, install = (
        ("sentencepiece", install_hint("sentencepiece")) if is_sentencepiece else ("tiktoken", "it with `pip install tiktoken`")
    )
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"There is no tokenizer.json, and {vocabulary} needs the package {package}, which is not installed. Install "
            f"{install}."
        )


@dataclass(frozen=True, slots=True)
class _SlowEncoding:
    """One text as token ids, with the attribute names of tokenizers' Encoding."""

    ids: list[int]
    type_ids: list[int]
    special_tokens_mask: list[int]


class _Slow:
    """A tokenizer that transformers implements only in Python (PhoBERT, ByT5), with the interface of `tokenizers.Tokenizer`."""

    padding: dict[str, Any] | None = None
    post_processor = None

    def __init__(self, tokenizer: Any, folder: Path, *, lowercase: bool) -> None:  # noqa: ANN401 - transformers has no types
        self._tokenizer = tokenizer
        self._folder = folder
        if lowercase:  # as sentence-transformers does
            (getattr(tokenizer, "basic_tokenizer", None) or tokenizer).do_lower_case = True

    def num_special_tokens_to_add(self, is_pair: bool) -> int:  # noqa: FBT001
        return int(self._tokenizer.num_special_tokens_to_add(pair=is_pair))

    def token_to_id(self, token: str) -> int | None:
        index: int | None = self._tokenizer.get_vocab().get(token)
        return index

    def no_padding(self) -> None:
        """Do nothing: transformers pads only on request."""

    def encode_batch_fast(self, input: Sequence[str], *, add_special_tokens: bool) -> list[_SlowEncoding]:  # noqa: A002
        return [self.encode(text, add_special_tokens=add_special_tokens) for text in input]

    def encode(self, sequence: str, *, add_special_tokens: bool) -> _SlowEncoding:
        ids: list[int] = self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(sequence))
        if None in ids:
            raise ValueError(f"{self._folder}: the tokenizer has no token for a part of a text, and no unknown token.")
        return self._finished(ids, add_special_tokens=add_special_tokens)

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def pieces(self, text: str, *, add_special_tokens: bool) -> list[Piece]:
        ids = self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(text))
        encoding = self._finished(ids, add_special_tokens=add_special_tokens)
        tokens = self._tokenizer.convert_ids_to_tokens(encoding.ids)
        rows = zip(encoding.ids, tokens, encoding.special_tokens_mask, strict=True)
        return [Piece(index, token, special=bool(mask)) for index, token, mask in rows]

    def _finished(self, ids: list[int], *, add_special_tokens: bool) -> _SlowEncoding:
        """Put the special tokens around a text."""
        if not add_special_tokens:
            return _SlowEncoding(ids, [0] * len(ids), [0] * len(ids))
        all_ids: list[int] = self._tokenizer.build_inputs_with_special_tokens(ids)
        before = self._tokenizer.build_inputs_with_special_tokens([-1]).index(-1)
        mask = [1] * before + [0] * len(ids) + [1] * (len(all_ids) - before - len(ids))
        types: list[int] = self._tokenizer.create_token_type_ids_from_sequences(ids)
        # In older versions the base class's method omits the special tokens.
        return _SlowEncoding(all_ids, types if len(types) == len(all_ids) else [0] * len(all_ids), mask)


def _cuts_of(tokenizer: "FastTokenizer | _Slow") -> Cuts:
    """Return the places at which a tokenizer allows a cut."""
    if isinstance(tokenizer, _Slow):
        return Cuts()
    normalize = _normalize_of(tokenizer)
    added = [
        AddedText(content, token.lstrip, token.rstrip, token.single_word)
        for token in tokenizer.get_added_tokens_decoder().values()
        for content in {token.content, normalize(token.content)}
    ]
    return cuts_of(_state(tokenizer.normalizer), _state(tokenizer.pre_tokenizer), added)


def _word_places_of(tokenizer: "FastTokenizer | _Slow", cuts: Cuts) -> WordPlaces | None:
    """Return the places at which a tokenizer allows a cut within a word; None if it allows none."""
    if isinstance(tokenizer, _Slow) or not cuts.plain or type(tokenizer.model).__name__ not in ("BPE", "Unigram"):
        return None
    # With an end-of-word suffix, vocabulary words that no merge produces, or random merges, a word's end affects its tokens.
    names = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", "alpha", "nbest_size")
    if any(getattr(tokenizer.model, name, None) for name in names):
        return None
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return WordPlaces(tokenizer.get_vocab(), added, _normalize_of(tokenizer), cuts.plain)


def _normalize_of(tokenizer: FastTokenizer) -> Callable[[str], str]:
    return str if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str


def _count(count: Callable[[], int], folder: Path) -> int:
    """Return a token count; raise ValueError if the library panics, as when the template's own list lacks a special token."""
    try:
        return count()
    except BaseException as error:
        if not _is_panic(error):
            raise
        raise ValueError(f"{folder}: the tokenizer fails on every text ({error}). Download tokenizer.json again.") from error


def _is_panic(error: BaseException) -> bool:
    """Return whether the library panicked; the class of a panic cannot be imported and does not inherit from Exception."""
    return type(error).__name__ == "PanicException"


def _stated_cls(tokenizer: "FastTokenizer | _Slow") -> str | None:
    """Return the CLS token that a RoBERTa-style post-processor names; None if it names none."""
    stated = (_state(tokenizer.post_processor) or {}).get("cls")
    return str(stated[0]) if stated else None
