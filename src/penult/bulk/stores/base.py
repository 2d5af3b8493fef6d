"""What every vector store gets and offers: the spec of the vectors, entries to write, and the calls of an open collection."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from penult.bulk.output.output_files import OTHER_FINGERPRINT
from penult.bulk.output.writers import as_text
from penult.types import Vectors

_KEPT = ("penult.fingerprint", "penult.role", "penult.model", "penult.recipe")


@dataclass(frozen=True, slots=True)
class VectorSpec:
    """What a store must know of the vectors before the first one comes.

    Attributes:
        dimension: D, the number of values in a vector.
        metadata: penult's entries of the file's metadata, the fingerprint among them.
        schema: of the rows without their vectors.
    """

    dimension: int
    metadata: dict[str, str]
    schema: pa.Schema

    def check_same_model(self, existing: dict[str, Any], place: str) -> None:
        """Check that a collection holds vectors of this model, made for this role.

        Args:
            existing: the metadata of the collection.
            place: its name in the message.

        Raises:
            ValueError: it holds other vectors.
        """
        for key in ("penult.fingerprint", "penult.role"):
            if existing.get(key) != self.metadata[key]:
                name = key.removeprefix("penult.")
                why = f" ({OTHER_FINGERPRINT})" if key == "penult.fingerprint" else ""
                raise ValueError(
                    f"{place} exists and its {name} is {existing.get(key)!r}; the file's is {self.metadata[key]!r}{why}. Their "
                    "vectors must not be mixed: name another --collection."
                )

    @property
    def kept(self) -> dict[str, str]:
        """The entries of the metadata that a collection keeps."""
        return {key: value for key, value in self.metadata.items() if key in _KEPT}


@dataclass(frozen=True, slots=True)
class Entries:
    """N entries: ids, (N, D) vectors, and the rows' other columns, as Arrow."""

    ids: list[str]
    vectors: Vectors
    rows: pa.Table

    def payloads(self) -> list[dict[str, Any]]:
        """Return the rows as JSON values; types that JSON does not have become text."""
        plain: list[dict[str, Any]] = json.loads(json.dumps(self.rows.to_pylist(), default=as_text))
        return plain


class Store(Protocol):
    """An open collection."""

    batch_rows: int

    def upsert(self, entries: Entries) -> None:
        """Write entries, replacing those of equal ids."""

    def count(self) -> int:
        """Count the entries of the collection."""

    def close(self) -> None:
        """Close the connection."""
