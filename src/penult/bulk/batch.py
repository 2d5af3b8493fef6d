"""BatchEmbedder: appends a column of vectors to each batch from Ray Data, Spark, Daft or a loop of your own.

It holds only options until its first batch, and this module imports neither the runtime nor Arrow. So it pickles to a few
hundred bytes, and each process loads the model once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np

from penult.bulk.options import Model
from penult.fork import PerProcess
from penult.types import Pooling, Precision, Role, TextError, Truncate

if TYPE_CHECKING:
    from penult.bulk.texts import Outcome
    from penult.core.embedder import Embedder

Batch = TypeVar("Batch")


class BatchEmbedder:
    """Callable that appends vectors to batches of rows.

    Args:
        model: a folder, an .onnx file, a Hub id or `package:NAME` that every worker can access.
        text_column: the column of the texts.
        vector_column: the column to add.
        role: "document" or "query".
        threads: intra-op threads per run. On Ray it must equal the actor's `num_cpus`: ONNX Runtime ignores OMP_NUM_THREADS.
        precision: this option and the next ones as in `Embedder.load`.
        dimensions: number of leading values of a vector to keep.
        max_length: maximum tokens of a text.
        truncate: what happens to a longer text.
        max_batch_tokens: token budget of a batch, padding included. None: the default of `Embedder.load`.
        pooling: pooling of the token vectors. None: as the model's files say.
        prompts: prompt put before each text, by role ("query", "document"); overrides the prompt of the model's files.
        files_from: a folder or Hub id with tokenizer and configuration, for a model that lacks them.
        model_file: the .onnx file, if the model has several.
        task: the task, if the model has several.
        normalize: whether vectors have length 1. None: as the model's files say.
        layer_norm: whether a layer norm without weights is applied before truncation to `dimensions`.
        layer: the hidden state to pool.
        bad_rows: "raise" an error for a row that is not text, or set its vector to "null" (not for dicts of arrays, which
            have no null).
        fixed_size: whether Arrow vectors are fixed-size lists. False: variable-size lists, the only ones that Spark supports.
    """

    def __init__(
        self,
        model: str,
        *,
        text_column: str = "text",
        vector_column: str = "embedding",
        role: Role = "document",
        threads: int = 1,
        precision: Precision = "fp32",
        dimensions: int | None = None,
        max_length: int | None = None,
        truncate: Truncate = "warn",
        max_batch_tokens: int | None = None,
        pooling: Pooling | Sequence[Pooling] | None = None,
        prompts: Mapping[str, str] | None = None,
        files_from: str | None = None,
        model_file: str | None = None,
        task: str | int | None = None,
        normalize: bool | None = None,
        layer_norm: bool = False,
        layer: int | str | None = -1,
        bad_rows: Literal["raise", "null"] = "raise",
        fixed_size: bool = True,
    ) -> None:
        if bad_rows not in ("raise", "null"):
            raise ValueError(f"bad_rows is {bad_rows!r}; it must be 'raise' or 'null'.")
        self.text_column, self.vector_column, self.role, self.bad_rows = text_column, vector_column, role, bad_rows
        by_role = prompts or {}
        if unknown := [role for role in by_role if role not in get_args(Role)]:
            raise ValueError(f"prompts has the key {unknown[0]!r}; the keys must be the roles 'query' and 'document'.")
        self._model = Model(
            model,
            precision=precision,
            dimensions=dimensions,
            max_length=max_length,
            truncate=truncate,
            max_batch_tokens=max_batch_tokens,
            pooling=pooling if pooling is None or isinstance(pooling, str) else tuple(pooling),
            query_prompt=by_role.get("query"),
            document_prompt=by_role.get("document"),
            files_from=files_from,
            model_file=model_file,
            task=task,
            normalize=normalize,
            layer_norm=layer_norm,
            layer=layer,
        )
        self._fixed_size = fixed_size
        self._embedder = PerProcess(partial(Model.load, self._model, threads))

    @property
    def embedder(self) -> "Embedder":
        """The embedder of this process, loaded at first use."""
        return self._embedder.get()

    def __call__(self, batch: Batch) -> Batch:
        """Append the vectors of N texts to a batch.

        Args:
            batch: a dict of arrays, a `pyarrow.Table` or `RecordBatch`, or a pandas DataFrame.

        Returns:
            The same type with one more column: (N, D) float32 in a dict, lists of float32 in Arrow (with fingerprint
            and recipe in the schema's metadata), one array per row in pandas.

        Raises:
            TypeError: unsupported type of batch.
            ValueError: the text column is missing, or the vector column already exists.
            TextError: some rows are not text, with bad_rows="raise".
        """
        library = type(batch).__module__.partition(".")[0]
        if isinstance(batch, dict):
            self._check(list(batch))
            return {**batch, self.vector_column: self._dense(list(batch[self.text_column]))}  # type: ignore[return-value]
        table: Any = batch
        if library == "pandas":
            self._check(list(table.columns))
            return table.assign(**{self.vector_column: self._lists(table[self.text_column].tolist())})  # type: ignore[no-any-return]
        if library == "pyarrow":
            self._check(table.schema.names)
            return self._arrow(table)  # type: ignore[no-any-return]
        raise TypeError(f"The batch is a {type(batch).__name__}. Pass a dict of arrays, an Arrow table or a pandas DataFrame.")

    def batches(self, stream: Iterable[Batch]) -> Iterator[Batch]:
        """Append vectors batch by batch, as Spark's `mapInArrow` (with fixed_size=False) and `mapInPandas` expect."""
        for batch in stream:
            yield self(batch)

    def _check(self, names: list[str]) -> None:
        if self.text_column not in names:
            raise ValueError(
                f"text_column is {self.text_column!r}, but the columns of the batch are {', '.join(map(str, names))}."
            )
        if self.vector_column in names:
            raise ValueError(f"The batch already has a column {self.vector_column!r}. Pass another vector_column.")

    def _embed(self, texts: list[Any]) -> "Outcome":
        from penult.bulk.texts import embed_texts  # noqa: PLC0415 - as in `embedder`

        outcome = embed_texts(self.embedder, texts, self.role)
        if outcome.bad and self.bad_rows == "raise":
            raise TextError(outcome.bad, len(texts))
        return outcome

    def _dense(self, texts: list[Any]) -> "np.ndarray[Any, np.dtype[np.float32]]":
        outcome = self._embed(texts)
        if outcome.bad:
            raise TextError(outcome.bad, len(texts))  # a float32 array has no null, and NaN is not a vector
        return outcome.vectors

    def _lists(self, texts: list[Any]) -> list[Any]:
        outcome = self._embed(texts)
        rows = dict(zip(outcome.good, outcome.vectors, strict=True))
        return [rows.get(row) for row in range(len(texts))]

    def _arrow(self, batch: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
        import pyarrow as pa  # noqa: PLC0415 - already imported: the batch is Arrow's

        from penult.bulk.tables import texts_of, with_vectors  # noqa: PLC0415
        from penult.bulk.texts import metadata_of  # noqa: PLC0415

        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        outcome = self._embed(texts_of(table.column(self.text_column)))
        vectors = outcome.vectors
        if outcome.bad:
            vectors = np.zeros((table.num_rows, self.embedder.dimension), np.float32)
            vectors[outcome.good] = outcome.vectors
        metadata = metadata_of(self.embedder, self._model.reference, self.role)
        result = with_vectors(table, self.vector_column, vectors, metadata, null=list(outcome.bad))
        if not self._fixed_size:
            field = pa.field(self.vector_column, pa.list_(pa.float32()))
            result = result.set_column(result.num_columns - 1, field, result.column(result.num_columns - 1).cast(field.type))
        if isinstance(batch, pa.Table):
            return result
        return pa.RecordBatch.from_arrays([column.combine_chunks() for column in result.columns], schema=result.schema)
