"""The interface of vector stores: the spec of the vectors, the entries to write, and the methods of an open collection."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyarrow as pa

from penult.bulk.output.output_files import OTHER_FINGERPRINT
from penult.bulk.stores.values import json_rows
from penult.types import Vectors

Layout = Literal["columns", "langchain", "llama-index"]
Index = Literal["auto", "hnsw", "none"]
_KEPT = ("penult.fingerprint", "penult.role", "penult.model", "penult.recipe")
_LAYOUT = "penult.layout"


@dataclass(frozen=True, slots=True)
class VectorSpec:
    """Properties of the vectors that a store needs before the first one.

    Attributes:
        dimension: D, the number of values in a vector.
        metadata: penult's entries of the file's metadata, the fingerprint among them.
        schema: schema of the rows without their vectors.
        layout: names under which an entry's text and metadata are stored.
    """

    dimension: int
    metadata: dict[str, str]
    schema: pa.Schema
    layout: Layout = "columns"

    @property
    def text_column(self) -> str | None:
        """The text column; None if the file no longer has it."""
        name = self.metadata.get("penult.text_column")
        return name if name in self.schema.names else None

    def check_same_model(self, existing: dict[str, Any], place: str) -> None:
        """Check that a collection contains vectors of this model, role and layout.

        Args:
            existing: the metadata of the collection.
            place: name of the collection in the message.

        Raises:
            ValueError: the collection contains other vectors.
        """
        for key in ("penult.fingerprint", "penult.role"):
            if existing.get(key) != self.metadata[key]:
                name = key.removeprefix("penult.")
                note = f" ({OTHER_FINGERPRINT})" if key == "penult.fingerprint" else ""
                raise ValueError(
                    f"{place} has vectors with the {name} {existing.get(key)!r}, but the {name} of the file is "
                    f"{self.metadata[key]!r}{note}. Such vectors must not be mixed. Pass another --collection."
                )
        if existing.get(_LAYOUT, "columns") != self.layout:
            raise ValueError(
                f"{place} was written with --layout {existing.get(_LAYOUT, 'columns')}, not {self.layout}. Pass the same "
                "--layout, or "
                "another --collection."
            )

    @property
    def kept(self) -> dict[str, str]:
        """The entries of the metadata that a collection stores."""
        kept = {key: value for key, value in self.metadata.items() if key in _KEPT}
        return kept if self.layout == "columns" else kept | {_LAYOUT: self.layout}


@dataclass(frozen=True, slots=True)
class Entries:
    """N entries.

    Attributes:
        ids: ids of the entries.
        documents: values of the id column: several rows may be chunks of one document. None: there is no such column.
        vectors: (N, D).
        rows: the rows' other columns, as an Arrow table.
    """

    ids: list[str]
    documents: list[Any] | None
    vectors: Vectors
    rows: pa.Table

    def payloads(self) -> list[dict[str, Any]]:
        """Return the rows as JSON values; types not in JSON become text, NaN and infinity null."""
        return json_rows(self.rows)


class Store(Protocol):
    """An open collection."""

    batch_rows: int

    def upsert(self, entries: Entries) -> None:
        """Write entries, replacing those with equal ids."""

    def finish(self) -> str | None:
        """Build the index after the last entry; return why there is none if one was requested."""

    def count(self) -> int:
        """Return the number of entries in the collection."""

    def close(self) -> None:
        """Close the connection."""
