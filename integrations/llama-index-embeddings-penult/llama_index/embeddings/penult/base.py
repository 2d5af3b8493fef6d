"""PenultEmbedding: LlamaIndex's `BaseEmbedding` over a penult embedder.

This module implements LlamaIndex's conventions; code shared with penult's other adapters is in `penult.adapters`. Tokenizers,
graphs and runtimes load at the first text, not at import, so that a pipeline is built and sent to workers quickly.
"""

import os
import pickle
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import AliasChoices, Field, field_validator, model_validator

from penult.adapters import AdapterOptions
from penult.types import Role

_READY = "fingerprint:"
"""Prefix of the `model_name` of an object with a loaded embedder, so that a pipeline's cache distinguishes two of them."""

_LAST_IN_DICT = ("files_from", "model_file", "task", "class_name")


class PenultEmbedding(AdapterOptions, BaseEmbedding):
    """Embeddings of nodes and queries by a model on this machine or on a server.

    ```python
    from llama_index.core import Settings
    from llama_index.embeddings.penult import PenultEmbedding

    Settings.embed_model = PenultEmbedding(model_name="sentence-transformers/all-MiniLM-L6-v2")
    ```

    The model loads at the first text. An object of this class can be pickled and sent to a pipeline's workers, each of
    which loads its own copy of the model. Texts are not changed; their prompts are those of the model's files, or of
    `prompts`.

    With `base_url` a server embeds instead: penult's, DeepSparse's up to 1.5 or from 1.6, or Text Embeddings Inference.
    Queries and texts get different prompts there too, if the server has prompts. Your own `prompts` require penult's
    server.

    `to_dict` contains every option that decides a vector, and no others (`threads`, `show_progress`, `embed_batch_size`,
    `num_workers`), because a pipeline's cache hashes it.

    LlamaIndex's own `embeddings_cache` is keyed only by the text: keep one per `cache_namespace`, and none if the model has
    different prompts for queries and documents.

    Raises:
        ValueError: (as pydantic's `ValidationError`) none of `model_name`, `base_url` and `embedder` is passed, or `embedder`
            with one of the others, an option for loading is passed with an `embedder` or a server, or a prompt is passed
            twice.
        TypeError: `embedder` does not have a method `embed`.
    """

    model_field: ClassVar[str] = "model_name"
    instruction_fields: ClassVar[Mapping[Role, str]] = {"query": "query_instruction", "document": "text_instruction"}

    model_name: str = Field(default="", validation_alias=AliasChoices("model_name", "model"))
    """A folder, a Hub id or `package:NAME`; with `base_url`, the name of a model on the server. `model` is an alias."""

    text_instruction: str | None = None
    """The same as `prompts["document"]`, under the name in HuggingFaceEmbedding."""

    threads: int | None = Field(default=None, exclude=True)
    """Intra-op threads per forward pass. None: the cores that this process may use."""

    show_progress: bool = Field(default=False, exclude=True)
    """Whether penult shows its own progress bar while it embeds texts."""

    embed_batch_size: int = Field(default=512, gt=0, le=2048, exclude=True)
    """Texts per call of penult, which sorts them by length and plans its own batches, so that more texts are faster."""

    num_workers: int | None = Field(default=None, exclude=True)
    """Number of concurrent batches in async calls."""

    @field_validator("model_name", "files_from", mode="before")
    @classmethod
    def _path_as_text(cls, value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @model_validator(mode="after")
    def _one_source(self) -> "PenultEmbedding":
        self._merged_prompts()
        if self.embedder is None and self.base_url is None:
            _check_reference(self.model_name)
            return self
        if self.embedder is None:
            self._check_unused()
            return self
        if self.base_url is not None:
            raise ValueError("both base_url and embedder given: pass a server or a loaded object")
        self._check_embedder()
        self._check_unused()
        name = _READY + self.embedder.fingerprint
        if self.model_name not in {"", name}:
            raise ValueError(
                f"model_name={self.model_name!r} and an embedder of {name} given: pass one of the two; vectors of "
                "different fingerprints cannot be compared"
            )
        self.model_name = name
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The base class drops attributes that cannot be pickled and only logs it; a lost embedder must raise an error.
        pickle.dumps(self.embedder)
        state: dict[str, Any] = super().__getstate__()
        return state

    @classmethod
    def class_name(cls) -> str:
        """Return the class name in LlamaIndex's serialized form."""
        return "PenultEmbedding"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401  LlamaIndex's signature
        """Return the options that decide a vector, in a stable order, because a pipeline's cache hashes their text."""
        data = super().to_dict(**kwargs)
        last = {name: data.pop(name) for name in _LAST_IN_DICT if name in data}
        return data | last

    def get_text_embedding_batch(
        self,
        texts: Iterable[str],
        show_progress: bool = False,  # noqa: FBT001, FBT002  LlamaIndex's signature
        **kwargs: Any,  # noqa: ANN401  LlamaIndex's signature
    ) -> list[list[float]]:
        """Embed N texts as N vectors of D floats, in the same order; return an empty list for an empty list.

        Args:
            texts: a list, or any other iterable of str.
            show_progress: whether to show LlamaIndex's progress bar.
            **kwargs: passed to LlamaIndex.

        Raises:
            TypeError: `texts` is a single str, or contains items other than str.
            penult.types.TextError: some texts cannot be embedded; its `rows` says which of a batch.
        """
        return super().get_text_embedding_batch(_listed(texts), show_progress=show_progress, **kwargs)

    async def aget_text_embedding_batch(
        self,
        texts: Iterable[str],
        show_progress: bool = False,  # noqa: FBT001, FBT002  LlamaIndex's signature
        **kwargs: Any,  # noqa: ANN401  LlamaIndex's signature
    ) -> list[list[float]]:
        """Embed N texts without blocking the event loop."""
        return await super().aget_text_embedding_batch(_listed(texts), show_progress=show_progress, **kwargs)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed([query], "query", progress=False)[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._aembed([query], "query", progress=False))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed([text], "document", progress=False)[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aembed([text], "document", progress=False))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embed(texts, "document", progress=self._shows_progress(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self._aembed(texts, "document", progress=self._shows_progress(texts))

    def _shows_progress(self, texts: list[str]) -> bool:
        return self.show_progress and len(texts) > 1


def _check_reference(model_name: str) -> None:
    if not model_name:
        raise ValueError(
            "neither model_name nor embedder given: pass model_name= (a folder, a Hub id, package:NAME), base_url= (a server) "
            "or embedder= (a loaded object)"
        )
    if model_name.startswith(_READY):
        raise ValueError(
            f"model_name={model_name!r} names vectors of a loaded embedder, which was not written down with it: pass "
            "it again, as in PenultEmbedding.from_dict(data, embedder=...)"
        )


def _listed(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list: LlamaIndex counts them before it embeds them.

    Raises:
        TypeError: `texts` is a str, which is a sequence of str; LlamaIndex would embed its characters.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of str, given: a str; write [{texts[:20]!r}] or get_text_embedding")
    return list(texts)
