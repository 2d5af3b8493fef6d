"""Pipeline: DeepSparse's embedding extraction under its own names, over the one path that text takes, `Embedder`.

It knows DeepSparse's words, what they meant to the last digit, and which of them mean nothing on another engine. What it
computes, `Embedder` computes; nothing here touches a graph or a session. Where DeepSparse failed by accident, this works.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Self, cast

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
    say_ignored,
    threads_of,
)
from penult.deepsparse.engine import Engine
from penult.deepsparse.shared_rows import SharedRows, shareable
from penult.types import Pooling

_DEFAULT_MODEL = "zoo:bert-large-wikipedia_bookcorpus-pruned90"
_POOLINGS: Mapping[str, Pooling] = {"per_token": "mean", "reduce_mean": "mean", "reduce_max": "max", "cls_token": "cls"}
_GONE: Mapping[str, str] = {
    "timer_manager": "time the call itself; `penult bench` measures tokenising, running and the rest",
    "current_timer": "time the call itself; `penult bench` measures tokenising, running and the rest",
    "tokenizer": "transformers.AutoTokenizer.from_pretrained(folder) gives it",
    "config": "transformers.AutoConfig.from_pretrained(folder) gives it",
    "to_config": "keep the arguments of Pipeline.create; DeepSparse's own answer could not be read back",
    "onnx_file_path": "the model's file is model_path, and no other is written beside it",
    "engine_args": "engine.num_cores, engine.batch_size and engine.inputs say what there is",
}


@dataclass(frozen=True, slots=True)
class EmbeddingExtractionOutput:
    """What a call answers.

    Attributes:
        embeddings: one item a text, in the order of the texts, also for a single text: a list of floats, or with
            `return_numpy=True` a float32 array of one axis.
    """

    embeddings: list[list[float]] | list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a pipeline was made with, in DeepSparse's words."""

    model_path: str
    emb_extraction_layer: int | str | None
    extraction_strategy: Strategy
    sequence_lengths: tuple[int, ...]
    batch_size: int | None
    return_numpy: bool
    engine_type: str


class Pipeline:
    """DeepSparse's `transformers_embedding_extraction`. Make one with `Pipeline.create`.

    Safe to call from several threads.
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
        """Open a model as DeepSparse did, the file itself left as it is.

        Args:
            task: "transformers_embedding_extraction", in any case, with `-` or `_`.
            model_path: a folder, an .onnx file, a Hub id, `hf:`, `package:` or a `zoo:` stub. None: DeepSparse's default stub.
            emb_extraction_layer: the layer whose output is taken, 0 the first and -1 the last (in `Embedder.load`, 0 is
                the embedding output and 1 the first layer); a node's or a tensor's name; None for the graph uncut.
            extraction_strategy: "per_token", all rows of a text one after the other, those of padding too; "reduce_mean"
                or "reduce_max" over the rows that are neither PAD nor CLS; "cls_token", the row of the first CLS.
            sequence_length: the most tokens of a text, specials included; longer texts are cut on the right in silence. A
                list makes buckets: a text runs in the smallest that holds it; with "per_token", all texts of a call have
                the length of the bucket of the longest.
            return_numpy: items are arrays instead of lists of floats.
            batch_size: no answer depends on it; batches are formed by their tokens.
            num_cores: threads. None or 0: the physical cores this process may use.
            num_streams: without a meaning here, as the next.
            scheduler: a `Scheduler` or its name.
            engine_type: "deepsparse" or "onnxruntime"; both mean ONNX Runtime.
            context: its `num_cores` is taken.
            model_size: without a meaning here, as all that follow; DeepSparse used none of them to make an embedding.
            input_shapes: see `sequence_length`.
            executor: calls may come from any thread.
            benchmark: see `penult bench`.
            alias: a name of the caller's own.
            logger: a logger of DeepSparse's.
            config: a configuration; the model's folder has it.
            tokenizer: a tokenizer; the model's folder has it.
            trust_remote_code: no code of a model is ever run.
            share: an open embedder of the same model, whose session serves where it has the same token vectors; it must stay
                open. None: the pipeline opens a session of its own.

        Raises:
            FileNotFoundError: no model there, or a part of it is missing.
            TypeError: an argument is of a type that it cannot have.
            ValueError: an argument is none of the allowed values, or the model has no such layer or length.
        """
        lengths = check_lengths(sequence_length)
        check_words(task, extraction_strategy, engine_type)
        check_batch(batch_size, executor)
        check_streams(num_streams, scheduler)
        if input_shapes is not None and isinstance(sequence_length, list):
            raise ValueError("input_shapes and a list of sequence lengths exclude each other; give the list alone.")
        say_ignored(
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
            texts: a str, several of them, or one iterable of them; bytes are read as UTF-8.
            inputs: the same by name.

        Raises:
            ValueError: nothing was given, both were, or something is no text. A list that holds something else than
                texts raises `TextError`, whose `rows` says which.
        """
        listed = _texts(texts, inputs)
        if not listed:
            return EmbeddingExtractionOutput([])
        items = self.run(self.tokenize(listed))  # (N, H) or (N, T H)
        return EmbeddingExtractionOutput(list(items) if self.settings.return_numpy else items.tolist())

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """Return N texts as token ids, ready for `run`.

        Raises:
            TextError: some rows are no text; the error's `rows` says which and why.
        """
        return self.embedder.tokenize(texts)

    def run(self, tokenized: Tokenized) -> NDArray[np.float32]:
        """Return the items of N texts that `tokenize` has read: (N, H) float32, or (N, T H) with "per_token"."""
        if isinstance(self.embedder, Embedder) and (self.settings.extraction_strategy != "per_token" or not self._has_tokens):
            return self.embedder.run(tokenized)
        return self.embedder.run_padded(tokenized).reshape(len(tokenized), -1)  # (N, T, H) -> (N, T H)

    @property
    def dimension(self) -> int:
        """H, the size of one row."""
        return self.embedder.dimension

    @property
    def task(self) -> str:
        """The one task there is."""
        return TASK

    @property
    def model_path(self) -> str:
        """The model as it was named."""
        return self.settings.model_path

    @property
    def sequence_length(self) -> int:
        """The most tokens of a text; with buckets the shortest of them, as in DeepSparse."""
        return self.settings.sequence_lengths[0]

    @property
    def batch_size(self) -> int | None:
        """What was given; no answer depends on it."""
        return self.settings.batch_size

    @property
    def extraction_strategy(self) -> Strategy:
        """How a text's rows become its item."""
        return self.settings.extraction_strategy

    @property
    def emb_extraction_layer(self) -> int | str | None:
        """The layer, in DeepSparse's count."""
        return self.settings.emb_extraction_layer

    @property
    def engine_type(self) -> str:
        """What was given; ONNX Runtime runs the graph."""
        return self.settings.engine_type

    @property
    def engine(self) -> Engine:
        """The one session that all buckets share."""
        return Engine.around(self.embedder.engine)

    def close(self) -> None:
        """Free the model. Calling again does nothing."""
        self.embedder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - it only ever raises
        raise AttributeError(f"Pipeline has no {name!r}" + (f": {_GONE[name]}." if name in _GONE else "."))

    def __repr__(self) -> str:
        return f"Pipeline({self.settings})"

    @property
    def _has_tokens(self) -> bool:
        return "token_embeddings" in self.engine.output_names


