"""DeepSparse's `Engine` interface, over penult's own engine.

`batch_size` is checked. DeepSparse's schedulers, streams and input shapes are ignored: they have no effect in penult.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from penult.core import engine
from penult.core.model_inputs import Tensor
from penult.deepsparse.arguments import Scheduler, check_streams, cores, is_stated, log_ignored

Array = NDArray[Any]


class Engine:
    """A compiled graph. Safe to call from several threads.

    Args:
        model: an .onnx file, or its bytes.
        batch_size: rows that every run must have. None or below 1: any number.
        num_cores: DeepSparse's name for `threads`. None or 0: `threads` decides.
        num_streams: ignored: has no effect in penult.
        scheduler: a `Scheduler` or its name; ignored: has no effect in penult.
        input_shapes: ignored: dynamic axes stay dynamic.
        threads: intra-op threads per run. None: the physical cores this process may use.
        providers: ONNX Runtime's execution providers, in order. None: the CPU.
        data_folder: folder of the graph's external data. None: the folder of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: `batch_size`, `num_cores` or `num_streams` is not an integer.
        ValueError: ONNX Runtime cannot run the graph, a provider is not available on this machine, or a number or name
            is not allowed.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        batch_size: int | None = None,
        *,
        num_cores: int | None = None,
        num_streams: int | None = None,
        scheduler: Scheduler | str | None = None,
        input_shapes: object = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        data_folder: Path | None = None,
    ) -> None:
        self._batch_size = batch_size if is_stated(batch_size, "batch_size") and batch_size > 0 else None
        check_streams(num_streams, scheduler)
        log_ignored("Engine", {"num_streams": num_streams, "scheduler": scheduler, "input_shapes": input_shapes})
        threads = cores(num_cores) if threads is None else threads
        self._engine = engine.Engine(model, threads=threads, providers=providers, data_folder=data_folder)

    @classmethod
    def compile(
        cls,
        model: str | os.PathLike[str] | bytes,
        batch_size: int | None = None,
        *,
        num_cores: int | None = None,
        num_streams: int | None = None,
        scheduler: Scheduler | str | None = None,
        input_shapes: object = None,
        threads: int | None = None,
    ) -> "Engine":
        """Open a graph; the same as `Engine(model, ...)`."""
        return cls(
            model,
            batch_size,
            num_cores=num_cores,
            num_streams=num_streams,
            scheduler=scheduler,
            input_shapes=input_shapes,
            threads=threads,
        )

    @classmethod
    def around(cls, session: engine.Engine) -> "Engine":
        """Wrap an open engine in DeepSparse's interface."""
        wrapper = cls.__new__(cls)
        wrapper._batch_size = None
        wrapper._engine = session
        return wrapper

    @property
    def batch_size(self) -> int | None:
        """Number of rows that every run must have. None: any number."""
        return self._batch_size

    @property
    def num_cores(self) -> int:
        """Intra-op threads per run."""
        return self._engine.threads

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs, in the graph's order."""
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs, in the graph's order."""
        return self._engine.outputs

    @property
    def input_names(self) -> list[str]:
        """The inputs' names, in the graph's order."""
        return self._engine.input_names

    @property
    def output_names(self) -> list[str]:
        """The outputs' names, in the graph's order."""
        return self._engine.output_names

    @property
    def providers(self) -> list[str]:
        """The execution providers that the session uses."""
        return self._engine.providers

    def run(self, inputs: Mapping[str, Array] | Sequence[Array], *, outputs: Sequence[str] | None = None) -> list[Array]:
        """Run the graph once; see `penult.core.engine.Engine.run`.

        Raises:
            ValueError: see there; or an input does not have `batch_size` rows.
        """
        if self._batch_size is not None:
            self._check_rows(inputs, self._batch_size)
        return self._engine.run(inputs, outputs=outputs)

    def __call__(self, inputs: Mapping[str, Array] | Sequence[Array]) -> list[Array]:
        """Run the graph once; the same as `run(inputs)`."""
        return self.run(inputs)

    def mapped_run(self, inputs: Mapping[str, Array] | Sequence[Array]) -> dict[str, Array]:
        """Run the graph once and return its outputs by name."""
        return dict(zip(self.output_names, self.run(inputs), strict=True))

    def close(self) -> None:
        """Free the session. A second call has no effect; a later run raises RuntimeError."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_rows(self, inputs: Mapping[str, Array] | Sequence[Array], rows: int) -> None:
        named = inputs.items() if isinstance(inputs, Mapping) else zip(self.input_names, inputs, strict=False)
        for name, array in named:
            if isinstance(array, np.ndarray) and array.shape[:1] not in {(), (rows,)}:
                raise ValueError(
                    f"{name!r} has the shape {array.shape}, but the engine has batch_size={rows}. Pass {rows} rows, or "
                    "create the engine without batch_size."
                )
