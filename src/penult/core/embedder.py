"""Embedder: the one path that text takes to become a vector.

    texts -> Tokenizer.encode -> plan -> [pad -> feed -> Engine.run -> out[indices]] -> (N, D)

It composes the leaves and owns what none of them can: order, the gate for concurrent callers, and saying what was truncated.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from penult.core import prepare
from penult.core.batching import Batch, plan
from penult.core.engine import Engine
from penult.core.executor import Sessions
from penult.core.loading import as_found, frozen, may_copy, read
from penult.core.model_inputs import Meaning, feed
from penult.core.model_tokenizer import tokenizer_of
from penult.core.padding_check import reaches_tokens
from penult.core.recipe import NOT_STATED, Recipe, Wishes
from penult.core.source import Source
from penult.core.tokenizer import Encoded, Tokenizer, unencodable
from penult.types import Pooling, Precision, Role, TextError, Truncate, Vectors

_LOGGER = logging.getLogger(__name__)
# Texts that are tokenized and sorted by length together: enough for full batches of like length, few enough that the
# ids of a window take some 10 MB.
_WINDOW = 4096
# The most padded tokens of a batch: the activations of a small model then stay in the cache of the CPU. With 8-bit weights a
# batch of 256 takes 2 to 5 % less CPU than one of 512 (384 and 768 channels, texts of 30 to 512 tokens, a Xeon with 2 MB of
# cache a core); in fp32, where more rows make better use of a weight that was read, one of 512 takes up to 5 % less.
_BATCH_TOKENS: dict[Precision, int] = {"fp32": 512, "int8": 256}
# The most bytes of weights that a process may hold twice, for batches that run side by side.
_COPY_BYTES = 256 * 2**20


class TruncationWarning(UserWarning):
    """Some texts were longer than the model takes, and were cut."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """How a recipe is carried out: it decides time and memory, never a vector.

    Attributes:
        truncate: what happens to a text over the recipe's length.
        buckets: the only padded lengths allowed. None: any.
        threads: of one run. None: as `engine.default_threads` finds.
        providers: ONNX Runtime's execution providers. None: the CPU.
        max_batch_tokens: the most padded tokens of a batch. None: `_BATCH_TOKENS`.
        alone: whether texts of a graph whose vectors depend on their batch run one by one.
        pads: whether the rows of padding are wanted as they are (DeepSparse's `per_token`).
    """

    truncate: Truncate = "warn"
    buckets: tuple[int, ...] | None = None
    threads: int | None = None
    providers: tuple[str, ...] | None = None
    max_batch_tokens: int | None = None
    alone: bool = False
    pads: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that are none.

        Raises:
            TypeError: a number is not whole.
            ValueError: a number is not positive.
        """
        numbers = {"threads": self.threads, "max_batch_tokens": self.max_batch_tokens}
        numbers |= {f"buckets[{i}]": bucket for i, bucket in enumerate(self.buckets or ())}
        for name, value in numbers.items():
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} is {value!r}; it must be a whole number.")
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")


@dataclass(frozen=True, slots=True)
class Counted:
    """Vectors, and what was read for them.

    Attributes:
        vectors: (N, D) float32.
        tokens: (N,) int64, the tokens that the model read: prompt and specials included.
        dropped: (N,) int64, the tokens that did not fit and were cut off.
    """

    vectors: Vectors
    tokens: NDArray[np.int64]
    dropped: NDArray[np.int64]


