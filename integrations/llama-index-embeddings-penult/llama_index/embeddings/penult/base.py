"""PenultEmbedding: LlamaIndex's `BaseEmbedding` over a penult embedder.

Knows LlamaIndex's conventions and the contract `penult.types.TextEmbedder`. Must not know tokenizers, graphs or
runtimes: those load inside penult, at the first text and not at import, so that a pipeline is built and sent to workers
quickly.
"""

import asyncio
import os
import pickle
from collections.abc import Iterable
from contextvars import copy_context
from functools import partial
from typing import Any, cast

from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, SecretStr, SkipValidation, field_validator, model_validator

import penult
from penult.process_cache import Held
from penult.types import Pooling, Precision, Role, TextEmbedder, Truncate

_LOADING = ("layer", "pooling", "precision", "max_length", "truncate", "dimensions", "normalize", "layer_norm", "files_from",
            "model_file", "task", "threads")  # fmt: skip
_PROMPTS = ("prompts", "query_instruction", "text_instruction")

_READY = "fingerprint:"
"""Before the `model_name` of an object with a ready embedder, so that a pipeline's cache can tell two of them apart."""


def _key_of_environment() -> SecretStr | None:
    key = os.environ.get("PENULT_API_KEY")
    return SecretStr(key) if key else None


class PenultEmbedding(BaseEmbedding):
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

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(default="", validation_alias=AliasChoices("model_name", "model"))
    """A folder, a Hub id or `package:NAME`; with `base_url`, which of the server's models. `model` is accepted as well."""

    base_url: str | None = None
    """A server that embeds, such as `http://localhost:5543`. None: this machine does."""

    api_key: SecretStr | None = Field(default_factory=_key_of_environment, exclude=True)
    """The server's key, in no dump. Unless given it is read from PENULT_API_KEY; it is sent to `base_url` alone."""

    embedder: SkipValidation[TextEmbedder | None] = Field(default=None, exclude=True, repr=False)
    """A ready object to embed with, instead of a model; `to_dict` holds its fingerprint only."""

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
    """What is put before a text as it stands, by role: "query" and "document" (LlamaIndex's texts and nodes). A role that is
    not named keeps the prompt of the model's own files. The model's card says whether it needs one."""

    query_instruction: str | None = None
    """The same as `prompts["query"]`, by the name that HuggingFaceEmbedding has."""

    text_instruction: str | None = None
    """The same as `prompts["document"]`, by the name that HuggingFaceEmbedding has."""

    files_from: str | None = None
    """A folder or Hub id whose tokenizer and configuration are used, for a model that holds the graph alone."""

    model_file: str | None = None
    """Which .onnx file, where a folder or a Hub id holds several."""

    task: str | int | None = None
    """The task of models that have several. None: by role, as the model's own files say."""

    threads: int | None = Field(default=None, exclude=True)
    """Threads of one forward pass. None: what this process may use."""

    show_progress: bool = Field(default=False, exclude=True)
    """Whether embedding texts shows a progress bar of penult's own."""

    embed_batch_size: int = Field(default=512, gt=0, le=2048, exclude=True)
    """Texts handed to penult at once; it sorts them by length and forms its own batches, so more is faster."""

    num_workers: int | None = Field(default=None, exclude=True)
    """How many batches are awaited at once in async calls."""

    _held: Held = PrivateAttr(default_factory=Held)

    @field_validator("model_name", "files_from", mode="before")
    @classmethod
    def _path_as_text(cls, value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @model_validator(mode="after")
    def _one_source(self) -> "PenultEmbedding":
        _prompts(self)
        if self.embedder is None and self.base_url is None:
            _check_reference(self.model_name)
            return self
        if self.embedder is None:
            _refuse(self, _LOADING, "a server")
            return self
        if self.base_url is not None:
            raise ValueError("both base_url and embedder given: pass a server or a loaded object")
        if not callable(getattr(self.embedder, "embed", None)):
            raise TypeError(
                "embedder must have embed, dimension and fingerprint (penult.types.TextEmbedder), given: "
                f"{type(self.embedder).__name__}; pass a folder or a Hub id as model_name="
            )
        _refuse(self, (*_LOADING, *_PROMPTS), "a loaded embedder")
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

    @property
    def cache_namespace(self) -> str:
        """Name of all that decides a vector (loads the model, or asks the server): equal names, comparable vectors."""
        return self._penult().fingerprint

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
        return self._embed([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._aembed([query], "query"))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed([text], "document")[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aembed([text], "document"))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embed(texts, "document")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self._aembed(texts, "document")

    def _penult(self) -> TextEmbedder:
        if self.embedder is not None:
            return self.embedder
        if self.base_url is not None:
            return self._remote(self.base_url)
        load = partial(
            penult.Embedder.load,
            self.model_name,
            layer=self.layer,
            pooling=self.pooling,
            precision=self.precision,
            max_length=self.max_length,
            truncate=self.truncate,
            dimensions=self.dimensions,
            normalize=self.normalize,
            layer_norm=self.layer_norm,
            prompts=_prompts(self),
            files_from=self.files_from,
            model_file=self.model_file,
            task=self.task,
            threads=self.threads,
        )
        return self._held.embedder(load)

    def _remote(self, base_url: str) -> penult.RemoteEmbedder:
        key = None if self.api_key is None else self.api_key.get_secret_value()
        load = partial(penult.RemoteEmbedder, base_url, key, model=self.model_name or None, prompts=_prompts(self))
        return cast("penult.RemoteEmbedder", self._held.embedder(load))

    def _embed(self, texts: list[str], role: Role) -> list[list[float]]:
        progress = self.show_progress and len(texts) > 1
        vectors: list[list[float]] = self._penult().embed(texts, role=role, progress=progress).tolist()
        return vectors

    async def _aembed(self, texts: list[str], role: Role) -> list[list[float]]:
        if self.embedder is None and self.base_url is not None:
            found: list[list[float]] = (await self._remote(self.base_url).aembed(texts, role)).tolist()
            return found
        work = partial(copy_context().run, partial(self._embed, texts, role))
        return await asyncio.get_running_loop().run_in_executor(self._held.here().threads, work)


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


def _prompts(options: PenultEmbedding) -> dict[str, str] | None:
    """Return the prompts of both spellings; None where there are none.

    Raises:
        ValueError: the two differ.
    """
    found: dict[str, str] = {str(role): prompt for role, prompt in (options.prompts or {}).items()}
    named = {"query": options.query_instruction, "document": options.text_instruction}
    for role, prompt in named.items():
        if prompt is not None and found.setdefault(role, prompt) != prompt:
            name = "query_instruction" if role == "query" else "text_instruction"
            raise ValueError(f"prompts[{role!r}] and {name} are both given and differ: pass one of the two")
    return found or None


def _refuse(options: PenultEmbedding, names: tuple[str, ...], what: str) -> None:
    """Refuse options that only matter while a model is loaded, where something else has loaded it."""
    unused = [name for name in names if getattr(options, name) != type(options).model_fields[name].default]
    if unused:
        raise ValueError(f"{', '.join(unused)} given with {what}, which has its own: set them where it is loaded")


def _listed(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list: LlamaIndex counts them before it embeds them.

    Raises:
        TypeError: it is a str, which is a sequence of str: LlamaIndex would embed its characters.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of str, given: a str; write [{texts[:20]!r}] or get_text_embedding")
    return list(texts)
