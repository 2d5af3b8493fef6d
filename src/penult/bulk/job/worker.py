"""The worker process: loads the model, embeds shards, sends one result per task, and exits with its parent.

Communicates through its pipe only. Independent of other workers and of the records.
"""

import os
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path

from penult.bulk.input.sources import Shard
from penult.bulk.job.parts import Pace, Tick
from penult.bulk.job.record import Record
from penult.bulk.job.reuse import Old
from penult.bulk.job.shard import make_shard
from penult.bulk.options import Columns, Model
from penult.bulk.texts import metadata_of
from penult.cli_words import show_warnings
from penult.core.threads import default_threads
from penult.types import Role, TruncationWarning

AT_ONCE = 2
"""Shards per worker at a time: while one is in the model, the other is tokenized, or written and synced."""


@dataclass(frozen=True, slots=True)
class Task:
    """A shard to embed, and the folder for its files. `old`: folder of an older output's index."""

    shard: Shard
    folder: Path
    columns: Columns
    old: Path | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded: D, the maximum tokens of a text, and the metadata of its vectors."""

    dimension: int
    max_length: int
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class Failed:
    """An error that a retry would not fix. `user_error`: the user can fix it, so the message is enough."""

    message: str
    user_error: bool


def serve(pipe: "connection.Connection[Ready | Record | Tick | Failed, Task]", model: Model, role: Role, share: int) -> None:
    """Load the model, then run tasks until the pipe closes.

    Args:
        pipe: pipe to the parent.
        model: the model and its load options.
        role: role of the texts, stored in the metadata.
        share: number of workers that share the machine's cores.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent handles SIGINT
    threading.Thread(target=_die_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", TruncationWarning)  # counted in every record instead
    show_warnings()
    try:
        embedder = model.load(_threads(share))
        answer: Ready | Failed = Ready(
            embedder.dimension, embedder.recipe.longest(role), metadata_of(embedder, model.reference, role)
        )
    except Exception as error:  # noqa: BLE001 - a process boundary: the parent reports it
        answer = failed(error)
    pipe.send(answer)
    if isinstance(answer, Failed):
        return
    lock, pace = threading.Lock(), Pace()

    def send(message: Record | Tick | Failed) -> None:
        with lock:
            pipe.send(message)

    def work(task: Task) -> None:
        try:
            old = None if task.old is None else Old(task.old, embedder.dimension)
            answer: Record | Failed = make_shard(embedder, task.shard, task.folder, task.columns, old, pace=pace, ticked=send)
        except Exception as error:  # noqa: BLE001 - a process boundary
            answer = failed(error)
        send(answer)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        while True:
            try:
                threads.submit(work, pipe.recv())
            except (EOFError, ConnectionResetError):  # ConnectionResetError: the parent did not read the last message
                return


def _threads(share: int) -> int | None:
    return None if share == 1 else max(1, default_threads() // share)


def failed(error: Exception) -> Failed:
    """Convert an exception to a message for the parent."""
    user_error = isinstance(error, OSError | ValueError | ImportError)
    return Failed(str(error) if user_error else f"{type(error).__name__}: {error}", user_error)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
