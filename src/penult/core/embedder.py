"""Embedder: text -> `Tokenized` -> vectors, and the calls composed of these two.

embed:  texts -> tokenize -> Tokenized -> run -> (N, D)
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Self

import numpy as np
from numpy.typing import NDArray

from penult.core.engine import Engine
from penult.core.loading import read
from penult.core.model import Model, open_model
from penult.core.recipe import Overrides, Recipe
from penult.core.runner import WINDOW, Runner, Runtime
from penult.core.source import Source
from penult.core.text_reader import TextReader
from penult.core.tokenized import Tokenized
from penult.core.tokenizer import Tokenizer
from penult.progress_bar import progress_bar
from penult.types import Pooling, Precision, Role, TextError, Truncate, Vectors, checked_texts


class Embedder:
    """A model that turns texts into vectors. Load one with `Embedder.load`.

    `embed` is two steps, which may also be called apart: to count the tokens first, to merge texts of several callers into one
    run, or to tokenize in another thread.

        tokenized = embedder.tokenize(texts)  # N texts as token ids: counts, truncation
        vectors = embedder.run(tokenized)  # (N, D) float32, the same as embedder.embed(texts)

    `embed_stream`, `embed_tokens`, `embed_padded` and `count_tokens` are composed of the same steps.

    Safe to call from several threads: the batches of all callers run under one lock, so that memory is bounded by one batch
    per thread.

    Attributes:
        model: files, tokenizer and session of the model.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        runtime: Runtime,
        *,
        tokenizer: Tokenizer | None = None,
        calibration: tuple[str, ...] | None = None,
    ) -> None:
        self.model: Model = open_model(source, recipe, runtime, tokenizer=tokenizer, calibration=calibration)
        runner = self.model.runner
        self._recipe = runner.recipe
        self._query: Embedder | None = None  # the model of queries, where it is not that of documents
        if self._recipe.query is not None and source.query is not None:
            self._query = Embedder(source.query, self._recipe.query, runtime, calibration=calibration)
            self._recipe = replace(self._recipe, query=self._query.recipe)
            if self._query.dimension != self.dimension:
                raise ValueError(
                    f"{source.reference!r} gives documents {self.dimension} values and queries {self._query.dimension}: their "
                    "vectors cannot be compared. Load the folder of one of them."
                )
        self._fingerprint = self._recipe.fingerprint
        self._reader = TextReader(runner.tokenizer, self._recipe, runtime.truncate, self._fingerprint)

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
        """Load a model. The first load cuts its graph and keeps it in the cache; later ones open it from there.

        Args:
            model: a folder, an .onnx file, a Hub id (`org/name[@revision]`), `package:NAME[/sub/folder]` or `zoo:NAME`.
            layer: the hidden state to pool, counted as transformers' `hidden_states`: -1 the last, 0 the embedding
                output; a tensor's name; None for the graph's own output.
            pooling: "mean", "max", "cls", "last", "weightedmean", "mean_sqrt_len_tokens", or a list of them, which are
                concatenated. None: as the model's own files say, and an error where they say nothing.
            prompts: what is put before the texts of a role: {"query": ..., "document": ...}. A role that is left out keeps the
                prompt of the model's files. None: as the files say; many models state theirs on their card alone.
            precision: arithmetic precision. "int8": 8-bit matrix products whose scales are computed once, on calibration texts,
                so that a vector never depends on its batch; a graph that is 8-bit already runs as it is.
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
            threads: intra-op threads per run. None: the physical cores this process may use; PENULT_THREADS overrides.
            providers: ONNX Runtime's execution providers. None: the CPU.
            max_batch_tokens: the most padded tokens of a batch; it bounds memory. None: 512 in fp32 and 256 in int8, which
                keeps a small model's activations in the cache of the CPU, where it is fastest.
            calibration: calibration texts of int8: some tens, like those to embed. None: the texts that ship with penult.
            batch_invariant: run a graph whose own 8-bit scales depend on the batch one text at a time. Every other graph's
                vectors are free of their batch anyway.
            fingerprint: refuse to load anything else than what had this `fingerprint`: the same bytes of graph, weights
                and tokenizer, used in the same way. None: load what is there.

        Raises:
            FileNotFoundError: no model there, or a part of it is missing.
            ValueError: an argument or a file of the model cannot be used, or it has another fingerprint; the message says
                what to do.
        """
        overrides = Overrides(
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
        texts = None if calibration is None else tuple(checked_texts(calibration))
        embedder = cls(*read(model, overrides, texts, model_file=model_file, files_from=files_from), runtime, calibration=texts)
        cut = embedder.recipe.origin.get("dimensions") == "argument" and normalize is None and not layer_norm
        if cut and not embedder.recipe.unit_length:
            warnings.warn(
                f"dimensions={dimensions}: no file of {os.fspath(model)!r} says that its vectors are normalized, so their "
                "leading values are kept as they are. If the model's card asks for it, pass normalize=True, or layer_norm=True "
                "for a layer norm before the cut.",
                stacklevel=2,
            )
        if fingerprint is not None and embedder.fingerprint != fingerprint:
            embedder.close()
            raise ValueError(
                f"{os.fspath(model)!r} has the fingerprint {embedder.fingerprint}, not {fingerprint}: its files, or how they "
                "are used, are not those that were pinned. Name the pinned revision, or embed all texts anew and pin this one. "
                "If an earlier version of penult made the pin, see `Vector changes` in the changelog: files that it read in "
                "part gave other vectors."
            )
        return embedder

    @property
    def dimension(self) -> int:
        """D, the number of values in a vector."""
        return self.model.dimension

    @property
    def recipe(self) -> Recipe:
        """All that decides a vector, and where each value came from."""
        return self._recipe

    @property
    def fingerprint(self) -> str:
        """Hash of the recipe: vectors of equal fingerprints may be compared, others must not be mixed."""
        return self._fingerprint

    @property
    def engine(self) -> Engine:
        """The session: raw tensors in, `sentence_embedding` and, where there is one, `token_embeddings` out."""
        return self.model.runner.engine

    @property
    def providers(self) -> list[str]:
        """The execution providers that really run the graph."""
        return self.engine.providers

    def tokenize(self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None) -> Tokenized:
        """Return N texts as token ids, ready for `run`.

        Args:
            texts: N texts, in any iterable; they are not altered. Empty ones are legal.
            role: "document" or "query": the model's prompt for it is put before each text.
            prompt: put before each text instead of the role's prompt; not part of the fingerprint. None: the role's.

        Raises:
            TypeError: `texts` is a str (a str is a sequence of one-letter texts, which nobody means), or not iterable.
            TextError: some rows are not texts, or too long with truncate="error"; the error's `rows` says which and why.
        """
        texts = checked_texts(texts)
        return Tokenized.join([*self._for(role)._reader.windows(texts, role, prompt)])

    def run(self, tokenized: Tokenized, done: Callable[[int], object] | None = None) -> Vectors:
        """Return the vectors of N texts from `tokenize`, of this embedder or of one with the same fingerprint.

        Args:
            tokenized: N texts.
            done: called after each batch with the number of texts that it finished.

        Returns:
            (N, D) float32, in the order of the texts. A text's vector is the same whatever the other texts.

        Raises:
            TypeError: they are not `Tokenized`.
            ValueError: another embedder tokenized them.
        """
        return self._runner_of(tokenized).vectors(tokenized, self.dimension, done)

    def run_tokens(self, tokenized: Tokenized) -> list[NDArray[np.float32]]:
        """Return the vectors of the tokens of N texts: a list of (T_i, H) float32, without padding.

        Raises:
            ValueError: another embedder tokenized them, or the graph gives one vector per text and no tokens.
        """
        return _with_tokens(self._runner_of(tokenized)).tokens(tokenized)

    def run_padded(self, tokenized: Tokenized) -> NDArray[np.float32]:
        """Return the vectors of the tokens of N texts, every row of the padded rectangle with them.

        Returns:
            (N, T, H) float32. T is the smallest bucket that holds the longest of these texts, or its length where there
            are no buckets. The rows of padding, on the tokenizer's side, are what the model computes for them.

        Raises:
            ValueError: another embedder tokenized them, the graph gives one vector per text and no tokens, or padding
                changes the vectors of real tokens.
        """
        runner = _with_tokens(self._runner_of(tokenized))
        if not runner.recipe.padding:
            raise ValueError(
                f"In {self.model.source.model} padding changes the vectors of real tokens; call run_tokens or embed_tokens "
                "instead."
            )
        return runner.padded(tokenized)

    def embed(
        self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None, progress: bool = False
    ) -> Vectors:
        """Return the vectors of N texts: `run(tokenize(texts))`, window by window.

        Args:
            texts: as in `tokenize`.
            role: as in `tokenize`.
            prompt: as in `tokenize`.
            progress: show a progress bar on standard error.

        Returns:
            (N, D) float32, in the caller's order; (0, D) for no texts. A text's vector is the same whatever the other texts.

        Raises:
            TypeError: as in `tokenize`.
            TextError: as in `tokenize`.
        """
        texts, start = checked_texts(texts), 0
        out = np.empty((len(texts), self.dimension), dtype=np.float32)
        with progress_bar(len(texts), shown=progress) as step:
            for tokenized in self._for(role)._reader.windows(texts, role, prompt):
                vectors = self._runner_of(tokenized).vectors(tokenized, self.dimension, step)
                out[start : start + len(tokenized)] = vectors
                start += len(tokenized)
        return out

    def embed_stream(
        self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None, window: int = WINDOW
    ) -> Iterator[Vectors]:
        """Turn a stream of texts into vectors, in memory that does not grow with the stream.

        Args:
            texts: any iterable; at most `window` of them are held at a time.
            role: as in `tokenize`.
            prompt: as in `tokenize`.
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
                yield self.run(self.tokenize(chunk, role, prompt=prompt))
            except TextError as error:
                raise TextError({start + row: why for row, why in error.rows.items()}, start + error.total) from error
            start += len(chunk)

    def embed_tokens(
        self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None
    ) -> list[NDArray[np.float32]]:
        """Return the vectors of the tokens of N texts: a list of (T_i, H) float32, without padding.

        Raises:
            TypeError: as in `tokenize`.
            TextError: as in `tokenize`.
            ValueError: as in `run_tokens`.
        """
        return self.run_tokens(self.tokenize(texts, role, prompt=prompt))

    def embed_padded(self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None) -> NDArray[np.float32]:
        """Return the vectors of the tokens of N texts with those of their padding, (N, T, H) float32; see `run_padded`.

        Raises:
            TypeError: as in `tokenize`.
            TextError: as in `tokenize`.
            ValueError: as in `run_padded`.
        """
        return self.run_padded(self.tokenize(texts, role, prompt=prompt))

    def count_tokens(self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None) -> NDArray[np.int64]:
        """Return (N,) int64, the tokens that the model reads of each text: prompt and specials included, what is cut off not.

        Raises:
            TypeError: as in `tokenize`.
            TextError: as in `tokenize`.
        """
        return self.tokenize(texts, role, prompt=prompt).counts

    def gives_tokens(self, role: Role = "document") -> bool:
        """Return whether the model has vectors of tokens for a role; one that pools inside, or a static one, has none."""
        return self._for(role).model.runner.has_tokens

    def close(self) -> None:
        """Free the model. Calling again does nothing; embedding afterwards raises RuntimeError."""
        self.model.runner.executor.close()
        if self._query is not None:
            self._query.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[partial["Embedder"], tuple[Source, Recipe, Runtime]]:
        # A session cannot be pickled; the receiver opens its own.
        model = self.model
        return partial(type(self), calibration=model.calibration), (model.source, self._recipe, model.runner.runtime)

    def __repr__(self) -> str:
        return f"Embedder({self.model.source.reference!r}, dimension={self.dimension}, fingerprint={self.fingerprint!r})"

    def _for(self, role: Role) -> "Embedder":
        """Return the embedder of a role."""
        return self._query if role == "query" and self._query is not None else self

    def _runner_of(self, tokenized: Tokenized) -> Runner:
        if not isinstance(tokenized, Tokenized):
            raise TypeError(f"tokenized is a {type(tokenized).__name__}; pass what tokenize() returns, or texts to embed().")
        embedder = self._for(tokenized.role)
        tokenized.check(embedder.fingerprint)
        return embedder.model.runner


def _with_tokens(runner: Runner) -> Runner:
    if not runner.has_tokens:
        raise ValueError("This graph gives one vector a text and no token embeddings; load it with layer=-1.")
    return runner
