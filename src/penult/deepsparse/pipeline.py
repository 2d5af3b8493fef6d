"""DeepSparse's embedding extraction `Pipeline`, with its names and numbers, over `Embedder`.

This module translates DeepSparse's arguments into a recipe. It does not depend on graphs or sessions. Calls that failed in
DeepSparse by accident work here.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from penult.core import prepare, source
from penult.core.embedder import Embedder
from penult.core.loading import identified
from penult.core.recipe import Recipe, Rows
from penult.core.runner import Runtime
from penult.core.source import Source
from penult.core.tokenized import Tokenized
from penult.core.tokenizer import Tokenizer
from penult.deepsparse.arguments import (
    TASK,
    Context,
    Scheduler,
    Strategy,
    check_batch,
    check_lengths,
    check_streams,
    check_words,
    log_ignored,
    threads_of,
)
from penult.deepsparse.engine import Engine
from penult.deepsparse.shared_rows import SharedRows, shareable
from penult.types import Pooling

_DEFAULT_MODEL = "zoo:bert-large-wikipedia_bookcorpus-pruned90"
_POOLINGS: Mapping[str, Pooling] = {"per_token": "mean", "reduce_mean": "mean", "reduce_max": "max", "cls_token": "cls"}
_REMOVED: Mapping[str, str] = {
    "timer_manager": "measure the call yourself, or run `penult bench`",
    "current_timer": "measure the call yourself, or run `penult bench`",
    "tokenizer": "call transformers.AutoTokenizer.from_pretrained(folder)",
    "config": "call transformers.AutoConfig.from_pretrained(folder)",
    "to_config": "keep the arguments of Pipeline.create",
    "onnx_file_path": "use model_path; penult does not write another file",
    "engine_args": "use engine.num_cores, engine.batch_size and engine.inputs",
}


@dataclass(frozen=True, slots=True)
class EmbeddingExtractionOutput:
    """The result of a call.

    Attributes:
        embeddings: one item per text, in the order of the texts, also for a single text: a list of floats, or with
            `return_numpy=True` a float32 array, (H,) or with "per_token" (T H,).
    """

    embeddings: list[list[float]] | list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of a pipeline, in DeepSparse's terms; `sequence_lengths` are in ascending order."""

    model_path: str
    emb_extraction_layer: int | str | None
    extraction_strategy: Strategy
    sequence_lengths: tuple[int, ...]
    batch_size: int | None
    return_numpy: bool
    engine_type: str


