"""Text to ids: the model's own tokenizer, its truncation counted and never silent.

It knows prompts, lengths and padding; it knows nothing of graphs. A folder's `tokenizer.json` is loaded, changed as its
tokenizer_config.json says, its own padding and truncation switched off (some files pad everything to 128); a folder without
one goes through transformers, which builds the same object from the older files.
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

BARE = TokenizerConfig(Path(), None, {}, {}, (), {}, {})  # tokenizer.json alone, as a static embedding reads it
BEYOND_FILE = ("RoFormerTokenizer",)  # classes with a step that tokenizer.json cannot hold: jieba's words


@dataclass(frozen=True, slots=True)
class Piece:
    """A token and where it stands.

    Attributes:
        id: its number in the vocabulary.
        text: the part of the text that it stands for; of a special token its name.
        start: its first character; None of a special token, and where the tokenizer does not say.
        stop: the character after its last one.
        special: whether the template added it: CLS, SEP, BOS, EOS.
    """

    id: int
    text: str
    start: int | None = None
    stop: int | None = None
    special: bool = False


class Tokenizer:
    """The tokenizer of a model. Its methods are pure and may be called from several threads.

    Args:
        folder: where the tokenizer's files lie.
        max_length: the most tokens of a text, specials included.
        side: where a longer text is cut, "right" or "left".
        settings: keys that override those of tokenizer_config.json.
        lowercase: lowercase every text before the tokenizer's own normalizer, as `do_lower_case` of
            sentence_bert_config.json does.
        add_special_tokens: whether the special tokens of the template (CLS, SEP, BOS, EOS) are added.
        alone: whether tokenizer.json is read without the files beside it, as for a static embedding.
        may_be_bare: whether a length may hold special tokens alone, as in DeepSparse.

    Attributes:
        special_tokens: how many special tokens each text gets.
        pad_token_id: the id of the padding token, None for a tokenizer that has none (then `pad_id` fills up all the same).
        overridden: by which class and size of vocabulary tokenizer_config.json changes what tokenizer.json does; empty where it
            does not.
        cls_token_id: the id of the token that stands for the text, None for a tokenizer that has none.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
        ValueError: a file or a setting cannot be used, the tokenizer repeats the text, or `max_length` leaves no room beside
            the specials.
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
            self.special_tokens = _sound(lambda: self._tokenizer.num_special_tokens_to_add(is_pair=False), folder)
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
            prompt: put before each of them.
            limit: maximum tokens of each of these texts, where it is less than `max_length`.

        Raises:
            TypeError: a text is no str, or holds a lone surrogate; see `unencodable`.
            PromptError: the prompt leaves no room for a text.
            TextError: a text is too long and has no place where it may be cut; see `truncation`.
            ValueError: the tokenizer's file has no token for a part of a text and none for what is unknown, or `limit` leaves
                no room beside the specials.
        """
        most = self.max_length
        if limit is not None:
            self._check_length("limit", limit)
            most = min(limit, most)
        if not all(isinstance(text, str) for text in texts):
            self._encode(list(texts))  # raises what tokenizers says of it
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
        """Look up the id of a token, None where the vocabulary has no such token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def pieces(self, text: str, *, special_tokens: bool = True) -> list[Piece]:
        """Return all tokens of a text, whatever the model's length.

        Args:
            text: the text.
            special_tokens: whether the special tokens of the template are added.
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
        """Return the text of token ids, as the tokenizer writes it; ids that it does not know are left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def pad(
        self, tokenized: Tokenized, rows: Sequence[int], length: int, *, pool_prompt: bool = True, side: str | None = None
    ) -> Padded:
        """Return B texts side by side in a rectangle of (B, `length`).

        Args:
            tokenized: texts that this tokenizer has read.
            rows: which of them.
            length: T; no row may be longer.
            pool_prompt: False leaves the prompt's tokens out of the pooling mask.
            side: where the padding goes, "right" or "left". None: as the model's files say.
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
        # Truncation counts a text once; a template that repeats it makes more tokens than the model may take.
        most = self.special_tokens + 1
        tokenizer.enable_truncation(most)
        if (made := len(self._encode(["a b c d"])[0].ids)) > most:
            raise ValueError(
                f"{self._folder}: the tokenizer makes {made} tokens where {most} are the most allowed; its post-processor must "
                "hold the text once. Fetch tokenizer.json again."
            )
        tokenizer.no_truncation()  # `Truncation` does it

    def _check_length(self, name: str, length: int) -> None:
        if length < max(1, self.special_tokens + (not self._may_be_bare)):
            raise ValueError(
                f"{name} is {length}, and every text has {self.special_tokens} special tokens, so that none of a text "
                f"fits; it must be at least {self.special_tokens + 1}."
            )

    def _encode(self, texts: Sequence[str]) -> "list[Encoding] | list[_SlowEncoding]":
        try:
            with self._guard:
                return self._tokenizer.encode_batch_fast(texts, add_special_tokens=self._add_special_tokens)
        except BaseException as error:
            # tokenizers has no class of its own for what its model cannot do, and panics over a template that lacks a token
            if type(error) is not Exception and not _is_panic(error):
                raise
            raise ValueError(f"{self._folder}: the tokenizer cannot encode every text: {error}. Mend its files.") from error

    def _first_id(self, *candidates: str | None) -> int | None:
        """Give the id of the first of some tokens that the vocabulary has."""
        found = (self.token_id(token) for token in candidates if token is not None)
        return next((token_id for token_id in found if token_id is not None), None)

    def _prompt_tokens(self, prompt: str, limit: int) -> int:
        """Count the leading tokens of a prompt, as sentence-transformers does: without its last token where that is special.

        The last token is the template's [SEP] or </s>, or one that the prompt itself ends with.
        """
        encoding = self._tokenizer.encode(prompt, add_special_tokens=self._add_special_tokens)
        # The end of a prompt may become one token with the text. On the left, the prompt itself is cut off.
        if len(encoding.ids) >= limit < len(self._encode([prompt + "a"])[0].ids) and self._side == "right":
            raise PromptError(
                f"The prompt {short(prompt)} has {len(encoding.ids)} tokens with the special tokens, and a text has {limit} at "
                f"most, so that none of a text fits. Shorten the prompt, or pass max_length>={len(encoding.ids) + 1}."
            )
        length = min(len(encoding.ids), limit)
        if length == self.special_tokens:
            return 0
        after = around(encoding.special_tokens_mask)[1]
        return length - (after or int(encoding.ids[-1] in self._special_ids))


def _load(
    folder: Path, config: TokenizerConfig, settings: Mapping[str, object], *, lowercase: bool
) -> tuple["FastTokenizer | _Slow", str]:
    """Return the tokenizer of a folder, and by which rules tokenizer_config.json changes what tokenizer.json does."""
    path = folder / "tokenizer.json"
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to a file that does not exist; fetch the whole model.")
    if not path.exists() or config.tokenizer_class in BEYOND_FILE:
        return _from_older_files(folder, settings, lowercase=lowercase), ""
    check_size(path)
    check_content(path, "tokenizer")
    text = read_text(path)
    check_normalizer(path, text)
    try:
        tokenizer = FastTokenizer.from_str(text)
    except Exception as error:
        raise ValueError(f"{path} is not a tokenizer file ({error}); fetch it again.") from error
    if (longest := getattr(tokenizer.model, "max_input_chars_per_word", 0)) > MOST_WORD:
        raise ValueError(f"{path}: max_input_chars_per_word is {longest:,}; it must be at most {MOST_WORD:,}. Mend the file.")
    overridden = _override(tokenizer, config, lowercase=lowercase)
    return tokenizer, f"{config.tokenizer_class} {config.vocab_size}" if overridden else ""


def _override(tokenizer: FastTokenizer, config: TokenizerConfig, *, lowercase: bool) -> bool:
    """Change a tokenizer as the settings say (see `tokenizer_overrides`), and return whether tokenizer_config.json did."""
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
    """Return a part of a tokenizer as it is written in tokenizer.json.

    It is read from the state, which every version of tokenizers gives: older ones have no attribute for each value.
    """
    state: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return state


def _part(name: str, state: dict[str, Any] | None) -> Any:  # noqa: ANN401
    """Return a part of a tokenizer from its JSON, by way of a tokenizer of one token."""
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    return getattr(FastTokenizer.from_str(json.dumps({"version": "1.0", "model": model, name: state})), name)


def _add_tokens(tokenizer: FastTokenizer, config: TokenizerConfig) -> None:
    """Add the special tokens that the files name and tokenizer.json does not list, so that each is one id in a text.

    A token is added only where the model has a row for its id.
    """
    present = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    special = {token.content for token in config.named.values()}
    wanted: dict[str, AddedToken] = {}
    for token in config.decoder.values():
        if token.content not in present or not _same(_added(token), present[token.content]):
            wanted[token.content] = _added(token, special=token.content in special)
    for token in (*config.named.values(), *config.extra):
        if token.content not in present:
            wanted.setdefault(token.content, _added(token, special=True))
    for content in tokenizer_overrides.default_tokens(config):
        if content not in present and tokenizer.token_to_id(content) is not None:
            wanted.setdefault(content, AddedToken(content, special=True))
    for content, added in wanted.items():
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
        raise FileNotFoundError(f"{folder} holds no tokenizer (tokenizer.json, or the older vocabulary files).")
    for path in vocabularies:
        check_content(path, "tokenizer", may_be_empty=True)
        _check_package(path)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found" is no news here
    from transformers import AutoTokenizer  # noqa: PLC0415 - a second and 100 MB that most models never need

    given = {key: value for key, value in settings.items() if key in USED}
    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **given)
    except Exception as error:  # of any class, as the file and the versions go
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{folder} holds no tokenizer.json, and transformers cannot make one of its older files without running code of "
            f"the model's own ({reason}); fetch or make a tokenizer.json."
        ) from error
    fast: FastTokenizer | None = getattr(loaded, "backend_tokenizer", None)
    if fast is None:
        return _Slow(loaded, folder, lowercase=lowercase)
    if lowercase:
        fast.normalizer = _part("normalizer", tokenizer_overrides.lowercase_first(_state(fast.normalizer)))
    return fast


def _check_package(vocabulary: Path) -> None:
    """Raise ValueError if the package that reads a vocabulary is not installed.

    transformers says it in other words, or takes a SentencePiece model for a vocabulary of tiktoken.
    """
    if vocabulary.suffix != ".model":
        return
    with vocabulary.open("rb") as file:
        is_sentencepiece = file.read(1) == b"\n"  # the first field of a protobuf message; tiktoken's are lines of base64
    package, install = (
        ("sentencepiece", install_hint("sentencepiece")) if is_sentencepiece else ("tiktoken", "it with `pip install tiktoken`")
    )
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{vocabulary} needs the package {package}, which is not installed, as there is no tokenizer.json beside it. "
            f"Install {install}."
        )


@dataclass(frozen=True, slots=True)
class _SlowEncoding:
    """One text as ids, with the names of tokenizers' Encoding."""

    ids: list[int]
    type_ids: list[int]
    special_tokens_mask: list[int]


