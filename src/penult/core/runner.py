"""Run tokenized texts: plan batches, pad, build the graph's inputs, run, collect the rows.

Tokenized -> plan -> [pad -> model inputs -> Executor.run -> rows] -> (N, D)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.core.batching import Batch, plan
from penult.core.engine import Engine
from penult.core.executor import Executor
from penult.core.model_inputs import Meaning, feed
from penult.core.recipe import Recipe
from penult.core.tokenized import Tokenized
from penult.core.tokenizer import Tokenizer
from penult.graph.output_names import TOKENS, VECTORS
from penult.types import Precision, Role, Truncate, Vectors

WINDOW = 4096
"""Number of texts that are sorted by length together: enough for full batches of similar length, few enough for about 10 MB
of memory in addition to the vectors."""
# Maximum padded tokens per batch: a small model's activations then stay in the CPU cache. With 8-bit weights, batches of 256
# take 2 to 5 % less CPU time than batches of 512 (384 and 768 channels, texts of 30 to 512 tokens, Xeon with 2 MB of cache per
# core). In fp32 batches of 512 take up to 5 % less, since more rows reuse each weight that was read.
_BATCH_TOKENS: dict[Precision, int] = {"fp32": 512, "int8": 256}


@dataclass(frozen=True, slots=True)
class Runtime:
    """Settings that affect time and memory, but not the vectors.

    Attributes:
        truncate: handling of texts that exceed the recipe's length.
        buckets: the only padded lengths allowed. None: any.
        threads: intra-op threads per run. None: `threads.default_threads()`.
        providers: ONNX Runtime's execution providers. None: the CPU.
        max_batch_tokens: maximum padded tokens per batch. None: `_BATCH_TOKENS`.
        alone: whether to run one text at a time if the graph computes its 8-bit scales per batch.
        pads: whether outputs include the rows of padding (`Embedder.embed_padded`).
        reread: whether to hash every file, even one with a known hash, as a pinned fingerprint requires.
    """

    truncate: Truncate = "warn"
    buckets: tuple[int, ...] | None = None
    threads: int | None = None
    providers: tuple[str, ...] | None = None
    max_batch_tokens: int | None = None
    alone: bool = False
    pads: bool = False
    reread: bool = False

    def __post_init__(self) -> None:
        """Validate the numbers.

        Raises:
            TypeError: a number is not an integer.
            ValueError: a number is not positive.
        """
        numbers = {"threads": self.threads, "max_batch_tokens": self.max_batch_tokens}
        numbers |= {f"buckets[{i}]": bucket for i, bucket in enumerate(self.buckets or ())}
        for name, value in numbers.items():
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} is {value!r}; it must be an integer.")
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")


@dataclass(frozen=True, slots=True)
class FrozenShape:
    """B and T of every run, if the export fixed them. None: dynamic."""

    rows: int | None = None
    length: int | None = None

    @classmethod
    def of(cls, engine: Engine) -> "FrozenShape":
        """Return the fixed sizes of the graph's `input_ids`."""
        shape = next((tensor.shape for tensor in engine.inputs if tensor.name == "input_ids" and len(tensor.shape) == 2), ())
        return cls(*(size if isinstance(size, int) else None for size in shape))