class Pipeline:
    """DeepSparse's `transformers_embedding_extraction`. Load one with `Pipeline.create`.

    Safe to call from several threads.

    Attributes:
        embedder: the pipeline's own embedder, or the token vectors of a shared one.
        settings: the arguments.
    """

    def __init__(self, embedder: Embedder | SharedRows, settings: Settings) -> None:
        self.embedder = embedder
        self.settings = settings

    @classmethod
    def create(
        cls,
        task: str = TASK,
        model_path: str | os.PathLike[str] | None = None,
        *,
        emb_extraction_layer: int | str | None = -1,
        extraction_strategy: Strategy = "per_token",
        sequence_length: int | list[int] = 128,
        return_numpy: bool = False,
        batch_size: int | None = 1,
        num_cores: int | None = None,
        num_streams: int | None = None,
        scheduler: Scheduler | str | None = None,
        engine_type: str = "deepsparse",
        context: Context | None = None,
        model_size: object = 768,
        input_shapes: object = None,
        executor: Executor | int | None = None,
        benchmark: bool = False,
        alias: str | None = None,
        logger: object = None,
        config: object = None,
        tokenizer: object = None,
        trust_remote_code: bool = False,
        share: Embedder | None = None,
    ) -> "Pipeline":
        """Load a model as in DeepSparse, without changing its file.

        Args:
            task: "transformers_embedding_extraction", in any case, with `-` or `_`.
            model_path: a folder, an .onnx file, a Hub id, `hf:`, `package:` or a `zoo:` stub. None: DeepSparse's default stub.
            emb_extraction_layer: the layer whose output is taken, 0 the first and -1 the last (in `Embedder.load`, 0 is
                the embedding output and 1 the first layer); the name of a node or tensor; None for the graph's own output.
            extraction_strategy: "per_token": the concatenated vectors of all tokens, including padding; "reduce_mean" or
                "reduce_max" over the tokens that are neither PAD nor CLS; "cls_token": the vector of the first CLS.
            sequence_length: maximum tokens of a text, special tokens included; longer texts are truncated on the right without
                a warning. A list defines buckets: a text runs in the smallest one that fits; with "per_token", all texts of a
                call run in the bucket of the longest.
            return_numpy: whether items are arrays instead of lists of floats.
            batch_size: ignored: batches are planned from token counts.
            num_cores: threads. None or 0: the physical cores this process may use.
            num_streams: ignored: has no effect in penult.
            scheduler: a `Scheduler` or its name; ignored.
            engine_type: "deepsparse" or "onnxruntime"; both mean ONNX Runtime.
            context: its `num_cores` is the number of threads.
            model_size: ignored.
            input_shapes: ignored; see `sequence_length`.
            executor: ignored; the pipeline is thread-safe.
            benchmark: ignored; see `penult bench`.
            alias: ignored.
            logger: ignored.
            config: ignored; read from the model's folder.
            tokenizer: ignored; read from the model's folder.
            trust_remote_code: ignored; penult never runs code of a model.
            share: an open embedder of the same model, whose session is used if it has the same token vectors. Keep it open.
                None: the pipeline opens its own session.

        Raises:
            FileNotFoundError: the model or one of its files is missing.
            TypeError: an argument has a wrong type.
            ValueError: an argument is not an allowed value, or the model does not have the layer or length.
        """
        lengths = check_lengths(sequence_length)
        check_words(task, extraction_strategy, engine_type)
        check_batch(batch_size, executor)
        check_streams(num_streams, scheduler)
        if input_shapes is not None and isinstance(sequence_length, list):
            raise ValueError("input_shapes and a list of sequence lengths are mutually exclusive. Pass only the list.")
        log_ignored(
            "Pipeline",
            {
                "batch_size": batch_size if batch_size not in (None, 0, 1) else None,
                "num_streams": num_streams,
                "scheduler": scheduler,
                "model_size": model_size if model_size != 768 else None,
                "input_shapes": input_shapes,
                "executor": executor,
                "benchmark": benchmark or None,
                "alias": alias,
                "logger": logger,
                "config": config,
                "tokenizer": tokenizer,
                "trust_remote_code": trust_remote_code or None,
            },
        )
        settings = Settings(
            model_path=_DEFAULT_MODEL if model_path is None else os.fspath(model_path),
            emb_extraction_layer=emb_extraction_layer,
            extraction_strategy=extraction_strategy,
            sequence_lengths=lengths,
            batch_size=batch_size,
            return_numpy=return_numpy,
            engine_type=engine_type,
        )
        threads, bucketed = threads_of(num_cores, context), isinstance(sequence_length, list)
        return cls(_embedder(settings, threads, bucketed=bucketed, share=share), settings)

    def __call__(self, *texts: str | Iterable[str], inputs: str | Iterable[str] | None = None) -> EmbeddingExtractionOutput:
        """Embed a text, a list of texts, or several texts.

        Args:
            texts: one or several str, or one iterable of str; bytes are decoded as UTF-8.
            inputs: the same as a keyword argument.

        Raises:
            ValueError: neither or both were passed, or the value is not texts.
            TextError: some items of a list are not texts; see the error's `rows`.
        """
        listed = _texts(texts, inputs)
        if not listed:
            return EmbeddingExtractionOutput([])
        items = self.run(self.tokenize(listed))  # (N, H) or (N, T H)
        return EmbeddingExtractionOutput(list(items) if self.settings.return_numpy else items.tolist())

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """Return N texts as token ids, ready for `run`.

        Raises:
            TextError: some rows are not texts; the error's `rows` states which and why.
        """
        return self.embedder.tokenize(texts)

    def run(self, tokenized: Tokenized) -> NDArray[np.float32]:
        """Return the items of N texts from `tokenize`: (N, H) float32, or (N, T H) with "per_token"."""
        per_token = self.settings.extraction_strategy == "per_token"
        if isinstance(self.embedder, Embedder) and not (per_token and self.embedder.gives_tokens()):
            return self.embedder.run(tokenized)
        return self.embedder.run_padded(tokenized).reshape(len(tokenized), -1)  # (N, T, H) -> (N, T H)

    @property
    def dimension(self) -> int:
        """H, the size of one vector."""
        return self.embedder.dimension

    @property
    def task(self) -> str:
        """The task."""
        return TASK

    @property
    def model_path(self) -> str:
        """The model reference, as passed to `create`."""
        return self.settings.model_path

    @property
    def sequence_length(self) -> int:
        """Maximum tokens of a text; with buckets, the shortest bucket, as in DeepSparse."""
        return self.settings.sequence_lengths[0]

    @property
    def batch_size(self) -> int | None:
        """As passed to `create`; ignored: has no effect in penult."""
        return self.settings.batch_size

    @property
    def extraction_strategy(self) -> Strategy:
        """How the token vectors of a text are reduced to its item."""
        return self.settings.extraction_strategy

    @property
    def emb_extraction_layer(self) -> int | str | None:
        """The layer, in DeepSparse's numbering, where 0 is the first layer."""
        return self.settings.emb_extraction_layer

    @property
    def engine_type(self) -> str:
        """As passed to `create`; ignored: ONNX Runtime runs the graph."""
        return self.settings.engine_type

    @property
    def engine(self) -> Engine:
        """The session, shared by all buckets."""
        return Engine.around(self.embedder.engine)

    def close(self) -> None:
        """Free the model. A second call has no effect."""
        self.embedder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - always raises
        raise AttributeError(f"Pipeline has no attribute {name!r}" + (f": {_REMOVED[name]}." if name in _REMOVED else "."))

    def __repr__(self) -> str:
        return f"Pipeline({self.settings})"