class _Slow:
    """A tokenizer that transformers has in Python alone (PhoBERT, ByT5), under the interface of tokenizers' own class."""

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
        """Do nothing: transformers pads only where it is asked to."""

    def encode_batch_fast(self, input: Sequence[str], *, add_special_tokens: bool) -> list[_SlowEncoding]:  # noqa: A002
        return [self.encode(text, add_special_tokens=add_special_tokens) for text in input]

    def encode(self, sequence: str, *, add_special_tokens: bool) -> _SlowEncoding:
        ids: list[int] = self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(sequence))
        if None in ids:
            raise ValueError(f"{self._folder}: the tokenizer has no token for a part of a text, and none for what is unknown.")
        return self._finished(ids, add_special_tokens=add_special_tokens)

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def pieces(self, text: str, *, add_special_tokens: bool) -> list[Piece]:
        ids = self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(text))
        whole = self._finished(ids, add_special_tokens=add_special_tokens)
        tokens = self._tokenizer.convert_ids_to_tokens(whole.ids)
        rows = zip(whole.ids, tokens, whole.special_tokens_mask, strict=True)
        return [Piece(index, token, special=bool(mask)) for index, token, mask in rows]

    def _finished(self, ids: list[int], *, add_special_tokens: bool) -> _SlowEncoding:
        """Put the special tokens around a text."""
        if not add_special_tokens:
            return _SlowEncoding(ids, [0] * len(ids), [0] * len(ids))
        whole: list[int] = self._tokenizer.build_inputs_with_special_tokens(ids)
        before = self._tokenizer.build_inputs_with_special_tokens([-1]).index(-1)
        mask = [1] * before + [0] * len(ids) + [1] * (len(whole) - before - len(ids))
        types: list[int] = self._tokenizer.create_token_type_ids_from_sequences(ids)
        # The method of the base class leaves out the special tokens in older versions.
        return _SlowEncoding(whole, types if len(types) == len(whole) else [0] * len(whole), mask)


