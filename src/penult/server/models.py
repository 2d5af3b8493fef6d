"""The models of a server: each is opened once, at its first use, and shared by all endpoints with the same settings.

Errors are raised as `Refusal`. Otherwise this module does not depend on HTTP.
"""

import asyncio
import ctypes
import gc
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar, cast

from penult.core.embedder import Embedder
from penult.core.recipe import Recipe
from penult.server.config import EndpointConfig, Limits
from penult.server.errors import Refusal
from penult.server.metrics import Metrics
from penult.server.queued_models import ModelQueue, QueuedEmbedder
from penult.types import Pooling

_LOGGER = logging.getLogger(__name__)

Key = tuple[object, ...]
"""The settings that identify a model."""


class Queued(Protocol):
    """A model behind a request queue."""

    queue: ModelQueue

    @property
    def dimension(self) -> int:
        """D, the number of values in a vector."""

    @property
    def session_of(self) -> Embedder | None:
        """The embedder whose session the model shares; None: it has its own session."""

    def close(self) -> None:
        """Finish the queued requests, then free the model."""


Kind = TypeVar("Kind", bound=Queued)


class Models:
    """The open models. Opening a model blocks only the requests that need it.

    Args:
        limits: limits of requests and answers.
        metrics: metrics of the server.
        threads: intra-op threads of each model. None: the physical cores this process may use.
    """

    def __init__(self, limits: Limits, metrics: Metrics, threads: int | None) -> None:
        self.limits = limits
        self.metrics = metrics
        self.threads = threads
        self.ending = asyncio.Event()
        self._models: dict[Key, Queued] = {}
        self._opening: dict[Key, Future[Queued]] = {}
        self._lock = threading.Lock()  # guards the two dicts; never held while a model is opened or closed

    @property
    def alive(self) -> bool:
        """Whether the thread of every queue is running."""
        return all(model.queue.alive for model in self._open_models)

    @property
    def dimensions(self) -> list[int]:
        """D of each open model."""
        return [model.dimension for model in self._open_models]

    @property
    def recipes(self) -> list[Recipe]:
        """The recipe of each open embedder."""
        return [model.embedder.recipe for model in self._open_models if isinstance(model, QueuedEmbedder)]

    @property
    def _open_models(self) -> list[Queued]:
        with self._lock:
            return [*self._models.values()]

    def embedder(self, endpoint: EndpointConfig) -> QueuedEmbedder:
        """Return the embedder of an endpoint, for the OpenAI and TEI routes; the first call opens it.

        Raises:
            FileNotFoundError: the model is missing.
            ValueError: the model does not support these settings; the message says what to change in the endpoint.
        """
        return self.opened(embedder_key(endpoint), lambda: self._open(endpoint))

    async def embedder_for(self, endpoint: EndpointConfig) -> QueuedEmbedder:
        """Return the embedder of an endpoint without blocking the event loop.

        Raises:
            Refusal: it cannot be opened.
        """
        return await self.opened_for(endpoint, embedder_key(endpoint), lambda: self._open(endpoint))

    def opened(self, key: Key, open_model: Callable[[], Kind]) -> Kind:
        """Return the model of a key; the first call of any thread opens it."""
        future, mine = self._claim(key)
        if mine:
            self._settle(key, future, open_model)
        return cast("Kind", future.result())

    async def opened_for(self, endpoint: EndpointConfig, key: Key, open_model: Callable[[], Kind]) -> Kind:
        """Return the model of a key; a thread opens it, so that the event loop is not blocked.

        Raises:
            Refusal: it cannot be opened, or not within the time limit.
        """
        if (model := self._models.get(key)) is not None:
            return cast("Kind", model)
        future, mine = self._claim(key)
        if mine:
            # A daemon thread, so that a model that never opens does not block the exit of the process.
            name = f"open {endpoint.model}"
            threading.Thread(target=self._settle, args=(key, future, open_model), name=name, daemon=True).start()
        if not future.done():
            await self._wait(future, endpoint)
        try:
            return cast("Kind", future.result())
        except (OSError, TypeError, ValueError) as error:
            raise Refusal("unable", f"The model {endpoint.model_id} cannot be used for this route: {error}") from error

    def close_unused(self, keys: Iterable[Key]) -> None:
        """Close every open model except those of some keys and those whose sessions they share."""
        with self._lock:
            kept = {key: self._models[key] for key in keys if key in self._models}
            sessions = {id(model.session_of) for model in kept.values()}
            kept |= {
                key: model
                for key, model in self._models.items()
                if isinstance(model, QueuedEmbedder) and id(model.embedder) in sessions
            }
            unused = [model for key, model in self._models.items() if key not in kept]
            self._models = kept
        unused.sort(key=lambda model: model.session_of is None)  # close the owner of a shared session last
        while unused:
            unused.pop(0).close()
        gc.collect()  # routes and their models refer to each other
        _return_freed_memory()

    def stop_opening(self) -> None:
        """Refuse the requests that wait for a model to open, because the server shuts down."""
        self.ending.set()

    def close(self) -> None:
        """Finish the queued requests, then free every model."""
        for model in self._open_models:
            model.close()

    def _claim(self, key: Key) -> tuple[Future[Queued], bool]:
        """Return the future of a model, and whether the caller must open the model."""
        with self._lock:
            if (future := self._opening.get(key)) is not None:
                return future, False
            future = Future()
            future.set_running_or_notify_cancel()  # so that one cancelled request does not cancel it for the others
            if (model := self._models.get(key)) is not None:
                future.set_result(model)
                return future, False
            self._opening[key] = future
            return future, True

    def _settle(self, key: Key, future: Future[Queued], open_model: Callable[[], Queued]) -> None:
        try:
            model = open_model()
        except BaseException as error:  # noqa: BLE001 - raised in the callers that wait for the future
            with self._lock:
                del self._opening[key]
            future.set_exception(error)
            return
        with self._lock:
            del self._opening[key]
            self._models[key] = model
        future.set_result(model)

    async def _wait(self, future: Future[Queued], endpoint: EndpointConfig) -> None:
        opening: asyncio.Future[Any] = asyncio.wrap_future(future)
        opening.add_done_callback(asyncio.Future.exception)  # mark the exception as retrieved; callers read it from `future`
        ending: asyncio.Future[Any] = asyncio.ensure_future(self.ending.wait())
        limit = self.limits.max_load_seconds
        try:
            await asyncio.wait({opening, ending}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
        if ending.done() and not opening.done():
            raise Refusal("unable", f"The model {endpoint.model} is not loaded yet, and the server is shutting down.")
        if not opening.done():
            raise Refusal(
                "unable",
                f"The model {endpoint.model} did not load within {limit} s (max_load_seconds). It is still loading. Retry "
                "later.",
            )

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
            "Loaded %s for the OpenAI and TEI routes: %d dimensions, pooling %s, prompts %s, fingerprint %s",
            endpoint.model,
            embedder.dimension,
            "+".join(embedder.recipe.poolings) or "in the graph",
            "from the endpoint" if origin == "argument" else origin,
            embedder.fingerprint,
        )
        if not embedder.recipe.named_prompts and origin != "argument":
            _LOGGER.info(
                "%s: the model's files do not state a prompt. If the model card does, set prompts: in the endpoint, or pass "
                "--query-prompt and --document-prompt.",
                endpoint.model,
            )
        return embedder


def _return_freed_memory() -> None:
    """Return freed memory to the operating system, if the C library does not do so by itself.

    glibc keeps memory freed by the threads that open models: about 350 MB after 24 models of 90 MB on two cores.
    """
    with suppress(OSError, AttributeError):  # other C libraries do not have malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def embedder_key(endpoint: EndpointConfig) -> Key:
    """Return the settings of an endpoint that identify its embedder."""
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