def _texts(texts: tuple[str | Iterable[str], ...], inputs: str | Iterable[str] | None) -> list[str]:
    if bool(texts) == (inputs is not None):
        problem = "Texts were passed both by position and as inputs=" if texts else "No texts were passed"
        raise ValueError(f"{problem}. Pass a text, a list of texts, or several texts, either by position or as inputs=.")
    items: str | Iterable[Any] = inputs if inputs is not None else texts[0] if len(texts) == 1 else texts
    if isinstance(items, str | bytes):
        items = [items]
    if isinstance(items, Mapping) or not isinstance(items, Iterable):
        raise ValueError(  # noqa: TRY004 - as in DeepSparse
            f"inputs is a {type(items).__name__}; pass a text or a list of texts."
        )
    return [text.decode("utf-8") if isinstance(text, bytes) else text for text in items]  # `tokenize` refuses other types


def _embedder(settings: Settings, threads: int | None, *, bucketed: bool, share: Embedder | None) -> Embedder | SharedRows:
    """Open the model with DeepSparse's recipe, or use the shared embedder."""
    lengths = settings.sequence_lengths
    files = source.resolve(settings.model_path)
    tokenizer = Tokenizer(files.tokenizer, max_length=lengths[-1], may_be_bare=True)
    recipe = Recipe(
        layer=_layer(settings.emb_extraction_layer, files),
        pooling=_POOLINGS[settings.extraction_strategy],
        steps=(),
        dimensions=None,
        max_length=lengths[-1],
        side="right",
        prompts={"document": "", "query": ""},
        include_prompt=True,
        precision="fp32",
        rows=_rows(settings.extraction_strategy, tokenizer, files),
        origin={"max_length": "argument sequence_length"},
    )
    # Padding does not change reduced vectors, so without buckets texts are not padded to a fixed length.
    padded = bucketed or settings.extraction_strategy == "per_token"
    runtime = Runtime(truncate="right", buckets=lengths if padded else None, threads=threads, pads=padded)
    if share is not None and settings.extraction_strategy == "per_token" and shareable(share, files, recipe):
        return SharedRows(share, recipe, runtime, tokenizer)
    embedder = Embedder(files, identified(files, recipe), runtime, tokenizer=tokenizer)
    if settings.extraction_strategy != "per_token" and not embedder.gives_tokens():
        raise ValueError(
            f"The output of {settings.model_path!r} is already one vector per text, without token vectors for "
            f"extraction_strategy={settings.extraction_strategy!r}. Pass extraction_strategy='per_token' to get it unchanged."
        )
    return embedder


def _layer(layer: int | str | None, files: Source) -> int | str | None:
    """Convert DeepSparse's layer to the index in `hidden_states`, where 0 is the embedding output."""
    if layer is None or isinstance(layer, str) or layer == -1:
        return layer
    if not isinstance(layer, int):
        raise TypeError(f"emb_extraction_layer is {layer!r}; it must be an integer, a name or None.")
    count = prepare.count_layers(files)
    if not -count <= layer < count:
        raise ValueError(
            f"emb_extraction_layer is {layer}; the model has {count} layers. Pass 0 (the first) to {count - 1}, or -1 (the "
            f"last) to {-count}."
        )
    return layer + 1 if layer >= 0 else int(layer)


def _rows(strategy: Strategy, tokenizer: Tokenizer, files: Source) -> Rows | None:
    """Return which ids are pooled, as in DeepSparse. None: the attention mask decides, and no id is excluded."""
    if strategy == "cls_token":
        if tokenizer.cls_token_id is None:
            raise ValueError(
                f"The tokenizer of {files.reference!r} has no CLS token, which extraction_strategy='cls_token' needs. Pass "
                "'reduce_mean', 'reduce_max' or 'per_token'."
            )
        return Rows(only_id=tokenizer.cls_token_id)
    if tokenizer.pad_token_id is None:
        return None
    return Rows(exclude_ids=tuple(i for i in (tokenizer.pad_token_id, tokenizer.cls_token_id) if i is not None))