def _cuts_of(tokenizer: "FastTokenizer | _Slow") -> Cuts:
    """Return where a tokenizer allows a text to be cut."""
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
    """Return where a tokenizer allows a cut within a word; None where it does not."""
    if isinstance(tokenizer, _Slow) or not cuts.plain or type(tokenizer.model).__name__ not in ("BPE", "Unigram"):
        return None
    # A suffix of words, a word of the vocabulary that no merge makes, or chance: the end of a word decides its tokens.
    names = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", "alpha", "nbest_size")
    if any(getattr(tokenizer.model, name, None) for name in names):
        return None
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return WordPlaces(tokenizer.get_vocab(), added, _normalize_of(tokenizer), cuts.plain)


def _normalize_of(tokenizer: FastTokenizer) -> Callable[[str], str]:
    return str if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str


def _sound(count: Callable[[], int], folder: Path) -> int:
    """Count tokens; a template with a special token that its own list lacks makes the library panic over any text."""
    try:
        return count()
    except BaseException as error:
        if not _is_panic(error):
            raise
        raise ValueError(f"{folder}: the tokenizer fails over any text ({error}); fetch tokenizer.json again.") from error


def _is_panic(error: BaseException) -> bool:
    """Say whether the library panicked: its class can be imported from nowhere, and is no Exception."""
    return type(error).__name__ == "PanicException"


def _stated_cls(tokenizer: "FastTokenizer | _Slow") -> str | None:
    """Return the CLS token that a post-processor as RoBERTa's names; None where it names none."""
    stated = (_state(tokenizer.post_processor) or {}).get("cls")
    return str(stated[0]) if stated else None
