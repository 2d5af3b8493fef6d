"""The models of a server: each is opened once, when a route first needs it, and shared by all endpoints with the same settings.

Of HTTP it knows the reason of a refusal.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from penult.core.embedder import Embedder
from penult.core.recipe import Recipe
from penult.server.config import EndpointConfig, Limits
from penult.server.errors import Refusal
from penult.server.metrics import Metrics
from penult.server.queued_models import ModelQueue, QueuedEmbedder
from penult.types import Pooling

_LOGGER = logging.getLogger(__name__)


class Queued(Protocol):
    """A model behind its queue."""

    queue: ModelQueue

    @property
    def dimension(self) -> int:
        """D, the number of values in a vector."""

    def close(self) -> None:
        """Finish the requests in the queue, then free the model."""


Kind = TypeVar("Kind", bound=Queued)


class Models:
    """The open models.

    Args:
        limits: limits of requests and answers.
        metrics: counters of the server.
        threads: intra-op threads of each model. None: the physical cores this process may use.
    """

    def __init__(self, limits: Limits, metrics: Metrics, threads: int | None) -> None:
        self.limits = limits
        self.metrics = metrics
        self.threads = threads
        self._models: dict[tuple[object, ...], Queued] = {}
        self._opening = threading.RLock()

    @property
    def alive(self) -> bool:
        """Whether the thread of every queue runs."""
        return all(model.queue.alive for model in self._models.values())

    @property
    def dimensions(self) -> list[int]:
        """D of each model that is open."""
        return [model.dimension for model in self._models.values()]

    @property
    def recipes(self) -> list[Recipe]:
        """The recipe of each embedder that is open."""
        return [model.embedder.recipe for model in self._models.values() if isinstance(model, QueuedEmbedder)]

    def embedder(self, endpoint: EndpointConfig) -> QueuedEmbedder:
        """Return the embedder of an endpoint, for the OpenAI and TEI routes; the first call opens it.

        Raises:
            FileNotFoundError: the model is missing.
            ValueError: the model cannot be used with these settings; the message says what to change in the endpoint.
        """
        return self.opened(_embedder_key(endpoint), lambda: self._open(endpoint))

    async def embedder_for(self, endpoint: EndpointConfig) -> QueuedEmbedder:
        """Return the embedder of an endpoint without blocking the event loop.

        Raises:
            Refusal: it cannot be opened.
        """
        return await self.opened_for(endpoint, _embedder_key(endpoint), lambda: self._open(endpoint))

    def opened(self, key: tuple[object, ...], open_model: Callable[[], Kind]) -> Kind:
        """Return the model of a key; the first call opens it, once for all threads."""
        with self._opening:
            if key not in self._models:
                self._models[key] = open_model()
            return cast("Kind", self._models[key])

    async def opened_for(self, endpoint: EndpointConfig, key: tuple[object, ...], open_model: Callable[[], Kind]) -> Kind:
        """Return the model of a key; a thread opens it, so that the event loop is not blocked.

        Raises:
            Refusal: it cannot be opened.
        """
        if (model := self._models.get(key)) is not None:
            return cast("Kind", model)
        try:
            return await asyncio.to_thread(self.opened, key, open_model)
        except (OSError, TypeError, ValueError) as error:
            raise Refusal("unable", f"{endpoint.model_id} cannot be opened for this route: {error}") from error

    def close(self) -> None:
        """Finish the requests in the queues, then free every model."""
        for model in self._models.values():
            model.close()

    def _open(self, endpoint: EndpointConfig) -> QueuedEmbedder:
        return QueuedEmbedder(self._load(endpoint), endpoint.model, self.limits, self.metrics)

    def _load(self, endpoint: EndpointConfig) -> Embedder:
        def load(pooling: Pooling | tuple[Pooling, ...] | None) -> Embedder:
            return Embedder.load(
                endpoint.model,
                layer=endpoint.layer,
                pooling=pooling,
                precision=endpoint.precision,
                max_length=endpoint.max_length,
                truncate=endpoint.truncate,
                dimensions=endpoint.dimensions,
                normalize=endpoint.normalize,
                layer_norm=endpoint.layer_norm,
                prompts=endpoint.prompts,
                files_from=endpoint.files_from,
                model_file=endpoint.model_file,
                task=endpoint.model_task,
                threads=self.threads,
            )

        try:
            embedder = load(endpoint.pooling)
        except ValueError:
            if endpoint.pooling is not None or endpoint.fallback_pooling is None:
                raise
            embedder = load(endpoint.fallback_pooling)
        origin = embedder.recipe.origin.get("prompts", "")
        _LOGGER.info(
            "%s is open for the routes of OpenAI and TEI: %d values, pooling %s, prompts %s, fingerprint %s",
            endpoint.model,
            embedder.dimension,
            "+".join(embedder.recipe.poolings) or "of the graph",
            "of the endpoint" if origin == "argument" else origin,
            embedder.fingerprint,
        )
        if not embedder.recipe.named_prompts and origin != "argument":
            _LOGGER.info(
                "%s: no file states a prompt. If the model's card gives prompts, set them with prompts: in the endpoint, or "
                "with --query-prompt and --document-prompt.",
                endpoint.model,
            )
        return embedder


def _embedder_key(endpoint: EndpointConfig) -> tuple[object, ...]:
    """Return the settings of an endpoint that decide its embedder."""
    pooling = (endpoint.pooling, None if endpoint.pooling else endpoint.fallback_pooling)
    prompts = None if endpoint.prompts is None else tuple(sorted(endpoint.prompts.items()))
    rest = (
        endpoint.precision,
        endpoint.max_length,
        endpoint.truncate,
        endpoint.dimensions,
        endpoint.normalize,
        endpoint.layer_norm,
        prompts,
    )
    files = (endpoint.files_from, endpoint.model_file, endpoint.model_task)
    return (endpoint.model, endpoint.layer, *pooling, *rest, *files)
