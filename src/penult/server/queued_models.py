"""An engine behind a queue: `Embedder` for the OpenAI and TEI routes, `Pipeline` for DeepSparse's.

It knows tokens, truncation and how much an answer may hold; it knows nothing of HTTP but the reasons for a refusal. The
two are apart because their numbers are: a pipeline gives DeepSparse's, an embedder penult's.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from penult.core.embedder import Embedder
from penult.core.recipe import Recipe
from penult.deepsparse.pipeline import Pipeline
from penult.server.config import Limits
from penult.server.errors import Refusal
from penult.server.metrics import Metrics
from penult.server.request_queue import Batcher, QueueFull, Rows
from penult.types import Role, TextError, Vectors

Found = TypeVar("Found")
_INLINE_CHARS = 4096  # texts this short are counted in less time than it takes to wake a thread


@dataclass(frozen=True, slots=True)
class Purpose:
    """What the texts of a request are for, and what is put before them. `prompt`: None: the model's prompt for the role."""

    role: Role
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Answer(Generic[Found]):
    """The rows of N texts, the tokens that were read for them, and how many texts were cut."""

    rows: Found
    tokens: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Measured:
    """The tokens of each of N texts as the model reads them, and the rows of those that are cut."""

    sizes: list[int]
    cut: list[int]


@dataclass(frozen=True, slots=True)
class _Run:
    """What the queue calls with texts. Equal ones run together: a value, so texts of different prompts are never merged."""

    embedder: Embedder
    purpose: Purpose
    tokens: bool

    def __call__(self, texts: list[str]) -> Rows:
        if self.tokens:
            return self.embedder.embed_tokens(texts, self.purpose.role, prompt=self.purpose.prompt)
        return self.embedder.embed(texts, self.purpose.role, prompt=self.purpose.prompt)


class _Face:
    """A queue before an engine; its failures become refusals."""

    def __init__(self, name: str, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self.batcher = Batcher(
            name,
            max_requests=limits.max_concurrent_requests,
            max_tick_tokens=limits.max_tick_tokens,
            watcher=metrics,
        )

    async def _rows(self, texts: list[str], sizes: list[int], run: Callable[[list[str]], Rows], *, mergeable: bool) -> Rows:
        started = time.monotonic()
        try:
            rows = await self.batcher.rows(texts, sizes, run, mergeable=mergeable)
        except QueueFull as full:
            raise Refusal("full", str(full), headers={"Retry-After": str(full.retry_after)}) from full
        except TextError as error:
            raise Refusal("text", str(error)) from error
        self._metrics.embedded(time.monotonic() - started)
        return rows

    def _check_answer(self, values: int) -> None:
        if values > self._limits.max_answer_values:
            raise Refusal(
                "batch",
                f"The answer would have {values} numbers, the limit is {self._limits.max_answer_values}; send fewer texts.",
            )


class EmbedderFace(_Face):
    """penult's own vectors, for the OpenAI and TEI routes."""

    def __init__(self, embedder: Embedder, reference: str, limits: Limits, metrics: Metrics) -> None:
        super().__init__(f"embed {reference}", limits, metrics)
        self.embedder = embedder
        self.fingerprint = embedder.fingerprint  # a hash that is not made again for each request

    def recipe(self, role: Role) -> Recipe:
        """Return what decides the vectors of a role: models with a part for queries alone have a recipe for it."""
        whole = self.embedder.recipe
        return whole.query if role == "query" and whole.query is not None else whole

    async def vectors(self, texts: list[str], purpose: Purpose, measured: Measured) -> Answer[Vectors]:
        """Give (N, D) vectors."""
        self._check_answer(len(texts) * self.embedder.dimension)
        rows = await self._rows(texts, measured.sizes, _Run(self.embedder, purpose, tokens=False), mergeable=True)
        return Answer(np.asarray(rows), sum(measured.sizes), len(measured.cut))

    async def tokens(self, texts: list[str], purpose: Purpose, measured: Measured) -> Answer[Rows]:
        """Give N arrays of (T_i, H).

        Raises:
            Refusal: the model has vectors of texts alone.
        """
        if not self.embedder.gives_tokens(purpose.role):
            raise Refusal("unable", "This model gives one vector a text and none of its tokens; send the texts to /embed.")
        self._check_answer(sum(measured.sizes) * self.embedder.dimension)
        rows = await self._rows(texts, measured.sizes, _Run(self.embedder, purpose, tokens=True), mergeable=True)
        return Answer(rows, sum(measured.sizes), len(measured.cut))

    async def measure(self, texts: list[str], purpose: Purpose) -> Measured:
        """Count the tokens of N texts, and find those that are too long."""
        started = time.monotonic()
        short = sum(map(len, texts)) <= _INLINE_CHARS
        measured = self._measure(texts, purpose) if short else await asyncio.to_thread(self._measure, texts, purpose)
        self._metrics.tokenized(measured.sizes, len(measured.cut), time.monotonic() - started)
        return measured

    def _measure(self, texts: list[str], purpose: Purpose) -> Measured:
        tokenized = self.embedder.tokenize(texts, purpose.role, prompt=purpose.prompt)
        return Measured(tokenized.counts.tolist(), tokenized.truncated.tolist())


class PipelineFace(_Face):
    """DeepSparse's numbers, for DeepSparse's routes."""

    def __init__(self, pipeline: Pipeline, reference: str, limits: Limits, metrics: Metrics) -> None:
        super().__init__(f"pipeline {reference}", limits, metrics)
        self.pipeline = pipeline
        settings = pipeline.settings
        self._longest = max(settings.sequence_lengths)
        self._per_token = settings.extraction_strategy == "per_token"
        # With per_token and buckets, the length of an item depends on its neighbours of the same request.
        self._mergeable = not (self._per_token and len(settings.sequence_lengths) > 1)

    async def embeddings(self, texts: list[str]) -> Answer[Rows]:
        """Give the items of N texts, as `Pipeline` does."""
        # DeepSparse's answers say nothing of tokens, so a guess is enough to share the engine by.
        sizes = [self._longest if self._per_token else min(self._longest, 2 + len(text) // 4) for text in texts]
        width = self.pipeline.embedder.dimension * (self._longest if self._per_token else 1)
        self._check_answer(len(texts) * width)
        rows = await self._rows(texts, sizes, self._run, mergeable=self._mergeable)
        return Answer(rows, sum(sizes), 0)

    def _run(self, texts: list[str]) -> Rows:
        return [np.asarray(item) for item in self.pipeline(texts).embeddings]
