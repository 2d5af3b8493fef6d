"""PenultEmbeddings: LangChain's `Embeddings` over a penult embedder.

Holds LangChain's conventions; what it shares with penult's other adapter is in `penult.adapters`. Tokenizers, graphs and
runtimes load inside penult, at the first text and not at import, so that building a chain stays quick.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from langchain_core.embeddings import Embeddings
from pydantic import AliasChoices, Field, model_validator

from penult.adapters import AdapterOptions
from penult.types import Role


class PenultEmbeddings(AdapterOptions, Embeddings):
    """Embed documents and queries with a model on this machine, or with one behind a server.

    ```python
    from langchain_penult import PenultEmbeddings

    embeddings = PenultEmbeddings(model="sentence-transformers/all-MiniLM-L6-v2")
    embeddings.embed_query("How far is the moon?")
    ```

    The model loads at the first text. An object of this class can be pickled and sent to another process, which loads
    the model for itself. Texts are passed on unaltered; the prompts before them are those of the model's own files, or of
    `prompts`.

    With `base_url` a server embeds instead: penult's own, DeepSparse's of either generation, or Text Embeddings
    Inference. Queries and documents are told apart there as well, where the server has prompts; `prompts` of your own go
    with penult's server alone.

    `cache_namespace` names all that decides a vector. Use it as `namespace` of `CacheBackedEmbeddings` and of a record manager,
    whose own keys know the text only.

    Raises:
        ValueError: (as pydantic's `ValidationError`) when none of `model`, `base_url` and `embedder` is given, or
            `embedder` with one of the others, an option that only matters while loading comes with a ready `embedder` or a
            server, or a prompt is given twice.
        TypeError: when `embedder` has no `embed` method.
    """

    model_field: ClassVar[str] = "model"
    instruction_fields: ClassVar[Mapping[Role, str]] = {"query": "query_instruction", "document": "embed_instruction"}

    model: str | Path | None = Field(default=None, validation_alias=AliasChoices("model", "model_name"))
    """A folder, a Hub id or `package:NAME`; with `base_url`, which of the server's models. `model_name` is accepted too."""

    embed_instruction: str | None = None
    """The same as `prompts["document"]`, by the name that HuggingFaceBgeEmbeddings has."""

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
        """Embed N documents as N vectors of D floats, in the order given; an empty list gives an empty list.

        Args:
            texts: a list, or any other iterable of str.

        Raises:
            TypeError: `texts` is a single str, or holds something else than str.
            penult.types.TextError: some texts cannot be embedded; its `rows` says which.
        """
        return self._embed(_listed(texts), "document", progress=self.show_progress)

    def embed_query(self, text: str) -> list[float]:
        """Embed a query as a vector of D floats, with the model's query prompt where it has one."""
        return self._embed([text], "query", progress=False)[0]

    async def aembed_documents(self, texts: Iterable[str]) -> list[list[float]]:
        """Embed N documents without blocking the event loop."""
        return await self._aembed(_listed(texts), "document", progress=self.show_progress)

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query without blocking the event loop."""
        return (await self._aembed([text], "query", progress=False))[0]


def _listed(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list; a str is passed on as it is, and penult refuses it: it is not a list of texts."""
    return texts if isinstance(texts, str | bytes) else list(texts)  # type: ignore[return-value]
