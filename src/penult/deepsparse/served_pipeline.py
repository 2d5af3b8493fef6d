"""A pipeline behind a request queue, opened with the settings of an endpoint, for DeepSparse's routes."""

import logging
from functools import partial

import numpy as np
from numpy.typing import NDArray

from penult.core.embedder import Embedder
from penult.core.tokenized import Tokenized
from penult.deepsparse.arguments import TASK
from penult.deepsparse.config_file import DeepSparseEndpoint
from penult.deepsparse.pipeline import Pipeline
from penult.server.config import Limits
from penult.server.metrics import Metrics
from penult.server.models import Key, Models, embedder_key
from penult.server.queued_models import ModelQueue

_LOGGER = logging.getLogger(__name__)


class QueuedPipeline:
    """A pipeline behind a request queue; `session_of` is the embedder whose session it may share."""

    def __init__(
        self, pipeline: Pipeline, reference: str, limits: Limits, metrics: Metrics, *, session_of: Embedder | None = None
    ) -> None:
        self.queue = ModelQueue(f"pipeline {reference}", limits, metrics)
        self.pipeline = pipeline
        self.session_of = session_of
        settings = pipeline.settings
        self._longest = max(settings.sequence_lengths)
        self._per_token = settings.extraction_strategy == "per_token"
        # With per_token and buckets, the length of an item depends on the other texts of its request.
        self._mergeable = not (self._per_token and len(settings.sequence_lengths) > 1)

    @property
    def dimension(self) -> int:
        """H, the number of values in a vector."""
        return self.pipeline.dimension

    async def tokenize(self, texts: list[str]) -> Tokenized:
        """Return N texts as token ids."""
        return await self.queue.tokenize(texts, self.pipeline.tokenize)

    async def items(self, tokenized: Tokenized) -> list[NDArray[np.float32]]:
        """Return the same items of N texts as `Pipeline`."""
        count = len(tokenized)
        width = self.pipeline.dimension * (self._longest if self._per_token else 1)
        rows = await self.queue.rows(
            tokenized,
            self.pipeline.run,
            values=count * width,
            costs=[self._longest] * count if self._per_token else None,
            mergeable=self._mergeable,
        )
        return list(rows)

    def close(self) -> None:
        """Finish the queued requests, then free the model."""
        self.queue.close()
        self.pipeline.close()


def pipeline(models: Models, endpoint: DeepSparseEndpoint) -> QueuedPipeline:
    """Return the pipeline of an endpoint; the first call opens it.

    Raises:
        FileNotFoundError: the model is missing.
        TypeError: a key has a wrong type.
        ValueError: a key is not an allowed value or not for these routes, or the model does not have the layer or length.
    """
    return models.opened(_key(endpoint), partial(_open, models, endpoint))


async def pipeline_for(models: Models, endpoint: DeepSparseEndpoint) -> QueuedPipeline:
    """Return the pipeline of an endpoint without blocking the event loop.

    Raises:
        Refusal: it cannot be opened.
    """
    return await models.opened_for(endpoint, _key(endpoint), partial(_open, models, endpoint))


def _open(models: Models, endpoint: DeepSparseEndpoint) -> QueuedPipeline:
    if endpoint.chooses_files:
        raise ValueError(
            "model_file and files_from have no effect on the DeepSparse routes. Set model: FOLDER/FILE.onnx, in a folder "
            "with the tokenizer."
        )
    lengths, share = endpoint.sequence_length, _open_embedder(models, endpoint)
    opened = Pipeline.create(
        TASK,
        endpoint.model,
        emb_extraction_layer=endpoint.emb_extraction_layer,
        extraction_strategy=endpoint.extraction_strategy,
        sequence_length=list(lengths) if isinstance(lengths, tuple) else lengths,
        return_numpy=True,
        num_cores=models.threads,
        share=share,
    )
    _LOGGER.info("Loaded %s for the DeepSparse routes: %s", endpoint.model, opened)
    return QueuedPipeline(opened, endpoint.model, models.limits, models.metrics, session_of=share)


def _open_embedder(models: Models, endpoint: DeepSparseEndpoint) -> Embedder | None:
    """Return the embedder of the endpoint, whose session the pipeline may share. None: it cannot be shared or opened."""
    if endpoint.extraction_strategy != "per_token" or endpoint.precision != "fp32":  # `shareable` would return False
        return None
    try:
        return models.embedder(endpoint).embedder
    except (OSError, TypeError, ValueError):  # e.g. no pooling in the files; its own routes report the error
        return None


def model_keys(endpoint: DeepSparseEndpoint) -> tuple[Key, ...]:
    """Return the keys of all models that the routes of an endpoint may open."""
    plain = endpoint.model_copy(update={"normalize": False})  # for /embed with normalize: false
    return _key(endpoint), embedder_key(endpoint), embedder_key(plain)


def _key(endpoint: DeepSparseEndpoint) -> Key:
    return ("deepsparse", endpoint.model, endpoint.layer, endpoint.extraction_strategy, endpoint.sequence_length)