@dataclass(frozen=True, slots=True)
class Runner:
    """An open graph with its tokenizer.

    Attributes:
        executor: runs batches.
        tokenizer: pads batches.
        recipe: settings of the inputs: positions, tasks, whether the prompt is pooled.
        runtime: settings of the batches.
        batch_dependent: whether the graph computes its 8-bit scales per batch.
        frozen: shape that the export fixed.
    """

    executor: Executor
    tokenizer: Tokenizer
    recipe: Recipe
    runtime: Runtime
    batch_dependent: bool
    frozen: FrozenShape = field(default_factory=FrozenShape)

    @property
    def engine(self) -> Engine:
        """The session."""
        return self.executor.engine

    @property
    def has_tokens(self) -> bool:
        """Whether the graph has an output of token embeddings."""
        return TOKENS in self.engine.output_names

    @property
    def side(self) -> str:
        """The side of padding, "left" or "right".

        Many graphs count positions from the row's start, so that left padding would shift them by an amount that depends on the
        other texts. Only for a graph that pools itself, the tokenizer's own side is used.
        """
        return "right" if self.has_tokens else self.tokenizer.pad_side

    def vectors(self, tokenized: Tokenized, dimension: int, done: Callable[[int], object] | None = None) -> Vectors:
        """Return (N, D) vectors; duplicate texts run once.

        Args:
            tokenized: N texts.
            dimension: D.
            done: called after each batch with the number of texts that it finished.

        Raises:
            ArithmeticError: a value is NaN or infinite.
        """
        out = np.empty((len(tokenized), dimension), dtype=np.float32)
        for start in range(0, len(tokenized), WINDOW):
            self._window(tokenized, range(start, min(start + WINDOW, len(tokenized))), out, done)
        return out

    def _window(self, tokenized: Tokenized, window: range, out: Vectors, done: Callable[[int], object] | None) -> None:
        first: dict[tuple[bytes, int], int] = {}
        starts, prompts = tokenized.starts.tolist(), tokenized.prompt_tokens.tolist()
        keys = ((tokenized.flat_ids[starts[row] : starts[row + 1]].tobytes(), prompts[row]) for row in window)
        same = [first.setdefault(key, row) for row, key in zip(window, keys, strict=True)]
        rows = list(first.values())
        planned = self.plan([starts[row + 1] - starts[row] for row in rows])
        batches = [[rows[i] for i in batch.indices] for batch in planned]
        feeds = [partial(self.inputs, tokenized, batch, plan.length) for batch, plan in zip(batches, planned, strict=True)]
        for batch, values in zip(batches, self.executor.run_many(feeds, VECTORS), strict=True):
            out[batch] = _finite(values, batch)
            if done is not None:
                done(len(batch))
        if len(rows) < len(same):
            out[window.start : window.stop] = out[same]
            if done is not None:
                done(len(same) - len(rows))

    def tokens(self, tokenized: Tokenized) -> list[NDArray[np.float32]]:
        """Return N arrays of (T_i, H), without padding.

        Raises:
            ArithmeticError: a value is NaN or infinite.
        """
        out: list[NDArray[np.float32]] = [np.empty((0, 0), np.float32)] * len(tokenized)
        counts = tokenized.counts.tolist()
        for start in range(0, len(tokenized), WINDOW):
            for batch in self.plan(counts[start : start + WINDOW]):
                rows = [start + i for i in batch.indices]
                states = self.batch(tokenized, rows, batch.length, output=TOKENS)
                for row, values in zip(rows, states, strict=True):
                    out[row] = values[: counts[row]].astype(np.float32)  # (T_i, H), a copy, so that the batch is freed
        return out

    def padded(self, tokenized: Tokenized) -> NDArray[np.float32]:
        """Return (N, T, H), padding included; T is the smallest bucket that fits the longest text.

        Raises:
            ArithmeticError: a value is NaN or infinite.
        """
        longest = max([1, *tokenized.counts.tolist()])
        length = plan([longest], 1, buckets=self.runtime.buckets)[0].length
        run_length = self.frozen.length or length
        side = self.tokenizer.pad_side
        kept = slice(run_length - length, None) if side == "left" else slice(length)
        out = np.empty((len(tokenized), length, 0), dtype=np.float32)
        for start in range(0, len(tokenized), WINDOW):
            for batch in self.plan([run_length] * min(WINDOW, len(tokenized) - start)):
                rows = [start + i for i in batch.indices]
                states = self.batch(tokenized, rows, run_length, output=TOKENS, side=side)
                if not out.size:
                    out = np.empty((len(tokenized), length, states.shape[2]), dtype=np.float32)
                out[rows] = states[:, kept]  # (B, T, H)
        return out

    def plan(self, lengths: Sequence[int]) -> list[Batch]:
        """Plan batches; if the export fixed a shape, in that shape, which `inputs` fills up."""
        rows, length = self.frozen.rows, self.frozen.length
        buckets = self.runtime.buckets if length is None else (length,)
        if self.batch_dependent and self.runtime.alone:
            return plan(lengths, 1, buckets=buckets) if buckets else plan(lengths, 1, padded=False)
        tokens = self.runtime.max_batch_tokens
        tokens = _BATCH_TOKENS[self.recipe.precision] if tokens is None else tokens
        budget = max(tokens, (rows or 0) * max([length or 0, *lengths]))
        if not self.recipe.padding:
            batches = plan(lengths, budget, padded=False)
        else:
            # If scales are computed per batch, even one token of padding changes the vectors.
            even_to = 0 if self.batch_dependent else self.recipe.max_length
            batches = plan(lengths, budget, buckets=buckets, even_to=even_to)
        if rows is None:
            return batches
        return [
            Batch(batch.indices[i : i + rows], batch.length) for batch in batches for i in range(0, len(batch.indices), rows)
        ]

    def batch(
        self, tokenized: Tokenized, rows: Sequence[int], length: int | None = None, *, output: str, side: str | None = None
    ) -> NDArray[Any]:
        """Run one batch of B texts and return an output, (B, D) or (B, T, H).

        Raises:
            ArithmeticError: a value is NaN or infinite.
        """
        return _finite(self.executor.run(partial(self.inputs, tokenized, rows, length, side=side), output), rows)

    def inputs(
        self, tokenized: Tokenized, rows: Sequence[int], length: int | None, *, side: str | None = None
    ) -> dict[str, NDArray[Any]]:
        """Pad B texts and return the array of every input of the graph."""
        length = length or self.frozen.length or max([1, *tokenized.counts[list(rows)].tolist()])
        filled = [*rows, *[rows[-1]] * ((self.frozen.rows or len(rows)) - len(rows))]
        padded = self.tokenizer.pad(tokenized, filled, length, pool_prompt=self.recipe.include_prompt, side=side or self.side)
        meaning = Meaning(position_offset=self.recipe.position_offset, task=self.recipe.tasks.get(tokenized.role))
        return feed(self.engine.inputs, padded, meaning=meaning)


def any_role(recipe: Recipe) -> Role:
    """Return a role for which the model has a task; a query model may have no task for documents."""
    return "query" if "query" in recipe.tasks and "document" not in recipe.tasks else "document"


def _finite(values: NDArray[Any], rows: Sequence[int]) -> NDArray[Any]:
    """Return the values of B rows, without the rows that fill up a fixed shape.

    Raises:
        ArithmeticError: a value is NaN or infinite.
    """
    values = values[: len(rows)]
    if not np.isfinite(values).all():
        bad = [row for row, value in zip(rows, values, strict=True) if not np.isfinite(value).all()]
        raise ArithmeticError(f"The model output NaN or infinite values for {len(bad)} texts, the first at row {bad[0]}.")
    return values
