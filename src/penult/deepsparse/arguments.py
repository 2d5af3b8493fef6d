"""DeepSparse's arguments: their allowed values, which of them mean something here, and saying so for those that do not.

It knows their words and the log; it knows no engine and no pipeline.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias, TypeGuard, get_args

Strategy: TypeAlias = Literal["per_token", "reduce_mean", "reduce_max", "cls_token"]
"""How a text's rows become its item."""

TASK = "transformers_embedding_extraction"

_LOGGER = logging.getLogger(__name__)
TASKS = (TASK, "transformer_embedding_extraction")  # the second: as DeepSparse's page spelled it and its code refused it
_ENGINES = ("deepsparse", "onnxruntime")
_SCHEDULERS = ("sync", "single", "single_stream", "async", "multi", "multi_stream", "elastic")


class Scheduler(Enum):
    """DeepSparse's schedulers. Accepted so that code goes on working: ONNX Runtime runs a call at once, on all threads."""

    default = "single_stream"
    single_stream = default
    multi_stream = "multi_stream"
    elastic = "elastic"


@dataclass(frozen=True, slots=True)
class Context:
    """DeepSparse's shared pool of threads; here the number of threads of each engine that is given it."""

    num_cores: int | None = None
    num_streams: int | None = None


def cores(num_cores: int | None) -> int | None:
    """Turn DeepSparse's number of cores into threads; None and 0 mean the default.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is negative.
    """
    if whole(num_cores, "num_cores") and num_cores < 0:
        raise ValueError(f"num_cores is {num_cores}; it must be at least 1, or None for the physical cores.")
    return num_cores or None


def check_streams(num_streams: int | None, scheduler: Scheduler | str | None) -> None:
    """Refuse what DeepSparse refused, though neither has a meaning here.

    Raises:
        TypeError: `num_streams` is no whole number.
        ValueError: it is negative, or there is no such scheduler.
    """
    if whole(num_streams, "num_streams") and num_streams < 0:
        raise ValueError(f"num_streams is {num_streams}; it must be at least 1, or None.")
    name = scheduler.value if isinstance(scheduler, Enum) else scheduler
    # DeepSparse took any part of "elastic" for it.
    if name is not None and not (isinstance(name, str) and (name.lower() in _SCHEDULERS or name.lower() in "elastic")):
        raise ValueError(f"scheduler is {scheduler!r}; it must be one of {', '.join(_SCHEDULERS)}.")


def say_ignored(who: str, given: Mapping[str, object]) -> None:
    """Say in the log, in one line, which of the given arguments (those that are not None) mean nothing here."""
    names = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if names:
        _LOGGER.warning("%s: %s: accepted, but without a meaning here; no vector depends on it.", who, ", ".join(names))


def whole(value: int | None, name: str) -> TypeGuard[int]:
    """Say whether a number was given.

    Raises:
        TypeError: something else than a whole number was given.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; it must be a whole number or None.")
    return value is not None


def check_words(task: str, strategy: str, engine_type: str) -> None:
    """Refuse words that DeepSparse did not know.

    Raises:
        ValueError: one of them is none of the allowed ones.
    """
    if not isinstance(task, str) or task.lower().replace("-", "_") not in TASKS:
        raise ValueError(f"task is {task!r}; penult has one, {TASK!r}.")
    if strategy not in get_args(Strategy):
        raise ValueError(f"extraction_strategy is {strategy!r}; it must be one of {', '.join(get_args(Strategy))}.")
    if not isinstance(engine_type, str) or engine_type.lower() not in _ENGINES:
        raise ValueError(
            f"engine_type is {engine_type!r}; it must be one of {', '.join(_ENGINES)}, and both mean ONNX Runtime."
        )


def check_batch(batch_size: int | None, executor: object) -> None:
    """Refuse what DeepSparse refused, though neither decides an answer.

    Raises:
        TypeError: `batch_size` is no whole number.
        ValueError: it is negative, or the executor is none.
    """
    if whole(batch_size, "batch_size") and batch_size < 0:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1, or None.")
    if executor is not None and not isinstance(executor, Executor | int):
        raise ValueError(f"executor is {executor!r}; it must be a number or an Executor, and has no meaning here.")


def check_lengths(given: int | list[int]) -> tuple[int, ...]:
    """Give the lengths that were asked for in ascending order.

    Raises:
        TypeError: one is no whole number.
        ValueError: one is below 1, or there is none.
    """
    lengths = given if isinstance(given, list) else [given]
    if not lengths:
        raise ValueError("sequence_length is an empty list; give at least one length.")
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, int):
            raise TypeError(f"sequence_length is {given!r}; it must be a whole number or a list of them.")
        if length < 1:
            raise ValueError(f"sequence_length is {given!r}; it must be at least 1.")
    return tuple(sorted(set(lengths)))


def threads_of(num_cores: int | None, context: Context | None) -> int | None:
    """Give the threads that two arguments may ask for; None for the default.

    Raises:
        TypeError: a number is no whole number.
        ValueError: a number is negative, or they differ.
    """
    threads = cores(num_cores)
    shared = None if context is None else cores(context.num_cores)
    if threads is not None and shared is not None and threads != shared:
        raise ValueError(f"num_cores is {threads} and the context has {shared}; leave one of them out.")
    return threads or shared
