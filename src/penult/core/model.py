"""`open_model`: prepare and open the graph, complete the recipe from it, and probe both.

Recipe -> prepare -> Executor -> Runner -> probes
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penult.core import prepare
from penult.core.engine import Engine
from penult.core.executor import Executor
from penult.core.mapped_files import ChangedFilesError
from penult.core.model_inputs import TASKS
from penult.core.model_tokenizer import tokenizer_of
from penult.core.padding_check import reaches_tokens
from penult.core.prepare import Prepared
from penult.core.recipe import NOT_STATED, Recipe
from penult.core.runner import FrozenShape, Runner, Runtime, any_role
from penult.core.source import Source, data_files
from penult.core.tokenizer import Tokenizer
from penult.graph.output_names import TOKENS, VECTORS

_LOGGER = logging.getLogger(__name__)
# Maximum bytes of weights for which a second session, with its own copy of them, runs batches in parallel.
_COPY_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Model:
    """An open model.

    Attributes:
        source: files of the model.
        calibration: calibration texts of int8. None: those shipped with penult.
        runner: runs tokenized texts; has the session, the tokenizer, the recipe and the runtime.
        dimension: D.
        positions: maximum tokens per text by the graph's position table. None: it has no table.
    """

    source: Source
    calibration: tuple[str, ...] | None
    runner: Runner
    dimension: int
    positions: int | None


def open_model(
    source: Source,
    recipe: Recipe,
    runtime: Runtime,
    *,
    tokenizer: Tokenizer | None = None,
    calibration: tuple[str, ...] | None = None,
) -> Model:
    """Prepare a graph or load it from the cache, open it, and run it to measure what its structure does not show.

    Args:
        source: files of the model.
        recipe: settings that determine the vectors.
        runtime: threads, batches and padded lengths.
        tokenizer: a loaded tokenizer. None: load it as the recipe says.
        calibration: calibration texts of int8. None: those shipped with penult.

    Raises:
        ValueError: the graph, the tokenizer or a size is invalid; the message says what to do.
    """
    longest_bucket = max(runtime.buckets, default=0) if runtime.buckets is not None else recipe.max_length
    if recipe.max_length > longest_bucket:
        raise ValueError(
            f"The longest bucket is {longest_bucket}, but texts may have {recipe.max_length} tokens. Pass a longer bucket, or "
            f"max_length<={longest_bucket}."
        )
    prepared = prepare.prepare(source, recipe, calibration=calibration, reread=runtime.reread)
    weights = data_files(prepared.graph)
    open_engine = partial(_open, source, recipe, prepared, runtime, weights)
    executor = Executor(open_engine, second=_may_copy(prepared, weights, runtime.providers))
    recipe = _completed(recipe, prepared, executor.engine, alone=runtime.alone)
    if tokenizer is None or tokenizer.max_length != recipe.max_length:
        tokenizer = tokenizer_of(source, recipe)
    if tokenizer.overridden:
        recipe = replace(recipe, tokenizer_rules=tokenizer.overridden)
    runner = Runner(executor, tokenizer, recipe, runtime, prepared.batch_dependent, FrozenShape.of(executor.engine))
    try:
        dimension = _dimension(runner, source)
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"{source.model} cannot embed even an empty text: {error}") from error
    recipe = _checked_dimensions(recipe, dimension)
    runner = replace(runner, recipe=recipe)
    if not runtime.pads and _padding_matters(runner, prepared, source):
        reason = "padding changes the vectors of real tokens in this graph: a batch has only texts of one length"
        recipe = replace(recipe, padding=False, origin={**recipe.origin, "padding": reason})
        runner = replace(runner, recipe=recipe)
    if recipe.origin.get("prompts") == NOT_STATED:
        _LOGGER.info(
            "%s: no file states a prompt for queries or documents. If the model's card does, pass prompts=",
            source.reference,
        )
    return Model(source, calibration, runner, dimension, prepared.positions)


def _completed(recipe: Recipe, prepared: Prepared, engine: Engine, *, alone: bool) -> Recipe:
    """Return the recipe completed from the graph.

    Raises:
        ValueError: `max_length` exceeds what the graph supports.
    """
    origin = dict(recipe.origin)
    if prepared.int8:
        origin["precision"] = f"{origin.get('precision', 'default')}: {prepared.int8}"
    if prepared.batch_dependent:
        reason = "argument: texts run one at a time" if alone else (
            "the graph computes its activation scales on each batch, so a vector depends on the other texts in the batch; "
            "batch_invariant=True runs texts one at a time"
        )  # fmt: skip
        origin["batch_invariant"] = reason
    if prepared.made_unit and origin.get("normalize") == "argument" and not (recipe.steps and recipe.steps[-1] == "normalize"):
        raise ValueError(
            "normalize=False was passed, but the graph itself normalizes its vectors. Omit normalize, or export the model "
            "without its Normalize module."
        )
    names = {tensor.name for tensor in engine.inputs}
    tasks = recipe.tasks if names & TASKS else {}
    if origin.get("tasks") == "argument" and not tasks:
        raise ValueError(
            f"task was passed, but the graph has no input for it; its inputs are {', '.join(sorted(names))}. Omit task."
        )
    if not tasks:
        origin.pop("tasks", None)
    recipe = replace(
        recipe,
        batch_invariant=alone or not prepared.batch_dependent,
        position_offset=prepared.position_offset,
        made_unit=prepared.made_unit,
        own_tokens=prepared.own_tokens,
        tasks=tasks,
        special_tokens=recipe.special_tokens and "offsets" not in names,
        static=recipe.static or "offsets" in names,
        origin=origin,
    )
    return _fitted(recipe, prepared, FrozenShape.of(engine).length)


def _fitted(recipe: Recipe, prepared: Prepared, length: int | None) -> Recipe:
    """Return the recipe with its lengths limited to those that the graph can run."""
    for limit, description, where in (
        (prepared.positions, f"the model's {prepared.positions} positions", "the graph's table of positions"),
        (length, f"the fixed length of {length} tokens that this graph was exported with", "the graph's frozen shape"),
    ):
        if limit is None or recipe.max_length <= limit:
            continue
        first, _, name = recipe.origin.get("max_length", "").partition(" ")
        if first == "argument":
            name = name or "max_length"
            raise ValueError(f"{name}={recipe.max_length} exceeds {description}. Pass {name}<={limit}.")
        lengths = {role: min(value, limit) for role, value in recipe.lengths.items()}
        recipe = replace(recipe, max_length=limit, lengths=lengths, origin={**recipe.origin, "max_length": where})
    return recipe


def _dimension(runner: Runner, source: Source) -> int:
    """Embed an empty text and return D.

    Raises:
        ValueError: D differs from what the files state.
    """
    recipe = runner.recipe
    tokenized = replace(runner.tokenizer.tokenize([""]), role=any_role(recipe))
    dimension = int(runner.batch(tokenized, [0], output=VECTORS).shape[1])
    if runner.has_tokens and recipe.width is not None and recipe.layer == -1 and not recipe.token_steps:
        width = int(runner.batch(tokenized, [0], output=TOKENS).shape[2])
        if width != recipe.width:
            raise ValueError(
                f"the modules of {source.reference!r} expect token embeddings of {recipe.width} values, but this graph outputs "
                f"{width}. Pass another model_file, or the right tensor as layer=."
            )
    return dimension


def _checked_dimensions(recipe: Recipe, dimension: int) -> Recipe:
    """Return the recipe with valid `dimensions`; a value from a file that exceeds D is ignored.

    Raises:
        ValueError: the `dimensions` argument exceeds D.
    """
    if recipe.dimensions is None or recipe.dimensions <= dimension:
        return recipe
    if recipe.origin.get("dimensions", "").startswith("argument"):
        raise ValueError(
            f"dimensions={recipe.dimensions} exceeds the model's {dimension} values. Pass dimensions<={dimension}."
        )
    return replace(recipe, dimensions=None, renormalize=True)


def _padding_matters(runner: Runner, prepared: Prepared, source: Source) -> bool:
    """Return whether padding changes the vectors of real tokens.

    Raises:
        ValueError: padding changes them, and every text would be padded.
    """
    frozen, buckets = runner.frozen.length, runner.runtime.buckets
    longest = frozen or runner.recipe.max_length
    states = partial(_states, runner)
    if not reaches_tokens(prepared.graph, states, longest=longest, exact=prepared.exact, dynamic=prepared.batch_dependent):
        return False
    if frozen is not None:
        raise ValueError(
            f"{source.model} has a fixed length of {longest} tokens, and in it padding changes the vectors of real tokens, as "
            "it has no attention_mask. Export it with that input."
        )
    if buckets:
        raise ValueError(
            f"buckets={list(buckets)} pads texts, but in {source.model} padding changes the vectors of real tokens. Omit "
            "buckets."
        )
    return True


def _states(runner: Runner, length: int, padding: int) -> NDArray[Any] | None:
    """Return the graph's output for one text of about `length` tokens with `padding` tokens of padding; None if too long.

    For a graph of one fixed length, the ids in the padding change instead of the amount of padding.
    """
    recipe, fixed = runner.recipe, runner.frozen.length
    text = "the quick brown fox " * length
    tokenized = replace(runner.tokenizer.tokenize([text], limit=min(length, recipe.max_length)), role=any_role(recipe))
    count = int(tokenized.counts[0])
    if count == 0 or count + padding > (fixed or recipe.max_length):
        return None
    output = TOKENS if runner.has_tokens else VECTORS
    inputs = runner.inputs(tokenized, [0], fixed or count + padding)
    if fixed and padding:
        inputs["input_ids"] = ids = inputs["input_ids"].copy()
        ids[:, slice(fixed - count) if runner.side == "left" else slice(count, None)] = tokenized.flat_ids[count // 2]
    values: NDArray[Any] = runner.executor.run(lambda: inputs, output)[0].astype(np.float32)
    if not np.isfinite(values).all():
        raise ArithmeticError("The model output NaN or infinite values.")
    if output == VECTORS:
        return values
    return values[-count:] if runner.side == "left" else values[:count]  # (T, H)


def _open(
    source: Source, recipe: Recipe, prepared: Prepared, runtime: Runtime, weights: Sequence[str], threads: int | None
) -> Engine:
    """Open a prepared graph; errors name the model instead of the cached file."""
    graph, data = prepared.graph, prepared.data_folder
    check = None if data is None else partial(_check_unchanged, source, recipe)
    mapped = [] if data is None else [data / name for name in weights]
    threads = threads or runtime.threads
    try:
        return Engine(graph, threads=threads, providers=runtime.providers, data_folder=data, check=check, mapped=mapped)
    except ValueError as error:
        if str(graph) not in str(error):
            raise
        raise ValueError(f"{source.model}, cut at {prepared.tensor!r}: {error}") from error


def _check_unchanged(source: Source, recipe: Recipe) -> None:
    """Check that the weights have not changed since the recipe was read: the prepared graph refers to offsets in their files.

    Raises:
        ChangedFilesError: they have changed.
    """
    try:
        changed = prepare.hash_model(source, recipe) != recipe.graph_sha256
    except (OSError, ValueError) as error:  # deleted, or no longer an ONNX file
        raise ChangedFilesError(f"{source.model} can no longer be read, and it contains the weights: {error}") from error
    if changed:
        raise ChangedFilesError(f"{source.model} has changed since the model was loaded. Load it again.")


def _may_copy(prepared: Prepared, weights: Sequence[str], providers: Sequence[str] | None) -> bool:
    """Return whether the weights are small enough for a second session with its own copy of them."""
    home = prepared.data_folder or prepared.graph.parent
    files = [prepared.graph, *(home / name for name in weights)]
    return providers is None and sum(file.stat().st_size for file in files) <= _COPY_BYTES
