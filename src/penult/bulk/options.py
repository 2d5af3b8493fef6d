"""Which model, which columns: plain values that travel to every worker. Imports no engine until a model is opened."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penult.types import Precision, Role, Truncate

if TYPE_CHECKING:
    from penult.embedder import Embedder


@dataclass(frozen=True, slots=True)
class Model:
    """Which model a worker opens, and how; the words of `Embedder.load`."""

    reference: str
    precision: Precision = "fp32"
    dimensions: int | None = None
    max_length: int | None = None
    truncate: Truncate = "warn"
    max_batch_tokens: int | None = None

    def load(self, threads: int | None) -> "Embedder":
        """Open the model. `threads`: of one run; None: as the machine has cores."""
        from penult.embedder import Embedder  # noqa: PLC0415 - the engine loads where it works, not where this is made

        return Embedder.load(
            self.reference,
            precision=self.precision,
            dimensions=self.dimensions,
            max_length=self.max_length,
            truncate=self.truncate,
            max_batch_tokens=self.max_batch_tokens,
            threads=threads,
        )


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds the texts, which takes the vectors, and what the texts are for."""

    text: str
    vector: str
    role: Role
