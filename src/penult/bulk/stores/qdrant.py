"""A Qdrant collection, on a server or in a local folder. The only file that imports qdrant_client (the extra `qdrant`)."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from penult.bulk.stores.base import Entries, VectorSpec
from penult.extras import install_hint


class Qdrant:
    """One collection; the fingerprint stands in its metadata.

    Args:
        place: a folder, or an http(s) address; QDRANT_API_KEY is sent to an address.
        collection: its name; made where there is none.
        spec: of the vectors.

    Raises:
        ValueError: the collection holds vectors of another model.
        OSError: the server cannot be reached or refuses, the folder is another process's, or the disk is full.
    """

    batch_rows = 256

    def __init__(self, place: str, collection: str, spec: VectorSpec) -> None:
        self._models, client = _qdrant()
        remote = place.startswith(("http://", "https://"))
        with _os_errors():
            self._client = client(url=place, api_key=os.environ.get("QDRANT_API_KEY")) if remote else client(path=place)
        self._collection = collection
        try:
            with _os_errors():
                self._prepare(f"The collection {collection!r} in {place}", spec)
        except BaseException:
            self._client.close()
            raise

    def _prepare(self, name: str, spec: VectorSpec) -> None:
        if self._client.collection_exists(self._collection):
            spec.check_same_model(self._client.get_collection(self._collection).config.metadata or {}, name)
            return
        self._client.create_collection(
            self._collection,
            vectors_config=self._models.VectorParams(size=spec.dimension, distance=self._models.Distance.COSINE),
            metadata=spec.kept,
        )

    def upsert(self, entries: Entries) -> None:
        """Write entries over those of equal ids; on the server's disk when this returns."""
        points = [
            self._models.PointStruct(id=id_, vector=vector.tolist(), payload=payload)
            for id_, vector, payload in zip(entries.ids, entries.vectors, entries.payloads(), strict=True)
        ]
        with _os_errors():
            self._client.upsert(self._collection, points, wait=True)

    def count(self) -> int:
        """Count the entries of the collection."""
        with _os_errors():
            return int(self._client.count(self._collection, exact=True).count)

    def close(self) -> None:
        """Close the client."""
        self._client.close()


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise what goes wrong in the client as OSError: its own errors are of three unlike families."""
    from qdrant_client.http.exceptions import ApiException  # noqa: PLC0415 - an extra

    try:
        yield
    except (ApiException, RuntimeError, sqlite3.Error) as error:
        raise OSError(f"Qdrant refuses or cannot be reached: {str(error).strip()}") from error


def _qdrant() -> tuple[Any, Any]:
    try:
        from qdrant_client import QdrantClient, models  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(f"Qdrant needs {install_hint('qdrant')}.") from error
    return models, QdrantClient