def _texts(texts: tuple[str | Iterable[str], ...], inputs: str | Iterable[str] | None) -> list[str]:
    if bool(texts) == (inputs is not None):
        what = "both by position and as inputs=" if texts else "nowhere"
        raise ValueError(f"Texts were given {what}; give a text, a list of texts, or several texts, one way.")
    given = inputs if inputs is not None else texts[0] if len(texts) == 1 else texts
    if isinstance(given, str | bytes):
        given = [given]
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise ValueError(  # noqa: TRY004 - DeepSparse's validation error was one too
            f"inputs is a {type(given).__name__}; give a text or a list of texts."
        )
    read = [text.decode("utf-8") if isinstance(text, bytes) else text for text in given]
    return cast("list[str]", read)  # what is no text, the embedder refuses with its row


def _embedder(settings: Settings, threads: int | None, *, bucketed: bool, share: Embedder | None) -> Embedder | SharedRows:
    """Open the model with the recipe that is DeepSparse's."""
    lengths = settings.sequence_lengths
    found = source.resolve(settings.model_path)
    tokenizer = Tokenizer(found.tokenizer, max_length=lengths[-1])
    read = Recipe(
        layer=_layer(settings.emb_extraction_layer, found),
        pooling=_POOLINGS[settings.extraction_strategy],
        steps=(),
        dimensions=None,
        max_length=lengths[-1],
        side="right",
        prompts={"document": "", "query": ""},
        include_prompt=True,
        precision="fp32",
        rows=_rows(settings.extraction_strategy, tokenizer, found),
        origin={"max_length": "argument sequence_length"},
    )
    # Padding decides no reduced vector, so where no buckets were asked for each text runs at its own length.
    padded = bucketed or settings.extraction_strategy == "per_token"
    runtime = Runtime(truncate="right", buckets=lengths if padded else None, threads=threads, pads=padded)
    if share is not None and settings.extraction_strategy == "per_token" and shareable(share, found, read):
        return SharedRows(share, read, runtime, tokenizer)
    opened = Embedder(found, identified(found, read), runtime, tokenizer=tokenizer)
    if settings.extraction_strategy != "per_token" and "token_embeddings" not in opened.engine.output_names:
        raise ValueError(
            f"The tensor taken from {settings.model_path!r} is one vector a text already, with no rows for "
            f"{settings.extraction_strategy!r}; extraction_strategy='per_token' gives it as it is."
        )
    return opened


def _layer(given: int | str | None, found: Source) -> int | str | None:
    """Turn DeepSparse's layer into one of `hidden_states`, in which 0 is the embedding output."""
    if given is None or isinstance(given, str) or given == -1:
        return given
    if not isinstance(given, int):
        raise TypeError(f"emb_extraction_layer is {given!r}; it must be a whole number, a name or None.")
    count = prepare.count_layers(found)
    if not -count <= given < count:
        raise ValueError(
            f"emb_extraction_layer is {given}; the model has {count} layers: give 0 (the first) to {count - 1}, or -1 (the "
            f"last) to {-count}."
        )
    return given + 1 if given >= 0 else int(given)


def _rows(strategy: Strategy, tokenizer: Tokenizer, found: Source) -> Rows | None:
    """Choose the rows by their ids, as DeepSparse did. None, the attention mask, where there is no id to leave out."""
    if strategy == "cls_token":
        if tokenizer.cls_token_id is None:
            raise ValueError(
                f"The tokenizer of {found.reference!r} has no CLS token, so there is no row for 'cls_token'; choose "
                "'reduce_mean', 'reduce_max' or 'per_token'."
            )
        return Rows(only_id=tokenizer.cls_token_id)
    if tokenizer.pad_token_id is None:
        return None
    return Rows(exclude_ids=tuple(i for i in (tokenizer.pad_token_id, tokenizer.cls_token_id) if i is not None))
