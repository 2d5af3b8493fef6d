"""`Embedder`, the model that users load: text -> `Tokenized` -> vectors. All other calls are composed of these two steps.

embed:  texts -> tokenize -> Tokenized -> run -> (N, D)
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Self, get_args

import numpy as np
from numpy.typing import NDArray

from penult.core.engine import Engine
from penult.core.loading import read
from penult.core.model import Model, open_model
from penult.core.model_tokenizer import tokenizer_of
from penult.core.recipe import Overrides, Recipe
from penult.core.runner import WINDOW, Runner, Runtime
from penult.core.source import Source
from penult.core.text_reader import TextReader
from penult.core.tokenized import Tokenized
from penult.core.tokenizer import Tokenizer
from penult.progress_bar import progress_bar
from penult.types import Pooling, Precision, Role, Side, TextError, Truncate, Vectors, checked_texts


class Embedder:
    """A loaded embedding model; see `Embedder.load`.

    `embed` is two steps. Call them separately to count the tokens first, to merge the texts of several callers into one run, or
    to tokenize in another thread.

        tokenized = embedder.tokenize(texts)  # N texts as token ids: counts, truncation
        vectors = embedder.run(tokenized)  # (N, D) float32, the same as embedder.embed(texts)

    `embed_stream`, `embed_tokens`, `embed_padded` and `count_tokens` are composed of the same steps.

    Thread-safe: the batches of all callers run under one lock, so that memory is bounded by one batch per thread.

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
        self._query: Embedder | None = None  # the query model, if it differs from the document model
        if self._recipe.query is not None and source.query is not None:
            self._query = Embedder(source.query, self._recipe.query, runtime, calibration=calibration)
            self._recipe = replace(self._recipe, query=self._query.recipe)
            if self._query.dimension != self.dimension:
                raise ValueError(
                    f"{source.reference!r} has document vectors of {self.dimension} values and query vectors of "
                    f"{self._query.dimension}: they cannot be compared. Load the folder of one of its two models."
                )
        self._fingerprint = self._recipe.fingerprint
        self._reader = TextReader(runner.tokenizer, self._recipe, runtime.truncate, self._fingerprint)
        self._reader.check_prompts(role for role in get_args(Role) if self._for(role) is self)
        self._cutting: dict[Side, TextReader] = {}  # readers for an explicit `truncate` side

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
        """Load a model. The first load cuts its graph and caches the result; later loads open the cached graph.

        Args:
            model: a folder, an .onnx file, a Hub id (`org/name[@revision]`), `package:NAME[/sub/folder]` or `zoo:NAME`.
            layer: the hidden state to pool, counted as transformers' `hidden_states`: -1 the last, 0 the embedding
                output; a tensor's name; None for the graph's own output.
            pooling: "mean", "max", "cls", "last", "weightedmean", "mean_sqrt_len_tokens", or a list of them, which are
                concatenated. None: from the model's files; an error if they state no pooling.
            prompts: prefix of each text, by role: {"query": ..., "document": ...}. A role that is left out keeps the prompt of
                the model's files. None: from the model's files; many models state their prompts only on the model card.
            precision: arithmetic precision. "int8": 8-bit matrix products whose scales are computed once, on calibration texts,
                so that a vector never depends on its batch. A graph that is already quantized runs unchanged.
            max_length: maximum tokens per text, special tokens included. None: from the model's files.
            truncate: handling of longer texts: "error", "warn" (truncate, and warn once), "right" or "left" (truncate there).
            dimensions: number of leading values to keep, for Matryoshka models. None: all.
            normalize: whether to normalize vectors to length 1. None: from the model's files.
            layer_norm: whether to apply a layer norm without weights, and normalize, before `dimensions` cuts. Some model cards
                require it (nomic-embed-text-v1.5), and no file can state it.
            task: name or number of the adapter, for a model that has several (an input `task_id`). None: by role, from the
                model's config.json.
            model_file: graph in the folder or repository, for example "onnx/model_int8.onnx". None: the default graph.
            files_from: folder or Hub id to read the configuration from, for a mirror that has only the graph, for example
                "BAAI/bge-small-en-v1.5". None: the model's own files.
            buckets: the only padded lengths allowed. None: any.
            threads: intra-op threads per run. None: the physical cores this process may use; PENULT_THREADS overrides.
            providers: ONNX Runtime's execution providers. None: the CPU.
            max_batch_tokens: maximum padded tokens per batch; it bounds memory. None: 512 in fp32 and 256 in int8, which
                keeps a small model's activations in the CPU cache, where it is fastest.
            calibration: calibration texts of int8: a few dozen, similar to the texts to embed. None: the texts shipped with
                penult.
            batch_invariant: whether to run one text at a time if the graph's own 8-bit scales depend on the batch. The vectors
                of all other graphs are batch-invariant anyway.
            fingerprint: expected `fingerprint`: the same bytes of graph, weights and tokenizer, used in the same way. Every
                byte is hashed, even of files with a known hash. None: no check.

        Raises:
            FileNotFoundError: the model or a part of it is missing.
            ValueError: an argument or a file of the model is invalid, or the fingerprint differs; the message says what to do.
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
            reread=fingerprint is not None,
        )
        texts = None if calibration is None else tuple(checked_texts(calibration))
        opened = read(model, overrides, texts, model_file=model_file, files_from=files_from, reread=fingerprint is not None)
        embedder = cls(*opened, runtime, calibration=texts)
        cut = embedder.recipe.origin.get("dimensions") == "argument" and normalize is None and not layer_norm
        if cut and not embedder.recipe.unit_length:
            warnings.warn(
                f"dimensions={dimensions}: no file of {os.fspath(model)!r} states that its vectors are normalized, so the "
                "shortened vectors are not normalized either. If the model's card says so, pass normalize=True, or "
                "layer_norm=True for a layer norm before the cut.",
                stacklevel=2,
            )
        if fingerprint is not None and embedder.fingerprint != fingerprint:
            embedder.close()
            raise ValueError(
                f"{os.fspath(model)!r} has the fingerprint {embedder.fingerprint}, not {fingerprint}: its files or settings "
                "are not the pinned ones. Pass the pinned revision and settings, or embed all texts again and pin the new "
                "fingerprint. If another version of penult computed the pin, see `Vector changes` in the changelog."
            )
        return embedder

    @property
    def dimension(self) -> int:
        """D, the number of values in a vector."""
        return self.model.dimension

    @property
    def recipe(self) -> Recipe:
        """The settings that determine a vector, and the origin of each."""
        return self._recipe

    @property
    def fingerprint(self) -> str:
        """Hash of the recipe. Only vectors with equal fingerprints are comparable."""
        return self._fingerprint

    @property
    def engine(self) -> Engine:
        """The session: raw tensors in, `sentence_embedding` and, if the graph has it, `token_embeddings` out."""
        return self.model.runner.engine

    @property
    def providers(self) -> list[str]:
        """Execution providers that the session actually uses."""
        return self.engine.providers

    def tokenize(
        self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None, truncate: Side | None = None
    ) -> Tokenized:
        """Return N texts as token ids, ready for `run`.

        Args:
            texts: any iterable of N texts. Empty texts are allowed.
            role: "document" or "query": selects the model's prompt, which is put before each text.
            prompt: put before each text instead of the role's prompt; not part of the fingerprint. None: the role's prompt.
            truncate: side on which texts that are too long are cut; not part of the fingerprint. None: as loaded.

        Raises:
            TypeError: `texts` is a str (by mistake: it would be a sequence of one-letter texts), or not iterable.
            TextError: some rows are not texts, or too long with truncate="error"; the error's `rows` has the reasons by row.
        """
        texts = checked_texts(texts)
        return Tokenized.join([*self._for(role)._reader_cutting(truncate).windows(texts, role, prompt)])

    def run(self, tokenized: Tokenized, done: Callable[[int], object] | None = None) -> Vectors:
        """Return the vectors of N texts from `tokenize`, of this embedder or of one with the same fingerprint.

        Args:
            tokenized: N texts.
            done: called after each batch with the number of texts that it finished.

        Returns:
            (N, D) float32, in the order of the texts. A text's vector does not depend on the other texts.

        Raises:
            TypeError: the argument is not a `Tokenized`.
            ValueError: an embedder with another fingerprint tokenized the texts.
        """
        return self._runner_of(tokenized).vectors(tokenized, self.dimension, done)

    def run_tokens(self, tokenized: Tokenized) -> list[NDArray[np.float32]]:
        """Return the token embeddings of N texts: a list of (T_i, H) float32, without padding.

        Raises:
            ValueError: another embedder tokenized the texts, or the graph has no token embeddings.
        """
        return _with_tokens(self._runner_of(tokenized)).tokens(tokenized)

    def run_padded(self, tokenized: Tokenized) -> NDArray[np.float32]:
        """Return the token embeddings of N texts, padding included.

        Returns:
            (N, T, H) float32. T is the smallest bucket that fits the longest of these texts, or its length without buckets. The
            rows of padding, on the tokenizer's padding side, are the model's output for them.

        Raises:
            ValueError: another embedder tokenized the texts, the graph has no token embeddings, or padding changes the vectors
                of real tokens.
        """
        runner = _with_tokens(self._runner_of(tokenized))
        if not runner.recipe.padding:
            raise ValueError(
                f"In {self.model.source.model}, padding changes the vectors of real tokens. Call run_tokens or embed_tokens "
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
            (N, D) float32, in the caller's order; (0, D) for no texts. A text's vector does not depend on the other texts.

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

    def __call__(self, input: Iterable[str]) -> Vectors:  # noqa: A002 - Chroma's name for it
        """Return the vectors of N documents, as `embed` does, for libraries that expect a callable."""
        return self.embed(input)

    def embed_stream(
        self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None, window: int = WINDOW
    ) -> Iterator[Vectors]:
        """Yield the vectors of a stream of texts, in bounded memory.

        Args:
            texts: any iterable; at most `window` texts are in memory at a time.
            role: as in `tokenize`.
            prompt: as in `tokenize`.
            window: number of texts that are sorted by length together.

        Yields:
            (N_i, D) float32 arrays in the order of the stream; N_i = `window` except for the last.

        Raises:
            TypeError: `texts` is a str.
            TextError: a row cannot be embedded; rows are numbered from the start of the stream.
        """
        if texts is None or isinstance(texts, str | bytes | bytearray):
            raise TypeError(f"texts is a {type(texts).__name__}; pass an iterable of texts.")
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
        """Return the token embeddings of N texts: a list of (T_i, H) float32, without padding.

        Raises:
            TypeError: as in `tokenize`.
            TextError: as in `tokenize`.
            ValueError: as in `run_tokens`.
        """
        return self.run_tokens(self.tokenize(texts, role, prompt=prompt))

    def embed_padded(self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None) -> NDArray[np.float32]:
        """Return the token embeddings of N texts, padding included, (N, T, H) float32; see `run_padded`.

        Raises:
            TypeError: as in `tokenize`.
            TextError: as in `tokenize`.
            ValueError: as in `run_padded`.
        """
        return self.run_padded(self.tokenize(texts, role, prompt=prompt))

    def count_tokens(self, texts: Iterable[str], role: Role = "document", *, prompt: str | None = None) -> NDArray[np.int64]:
        """Return (N,) int64, tokens per text after truncation, prompt and special tokens included.

        Raises:
            TypeError: as in `tokenize`.
            TextError: as in `tokenize`.
        """
        return self.tokenize(texts, role, prompt=prompt).counts

    def gives_tokens(self, role: Role = "document") -> bool:
        """Return whether the model has token embeddings for a role; a graph that pools itself or a static model has none."""
        return self._for(role).model.runner.has_tokens

    def close(self) -> None:
        """Free the model. Further calls do nothing; embedding afterwards raises RuntimeError."""
        self.model.runner.executor.close()
        if self._query is not None:
            self._query.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[partial["Embedder"], tuple[Source, Recipe, Runtime]]:
        # A session cannot be pickled; the receiving process opens a new one.
        model = self.model
        return partial(type(self), calibration=model.calibration), (model.source, self._recipe, model.runner.runtime)

    def __repr__(self) -> str:
        return f"Embedder({self.model.source.reference!r}, dimension={self.dimension}, fingerprint={self.fingerprint!r})"

    def _for(self, role: Role) -> "Embedder":
        """Return the embedder of a role."""
        return self._query if role == "query" and self._query is not None else self

    def _reader_cutting(self, side: Side | None) -> TextReader:
        """Return the reader that truncates on a side; for a side other than the recipe's, open the tokenizer again."""
        if side is None:
            return self._reader
        if side not in self._cutting:
            recipe, tokenizer = self._recipe, self.model.runner.tokenizer
            if side != recipe.side:
                recipe = replace(recipe, side=side)
                tokenizer = tokenizer_of(self.model.source, recipe)
            self._cutting[side] = TextReader(tokenizer, recipe, side, self._fingerprint)
        return self._cutting[side]

    def _runner_of(self, tokenized: Tokenized) -> Runner:
        if not isinstance(tokenized, Tokenized):
            raise TypeError(f"tokenized is a {type(tokenized).__name__}; pass the result of tokenize(), or call embed().")
        embedder = self._for(tokenized.role)
        tokenized.check(embedder.fingerprint)
        return embedder.model.runner


def _with_tokens(runner: Runner) -> Runner:
    if not runner.has_tokens:
        raise ValueError("This model outputs one vector per text and no token embeddings. Load it with layer=-1.")
    return runner
