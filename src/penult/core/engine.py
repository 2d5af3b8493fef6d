"""One ONNX Runtime session: raw tensors in, raw tensors out.

This module handles threads, providers and input checks, and is independent of text, pooling and models. It is the only module
that imports onnxruntime.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from penult.core.mapped_files import MappedFiles
from penult.core.model_inputs import Tensor
from penult.core.shutdown_guard import ShutdownGuard
from penult.core.threads import default_threads
from penult.fork import PerProcess

if TYPE_CHECKING:
    import onnxruntime

Array = NDArray[Any]

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}

# Fusions whose kernels are slower than the decomposed operators: SkipLayerNormalization takes 1.17 ms for 512 rows of 384
# values, Add and LayerNormalization 0.18 ms (ONNX Runtime 1.32, one core with AVX2). BiasGelu takes 0.95 ns per value, Gelu
# 0.18 and Add 0.1 (one core with AVX-512): without it, a feed-forward block of 384 and 1536 channels takes 3 % less time.
_SLOW = ("SkipLayerNormFusion", "BiasGeluFusion")


class Engine:
    """An ONNX Runtime session of one graph. Thread-safe.

    Args:
        model: an .onnx file, or its bytes.
        threads: intra-op threads per run. None: `threads.default_threads()`.
        providers: ONNX Runtime's execution providers, in order. None: the CPU.
        data_folder: folder of the graph's external data, if it is not the graph's own.
        check: called before the graph is opened, also in a forked child. It raises ChangedFilesError if the weights do not
            belong to the graph.
        mapped: weight files that the runtime maps into memory, and that other programs may overwrite.

    Attributes:
        model: as passed.
        threads: intra-op threads per run.
        inputs: the graph's inputs, in its order.
        outputs: the graph's outputs, in its order.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: ONNX Runtime cannot run the graph, or a provider is not available on this machine.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        data_folder: Path | None = None,
        check: Callable[[], None] | None = None,
        mapped: Sequence[Path] = (),
    ) -> None:
        self.model = model
        self.threads = default_threads() if threads is None else threads
        if self.threads < 1:
            raise ValueError(f"threads is {threads}; it must be at least 1.")
        providers = ["CPUExecutionProvider"] if providers is None else list(providers)
        self._guard = ShutdownGuard()
        self._mapped = PerProcess(partial(MappedFiles, tuple(mapped)))
        self._mapped.get()  # before the graph is opened, so that no change is missed
        # A fork does not copy the session's threads: a run, and even freeing the session, would wait for them forever.
        self._sessions: PerProcess[onnxruntime.InferenceSession] | None = PerProcess(
            partial(_open, model, self.threads, providers, data_folder, check)
        )
        session = self._sessions.get()
        self.inputs = tuple(_tensor(node) for node in session.get_inputs())
        self.outputs = tuple(_tensor(node) for node in session.get_outputs())

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in the graph's order."""
        return [tensor.name for tensor in self.inputs]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in the graph's order."""
        return [tensor.name for tensor in self.outputs]

    @property
    def providers(self) -> list[str]:
        """Execution providers that the session actually uses."""
        return list(self._alive().get_providers())

    def run(self, inputs: Mapping[str, Array] | Sequence[Array], *, outputs: Sequence[str] | None = None) -> list[Array]:
        """Run the graph once.

        Args:
            inputs: arrays by name, or in the order of `self.inputs`.
            outputs: names of the outputs to return. None: all, in the graph's order.

        Raises:
            TypeError: `inputs` is neither a mapping nor a list, or contains something other than an array.
            ValueError: inputs are missing, unknown, or differ from the graph's in rank, size or dtype; their sizes contradict
                each other; or the runtime rejected their values (an id outside the vocabulary, a text longer than the
                position table).
            ChangedFilesError: a mapped weight file was overwritten.
            RuntimeError: the engine is closed.
        """
        session, mapped = self._alive(), self._mapped.get()
        feed = self._named(inputs)
        try:
            with self._guard:
                results = list(session.run(None if outputs is None else list(outputs), feed))
        except _failures() as error:
            raise ValueError(f"ONNX Runtime rejected the inputs: {_explain(_first_line(error), feed)}") from error
        mapped.check()
        return results

    def close(self) -> None:
        """Free the session. Further calls do nothing; running afterwards raises RuntimeError."""
        self._sessions = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _alive(self) -> "onnxruntime.InferenceSession":
        if self._sessions is None:
            raise RuntimeError("The engine is closed. Open a new one.")
        return self._sessions.get()

    def _named(self, inputs: Mapping[str, Array] | Sequence[Array]) -> dict[str, Array]:
        names = self.input_names
        if not isinstance(inputs, Mapping):
            if not isinstance(inputs, list | tuple):
                raise TypeError(
                    f"inputs is a {type(inputs).__name__}; pass a list of arrays in the order {', '.join(names)}, or a dict."
                )
            if len(inputs) != len(names):
                raise ValueError(f"inputs has {len(inputs)} arrays; the graph takes {len(names)}: {', '.join(names)}.")
            inputs = dict(zip(names, inputs, strict=True))
        missing, unknown = set(names) - set(inputs), set(inputs) - set(names)
        if missing or unknown:
            raise ValueError(
                f"The graph takes {', '.join(names)}; missing: {', '.join(sorted(missing)) or 'none'}, "
                f"unknown: {', '.join(sorted(unknown)) or 'none'}."
            )
        sizes: dict[str, tuple[int, str]] = {}
        for tensor in self.inputs:
            _check(tensor, inputs[tensor.name], sizes)
        return dict(inputs)


