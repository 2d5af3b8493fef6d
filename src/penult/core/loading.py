"""From a reference to the parts of an `Embedder`: files, recipe, prepared graph, tokenizer.

It composes `source`, `recipe`, `prepare` and `tokenizer`; what is known only once the graph is open (frozen sizes, the table of
positions, what the inputs ask for) is laid over the recipe here, so that the recipe says what is really done.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from penult.core import cache, prepare, recipe, source
from penult.core.config.config_json import check_size
from penult.core.config.tokenizer_config import decisive_files
from penult.core.engine import Engine
from penult.core.export import exported
from penult.core.model_inputs import TASKS
from penult.core.recipe import Recipe, Wishes
from penult.core.source import NoGraphError, Source
from penult.core.tokenizer import Tokenizer
from penult.types import Role


@dataclass(frozen=True, slots=True)
class Frozen:
    """The sizes that an export has frozen into its graph: B and T of every run. None: free."""

    rows: int | None = None
    length: int | None = None


def frozen(engine: Engine) -> Frozen:
    """Read the frozen sizes off the graph's token ids."""
    shape = next((tensor.shape for tensor in engine.inputs if tensor.name == "input_ids" and len(tensor.shape) == 2), ())
    return Frozen(*(size if isinstance(size, int) else None for size in shape))


def read(
    model: str | os.PathLike[str],
    wishes: Wishes,
    calibration: tuple[str, ...] | None = None,
    *,
    model_file: str | None = None,
    files_from: str | os.PathLike[str] | None = None,
) -> tuple[Source, Recipe]:
    """Find the files of a model and read how they are used.

    Raises:
        FileNotFoundError: no model there, or a part of it is missing.
        ValueError: an argument or a file cannot be used; the message says what to do.
    """
    found = files_of(model, model_file=model_file, files_from=files_from)
    read = read_files(found, wishes)
    if read.pooling is None and read.output is None and not read.static and found.revision is not None:
        # Another program may have fetched the graph alone. Whether the model states a pooling, only the Hub can say.
        with suppress(FileNotFoundError):
            found = source.resolve(model, model_file=model_file, files_from=files_from, refresh=True)
            read = read_files(found, wishes)
    if read.precision == "int8":
        origin = {**read.origin, "calibration_sha256": "default" if calibration is None else "argument"}
        read = replace(read, calibration_sha256=prepare.hash_texts(calibration), origin=origin)
    return found, identified(found, read)


def read_files(found: Source, wishes: Wishes) -> Recipe:
    """Read how the files that were found are used.

    Raises:
        ValueError: as `recipe.read`.
    """
    sources: dict[Role, Source] = {"document": found, "query": found.query or found}
    places = {role: place.tokenizer for role, place in sources.items() if not source.has_tokenizer(place.home)}
    return recipe.read(found.folder, wishes, places)


def files_of(
    model: str | os.PathLike[str],
    *,
    model_file: str | None = None,
    files_from: str | os.PathLike[str] | None = None,
) -> Source:
    """Find the files of a model; one without an ONNX file is exported into the cache once, where torch is installed.

    Raises:
        FileNotFoundError: no model there, a part of it is missing, or it would have to be exported and torch is missing.
        ValueError: the reference cannot be read.
    """
    try:
        return source.resolve(model, model_file=model_file, files_from=files_from)
    except NoGraphError as error:
        if error.folder is None or model_file is not None:
            raise
        check_kind(error.folder)  # before minutes are spent on it
        folder = exported(error.folder, cache.cache_folder())
    found = source.resolve(folder, files_from=files_from)
    query = None if found.query is None else replace(found.query, reference=os.fspath(model))
    return replace(found, reference=os.fspath(model), query=query)


def check_kind(folder: Path) -> None:
    """Refuse a folder whose files say that the model has no vector of a text.

    Raises:
        ValueError: they do.
    """
    hint = recipe.read(folder, Wishes()).hint
    if hint:
        raise ValueError(hint)


