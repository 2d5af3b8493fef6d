"""Resolve a model reference to files and a recipe, for `model.open_model`."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from penult.core import cache, prepare, source
from penult.core.config.config_json import check_size
from penult.core.config.tokenizer_config import decisive_files
from penult.core.export import exported, find_export
from penult.core.recipe import Overrides, Recipe
from penult.core.recipe import read as read_recipe
from penult.core.source import NoGraphError, Source
from penult.types import Role


def read(
    model: str | os.PathLike[str],
    overrides: Overrides,
    calibration: tuple[str, ...] | None = None,
    *,
    model_file: str | None = None,
    files_from: str | os.PathLike[str] | None = None,
    reread: bool = False,
) -> tuple[Source, Recipe]:
    """Find the files of a model and read its configuration.

    `reread`: hash every file, even one with a known hash.

    Raises:
        FileNotFoundError: the model or a part of it is missing.
        ValueError: an argument or a file is invalid; the message says what to do.
    """
    files = files_of(model, model_file=model_file, files_from=files_from, reread=reread)
    recipe = read_files(files, overrides)
    if recipe.pooling is None and recipe.output is None and not recipe.static and files.revision is not None:
        # Another program may have fetched only the graph; only the Hub shows whether the model states a pooling.
        with suppress(FileNotFoundError):
            files = source.resolve(model, model_file=model_file, files_from=files_from, refresh=True)
            recipe = read_files(files, overrides)
    if recipe.precision == "int8":
        origin = {**recipe.origin, "calibration_sha256": "default" if calibration is None else "argument"}
        recipe = replace(recipe, calibration_sha256=prepare.hash_texts(calibration), origin=origin)
    return files, identified(files, recipe, reread=reread)


def read_files(files: Source, overrides: Overrides) -> Recipe:
    """Read the configuration of a model's files; explicit arguments override it.

    Raises:
        ValueError: as `recipe.read`.
    """
    sources: dict[Role, Source] = {"document": files, "query": files.query or files}
    tokenizers = {role: one.tokenizer for role, one in sources.items() if not source.has_tokenizer(one.home)}
    return read_recipe(files.folder, overrides, tokenizers)


def files_of(
    model: str | os.PathLike[str],
    *,
    model_file: str | None = None,
    files_from: str | os.PathLike[str] | None = None,
    reread: bool = False,
) -> Source:
    """Find the files of a model; without an ONNX file it is exported into the cache once, if torch is installed.

    `reread`: compare every byte of an earlier export with its checksum.

    Raises:
        FileNotFoundError: the model or a part of it is missing, or it has to be exported and torch is not installed.
        ValueError: the reference is invalid.
    """
    try:
        return source.resolve(model, model_file=model_file, files_from=files_from)
    except NoGraphError as error:
        if error.folder is None or model_file is not None:
            raise
        check_kind(error.folder)  # before an export, which takes minutes
        folder = find_export(error.folder, cache.cache_folder(), reread=reread)
        if folder is None:
            folder = exported(error.folder, cache.writable_folder(), reread=reread)
    files = source.resolve(folder, files_from=files_from)
    query = None if files.query is None else replace(files.query, reference=os.fspath(model))
    return replace(files, reference=os.fspath(model), query=query)


def check_kind(folder: Path) -> None:
    """Raise an error if a folder's files state that the model has no text vectors.

    Raises:
        ValueError: they state it.
    """
    hint = read_recipe(folder, Overrides()).hint
    if hint:
        raise ValueError(hint)


def identified(files: Source, recipe: Recipe, *, reread: bool = False) -> Recipe:
    """Return the recipe with the hashes of its files; `reread`: as in `read`.

    Raises:
        FileNotFoundError: the tokenizer of a static embedding is missing.
    """
    if recipe.static and not (files.tokenizer / "tokenizer.json").exists():
        raise FileNotFoundError(f"{files.tokenizer} has no tokenizer.json, which a static embedding needs. Download it.")
    tokenizer = [files.tokenizer / "tokenizer.json"] if recipe.static else decisive_files(files.tokenizer, recipe.tokenizer)
    for path in tokenizer:
        check_size(path)
    query = None if recipe.query is None or files.query is None else identified(files.query, recipe.query, reread=reread)
    return replace(
        recipe,
        graph_sha256=prepare.hash_model(files, recipe, reread=reread),
        tokenizer_sha256=cache.hash_files(tokenizer, reread=reread),
        query=query,
    )