def _open(
    model: str | os.PathLike[str] | bytes,
    threads: int,
    providers: Sequence[str],
    data_folder: Path | None,
    check: Callable[[], None] | None,
) -> "onnxruntime.InferenceSession":
    import onnxruntime  # noqa: PLC0415 - deferred: takes 0.1 s

    wrong = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if wrong:
        raise ValueError(
            f"Provider {wrong[0]!r} is not available in this onnxruntime, which has "
            f"{', '.join(onnxruntime.get_available_providers())}. Install another build of it, or pass another provider."
        )
    if check is not None:
        check()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised; logging would report them twice
    # A spinning thread occupies a core that other processes need, and an idle server would use 100 % of a CPU.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if data_folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data_folder))
    graph = model
    if not isinstance(model, bytes):
        if not Path(model).is_file():
            raise FileNotFoundError(f"No graph at {os.fspath(model)!r}.")
        # A graph passed as bytes finds its external data in the folder set above instead of its own.
        graph = Path(model).read_bytes() if data_folder is not None else os.fspath(model)
    try:
        return onnxruntime.InferenceSession(graph, options, providers=providers, disabled_optimizers=list(_SLOW))
    except _failures() as error:
        name = "the given bytes" if isinstance(model, bytes) else repr(os.fspath(model))
        raise ValueError(f"ONNX Runtime cannot open {name}: {_first_line(error)}") from error


def fuse(model: Path, target: Path) -> None:
    """Write a graph with the runtime's own fusions to `target`, external data beside it.

    Fusions that are slower on a CPU than the decomposed operators (`_SLOW`) are omitted.

    Raises:
        ValueError: ONNX Runtime cannot run the graph.
    """
    import onnxruntime  # noqa: PLC0415 - as in `Engine`

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = os.fspath(target)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{target.name}.data")
    without = [*_SLOW, "AttentionFusion", "EmbedLayerNormFusion"]
    try:
        onnxruntime.InferenceSession(os.fspath(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=without)
    except _failures() as error:
        raise ValueError(f"ONNX Runtime cannot open {os.fspath(model)!r}: {_first_line(error)}") from error


def _tensor(node: Any) -> Tensor:  # noqa: ANN401 - onnxruntime has no types
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise ValueError(
            f"The graph's {node.name!r} is a {node.type}, but penult only supports numeric tensors. A graph that takes "
            "strings contains its tokenizer: export the model without it."
        )
    return Tensor(node.name, np.dtype(dtype), tuple(node.shape))


def _check(tensor: Tensor, array: Array, sizes: dict[str, tuple[int, str]]) -> None:
    """Raise an error for an array that the runtime would reject later or, worse, broadcast or index from the end silently.

    `sizes` has the size of each named axis so far, and the input with that axis.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{tensor.name!r} is a {type(array).__name__}; pass a NumPy array of {tensor.dtype}.")
    if wrong := _mismatch(tensor, array, sizes):
        raise ValueError(f"{tensor.name!r} is {array.dtype} {array.shape}{wrong}")


def _mismatch(tensor: Tensor, array: Array, sizes: dict[str, tuple[int, str]]) -> str:
    """Return an error message for an array; empty if it is valid. Called before every run, so messages are built lazily."""
    if array.dtype != tensor.dtype:
        return f"; it must be {tensor.dtype}. Convert it with .astype({str(tensor.dtype)!r})."
    if len(array.shape) != len(tensor.shape):
        return f"; its shape must be {tensor.shape}."
    for want, have in zip(tensor.shape, array.shape, strict=True):
        if isinstance(want, int) and want != have:
            return f"; its shape must be {tensor.shape}."
        # A size of 0 is an empty KV cache, whatever the exporter named its axis.
        if isinstance(want, str) and have and (known := sizes.setdefault(want, (have, tensor.name)))[0] != have:
            return f"; its {want!r} axis is {known[0]} in {known[1]!r}, and both must be equal."
    if tensor.name.endswith("_ids") and array.dtype.kind in "iu" and array.size and array.min() < 0:
        return f" and has the id {array.min()}; ids must be at least 0 (a graph would count a negative id from the end)."
    return ""


def _explain(message: str, feed: Mapping[str, Array]) -> str:
    """Return the runtime's message; the two common ones are rephrased in terms of the inputs."""
    if match := re.search(r"idx=(\d+) must be within the inclusive range \[-?\d+,(\d+)\]", message):
        value, last = int(match[1]), int(match[2])
        holders = [name for name, array in feed.items() if (array == value).any()]
        return f"{' or '.join(map(repr, holders)) or 'an input'} has the id {value}; ids must be from 0 to {last}."
    if match := re.search(r"dimension other than 1\. (\d+) by (\d+)", message):
        sizes = {size for array in feed.values() for size in array.shape}
        one, other = int(match[1]), int(match[2])
        if (one in sizes) != (other in sizes):
            input_size, graph_size = (one, other) if one in sizes else (other, one)
            sizes_differ = f"an axis has the size {input_size}, but the graph has {graph_size} there"
            return f"{sizes_differ} (for tokens: the model's positions)."
    return message


def _failures() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # noqa: PLC0415

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented",
             "RuntimeException", "EPFail", "ModelLoaded", "NoModel")  # fmt: skip
    return tuple(getattr(state, name) for name in names if hasattr(state, name))


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.rpartition(" : ")[2] if text.startswith("[ONNXRuntimeError]") else text
