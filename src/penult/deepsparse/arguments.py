"""DeepSparse's arguments: their types and allowed values, and the log message about ignored ones.

This module does not depend on an engine or a pipeline.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias, TypeGuard, get_args

Strategy: TypeAlias = Literal["per_token", "reduce_mean", "reduce_max", "cls_token"]
"""How the token vectors of a text are reduced to its item."""

TASK = "transformers_embedding_extraction"

_LOGGER = logging.getLogger(__name__)
TASKS = (TASK, "transformer_embedding_extraction")  # the second: as in DeepSparse's documentation; its code refused it
_ENGINES = ("deepsparse", "onnxruntime")
_SCHEDULERS = ("sync", "single", "single_stream", "async", "multi", "multi_stream", "elastic")


class Scheduler(Enum):
    """DeepSparse's schedulers. Ignored: has no effect in penult, where ONNX Runtime runs each call at once on all threads."""

    default = "single_stream"
    single_stream = default
    multi_stream = "multi_stream"
    elastic = "elastic"


@dataclass(frozen=True, slots=True)
class Context:
    """DeepSparse's shared thread pool. In penult, `num_cores` is the number of threads of each pipeline with this context."""

    num_cores: int | None = None
    num_streams: int | None = None


def cores(num_cores: int | None) -> int | None:
    """Return the number of threads for DeepSparse's `num_cores`; None, the default, for 0.

    Raises:
        TypeError: `num_cores` is not an integer.
        ValueError: `num_cores` is negative.
    """
    if is_stated(num_cores, "num_cores") and num_cores < 0:
        raise ValueError(f"num_cores is {num_cores}; it must be at least 1, or None for the physical cores.")
    return num_cores or None


def check_streams(num_streams: int | None, scheduler: Scheduler | str | None) -> None:
    """Raise an error for values that DeepSparse refused, although both arguments are ignored.

    Raises:
        TypeError: `num_streams` is not an integer.
        ValueError: `num_streams` is negative, or `scheduler` is unknown.
    """
    if is_stated(num_streams, "num_streams") and num_streams < 0:
        raise ValueError(f"num_streams is {num_streams}; it must be at least 1, or None.")
    name = scheduler.value if isinstance(scheduler, Enum) else scheduler
    # DeepSparse accepted any substring of "elastic" as "elastic".
    if name is not None and not (isinstance(name, str) and (name.lower() in _SCHEDULERS or name.lower() in "elastic")):
        raise ValueError(f"scheduler is {scheduler!r}; it must be one of {', '.join(_SCHEDULERS)}.")


def log_ignored(owner: str, arguments: Mapping[str, object]) -> None:
    """Log the arguments that are not None as ignored, in one line."""
    names = [f"{name}={value!r}" for name, value in arguments.items() if value is not None]
    if names:
        _LOGGER.warning("%s: %s ignored: has no effect in penult.", owner, ", ".join(names))


def is_stated(value: int | None, name: str) -> TypeGuard[int]:
    """Return whether an argument is set: an integer, not None.

    Raises:
        TypeError: it is neither an integer nor None.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; it must be an integer or None.")
    return value is not None


def check_words(task: str, strategy: str, engine_type: str) -> None:
    """Raise an error for values that DeepSparse did not have.

    Raises:
        ValueError: an argument is not an allowed value.
    """
    if not isinstance(task, str) or task.lower().replace("-", "_") not in TASKS:
        raise ValueError(f"task is {task!r}; it must be {TASK!r}.")
    if strategy not in get_args(Strategy):
        raise ValueError(f"extraction_strategy is {strategy!r}; it must be one of {', '.join(get_args(Strategy))}.")
    if not isinstance(engine_type, str) or engine_type.lower() not in _ENGINES:
        raise ValueError(f"engine_type is {engine_type!r}; it must be one of {', '.join(_ENGINES)}. Both use ONNX Runtime.")


def check_batch(batch_size: int | None, executor: object) -> None:
    """Raise an error for values that DeepSparse refused, although both arguments are ignored.

    Raises:
        TypeError: `batch_size` is not an integer.
        ValueError: `batch_size` is negative, or `executor` is not an executor.
    """
    if is_stated(batch_size, "batch_size") and batch_size < 0:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1, or None.")
    if executor is not None and not isinstance(executor, Executor | int):
        raise ValueError(f"executor is {executor!r}; it must be an integer or an Executor.")


def check_lengths(sequence_length: int | list[int]) -> tuple[int, ...]:
    """Return the padded lengths in ascending order, without duplicates.

    Raises:
        TypeError: a length is not an integer.
        ValueError: a length is below 1, or the list is empty.
    """
    lengths = sequence_length if isinstance(sequence_length, list) else [sequence_length]
    if not lengths:
        raise ValueError("sequence_length is an empty list; pass at least one length.")
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, int):
            raise TypeError(f"sequence_length is {sequence_length!r}; it must be an integer or a list of them.")
        if length < 1:
            raise ValueError(f"sequence_length is {sequence_length!r}; it must be at least 1.")
    return tuple(sorted(set(lengths)))


def threads_of(num_cores: int | None, context: Context | None) -> int | None:
    """Return the number of threads from `num_cores` or the context; None: the default.

    Raises:
        TypeError: a number is not an integer.
        ValueError: a number is negative, or the two numbers differ.
    """
    threads = cores(num_cores)
    shared = None if context is None else cores(context.num_cores)
    if threads is not None and shared is not None and threads != shared:
        raise ValueError(f"num_cores is {threads}, but num_cores of the context is {shared}. Pass one of them.")
    return threads or shared
