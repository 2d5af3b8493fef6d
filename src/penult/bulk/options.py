"""Options for the model, the columns and the reading of rows: plain values, pickled to workers. Imports the runtime lazily."""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from penult.types import Pooling, Precision, Role, Truncate

if TYPE_CHECKING:
    from penult.core.embedder import Embedder


@dataclass(frozen=True, slots=True)
class Model:
    """Arguments of `Embedder.load` for a worker.

    Attributes:
        reference: the model.
        query_prompt: prompt for queries. None: the prompt in the model's files.
        document_prompt: prompt for documents. None: the prompt in the model's files.
    """

    reference: str
    precision: Precision = "fp32"
    dimensions: int | None = None
    max_length: int | None = None
    truncate: Truncate = "warn"
    max_batch_tokens: int | None = None
    pooling: Pooling | tuple[Pooling, ...] | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    files_from: str | None = None
    model_file: str | None = None
    task: str | int | None = None
    normalize: bool | None = None
    layer_norm: bool = False
    layer: int | str | None = -1

    @property
    def prompts(self) -> dict[str, str] | None:
        """Prompts that override those of the model's files; None if there are none."""
        by_role = {"query": self.query_prompt, "document": self.document_prompt}
        return {role: prompt for role, prompt in by_role.items() if prompt is not None} or None

    def with_prompts(self, prompts: Mapping[Role, str | None]) -> "Model":
        """Return a copy with these prompts."""
        return replace(self, query_prompt=prompts["query"], document_prompt=prompts["document"])

    def named_prompt(self, name: str) -> str:
        """Return the prompt of this name from the model's files, without loading weights.

        Raises:
            ValueError: the files have no prompt of this name.
        """
        from penult.core import loading  # noqa: PLC0415 - as below
        from penult.core.recipe import Overrides  # noqa: PLC0415

        files = loading.files_of(self.reference, model_file=self.model_file, files_from=self.files_from)
        prompts = loading.read_files(files, Overrides()).named_prompts
        if name not in prompts:
            known = f"Pass one of {', '.join(map(repr, prompts))}." if prompts else "They define no prompts; pass --prompt."
            raise ValueError(f"--prompt-name is {name!r}, which the files of {self.reference} do not define. {known}")
        return prompts[name]

    def load(self, threads: int | None) -> "Embedder":
        """Load the model. `threads`: intra-op threads per run; None: the physical cores."""
        from penult.core.embedder import Embedder  # noqa: PLC0415 - the runtime loads in the worker only

        return Embedder.load(
            self.reference,
            precision=self.precision,
            dimensions=self.dimensions,
            max_length=self.max_length,
            truncate=self.truncate,
            max_batch_tokens=self.max_batch_tokens,
            pooling=self.pooling,
            prompts=self.prompts,
            files_from=self.files_from,
            model_file=self.model_file,
            task=self.task,
            normalize=self.normalize,
            layer_norm=self.layer_norm,
            layer=self.layer,
            threads=threads,
        )


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the text and vector columns, and the role of the texts."""

    text: str
    vector: str
    role: Role


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options for reading rows of text files; other values produce other rows.

    Attributes:
        encoding: encoding of text files without a byte order mark, by its Python name.
        max_row_bytes: maximum bytes of a row; a longer one is rejected and never held in memory as a whole.

    Raises:
        ValueError: the encoding is unknown, or the limit is below 1.
    """

    encoding: str = "utf-8"
    max_row_bytes: int = 8_000_000

    def __post_init__(self) -> None:
        try:
            "a".encode(self.encoding).decode(self.encoding)
        except (LookupError, ValueError, TypeError) as error:
            raise ValueError(
                f"--encoding is {self.encoding!r}, which is not a text encoding of Python. Pass utf-8, utf-16, latin-1, "
                "cp1252, "
                "shift_jis or another one."
            ) from error
        if self.max_row_bytes < 1:
            raise ValueError(f"--max-row-bytes is {self.max_row_bytes}; it must be at least 1.")

    @property
    def codec(self) -> str:
        """Python's canonical name of the encoding. A byte order mark is never part of the text."""
        return codecs.lookup(self.encoding).name.removesuffix("-sig")


DEFAULT_READING = ReadOptions()