class Embedder:
    """A model, ready to turn texts into vectors. Make one with `Embedder.load`.

    Safe to call from several threads: batches of all callers pass one gate, so that memory stays that of one batch a thread.
    """

    def __init__(
        self,
        found: Source,
        recipe: Recipe,
        runtime: Runtime,
        *,
        tokenizer: Tokenizer | None = None,
        calibration: tuple[str, ...] | None = None,
    ) -> None:
        if runtime.buckets is not None and recipe.max_length > max(runtime.buckets, default=0):
            raise ValueError(
                f"The longest bucket is {max(runtime.buckets, default=0)}, texts may have {recipe.max_length} tokens; add "
                "a longer bucket, or lower max_length."
            )
        self._source = found
        self._runtime = runtime
        self._calibration = calibration
        prepared = prepare.prepare(found, recipe, calibration=calibration)
        second = may_copy(prepared, runtime.providers, _COPY_BYTES)
        self._sessions = Sessions(partial(_open, found, prepared, runtime), second=second)
        self._batch_dependent = prepared.batch_dependent
        self._frozen = frozen(self.engine)
        self._recipe = recipe = as_found(recipe, prepared, self.engine, alone=runtime.alone)
        if tokenizer is None or tokenizer.max_length != recipe.max_length:
            tokenizer = tokenizer_of(found, recipe)
        self._tokenizer = tokenizer
        if tokenizer.overridden:
            self._recipe = recipe = replace(recipe, tokenizer_rules=tokenizer.overridden)
        # Many graphs count positions from the row's start: padding before a text would shift them by its batch mates' lengths.
        # Only a graph that pools by itself may rely on the side that its tokenizer names.
        self._side = "right" if self._has_tokens else tokenizer.pad_side
        self._said_truncated = False
        try:
            self._dimension = self._probed()
        except (ArithmeticError, ValueError) as error:
            raise ValueError(f"{found.model} cannot embed even an empty text: {error}") from error
        self._check_dimensions()
        longest = self._frozen.length or recipe.max_length
        exact, dynamic = prepared.exact, prepared.batch_dependent
        if not runtime.pads and reaches_tokens(prepared.graph, self._states, longest=longest, exact=exact, dynamic=dynamic):
            if self._frozen.length is not None:
                raise ValueError(
                    f"Every text is padded to the {longest} tokens of {found.model}, and this graph lets padding change the "
                    "vectors of real tokens: it does not read attention_mask. Export it with that input."
                )
            if runtime.buckets:
                raise ValueError(
                    f"buckets={list(runtime.buckets)} pads texts, and in {found.model} padding changes the vectors of real "
                    "tokens. Leave buckets out."
                )
            why = "padding reaches real tokens in this graph: only texts of one length share a batch"
            self._recipe = replace(self._recipe, padding=False, origin={**recipe.origin, "padding": why})
        self._query = self._query_embedder(calibration)
        if recipe.origin.get("prompts") == NOT_STATED:
            _LOGGER.info(
                "%s: no file states a prompt for queries or documents; if the model's card gives some, pass prompts=",
                found.reference,
            )

    def _probed(self) -> int:
        """Embed an empty text and return D.

        Raises:
            ValueError: the graph gives vectors of another size than the files state.
        """
        encoded, recipe = self._tokenizer.encode([""]), self._recipe
        dimension = int(self._run_batch(encoded, [0], role=self._any_role()).shape[1])
        if self._has_tokens and recipe.width is not None and recipe.layer == -1 and not recipe.token_steps:
            width = int(self._run_batch(encoded, [0], role=self._any_role(), output="token_embeddings").shape[2])
            if width != recipe.width:
                raise ValueError(
                    f"the modules of {self._source.reference!r} expect token embeddings of {recipe.width} values, and this "
                    f"graph gives {width}. Name another file, or the right tensor with layer=."
                )
        return dimension

    def _check_dimensions(self) -> None:
        """Refuse to keep more values than there are; a file that states more cuts nothing."""
        asked = self._recipe.dimensions
        if asked is None or asked <= self._dimension:
            return
        if self._recipe.origin.get("dimensions", "").startswith("argument"):
            raise ValueError(
                f"dimensions={asked} exceeds the model's {self._dimension} values. Pass dimensions<={self._dimension}."
            )
        self._recipe = replace(self._recipe, dimensions=None, renormalize=True)

    def _states(self, length: int, padding: int) -> NDArray[Any] | None:
        """Return what the graph gives for one text of about `length` tokens with so much padding; None if that is too long.

        Of a graph that takes one length alone, what stands in the padding changes instead of how much there is.
        """
        encoded = self._tokenizer.encode(["the quick brown fox " * length], limit=min(length, self._recipe.max_length))
        count, fixed = len(encoded.ids[0]), self._frozen.length
        if count == 0 or count + padding > (fixed or self._recipe.max_length):
            return None
        output = "token_embeddings" if self._has_tokens else "sentence_embedding"
        inputs = self._feed(encoded, [0], fixed or count + padding, role=self._any_role())
        if fixed and padding:
            inputs["input_ids"] = ids = inputs["input_ids"].copy()
            ids[:, slice(fixed - count) if self._side == "left" else slice(count, None)] = encoded.ids[0][count // 2]
        values: NDArray[Any] = _finite(self._sessions.run(lambda: inputs, output), [0])[0].astype(np.float32)
        if output == "sentence_embedding":
            return values
        return values[-count:] if self._side == "left" else values[:count]  # (T, H)

    def _any_role(self) -> Role:
        """Return a role that this model serves; a model of queries may name no task for documents."""
        tasks = self._recipe.tasks
        return "query" if "query" in tasks and "document" not in tasks else "document"

    def _query_embedder(self, calibration: tuple[str, ...] | None) -> "Embedder | None":
        """Open the model of queries, where there is one of their own."""
        if self._recipe.query is None or self._source.query is None:
            return None
        query = Embedder(self._source.query, self._recipe.query, self._runtime, calibration=calibration)
        if query.dimension != self._dimension:
            raise ValueError(
                f"{self._source.reference!r} gives documents {self._dimension} values and queries {query.dimension}: their "
                "vectors cannot be compared. Load the folder of one of them."
            )
        self._recipe = replace(self._recipe, query=query.recipe)
        return query

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        layer: int | str | None = -1,
        pooling: Pooling | Sequence[Pooling] | None = None,
        prompts: Mapping[str, str] | None = None,
        precision: Precision = "fp32",
        max_length: int | None = None,
        truncate: Truncate = "warn",
        dimensions: int | None = None,
        normalize: bool | None = None,
        layer_norm: bool = False,
        task: str | int | None = None,
        model_file: str | None = None,
        files_from: str | os.PathLike[str] | None = None,
        buckets: Sequence[int] | None = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        max_batch_tokens: int | None = None,
        calibration: Sequence[str] | None = None,
        batch_invariant: bool = False,
        fingerprint: str | None = None,
    ) -> "Embedder":
        """Open a model. The first time, its graph is cut and kept in the cache; later it is only opened.

        Args:
            model: a folder, an .onnx file, a Hub id (`org/name[@revision]`), `package:NAME[/sub/folder]` or `zoo:NAME`.
            layer: the hidden state to pool, counted as transformers' `hidden_states`: -1 the last, 0 the embedding
                output; a tensor's name; None for the graph's own output.
            pooling: "mean", "max", "cls", "last", "weightedmean", "mean_sqrt_len_tokens", or a list of them, which are
                concatenated. None: as the model's own files say, and an error where they say nothing.
            prompts: what is put before the texts of a role: {"query": ..., "document": ...}. A role that is left out keeps the
                prompt of the model's files. None: as the files say; many models state theirs on their card alone.
            precision: of the arithmetic. "int8": 8-bit matrix products whose scales are found once, on calibration texts, so
                that a vector never depends on its batch; a graph that is 8-bit already is taken as it is.
            max_length: the most tokens of a text, specials included. None: as the model's files say.
            truncate: what happens to a longer text: "error", "warn" (cut and say so once), "right" or "left" (cut there).
            dimensions: keep only the leading values, for models trained so. None: all.
            normalize: whether vectors leave with length 1. None: as the model's files say.
            layer_norm: a layer norm without weights, and length 1, before `dimensions` cuts: what the cards of some models
                ask for (nomic-embed-text-v1.5) and no file can say.
            task: the adapter of a model that has several (an input `task_id`): its name or number. None: by role, as the
                model's config.json says.
            model_file: which graph of a folder or Hub id, for example "onnx/model_int8.onnx". None: the usual one.
            files_from: a folder or Hub id whose files say how the model is used, for a mirror that holds the graph alone, for
                example "BAAI/bge-small-en-v1.5". None: the model's own files.
            buckets: the only padded lengths allowed. None: any.
            threads: of one run. None: the physical cores this process may use; PENULT_THREADS overrides.
            providers: ONNX Runtime's execution providers. None: the CPU.
            max_batch_tokens: the most padded tokens of a batch; it bounds memory. None: 512 in fp32 and 256 in int8, which
                keeps a small model's activations in the cache of the CPU, where it is fastest.
            calibration: texts like those to embed, some tens of them, that the scales of int8 are found on. None: the texts
                that ship with penult.
            batch_invariant: run a graph whose own 8-bit scales depend on the batch one text at a time. Every other graph's
                vectors are free of their batch anyway.
            fingerprint: refuse to load anything else than what had this `fingerprint`: the same bytes of graph, weights
                and tokenizer, used in the same way. None: load what is there.

        Raises:
            FileNotFoundError: no model there, or a part of it is missing.
            ValueError: an argument or a file of the model cannot be used, or it has another fingerprint; the message says
                what to do.
        """
        wishes = Wishes(
            layer=layer,
            pooling=pooling,
            precision=precision,
            max_length=max_length,
            truncate=truncate,
            dimensions=dimensions,
            normalize=normalize,
            layer_norm=layer_norm,
            prompts=prompts,
            task=task,
        )
        if not isinstance(batch_invariant, bool):
            raise TypeError(f"batch_invariant is {batch_invariant!r}; it must be True or False.")
        for name, several in (("buckets", buckets), ("providers", providers)):
            if several is not None and (isinstance(several, str) or not isinstance(several, Iterable)):
                raise TypeError(f"{name} is {several!r}; it must be a list.")
        runtime = Runtime(
            truncate=truncate,
            buckets=None if buckets is None else tuple(buckets),
            threads=threads,
            providers=None if providers is None else tuple(providers),
            max_batch_tokens=max_batch_tokens,
            alone=batch_invariant,
        )
        texts = None if calibration is None else tuple(_checked(calibration))
        found = read(model, wishes, texts, model_file=model_file, files_from=files_from)
        made = cls(*found, runtime, calibration=texts)
        unsaid = made.recipe.origin.get("dimensions") == "argument" and normalize is None and not layer_norm
        if unsaid and not made.recipe.unit_length:
            warnings.warn(
                f"dimensions={dimensions}: no file of {os.fspath(model)!r} says that its vectors are normalized, so their "
                "leading values are kept as they are. If the model's card asks for it, pass normalize=True, or layer_norm=True "
                "for a layer norm before the cut.",
                stacklevel=2,
            )
        if fingerprint is not None and made.fingerprint != fingerprint:
            made.close()
            raise ValueError(
                f"{os.fspath(model)!r} has the fingerprint {made.fingerprint}, not {fingerprint}: its files, or how they are "
                "used, are not those that were pinned. Name the pinned revision, or embed all texts anew and pin this one. If "
                "an earlier version of penult made the pin, see `Vector changes` in the changelog: files that it read in part "
                "gave other vectors."
            )
        return made

    @property
    def dimension(self) -> int:
        """D, the number of values in a vector."""
        return self._dimension

    @property
    def recipe(self) -> Recipe:
        """All that decides a vector, and where each value came from."""
        return self._recipe

    @property
    def fingerprint(self) -> str:
        """Hash of the recipe: vectors of equal fingerprints may be compared, others must not be mixed."""
        return self._recipe.fingerprint

    @property
    def engine(self) -> Engine:
        """The session under it: raw tensors in, `sentence_embedding` and, where there is one, `token_embeddings` out."""
        return self._sessions.engine

    @property
    def providers(self) -> list[str]:
        """The execution providers that really run the graph."""
        return self.engine.providers

    def embed(
        self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None, progress: bool = False
    ) -> Vectors:
        """Return the vectors of N texts.

        Args:
            texts: N texts, in any iterable; they are never altered. Empty ones are legal.
            role: "document" or "query": the model's prompt for it is put before each text.
            prompt: put before each text instead of the role's prompt; not a part of the fingerprint. None: the role's.
            progress: show a progress bar on standard error.

        Returns:
            (N, D) float32, in the caller's order; (0, D) for no texts. A text's vector is the same whatever its neighbours.

        Raises:
            TypeError: `texts` is a str (a str is a sequence of one-letter texts, which nobody means), or not iterable.
            TextError: some rows are no text, or too long with truncate="error"; the error's `rows` says which and why.
        """
        texts = _checked(texts)
        if role == "query" and self._query is not None:
            return self._query.embed(texts, role, prompt=prompt, progress=progress)
        out = np.empty((len(texts), self._dimension), dtype=np.float32)
        with _Progress(len(texts), shown=progress) as step:
            for start, encoded in self._windows(texts, role, prompt):
                self._embed_window(encoded, role, out[start : start + len(encoded.ids)], step)
        return out

    def embed_counted(self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None) -> Counted:
        """Return the vectors of N texts, and how many tokens of each were read and cut off.

        Raises:
            TypeError: `texts` is a str.
            TextError: as in `embed`.
        """
        texts = _checked(texts)
        if role == "query" and self._query is not None:
            return self._query.embed_counted(texts, role, prompt=prompt)
        vectors = np.empty((len(texts), self._dimension), dtype=np.float32)
        tokens, dropped = np.empty((2, len(texts)), dtype=np.int64)
        for start, encoded in self._windows(texts, role, prompt):
            window = slice(start, start + len(encoded.ids))
            self._embed_window(encoded, role, vectors[window], lambda _: None)
            tokens[window], dropped[window] = list(map(len, encoded.ids)), encoded.dropped
        return Counted(vectors, tokens, dropped)

    def embed_stream(
        self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None, window: int = _WINDOW
    ) -> Iterator[Vectors]:
        """Turn a stream of texts into vectors, in memory that does not grow with the stream.

        Args:
            texts: any iterable; at most `window` of them are held at a time.
            role: as in `embed`.
            prompt: as in `embed`.
            window: texts that are sorted by length together.

        Yields:
            (N_i, D) float32 arrays that follow the order of the stream, N_i = `window` but for the last.

        Raises:
            TypeError: `texts` is a str.
            TextError: a row of the window cannot be embedded; the rows count from the start of the stream.
        """
        if texts is None or isinstance(texts, str | bytes | bytearray):
            raise TypeError(f"texts is a {type(texts).__name__}; give an iterable of texts.")
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1.")
        stream, start = iter(texts), 0
        while chunk := list(islice(stream, window)):
            try:
                yield self.embed(chunk, role, prompt=prompt)
            except TextError as error:
                raise TextError({start + row: why for row, why in error.rows.items()}, start + error.total) from error
            start += len(chunk)

    def embed_tokens(
        self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None
    ) -> list[NDArray[np.float32]]:
        """Turn N texts into the vectors of their tokens: a list of (T_i, H) float32, without padding.

        Raises:
            TypeError: `texts` is a str.
            TextError: as in `embed`.
            ValueError: the graph gives one vector a text and no tokens.
        """
        texts = _checked(texts)
        if role == "query" and self._query is not None:
            return self._query.embed_tokens(texts, role, prompt=prompt)
        self._need_tokens()
        out: list[NDArray[np.float32]] = [np.empty((0, 0), np.float32)] * len(texts)
        for start, encoded in self._windows(texts, role, prompt):
            for batch in self._plan(encoded):
                tokens = self._run_batch(encoded, batch.indices, batch.length, role=role, output="token_embeddings")
                for row, states in zip(batch.indices, tokens, strict=True):
                    count = len(encoded.ids[row])
                    out[start + row] = states[:count].astype(np.float32)  # (T_i, H), a copy: the batch can go
        return out

    def count_tokens(self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None) -> NDArray[np.int64]:
        """Count the tokens that the model reads of each text: prompt and specials included, what is cut off not.

        Returns:
            (N,) int64.

        Raises:
            TypeError: `texts` is a str.
            TextError: as in `embed`.
        """
        return np.asarray(self.measure(texts, role, prompt=prompt)[0], dtype=np.int64)

    def measure(
        self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None
    ) -> tuple[list[int], list[int]]:
        """Return the tokens of each text that the model reads, and those that are cut off.

        Raises:
            TypeError: `texts` is a str.
            TextError: as in `embed`.
        """
        texts = _checked(texts)
        if role == "query" and self._query is not None:
            return self._query.measure(texts, role, prompt=prompt)
        tokens: list[int] = []
        dropped: list[int] = []
        for _, encoded in self._windows(texts, role, prompt):
            tokens += map(len, encoded.ids)
            dropped += encoded.dropped
        return tokens, dropped

    def gives_tokens(self, role: Role = "document") -> bool:
        """Return whether the model has vectors of tokens for a role; one that pools inside, or a static one, has none."""
        return self._has_tokens if role != "query" or self._query is None else self._query.gives_tokens(role)

    def embed_padded(self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None) -> NDArray[np.float32]:
        """Turn N texts into the vectors of their tokens, every row of the padded rectangle with them.

        Returns:
            (N, T, H) float32. T is the smallest bucket that holds the longest of these texts, or its length where there
            are no buckets. The rows of padding, on the tokenizer's side, are what the model computes for them.

        Raises:
            TypeError: `texts` is a str.
            TextError: as in `embed`.
            ValueError: the graph gives one vector a text and no tokens, or padding changes the vectors of real tokens.
        """
        texts = _checked(texts)
        if role == "query" and self._query is not None:
            return self._query.embed_padded(texts, role, prompt=prompt)
        self._need_tokens()
        if not self._recipe.padding:
            raise ValueError(f"In {self._source.model} padding changes the vectors of real tokens; call embed_tokens instead.")
        windows = list(self._windows(texts, role, prompt))
        longest = max([1, *(len(ids) for _, encoded in windows for ids in encoded.ids)])
        length = plan([longest], 1, buckets=self._runtime.buckets)[0].length
        run_length = self._frozen.length or length
        kept = slice(run_length - length, None) if self._tokenizer.pad_side == "left" else slice(length)
        out = np.empty((len(texts), length, 0), dtype=np.float32)
        for start, encoded in windows:
            for batch in self._batches([run_length] * len(encoded.ids)):
                states = self._run_batch(
                    encoded, batch.indices, run_length, role=role, output="token_embeddings", side=self._tokenizer.pad_side
                )
                if not out.size:
                    out = np.empty((len(texts), length, states.shape[2]), dtype=np.float32)
                out[[start + row for row in batch.indices]] = states[:, kept]  # (B, T, H)
        return out

    def close(self) -> None:
        """Free the model. Calling again does nothing; embedding afterwards raises RuntimeError."""
        self._sessions.close()
        if self._query is not None:
            self._query.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[partial["Embedder"], tuple[Source, Recipe, Runtime]]:
        # A session cannot travel; the receiver opens its own.
        return partial(type(self), calibration=self._calibration), (self._source, self._recipe, self._runtime)

    def __repr__(self) -> str:
        return f"Embedder({self._source.reference!r}, dimension={self._dimension}, fingerprint={self.fingerprint!r})"

    def _windows(self, texts: Sequence[str], role: Role, prompt: str | None) -> Iterator[tuple[int, Encoded]]:
        """Tokenize window by window; a text that is too long is an error or a warning, as the caller chose."""
        if not isinstance(role, str) or role not in self._recipe.prompts:
            raise ValueError(f"role is {role!r}; it must be 'document' or 'query'.")
        if prompt is None:
            prompt = self._recipe.prompts[role]
        elif (why := unencodable(prompt)) is not None:
            raise TypeError(f"prompt {why}. Pass a str.")
        elif prompt and self._recipe.named_prompts.get(prompt):
            raise ValueError(
                f"prompt={prompt!r} is the name of a prompt of this model, not its text. Pass "
                f"prompt=embedder.recipe.named_prompts[{prompt!r}]."
            )
        longest = self._recipe.longest(role)
        limit = longest if longest < self._recipe.max_length else None
        if self._runtime.truncate == "error":
            self._refuse_long(texts, prompt, limit)
        truncated = 0
        for start in range(0, len(texts), _WINDOW):
            encoded = self._tokenizer.encode(texts[start : start + _WINDOW], prompt, limit)
            truncated += sum(count > 0 for count in encoded.dropped)
            yield start, encoded
        if truncated and self._runtime.truncate == "warn" and not self._said_truncated:
            self._said_truncated = True
            warnings.warn(
                f"{truncated} of {len(texts)} texts had more than {longest} tokens and were cut on the "
                f"{self._recipe.side}. Split them, or choose truncate='error', 'right' or 'left'. Said once.",
                TruncationWarning,
                stacklevel=3,
            )

    def _refuse_long(self, texts: Sequence[str], prompt: str, limit: int | None) -> None:
        rows = {}
        for start in range(0, len(texts), _WINDOW):
            encoded = self._tokenizer.encode(texts[start : start + _WINDOW], prompt, limit)
            for row, (ids, dropped) in enumerate(zip(encoded.ids, encoded.dropped, strict=True)):
                if dropped:
                    rows[start + row] = f"has {len(ids) + dropped} tokens, the model takes {limit or self._recipe.max_length}"
        if rows:
            raise TextError(rows, len(texts))

    def _plan(self, encoded: Encoded) -> list[Batch]:
        return self._batches([len(ids) for ids in encoded.ids])

    def _batches(self, lengths: Sequence[int]) -> list[Batch]:
        """Plan batches, in the shape that the export froze where it froze one: `_run_batch` fills up their rows."""
        rows, length = self._frozen.rows, self._frozen.length
        buckets = self._runtime.buckets if length is None else (length,)
        if self._batch_dependent and self._runtime.alone:
            return plan(lengths, 1, buckets=buckets) if buckets else plan(lengths, 1, padded=False)
        tokens = self._runtime.max_batch_tokens
        tokens = _BATCH_TOKENS[self._recipe.precision] if tokens is None else tokens
        budget = max(tokens, (rows or 0) * max([length or 0, *lengths]))
        if not self._recipe.padding:
            batches = plan(lengths, budget, padded=False)
        else:
            # Where scales are measured on each batch, one token of padding is another vector too.
            even_to = 0 if self._batch_dependent else self._recipe.max_length
            batches = plan(lengths, budget, buckets=buckets, even_to=even_to)
        if rows is None:
            return batches
        return [
            Batch(batch.indices[i : i + rows], batch.length) for batch in batches for i in range(0, len(batch.indices), rows)
        ]

    @property
    def _has_tokens(self) -> bool:
        return "token_embeddings" in self.engine.output_names

    def _need_tokens(self) -> None:
        if not self._has_tokens:
            raise ValueError("This graph gives one vector a text and no token embeddings; load it with layer=-1.")

    def _embed_window(self, encoded: Encoded, role: Role, out: Vectors, step: Callable[[int], object]) -> None:
        """Fill `out` (N, D); rows of the same ids run once."""
        first: dict[tuple[int, ...], int] = {}
        same = [first.setdefault(tuple(ids), row) for row, ids in enumerate(encoded.ids)]
        rows = list(first.values())
        planned = self._batches([len(encoded.ids[row]) for row in rows])
        batches = [Batch(tuple(rows[i] for i in batch.indices), batch.length) for batch in planned]
        feeds = [partial(self._feed, encoded, batch.indices, batch.length, role=role) for batch in batches]
        for batch, values in zip(batches, self._sessions.run_many(feeds, "sentence_embedding"), strict=True):
            out[list(batch.indices)] = _finite(values, batch.indices)
            step(len(batch.indices))
        if len(rows) < len(same):
            out[:] = out[same]
            step(len(same) - len(rows))

    def _run_batch(
        self,
        encoded: Encoded,
        rows: Sequence[int],
        length: int | None = None,
        *,
        role: Role = "document",
        output: str = "sentence_embedding",
        side: str | None = None,
    ) -> NDArray[Any]:
        return _finite(self._sessions.run(partial(self._feed, encoded, rows, length, role=role, side=side), output), rows)

    def _feed(
        self, encoded: Encoded, rows: Sequence[int], length: int | None, *, role: Role, side: str | None = None
    ) -> dict[str, NDArray[Any]]:
        """Pad B texts, and give every input of the graph its array."""
        length = length or self._frozen.length or max([1, *(len(encoded.ids[row]) for row in rows)])
        filled = [*rows, *[rows[-1]] * ((self._frozen.rows or len(rows)) - len(rows))]
        padded = self._tokenizer.pad(encoded, filled, length, pool_prompt=self._recipe.include_prompt, side=side or self._side)
        meaning = Meaning(position_offset=self._recipe.position_offset, task=self._recipe.tasks.get(role))
        return feed(self.engine.inputs, padded, meaning=meaning)


