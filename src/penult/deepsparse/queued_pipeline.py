"""A pipeline behind a request queue, with DeepSparse's numbers, for DeepSparse's routes."""

import numpy as np
from numpy.typing import NDArray

from penult.core.tokenized import Tokenized
from penult.deepsparse.pipeline import Pipeline
from penult.server.config import Limits
from penult.server.metrics import Metrics
from penult.server.queued_models import ModelQueue


class QueuedPipeline:
    """A pipeline behind its queue."""

    def __init__(self, pipeline: Pipeline, reference: str, limits: Limits, metrics: Metrics) -> None:
        self.queue = ModelQueue(f"pipeline {reference}", limits, metrics)
        self.pipeline = pipeline
        settings = pipeline.settings
        self._longest = max(settings.sequence_lengths)
        self._per_token = settings.extraction_strategy == "per_token"
        # With per_token and buckets, the length of an item depends on the other texts of its request.
        self._mergeable = not (self._per_token and len(settings.sequence_lengths) > 1)

    async def tokenize(self, texts: list[str]) -> Tokenized:
        """Return N texts as token ids."""
        return await self.queue.tokenize(texts, self.pipeline.tokenize)

    async def items(self, tokenized: Tokenized) -> list[NDArray[np.float32]]:
        """Return the items of N texts, as `Pipeline` does."""
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
        """Finish what waits, then free the model."""
        self.queue.close()
        self.pipeline.close()
