"""A model behind a request queue: a request tokenizes its texts, queues them as `Tokenized`, and they run in merged calls.

Errors are raised as `Refusal`. Otherwise this module does not depend on HTTP.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from penult.core.embedder import Embedder
from penult.core.recipe import Recipe
from penult.core.tokenized import Tokenized
from penult.server.config import Limits
from penult.server.errors import Refusal
from penult.server.metrics import Metrics
from penult.server.request_queue import QueueClosed, QueueFull, RequestQueue, Rows, Run
from penult.types import PromptError, Role, Side, TextError, Vectors

_INLINE_CHARS = 4096  # characters; tokenizing fewer takes less time than waking a thread


@dataclass(frozen=True, slots=True)
class Purpose:
    """Role, prompt and truncation of the texts of a request.

    Attributes:
        role: role of the texts.
        prompt: prefix of each text. None: the model's prompt for the role.
        truncate: side on which texts that are too long are truncated. None: as the endpoint is configured.
    """

    role: Role
    prompt: str | None = None
    truncate: Side | None = None


class ModelQueue:
    """A request queue that raises its errors as `Refusal`.

    Args:
        name: name of the queue's thread.
        limits: limits of requests and answers.
        metrics: metrics of the server.
    """

    def __init__(self, name: str, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._queue = RequestQueue(
            name,
            max_requests=limits.max_concurrent_requests,
            max_tokens=limits.max_queue_tokens,
            max_wait_seconds=limits.max_queue_seconds,
            max_run_tokens=limits.max_tick_tokens,
            watcher=metrics,
        )

    @property
    def alive(self) -> bool:
        """Whether the thread of the queue is running."""
        return self._queue.alive

    def close(self) -> None:
        """Finish the queued requests, then end the thread."""
        self._queue.close()

    async def tokenize(
        self, texts: list[str], tokenize: Callable[[list[str]], Tokenized], *, prompt_chars: int = 0
    ) -> Tokenized:
        """Tokenize the texts of a request, in a thread if they are large.

        Args:
            texts: N texts.
            tokenize: function that tokenizes the texts.
            prompt_chars: characters of the prompt that it puts before each text.

        Raises:
            Refusal: a text cannot be tokenized, the texts have too many tokens, or the queue is full.
        """
        started = time.monotonic()
        try:
            self._queue.check_room()
            if sum(map(len, texts)) + len(texts) * prompt_chars <= _INLINE_CHARS:
                tokenized = tokenize(texts)
            else:
                tokenized = await asyncio.to_thread(tokenize, texts)
        except QueueFull as full:
            raise _overloaded(full) from full
        except PromptError as error:
            raise Refusal("invalid", str(error), param="prompt") from error
        except TextError as error:
            raise Refusal("text", str(error)) from error
        if (tokens := int(tokenized.counts.sum())) > self._limits.max_request_tokens:
            raise Refusal(
                "body",
                f"The texts have {tokens} tokens; the limit is {self._limits.max_request_tokens} (max_request_tokens). "
                "Send fewer texts per request.",
            )
        self._metrics.tokenized(tokenized.counts.tolist(), len(tokenized.truncated), time.monotonic() - started)
        return tokenized

    async def rows(
        self, tokenized: Tokenized, run: Run, *, values: int, costs: Sequence[int] | None = None, mergeable: bool = True
    ) -> Rows:
        """Run texts merged with those of other requests; see `RequestQueue.rows`.

        Args:
            tokenized: N texts.
            run: see `RequestQueue.rows`.
            values: number of values in the answer.
            costs: see `RequestQueue.rows`.
            mergeable: see `RequestQueue.rows`.

        Raises:
            Refusal: the queue is full, the answer would be too large, or a text cannot be embedded.
        """
        if values > self._limits.max_answer_values:
            raise Refusal(
                "batch",
                f"The response would have {values} numbers; the limit is {self._limits.max_answer_values} "
                "(max_answer_values). Send fewer texts per request.",
            )
        started = time.monotonic()
        try:
            rows = await self._queue.rows(tokenized, run, costs=costs, mergeable=mergeable)
        except QueueFull as full:
            raise _overloaded(full) from full
        except QueueClosed as closed:
            raise Refusal("missing", "The model was removed from this server while the request waited.") from closed
        except TextError as error:
            raise Refusal("text", str(error)) from error
        self._metrics.embedded(time.monotonic() - started)
        return rows


def _overloaded(full: QueueFull) -> Refusal:
    return Refusal("full", str(full), headers={"Retry-After": str(full.retry_after)})


class QueuedEmbedder:
    """An embedder behind a request queue, for the OpenAI and TEI routes."""

    def __init__(self, embedder: Embedder, reference: str, limits: Limits, metrics: Metrics) -> None:
        self.queue = ModelQueue(f"embed {reference}", limits, metrics)
        self.embedder = embedder

    @property
    def dimension(self) -> int:
        """D, the number of values in a vector."""
        return self.embedder.dimension

    @property
    def session_of(self) -> None:
        """None: the embedder has its own session."""

    def recipe(self, role: Role) -> Recipe:
        """Return the recipe of a role; models with a separate query encoder have two."""
        recipe = self.embedder.recipe
        return recipe.query if role == "query" and recipe.query is not None else recipe

    async def tokenize(self, texts: list[str], purpose: Purpose) -> Tokenized:
        """Return N texts as token ids."""
        prompt = self.embedder.recipe.prompts[purpose.role] if purpose.prompt is None else purpose.prompt
        return await self.queue.tokenize(
            texts,
            lambda texts: self.embedder.tokenize(texts, purpose.role, prompt=purpose.prompt, truncate=purpose.truncate),
            prompt_chars=len(prompt),
        )

    async def vectors(self, tokenized: Tokenized) -> Vectors:
        """Return (N, D) vectors."""
        values = len(tokenized) * self.embedder.dimension
        return np.asarray(await self.queue.rows(tokenized, self.embedder.run, values=values))

    async def tokens(self, tokenized: Tokenized) -> Rows:
        """Return N arrays of (T_i, H).

        Raises:
            Refusal: the model does not have token vectors.
        """
        if not self.embedder.gives_tokens(tokenized.role):
            raise Refusal(
                "unable", "This model returns one vector per text and does not have token vectors. Send the texts to /embed."
            )
        values = int(tokenized.counts.sum()) * self.embedder.dimension
        return await self.queue.rows(tokenized, self.embedder.run_tokens, values=values)

    def close(self) -> None:
        """Finish the queued requests, then free the model."""
        self.queue.close()
        self.embedder.close()