def _finite(values: NDArray[Any], rows: Sequence[int]) -> NDArray[Any]:
    """Give the values of B rows, without those that filled up a frozen batch.

    Raises:
        ArithmeticError: one of them is NaN or infinite.
    """
    values = values[: len(rows)]
    if not np.isfinite(values).all():
        bad = [row for row, value in zip(rows, values, strict=True) if not np.isfinite(value).all()]
        raise ArithmeticError(f"The model gave NaN or infinite values for {len(bad)} texts, the first of them row {bad[0]}.")
    return values


def _open(found: Source, prepared: prepare.Prepared, runtime: Runtime, threads: int | None) -> Engine:
    """Open a prepared graph; where it cannot run, the error names the model and not our copy of it."""
    graph, data = prepared.graph, prepared.data_folder
    try:
        return Engine(graph, threads=threads or runtime.threads, providers=runtime.providers, data_folder=data)
    except ValueError as error:
        if str(graph) not in str(error):
            raise
        raise ValueError(f"{found.model}, cut at {prepared.tensor!r}: {error}") from error


def _checked(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list.

    Raises:
        TypeError: they are one text, or nothing that can be run through.
        TextError: some are not texts.
    """
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts is a {type(texts).__name__}; give a list of texts, for example [text].")
    if not isinstance(texts, Iterable):
        raise TypeError(f"texts is a {type(texts).__name__}; give a list of texts, or any other iterable of them.")
    listed = list(texts)  # once: an iterator gives its texts only once
    rows = {row: why for row, text in enumerate(listed) if (why := unencodable(text)) is not None}
    if rows:
        raise TextError(rows, len(listed))
    return listed


class _Progress:
    """A progress bar, or nothing at all."""

    def __init__(self, total: int, *, shown: bool) -> None:
        self._bar: Any = None
        if shown:
            from tqdm.auto import tqdm  # noqa: PLC0415

            self._bar = tqdm(total=total, unit="text", desc="embedding")

    def __enter__(self) -> Callable[[int], object]:
        return (lambda _: None) if self._bar is None else self._bar.update

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()
