"""From a reference to files and a recipe; `model.open_model` goes on from there."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from penult.core import cache, prepare, recipe, source
from penult.core.config.config_json import check_size
from penult.core.config.tokenizer_config import decisive_files
from penult.core.export import exported
from penult.core.recipe import Recipe, Wishes
from penult.core.source import NoGraphError, Source
from penult.types import Role


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
