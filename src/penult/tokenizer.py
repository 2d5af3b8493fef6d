"""Text to ids: the model's own tokenizer, its truncation counted and never silent.

It knows prompts, lengths and padding; it knows nothing of graphs. A folder's `tokenizer.json` is used as it is, its own
padding and truncation switched off (some files pad everything to 128); a folder without one goes through transformers,
which builds the same object from the older files.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from penult.feeds import Padded
from penult.jsonfile import read_object, read_text
from penult.native import Native


@dataclass(frozen=True, slots=True)
class Encoded:
    """N texts as ids.

    Attributes:
        ids: token ids of each text, specials included, at most max_length of them.
        types: segment ids, of the same lengths.
        dropped: how many tokens of each text did not fit.
        prompt_tokens: how many leading tokens of each text belong to the prompt.
    """

    ids: list[list[int]]
    types: list[list[int]]
    dropped: list[int]
    prompt_tokens: int


class Tokenizer:
    """The tokenizer of a model. Its methods are pure and may be called from several threads.

    Args:
        folder: where the tokenizer's files lie.
        max_length: the most tokens of a text, specials included.
        side: where a longer text is cut, "right" or "left".

    Attributes:
        pad_token_id: the id of the padding token, None for a tokenizer that has none (then `pad_id` fills up all the same).
        cls_token_id: the id of the token that stands for the text, None for a tokenizer that has none.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
        ValueError: its file cannot be read, it repeats the text, or `max_length` leaves no room for the specials.
    """

    def __init__(self, folder: Path, *, max_length: int, side: str = "right") -> None:
        self._native = Native()
        self._folder = folder
        self._tokenizer = _load(folder)
        self.max_length = max_length
        self.special_tokens = _sound(lambda: self._tokenizer.num_special_tokens_to_add(is_pair=False), folder)
        if max_length < max(1, self.special_tokens):
            raise ValueError(
                f"max_length is {max_length}, and every text has {self.special_tokens} special tokens; it must be larger."
            )
        named = _special_tokens(folder)
        own = self._tokenizer.padding or {}
        self.pad_side = str(named.get("padding_side") or own.get("direction") or "right")
        if self.pad_side not in ("right", "left"):
            raise ValueError(f"{folder}: padding_side is {self.pad_side[:80]!r}; it must be 'right' or 'left'. Mend the file.")
        self.pad_token_id = self._first_id(named.get("pad_token"), own.get("pad_token"), "[PAD]", "<pad>")
        self.pad_id = int(own.get("pad_id") or 0) if self.pad_token_id is None else self.pad_token_id
        self.cls_token_id = self._first_id(named.get("cls_token"), _stated_cls(self._tokenizer), "[CLS]")
        self._tokenizer.no_padding()
        # Truncation counts a text once; a template that repeats it makes more tokens than the model may take.
        self._tokenizer.enable_truncation(self.special_tokens + 1)
        if (made := len(self._encode(["a b c d"])[0].ids)) > self.special_tokens + 1:
            raise ValueError(
                f"{folder}: the tokenizer makes {made} tokens where {self.special_tokens + 1} are the most allowed; its "
                "post-processor must hold the text once. Fetch tokenizer.json again."
            )
        self._tokenizer.enable_truncation(max_length, direction=side)

    def encode(self, texts: Sequence[str], prompt: str = "") -> Encoded:
        """Turn texts into ids, the prompt put before each.

        Raises:
            TypeError: a text is no str, or holds a lone surrogate; see `unencodable`.
            ValueError: the tokenizer's file has no token for a part of a text, and none for what is unknown.
        """
        whole = [prompt + text for text in texts] if prompt else list(texts)
        batch = self._encode(whole)
        specials = self.special_tokens
        return Encoded(
            ids=[encoding.ids for encoding in batch],
            types=[encoding.type_ids for encoding in batch],
            dropped=[sum(len(over.ids) - specials for over in encoding.overflowing) for encoding in batch],
            prompt_tokens=self._prompt_tokens(prompt) if prompt else 0,
        )

    def token_id(self, token: str) -> int | None:
        """Look up the id of a token, None where the vocabulary has no such token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def pad(
        self, encoded: Encoded, rows: Sequence[int], length: int, *, pool_prompt: bool = True, side: str | None = None
    ) -> Padded:
        """Lay B texts side by side in a rectangle of (B, `length`).

        Args:
            encoded: what `encode` gave.
            rows: which of its texts.
            length: T; no row may be longer.
            pool_prompt: False leaves the prompt's tokens out of the pooling mask.
            side: where the padding goes, "right" or "left". None: as the model's files say.
        """
        shape = (len(rows), length)
        ids, mask, types = np.full(shape, self.pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        pooling: NDArray[np.int64] | None = None if pool_prompt else np.zeros(shape, np.int64)
        for b, row in enumerate(rows):
            count = len(encoded.ids[row])
            start = length - count if (side or self.pad_side) == "left" else 0
            ids[b, start : start + count] = encoded.ids[row]
            types[b, start : start + count] = encoded.types[row]
            mask[b, start : start + count] = 1
            if pooling is not None:
                pooling[b, start + min(encoded.prompt_tokens, count) : start + count] = 1
        return Padded(ids, mask, types, pooling)

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        try:
            with self._native:
                return self._tokenizer.encode_batch_fast(texts)
        except BaseException as error:
            # tokenizers has no class of its own for what its model cannot do, and panics over a template that lacks a token
            if type(error) is not Exception and not _is_panic(error):
                raise
            raise ValueError(f"{self._folder}: the tokenizer cannot encode every text: {error}. Mend its files.") from error

    def _first_id(self, *candidates: str | None) -> int | None:
        """Give the id of the first of some tokens that the vocabulary has."""
        found = (self.token_id(token) for token in candidates if token is not None)
        return next((token_id for token_id in found if token_id is not None), None)

    def _prompt_tokens(self, prompt: str) -> int:
        """Count the leading tokens of a prompt: with specials before it, without those after it."""
        with_specials = self._tokenizer.encode(prompt, add_special_tokens=True)
        after = 0
        for special in reversed(with_specials.special_tokens_mask):
            if not special:
                break
            after += 1
        return len(with_specials.ids) - after


def unencodable(text: object) -> str | None:
    """Say why a text cannot be embedded; None where it can."""
    if not isinstance(text, str):
        return f"is a {type(text).__name__}, not a str"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        return f"is not valid Unicode: a lone surrogate U+{code:04X} at character {error.start}"
    return None


def _load(folder: Path) -> FastTokenizer:
    path = folder / "tokenizer.json"
    if path.exists():
        try:
            return FastTokenizer.from_str(read_text(path))
        except Exception as error:
            raise ValueError(f"{path} is not a tokenizer file ({error}); fetch it again.") from error
    if not any((folder / name).exists() for name in ("tokenizer_config.json", "vocab.txt", "spiece.model", "vocab.json")):
        raise FileNotFoundError(f"{folder} holds no tokenizer (tokenizer.json, or the older vocabulary files).")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found" is no news here
    from transformers import AutoTokenizer  # noqa: PLC0415 - a second and 100 MB that most models never need

    try:
        slow = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of any class, as the file and the versions go
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{folder} holds no tokenizer.json, and transformers cannot make one of its older files without running code of "
            f"the model's own ({reason}); fetch or make a tokenizer.json."
        ) from error
    if getattr(slow, "backend_tokenizer", None) is None:
        raise ValueError(f"{folder} has a tokenizer without a fast version; convert it to tokenizer.json once.")
    fast: FastTokenizer = slow.backend_tokenizer
    return fast


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


def _stated_cls(tokenizer: FastTokenizer) -> str | None:
    """Read the CLS token that a post-processor as RoBERTa's names; None where it names none.

    It is read from the state, which every version of tokenizers gives: older ones have no attribute for it.
    """
    if tokenizer.post_processor is None:
        return None
    stated = json.loads(tokenizer.post_processor.__getstate__()).get("cls")
    return str(stated[0]) if stated else None


def _special_tokens(folder: Path) -> dict[str, str]:
    """Read which token has which office, tokenizer_config.json above the older special_tokens_map.json."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_object(folder / name).items():
            token = value.get("content") if isinstance(value, dict) else value
            if isinstance(token, str):
                found[key] = token
    return found
