"""A Qdrant collection, on a server or in a local folder. The only module that imports qdrant_client (the extra `qdrant`)."""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from penult.bulk.json_text import as_text
from penult.bulk.stores.base import Entries, Index, VectorSpec
from penult.extras import install_hint


class Qdrant:
    """One collection; the fingerprint is in its metadata. The distance is cosine, so Qdrant stores normalized vectors.

    Args:
        place: a folder, or an http(s) URL; QDRANT_API_KEY is sent to a URL.
        collection: name of the collection; created if it does not exist.
        spec: spec of the vectors.
        index: "auto" and "hnsw": a server builds its index by itself; "none": a new collection has no index.

    Raises:
        ValueError: the collection has vectors of another model or layout.
        OSError: the server cannot be reached or rejects the request, another process uses the folder, or the disk is full.
    """

    batch_rows = 256

    def __init__(self, place: str, collection: str, spec: VectorSpec, index: Index) -> None:
        self._models, client = _qdrant()
        remote = place.startswith(("http://", "https://"))
        with _os_errors():
            self._client = client(url=place, api_key=os.environ.get("QDRANT_API_KEY")) if remote else client(path=place)
        self._collection = collection
        self._spec = spec
        self._index = index
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
            hnsw_config=self._models.HnswConfigDiff(m=0) if self._index == "none" else None,
        )

    def upsert(self, entries: Entries) -> None:
        """Write entries, replacing those with equal ids; they are on the server's disk when this returns."""
        points = [
            self._models.PointStruct(id=id_, vector=vector.tolist(), payload=payload)
            for id_, vector, payload in zip(entries.ids, entries.vectors, _payloads(entries, self._spec), strict=True)
        ]
        with _os_errors():
            self._client.upsert(self._collection, points, wait=True)

    def finish(self) -> None:
        """Do nothing: a server builds its index by itself, and search in a folder is exact."""

    def count(self) -> int:
        """Return the number of entries in the collection."""
        with _os_errors():
            return int(self._client.count(self._collection, exact=True).count)

    def close(self) -> None:
        """Close the client."""
        self._client.close()


def _payloads(entries: Entries, spec: VectorSpec) -> list[dict[str, Any]]:
    rows = entries.payloads()
    if spec.layout == "columns" or spec.text_column is None:
        return rows
    texts = [row.pop(spec.text_column) for row in rows]
    if spec.layout == "langchain":
        return [{"page_content": text, "metadata": row} for text, row in zip(texts, rows, strict=True)]
    documents = entries.documents or [None] * len(rows)
    return [_node(*parts) for parts in zip(entries.ids, documents, texts, rows, strict=True)]


def _node(id_: str, document: Any, text: str, metadata: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - any id
    """Return a TextNode as LlamaIndex's `node_to_metadata_dict` does: the node as JSON, and its metadata."""
    source = document if isinstance(document, str) else json.dumps(document, default=as_text)
    related: dict[str, Any] = {
        "node_id": source,
        "node_type": "4",
        "metadata": {},
        "hash": None,
        "class_name": "RelatedNodeInfo",
    }
    node: dict[str, Any] = {
        "id_": id_,
        "embedding": None,
        "metadata": metadata,
        "excluded_embed_metadata_keys": [],
        "excluded_llm_metadata_keys": [],
        "relationships": {} if document is None else {"1": related},
        "text": text,
        "class_name": "TextNode",
    }
    content = {"_node_content": json.dumps(node, ensure_ascii=False), "_node_type": "TextNode"}
    document_id = "None" if document is None else source  # the text "None", as LlamaIndex writes it
    return metadata | content | dict.fromkeys(("document_id", "doc_id", "ref_doc_id"), document_id)


@contextmanager
def _os_errors() -> Iterator[None]:
    """Convert errors of the client to OSError: they have three unrelated base classes."""
    from qdrant_client.http.exceptions import ApiException  # noqa: PLC0415 - an extra

    try:
        yield
    except (ApiException, RuntimeError, sqlite3.Error) as error:
        raise OSError(f"Qdrant failed or cannot be reached: {str(error).strip()}") from error


def _qdrant() -> tuple[Any, Any]:
    try:
        from qdrant_client import QdrantClient, models  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(f"Qdrant needs {install_hint('qdrant')}.") from error
    return models, QdrantClient