def identified(found: Source, read: Recipe) -> Recipe:
    """Return the recipe with the hashes of the files that it is for.

    Raises:
        FileNotFoundError: the tokenizer of a static embedding is missing.
    """
    if read.static and not (found.tokenizer / "tokenizer.json").exists():
        raise FileNotFoundError(f"{found.tokenizer} holds no tokenizer.json, which a static embedding needs; fetch it.")
    tokenizer = [found.tokenizer / "tokenizer.json"] if read.static else decisive_files(found.tokenizer, read.tokenizer)
    for path in tokenizer:
        check_size(path)
    query = None if read.query is None or found.query is None else identified(found.query, read.query)
    return replace(
        read,
        graph_sha256=prepare.hash_model(found, read),
        tokenizer_sha256=cache.hash_files(tokenizer),
        query=query,
    )


def as_found(read: Recipe, prepared: prepare.Prepared, engine: Engine, *, alone: bool) -> Recipe:
    """Return the recipe with what only the graph can say.

    Raises:
        ValueError: the caller asked for longer texts than the graph takes.
    """
    origin = dict(read.origin)
    if prepared.int8:
        origin["precision"] = f"{origin.get('precision', 'default')}: {prepared.int8}"
    if prepared.batch_dependent:
        why = "argument: texts run one by one" if alone else (
            "the graph's own 8-bit scales are measured on each batch, so a vector depends on the other texts of its batch; "
            "batch_invariant=True runs texts one by one"
        )  # fmt: skip
        origin["batch_invariant"] = why
    if prepared.made_unit and origin.get("normalize") == "argument" and not (read.steps and read.steps[-1] == "normalize"):
        raise ValueError(
            "normalize is False, and the graph normalizes its vectors inside. Leave normalize out, or export the model without "
            "its last module."
        )
    names = {tensor.name for tensor in engine.inputs}
    tasks = read.tasks if names & TASKS else {}
    if origin.get("tasks") == "argument" and not tasks:
        raise ValueError(
            f"task was given, and the graph has no input for it; it has {', '.join(sorted(names))}. Leave task out."
        )
    if not tasks:
        origin.pop("tasks", None)
    read = replace(
        read,
        batch_invariant=alone or not prepared.batch_dependent,
        position_offset=prepared.position_offset,
        made_unit=prepared.made_unit,
        own_tokens=prepared.own_tokens,
        tasks=tasks,
        special_tokens=read.special_tokens and "offsets" not in names,
        static=read.static or "offsets" in names,
        origin=origin,
    )
    return _fitted(read, prepared, frozen(engine).length)


def _fitted(read: Recipe, prepared: prepare.Prepared, length: int | None) -> Recipe:
    """Return the recipe with a length that the graph can run."""
    for limit, what, where in (
        (prepared.positions, f"the model's {prepared.positions} positions", "the graph's table of positions"),
        (length, f"the {length} tokens of every row that this graph was exported for", "the graph's frozen shape"),
    ):
        if limit is None or read.max_length <= limit:
            continue
        first, _, name = read.origin.get("max_length", "").partition(" ")
        if first == "argument":
            name = name or "max_length"
            raise ValueError(f"{name}={read.max_length} exceeds {what}. Pass {name}<={limit}.")
        lengths = {role: min(value, limit) for role, value in read.lengths.items()}
        read = replace(read, max_length=limit, lengths=lengths, origin={**read.origin, "max_length": where})
    return read


def tokenizer_of(found: Source, read: Recipe) -> Tokenizer:
    """Open the tokenizer as the recipe says."""
    return Tokenizer(
        found.tokenizer,
        max_length=read.max_length,
        side=read.side,
        settings=read.tokenizer,
        lowercase=read.lowercase,
        add_special_tokens=read.special_tokens,
        alone=read.static,
    )


def may_copy(prepared: prepare.Prepared, providers: Sequence[str] | None, most_bytes: int) -> bool:
    """Return whether a second session, with its own copy of the weights, is worth its memory."""
    home = prepared.data_folder or prepared.graph.parent
    files = [prepared.graph, *(home / name for name in source.data_files(prepared.graph))]
    return providers is None and sum(file.stat().st_size for file in files) <= most_bytes
