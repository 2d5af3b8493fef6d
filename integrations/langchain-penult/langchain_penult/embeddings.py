"""PenultEmbeddings: LangChain's `Embeddings` over a penult embedder.

Knows LangChain's conventions and the contract `penult.types.TextEmbedder`. Must not know tokenizers, graphs or
runtimes: those load inside penult, at the first text and not at import, so that building a chain stays quick.
"""

import asyncio
from collections.abc import Iterable
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import cast

from langchain_core.embeddings import Embeddings
from langchain_core.utils import secret_from_env
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, SkipValidation, model_validator

import penult
from penult.process_cache import Held
from penult.types import Pooling, Precision, Role, TextEmbedder, Truncate

_LOADING = ("layer", "pooling", "precision", "max_length", "truncate", "dimensions", "normalize", "layer_norm", "files_from",
            "model_file", "task", "threads")  # fmt: skip
_PROMPTS = ("prompts", "query_instruction", "embed_instruction")


class PenultEmbeddings(BaseModel, Embeddings):
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

    Raises:
        ValueError: (as pydantic's `ValidationError`) when none of `model`, `base_url` and `embedder` is given, or
            `embedder` with one of the others, an option that only matters while loading comes with a ready `embedder` or a
            server, or a prompt is given twice.
        TypeError: when `embedder` has no `embed` method.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    model: str | Path | None = Field(default=None, validation_alias=AliasChoices("model", "model_name"))
    """A folder, a Hub id or `package:NAME`; with `base_url`, which of the server's models. `model_name` is accepted too."""

    base_url: str | None = None
    """A server that embeds, such as `http://localhost:5543`. None: this machine does."""

    api_key: SecretStr | None = Field(default_factory=secret_from_env("PENULT_API_KEY", default=None), exclude=True)
    """The server's key. Unless given it is read from PENULT_API_KEY; it is sent to `base_url` alone."""

    embedder: SkipValidation[TextEmbedder | None] = Field(default=None, exclude=True, repr=False)
    """A ready object to embed with, instead of `model`; it is not part of a dump."""

    layer: int | str | None = -1
    """Which hidden state: 0 is the embedding layer's, -1 the last; a tensor's name; None for the graph's own output."""

    pooling: Pooling | tuple[Pooling, ...] | None = None
    """How token vectors become one; several are concatenated. None: as the model's own files say."""

    precision: Precision = "fp32"

    max_length: int | None = None
    """Most tokens of a text that count. None: as the model's own files say."""

    truncate: Truncate = "warn"
    """What happens to a text over `max_length`: refused, cut with a warning, or cut on that side."""

    dimensions: int | None = None
    """Keep the first so many values of a vector. None: all."""

    normalize: bool | None = None
    """Whether vectors have length 1. None: as the model's own files say."""

    layer_norm: bool = False
    """Whether a layer norm without weights comes before `dimensions` are kept, as some models' cards ask for."""

    prompts: dict[Role, str] | None = None
    """What is put before a text as it stands, by role: "query" and "document". A role that is not named keeps the prompt of the
    model's own files. The model's card says whether it needs one."""

    query_instruction: str | None = None
    """The same as `prompts["query"]`, by the name that HuggingFaceBgeEmbeddings has."""

    embed_instruction: str | None = None
    """The same as `prompts["document"]`, by the name that HuggingFaceBgeEmbeddings has."""

    files_from: str | Path | None = None
    """A folder or Hub id whose tokenizer and configuration are used, for a model that holds the graph alone."""

    model_file: str | None = None
    """Which .onnx file, where a folder or a Hub id holds several."""

    task: str | int | None = None
    """The task of models that have several. None: by role, as the model's own files say."""

    threads: int | None = None
    """Threads of one forward pass. None: what this process may use."""

    show_progress: bool = False
    """Whether `embed_documents` shows a progress bar."""

    _held: Held = PrivateAttr(default_factory=Held)

    @model_validator(mode="after")
    def _one_source(self) -> "PenultEmbeddings":
        named = self.model is not None or self.base_url is not None
        if named == (self.embedder is not None):
            given = "both" if named else "neither"
            raise ValueError(
                f"{given} of model and embedder given: pass model= (a folder, a Hub id, package:NAME) or base_url= (a server), "
                "or embedder= (a loaded object)"
            )
        if self.embedder is not None and not callable(getattr(self.embedder, "embed", None)):
            raise TypeError(
                f"embedder must have embed, dimension and fingerprint (penult.types.TextEmbedder), given: "
                f"{type(self.embedder).__name__}; pass a folder or a Hub id as model="
            )
        if self.embedder is not None or self.base_url is not None:
            what = "a loaded embedder" if self.base_url is None else "a server"
            unused = [name for name in _LOADING if getattr(self, name) != type(self).model_fields[name].default]
            if self.embedder is not None:
                unused += [name for name in _PROMPTS if getattr(self, name) is not None]
            if unused:
                raise ValueError(f"{', '.join(unused)} given with {what}, which has its own: set them where it is loaded")
        self._all_prompts()
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

    @property
    def cache_namespace(self) -> str:
        """Name of all that decides a vector (loads the model, or asks the server): equal names, comparable vectors.

        Use it as `namespace` of `CacheBackedEmbeddings` and of a record manager, whose own keys know the text only.
        """
        return self._penult().fingerprint

    def _penult(self) -> TextEmbedder:
        if self.embedder is not None:
            return self.embedder
        if self.base_url is not None:
            return self._remote(self.base_url)
        if self.model is None:
            raise ValueError("neither model nor embedder is set any more: set one of the two")
        load = partial(
            penult.Embedder.load,
            self.model,
            layer=self.layer,
            pooling=self.pooling,
            precision=self.precision,
            max_length=self.max_length,
            truncate=self.truncate,
            dimensions=self.dimensions,
            normalize=self.normalize,
            layer_norm=self.layer_norm,
            prompts=self._all_prompts(),
            files_from=self.files_from,
            model_file=self.model_file,
            task=self.task,
            threads=self.threads,
        )
        return self._held.embedder(load)

    def _all_prompts(self) -> dict[str, str] | None:
        """Return the prompts of both spellings; None where there are none.

        Raises:
            ValueError: the two differ.
        """
        found: dict[str, str] = {str(role): prompt for role, prompt in (self.prompts or {}).items()}
        named = {"query": self.query_instruction, "document": self.embed_instruction}
        for role, prompt in named.items():
            if prompt is not None and found.setdefault(role, prompt) != prompt:
                name = "query_instruction" if role == "query" else "embed_instruction"
                raise ValueError(f"prompts[{role!r}] and {name} are both given and differ: pass one of the two")
        return found or None

    def _remote(self, base_url: str) -> penult.RemoteEmbedder:
        key = None if self.api_key is None else self.api_key.get_secret_value()
        model = None if self.model is None else str(self.model)
        found = self._held.embedder(partial(penult.RemoteEmbedder, base_url, key, model=model, prompts=self._all_prompts()))
        return cast("penult.RemoteEmbedder", found)

    def _embed(self, texts: list[str], role: Role, *, progress: bool) -> list[list[float]]:
        vectors: list[list[float]] = self._penult().embed(texts, role=role, progress=progress).tolist()
        return vectors

    async def _aembed(self, texts: list[str], role: Role, *, progress: bool) -> list[list[float]]:
        if self.embedder is None and self.base_url is not None:
            found: list[list[float]] = (await self._remote(self.base_url).aembed(texts, role)).tolist()
            return found
        work = partial(copy_context().run, partial(self._embed, texts, role, progress=progress))
        return await asyncio.get_running_loop().run_in_executor(self._held.here().threads, work)


def _listed(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list; a str is handed on as it is, for penult to refuse: it is no list of texts."""
    return texts if isinstance(texts, str | bytes) else list(texts)  # type: ignore[return-value]
