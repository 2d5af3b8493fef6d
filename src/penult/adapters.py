"""Base class of the LangChain and LlamaIndex adapters: options, their validation, and the embedder.

An adapter is a pydantic model of its framework that also inherits from `AdapterOptions`. This module imports pydantic, which
both frameworks depend on, and neither framework. Models load at the first text, not when an adapter is built.
"""

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, SkipValidation

import penult
from penult.fork import PerProcess
from penult.types import Pooling, Precision, Role, TextEmbedder, Truncate

T = TypeVar("T")

_ASYNC_THREADS = 4
"""Threads for the async calls of one adapter. Penult runs a bounded number of batches at a time, so more threads would only
wait. The event loop's default executor, which name resolution also uses, stays free."""

_LOADING = ("layer", "pooling", "precision", "max_length", "truncate", "dimensions", "normalize", "layer_norm", "files_from",
            "model_file", "task", "threads")  # fmt: skip
"""The options that only have an effect when a model is loaded."""


def _key_of_environment() -> SecretStr | None:
    key = os.environ.get("PENULT_API_KEY")
    return SecretStr(key) if key else None


class _Opened:
    """The loaded embedders of an adapter in this process, and the threads for its async calls."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.embedders: dict[object, Any] = {}
        self.threads = ThreadPoolExecutor(_ASYNC_THREADS, thread_name_prefix="penult")


class AdapterOptions(BaseModel):
    """The options of an adapter. A subclass adds the model field, and its framework's names for the prompts.

    The model is loaded, or the server is contacted, at the first text.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    model_field: ClassVar[str]
    """The field that names the model."""

    instruction_fields: ClassVar[Mapping[Role, str]]
    """The framework's field names for the entries of `prompts`: role -> field."""

    base_url: str | None = None
    """Base URL of an embedding server, such as `http://localhost:5543`. None: embed in this process."""

    api_key: SecretStr | None = Field(default_factory=_key_of_environment, exclude=True)
    """API key of the server; never serialized, and sent to `base_url` only. Default: environment variable PENULT_API_KEY."""

    embedder: SkipValidation[TextEmbedder | None] = Field(default=None, exclude=True, repr=False)
    """A loaded embedder, instead of a model; never serialized."""

    layer: int | str | None = -1
    """Hidden state to pool: 0 is the embedding output, -1 the last layer; or a tensor name. None: the graph's own output."""

    pooling: Pooling | tuple[Pooling, ...] | None = None
    """Pooling of the token vectors; several are concatenated. None: as the model's own files say."""

    precision: Precision = "fp32"
    """Arithmetic precision."""

    max_length: int | None = None
    """Maximum tokens of a text. None: as the model's own files say."""

    truncate: Truncate = "warn"
    """What happens to a text that exceeds `max_length`: an error, truncation with a warning, or truncation on that side."""

    dimensions: int | None = None
    """Number of leading values of a vector to keep. None: all."""

    normalize: bool | None = None
    """Whether vectors have length 1. None: as the model's own files say."""

    layer_norm: bool = False
    """Whether to apply a layer norm without weights before truncation to `dimensions`, as some model cards require."""

    prompts: dict[Role, str] | None = None
    """Prompt put before each text, by role: "query" and "document". A role without an entry keeps the prompt of the model's
    own files. The model card says whether a prompt is needed."""

    query_instruction: str | None = None
    """The same as `prompts["query"]`, under the framework's usual name."""

    files_from: str | Path | None = None
    """Folder or Hub id whose tokenizer and configuration are used, for a model that has only a graph."""

    model_file: str | None = None
    """The .onnx file, if the folder or Hub id has several."""

    task: str | int | None = None
    """Task, if the model has several. None: by role, as the model's own files say."""

    threads: int | None = None
    """Intra-op threads per run. None: the physical cores this process may use."""

    show_progress: bool = False
    """Whether embedding texts shows a progress bar."""

    _opened: PerProcess[_Opened] = PrivateAttr(default_factory=partial(PerProcess, _Opened))

    @property
    def cache_namespace(self) -> str:
        """Fingerprint; equal fingerprints give comparable vectors. Loads the model or queries the server."""
        return self._embedder().fingerprint

    def _check_embedder(self) -> None:
        """Check that the object passed as `embedder` can embed.

        Raises:
            TypeError: the object has no method `embed`.
        """
        if not callable(getattr(self.embedder, "embed", None)):
            raise TypeError(
                "embedder must have embed, dimension and fingerprint (penult.types.TextEmbedder), given: "
                f"{type(self.embedder).__name__}. Pass a folder or a Hub id as {self.model_field}="
            )

    def _check_unused(self) -> None:
        """Check that no option is set that a server or a loaded embedder would ignore.

        Raises:
            ValueError: such options are set; the message names them.
        """
        names = _LOADING if self.embedder is None else (*_LOADING, "prompts", *self.instruction_fields.values())
        unused = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if unused:
            owner = "a server" if self.embedder is None else "a loaded embedder"
            raise ValueError(f"{', '.join(unused)} given with {owner}, which has its own. Set them where the model is loaded")

    def _merged_prompts(self) -> dict[str, str] | None:
        """Return `prompts` merged with the framework's fields; None if there are none.

        Raises:
            ValueError: two prompts of a role differ.
        """
        prompts: dict[str, str] = {str(role): prompt for role, prompt in (self.prompts or {}).items()}
        for role, field in self.instruction_fields.items():
            prompt = getattr(self, field)
            if prompt is not None and prompts.setdefault(role, prompt) != prompt:
                raise ValueError(f"prompts[{role!r}] and {field} are both given and differ. Pass one of them")
        return prompts or None

    def _embedder(self) -> TextEmbedder:
        """Return the embedder: the loaded one, the client of the server, or the model, loaded once per process."""
        if self.embedder is not None:
            return self.embedder
        if self.base_url is not None:
            return self._remote(self.base_url)
        reference = getattr(self, self.model_field)
        if not reference:
            raise ValueError(f"neither {self.model_field} nor embedder is set. Set one of them")
        load = partial(
            penult.Embedder.load,
            reference,
            layer=self.layer,
            pooling=self.pooling,
            precision=self.precision,
            max_length=self.max_length,
            truncate=self.truncate,
            dimensions=self.dimensions,
            normalize=self.normalize,
            layer_norm=self.layer_norm,
            prompts=self._merged_prompts(),
            files_from=self.files_from,
            model_file=self.model_file,
            task=self.task,
            threads=self.threads,
        )
        return self._once(load)

    def _remote(self, base_url: str) -> "penult.RemoteEmbedder":
        key = None if self.api_key is None else self.api_key.get_secret_value()
        reference = getattr(self, self.model_field)
        model = str(reference) if reference else None
        return self._once(partial(penult.RemoteEmbedder, base_url, key, model=model, prompts=self._merged_prompts()))

    def _once(self, load: partial[T]) -> T:
        """Return the result of `load`, which is called once for all threads, and again if one of its arguments changes."""
        opened = self._opened.get()
        key = (*load.args, *((name, _hashable(value)) for name, value in load.keywords.items()))
        with opened.lock:
            if key not in opened.embedders:
                opened.embedders[key] = load()
            embedder: T = opened.embedders[key]
        return embedder

    def _embed(self, texts: list[str], role: Role, *, progress: bool) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder().embed(texts, role=role, progress=progress).tolist()
        return vectors

    async def _aembed(self, texts: list[str], role: Role, *, progress: bool) -> list[list[float]]:
        if self.embedder is None and self.base_url is not None:
            vectors: list[list[float]] = (await self._remote(self.base_url).aembed(texts, role)).tolist()
            return vectors
        work = partial(copy_context().run, partial(self._embed, texts, role, progress=progress))
        return await asyncio.get_running_loop().run_in_executor(self._opened.get().threads, work)


def _hashable(value: object) -> object:
    """Return a hashable copy of an option, which may be a dict or a list."""
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(item)) for key, item in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
