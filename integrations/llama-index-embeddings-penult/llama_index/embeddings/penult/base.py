"""PenultEmbedding: LlamaIndex's `BaseEmbedding` over a penult embedder.

Holds LlamaIndex's conventions; what it shares with penult's other adapter is in `penult.adapters`. Tokenizers, graphs and
runtimes load inside penult, at the first text and not at import, so that a pipeline is built and sent to workers quickly.
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
"""Before the `model_name` of an object with a ready embedder, so that a pipeline's cache can tell two of them apart."""

_LAST_IN_DICT = ("files_from", "model_file", "task", "class_name")


class PenultEmbedding(AdapterOptions, BaseEmbedding):
    """Embed nodes and queries with a model on this machine, or with one behind a server.

    ```python
    from llama_index.core import Settings
    from llama_index.embeddings.penult import PenultEmbedding

    Settings.embed_model = PenultEmbedding(model_name="sentence-transformers/all-MiniLM-L6-v2")
    ```

    The model loads at the first text. An object of this class can be pickled and sent to a pipeline's workers, each of
    which loads the model for itself. Texts are passed on unaltered; the prompts before them are those of the model's own
    files, or of `prompts`.

    With `base_url` a server embeds instead: penult's own, DeepSparse's of either generation, or Text Embeddings
    Inference. Queries and texts are told apart there as well, where the server has prompts; `prompts` of your own go with
    penult's server alone.

    `to_dict` holds every option that decides a vector and none of those that do not (`threads`, `show_progress`,
    `embed_batch_size`, `num_workers`), because it is what a pipeline's cache hashes.

    LlamaIndex's own `embeddings_cache` is keyed by the text alone: keep one per `cache_namespace`, and none where the
    model has different prompts for queries and documents.

    Raises:
        ValueError: (as pydantic's `ValidationError`) when none of `model_name`, `base_url` and `embedder` is given, or
            `embedder` with one of the others, an option that only matters while loading comes with a ready `embedder` or a
            server, or a prompt is given twice.
        TypeError: when `embedder` has no `embed` method.
    """

    model_field: ClassVar[str] = "model_name"
    instruction_fields: ClassVar[Mapping[Role, str]] = {"query": "query_instruction", "document": "text_instruction"}

    model_name: str = Field(default="", validation_alias=AliasChoices("model_name", "model"))
    """A folder, a Hub id or `package:NAME`; with `base_url`, which of the server's models. `model` is accepted as well."""

    text_instruction: str | None = None
    """The same as `prompts["document"]`, by the name that HuggingFaceEmbedding has."""

    threads: int | None = Field(default=None, exclude=True)
    """Threads of one forward pass. None: what this process may use."""

    show_progress: bool = Field(default=False, exclude=True)
    """Whether embedding texts shows a progress bar of penult's own."""

    embed_batch_size: int = Field(default=512, gt=0, le=2048, exclude=True)
    """Texts handed to penult at once; it sorts them by length and forms its own batches, so more is faster."""

    num_workers: int | None = Field(default=None, exclude=True)
    """How many batches are awaited at once in async calls."""

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
        # The base class drops what cannot be pickled with a log line; an embedder lost on the way must not go unseen.
        pickle.dumps(self.embedder)
        state: dict[str, Any] = super().__getstate__()
        return state

    @classmethod
    def class_name(cls) -> str:
        """Name the class in what LlamaIndex writes down."""
        return "PenultEmbedding"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401  LlamaIndex's signature
        """Return the options that decide a vector, in an order that never changes: a pipeline's cache hashes their text."""
        data = super().to_dict(**kwargs)
        last = {name: data.pop(name) for name in _LAST_IN_DICT if name in data}
        return data | last

    def get_text_embedding_batch(
        self,
        texts: Iterable[str],
        show_progress: bool = False,  # noqa: FBT001, FBT002  LlamaIndex's signature
        **kwargs: Any,  # noqa: ANN401  LlamaIndex's signature
    ) -> list[list[float]]:
        """Embed N texts as N vectors of D floats, in the order given; an empty list gives an empty list.

        Args:
            texts: a list, or any other iterable of str.
            show_progress: show LlamaIndex's progress bar.
            **kwargs: LlamaIndex's own.

        Raises:
            TypeError: `texts` is a single str, or holds something else than str.
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
        TypeError: it is a str, which is a sequence of str: LlamaIndex would embed its characters.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of str, given: a str; write [{texts[:20]!r}] or get_text_embedding")
    return list(texts)
