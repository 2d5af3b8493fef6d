"""PenultEmbeddings: LangChain's `Embeddings` over a penult embedder.

This module implements LangChain's conventions; code shared with penult's other adapters is in `penult.adapters`. Tokenizers,
graphs and runtimes load at the first text, not at import, so that building a chain is fast.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from langchain_core.embeddings import Embeddings
from pydantic import AliasChoices, Field, model_validator

from penult.adapters import AdapterOptions
from penult.types import Role


class PenultEmbeddings(AdapterOptions, Embeddings):
    """Embeddings of documents and queries by a model on this machine or on a server.

    ```python
    from langchain_penult import PenultEmbeddings

    embeddings = PenultEmbeddings(model="sentence-transformers/all-MiniLM-L6-v2")
    embeddings.embed_query("How far is the moon?")
    ```

    The model loads at the first text. An object of this class can be pickled and sent to another process, which loads
    its own copy of the model. Texts are not changed; their prompts are those of the model's files, or of `prompts`.

    With `base_url` a server embeds instead: penult's, DeepSparse's up to 1.5 or from 1.6, or Text Embeddings Inference.
    Queries and documents get different prompts there too, if the server has prompts. Your own `prompts` require penult's
    server.

    `cache_namespace` identifies everything that decides a vector. Use it as `namespace` of `CacheBackedEmbeddings` and of a
    record manager, whose own keys contain only the text.

    Raises:
        ValueError: (as pydantic's `ValidationError`) none of `model`, `base_url` and `embedder` is passed, or `embedder` with
            one of the others, an option for loading is passed with an `embedder` or a server, or a prompt is passed twice.
        TypeError: `embedder` does not have a method `embed`.
    """

    model_field: ClassVar[str] = "model"
    instruction_fields: ClassVar[Mapping[Role, str]] = {"query": "query_instruction", "document": "embed_instruction"}

    model: str | Path | None = Field(default=None, validation_alias=AliasChoices("model", "model_name"))
    """A folder, a Hub id or `package:NAME`; with `base_url`, the name of a model on the server. `model_name` is an alias."""

    embed_instruction: str | None = None
    """The same as `prompts["document"]`, under the name in HuggingFaceBgeEmbeddings."""

    @model_validator(mode="after")
    def _one_source(self) -> "PenultEmbeddings":
        named = self.model is not None or self.base_url is not None
        if named == (self.embedder is not None):
            given = "both" if named else "neither"
            raise ValueError(
                f"{given} of model and embedder given: pass model= (a folder, a Hub id, package:NAME) or base_url= (a server), "
                "or embedder= (a loaded object)"
            )
        if self.embedder is not None:
            self._check_embedder()
        if self.embedder is not None or self.base_url is not None:
            self._check_unused()
        self._merged_prompts()
        return self

    def embed_documents(self, texts: Iterable[str]) -> list[list[float]]:
        """Embed N documents as N vectors of D floats, in the same order; return an empty list for an empty list.

        Args:
            texts: a list, or any other iterable of str.

        Raises:
            TypeError: `texts` is a single str, or contains items other than str.
            penult.types.TextError: some texts cannot be embedded; its `rows` says which.
        """
        return self._embed(_listed(texts), "document", progress=self.show_progress)

    def embed_query(self, text: str) -> list[float]:
        """Embed a query as a vector of D floats, with the model's query prompt if it has one."""
        return self._embed([text], "query", progress=False)[0]

    async def aembed_documents(self, texts: Iterable[str]) -> list[list[float]]:
        """Embed N documents without blocking the event loop."""
        return await self._aembed(_listed(texts), "document", progress=self.show_progress)

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query without blocking the event loop."""
        return (await self._aembed([text], "query", progress=False))[0]


def _listed(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list; a str or bytes is returned unchanged, and penult refuses it."""
    return texts if isinstance(texts, str | bytes) else list(texts)  # type: ignore[return-value]
