"""The models of a server: each is opened once, when a route first needs it, and shared by all endpoints that ask the same.

It reads an endpoint's keys into `Embedder.load` and `Pipeline.create`; it knows no HTTP but the reason for a refusal.
"""

import asyncio
import logging
import threading

from penult.core.embedder import Embedder
from penult.core.recipe import Recipe
from penult.deepsparse.arguments import TASK
from penult.deepsparse.config_file import DeepSparseEndpoint
from penult.deepsparse.pipeline import Pipeline
from penult.server.config import EndpointConfig, Limits
from penult.server.errors import Refusal
from penult.server.metrics import Metrics
from penult.server.queued_models import EmbedderFace, PipelineFace
from penult.types import Pooling

_LOGGER = logging.getLogger(__name__)


class Models:
    """All faces that are open.

    Args:
        limits: of each face.
        metrics: what they count.
        threads: of each engine. None: the physical cores this process may use.
    """

    def __init__(self, limits: Limits, metrics: Metrics, threads: int | None) -> None:
        self._limits = limits
        self._metrics = metrics
        self._threads = threads
        self._embedders: dict[tuple[object, ...], EmbedderFace] = {}
        self._pipelines: dict[tuple[object, ...], PipelineFace] = {}
        self._opening = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether every queue is served."""
        return all(face.batcher.alive for face in (*self._embedders.values(), *self._pipelines.values()))

    @property
    def dimensions(self) -> list[int]:
        """D of each model that is open."""
        pipelines = [face.pipeline.embedder.dimension for face in self._pipelines.values()]
        return pipelines + [face.embedder.dimension for face in self._embedders.values()]

    @property
    def recipes(self) -> list[Recipe]:
        """The recipe of each model that is open for the routes of OpenAI and TEI."""
        return [face.embedder.recipe for face in self._embedders.values()]

    def embedder(self, endpoint: EndpointConfig) -> EmbedderFace:
        """Open what the routes of OpenAI and TEI need.

        Raises:
            FileNotFoundError: no model there.
            ValueError: the model cannot be used so; the message says what to add to the endpoint.
        """
        key = _embedder_key(endpoint)
        with self._opening:
            if key not in self._embedders:
                opened = self._load(endpoint)
                self._embedders[key] = EmbedderFace(opened, endpoint.model, self._limits, self._metrics)
            return self._embedders[key]

    def pipeline(self, endpoint: DeepSparseEndpoint) -> PipelineFace:
        """Open what DeepSparse's routes need.

        Raises:
            FileNotFoundError: no model there.
            TypeError: a key is of a type that it cannot have.
            ValueError: a key is none of the allowed values or not for these routes, or the model has no such layer or length.
        """
        if endpoint.chooses_files:
            raise ValueError(
                "model_file and files_from are for the routes of OpenAI and TEI. For DeepSparse's, name the file in model: "
                "FOLDER/FILE.onnx, its tokenizer beside it."
            )
        key, lengths = _pipeline_key(endpoint), endpoint.sequence_length
        with self._opening:
            if key not in self._pipelines:
                opened = Pipeline.create(
                    TASK,
                    endpoint.model,
                    emb_extraction_layer=endpoint.emb_extraction_layer,
                    extraction_strategy=endpoint.extraction_strategy,
                    sequence_length=list(lengths) if isinstance(lengths, tuple) else lengths,
                    return_numpy=True,
                    num_cores=self._threads,
                )
                _LOGGER.info("%s is open for the routes of DeepSparse: %s", endpoint.model, opened)
                self._pipelines[key] = PipelineFace(opened, endpoint.model, self._limits, self._metrics)
            return self._pipelines[key]

    async def embedder_for(self, endpoint: EndpointConfig) -> EmbedderFace:
        """Give the face, opened in a thread where it is not open yet; what cannot be opened is refused in words."""
        if (found := self._embedders.get(_embedder_key(endpoint))) is not None:
            return found
        try:
            return await asyncio.to_thread(self.embedder, endpoint)
        except (OSError, TypeError, ValueError) as error:
            raise Refusal("unable", f"{endpoint.model} cannot be opened for this route: {error}") from error

    async def pipeline_for(self, endpoint: DeepSparseEndpoint) -> PipelineFace:
        """Give the face, opened in a thread where it is not open yet; what cannot be opened is refused in words."""
        if (found := self._pipelines.get(_pipeline_key(endpoint))) is not None:
            return found
        try:
            return await asyncio.to_thread(self.pipeline, endpoint)
        except (OSError, TypeError, ValueError) as error:
            raise Refusal("unable", f"{endpoint.model} cannot be opened for this route: {error}") from error

    def close(self) -> None:
        """Finish what waits, then free every model."""
        for embedder_face in self._embedders.values():
            embedder_face.batcher.close()
            embedder_face.embedder.close()
        for pipeline_face in self._pipelines.values():
            pipeline_face.batcher.close()
            pipeline_face.pipeline.close()

    def _load(self, endpoint: EndpointConfig) -> Embedder:
        def load(pooling: Pooling | tuple[Pooling, ...] | None) -> Embedder:
            return Embedder.load(
                endpoint.model,
                layer=endpoint.layer,
                pooling=pooling,
                precision=endpoint.precision,
                max_length=endpoint.max_length,
                dimensions=endpoint.dimensions,
                normalize=endpoint.normalize,
                layer_norm=endpoint.layer_norm,
                prompts=endpoint.prompts,
                files_from=endpoint.files_from,
                model_file=endpoint.model_file,
                task=endpoint.model_task,
                threads=self._threads,
            )

        try:
            found = load(endpoint.pooling)
        except ValueError:
            if endpoint.pooling is not None or endpoint.fallback_pooling is None:
                raise
            found = load(endpoint.fallback_pooling)
        origin = found.recipe.origin.get("prompts", "")
        _LOGGER.info(
            "%s is open for the routes of OpenAI and TEI: %d values, pooling %s, prompts %s, fingerprint %s",
            endpoint.model,
            found.dimension,
            "+".join(found.recipe.poolings) or "of the graph",
            "of the endpoint" if origin == "argument" else origin,
            found.fingerprint,
        )
        if not found.recipe.named_prompts and origin != "argument":
            _LOGGER.info(
                "%s: no file states a prompt. If the model's card gives prompts, set them with prompts: in the endpoint, or "
                "with --prompt-query and --prompt-document.",
                endpoint.model,
            )
        return found


def _embedder_key(endpoint: EndpointConfig) -> tuple[object, ...]:
    pooling = (endpoint.pooling, None if endpoint.pooling else endpoint.fallback_pooling)
    prompts = None if endpoint.prompts is None else tuple(sorted(endpoint.prompts.items()))
    rest = (endpoint.precision, endpoint.max_length, endpoint.dimensions, endpoint.normalize, endpoint.layer_norm, prompts)
    files = (endpoint.files_from, endpoint.model_file, endpoint.model_task)
    return (endpoint.model, endpoint.layer, *pooling, *rest, *files)


def _pipeline_key(endpoint: DeepSparseEndpoint) -> tuple[object, ...]:
    return (endpoint.model, endpoint.layer, endpoint.extraction_strategy, endpoint.sequence_length)
