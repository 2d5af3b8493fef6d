"""Which model, which columns, how rows are read: plain values that travel to every worker. Imports no engine at first."""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from penult.types import Pooling, Precision, Role, Truncate

if TYPE_CHECKING:
    from penult.core.embedder import Embedder


@dataclass(frozen=True, slots=True)
class Model:
    """Which model a worker opens, and how; the words of `Embedder.load`.

    Attributes:
        reference: the model.
        query_prompt: prompt of queries. None: that of the model's files.
        document_prompt: prompt of documents. None: that of the model's files.
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
        """The prompts that stand above those of the model's files; None where there are none."""
        given = {"query": self.query_prompt, "document": self.document_prompt}
        return {role: prompt for role, prompt in given.items() if prompt is not None} or None

    def with_prompts(self, prompts: Mapping[Role, str | None]) -> "Model":
        """Return the same with these prompts."""
        return replace(self, query_prompt=prompts["query"], document_prompt=prompts["document"])

    def named_prompt(self, name: str) -> str:
        """Return a prompt that the model's files have under a name; reads no weights.

        Raises:
            ValueError: they have none of this name.
        """
        from penult.core import loading  # noqa: PLC0415 - as below
        from penult.core.recipe import Overrides  # noqa: PLC0415

        files = loading.files_of(self.reference, model_file=self.model_file, files_from=self.files_from)
        prompts = loading.read_files(files, Overrides()).named_prompts
        if name not in prompts:
            known = ", ".join(map(repr, prompts)) or "none"
            raise ValueError(f"--prompt-name is {name!r}; the prompts that the files of {self.reference} name are {known}.")
        return prompts[name]

    def load(self, threads: int | None) -> "Embedder":
        """Open the model. `threads`: of one run; None: as the machine has cores."""
        from penult.core.embedder import Embedder  # noqa: PLC0415 - the engine loads where it works, not where this is made

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
    """Which column holds the texts, which takes the vectors, and what the texts are for."""

    text: str
    vector: str
    role: Role


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How the rows of text files are read; other values give other rows.

    Attributes:
        encoding: of text files that begin with no byte order mark: a name that Python knows.
        max_row_bytes: a row with more is rejected, and never in memory as a whole.

    Raises:
        ValueError: no such encoding, or a limit below 1.
    """

    encoding: str = "utf-8"
    max_row_bytes: int = 8_000_000

    def __post_init__(self) -> None:
        try:
            "a".encode(self.encoding).decode(self.encoding)
        except (LookupError, ValueError, TypeError) as error:
            raise ValueError(
                f"--encoding is {self.encoding!r}, which is not an encoding of text; pass utf-8, utf-16, latin-1, cp1252, "
                "shift_jis or another one that Python knows."
            ) from error
        if self.max_row_bytes < 1:
            raise ValueError(f"--max-row-bytes is {self.max_row_bytes}; it must be at least 1.")

    @property
    def codec(self) -> str:
        """The encoding under the one name that Python has for it; a mark at the beginning of a file is never text."""
        return codecs.lookup(self.encoding).name.removesuffix("-sig")


DEFAULT_READING = ReadOptions()
