"""The content of `penult inspect`: the graph, where it is cut, the modules, and the recipe with the origin of each value.

It loads the model as `Embedder.load` does, so that it shows what is really done, and reports the reason if that fails.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penult.core import loading, prepare, recipe
from penult.core.assemble import choose
from penult.core.config.modules import Module, read_modules
from penult.core.embedder import Embedder
from penult.core.recipe import Recipe
from penult.core.source import Source
from penult.graph.describe import Description, describe
from penult.graph.find.graph_index import GraphIndex
from penult.graph.picture import megabytes
from penult.types import Pooling, Role


@dataclass(frozen=True, slots=True)
class Inspection:
    """Description of a model.

    Attributes:
        source: the model's files.
        graph: the graph and the cut.
        modules: modules listed in the model's files, in order; includes the query's route if it differs.
        recipe: the recipe; only as far as the files define it if the model cannot be loaded.
        dimension: D; None if the model cannot be loaded.
        error: why the model cannot be loaded; empty if it can.
    """

    source: Source
    graph: Description
    modules: Mapping[Role, tuple[Module, ...]]
    recipe: Recipe
    dimension: int | None
    error: str


def inspect(
    model: str | os.PathLike[str],
    layer: int | str | None = -1,
    pooling: Pooling | Sequence[Pooling] | None = None,
    *,
    model_file: str | None = None,
    files_from: str | os.PathLike[str] | None = None,
) -> Inspection:
    """Describe a model, and try to load it.

    Raises:
        FileNotFoundError: the model does not exist.
        ValueError: a file cannot be read, or the graph has no such layer.
    """
    files = loading.files_of(model, model_file=model_file, files_from=files_from)
    overrides = recipe.Overrides(layer=layer, pooling=pooling)
    model_recipe, error, dimension = loading.read_files(files, overrides), "", None
    graph = prepare.read_graph(files)
    try:
        with Embedder.load(model, layer=layer, pooling=pooling, model_file=model_file, files_from=files_from) as embedder:
            model_recipe, dimension = embedder.recipe, embedder.dimension
    except (OSError, ValueError) as problem:
        error = str(problem)
    try:
        chosen = choose(GraphIndex(graph), model_recipe, files)
    except ValueError:
        chosen = None
    described = describe(graph, -1 if layer is None else layer, chosen=chosen)
    return Inspection(files, described, read_modules(files.folder), model_recipe, dimension, error)


def as_json(shown: Inspection) -> dict[str, Any]:
    """Return the description as JSON values."""
    values = dataclasses.asdict(shown.graph)
    size = values.pop("whole")
    values["layers"] = [
        {key: layer[key] for key in ("index", "tensor", "hidden_size", "why", "axes")} for layer in values["layers"]
    ]
    modules = {str(role): [dataclasses.asdict(module) for module in listed] for role, listed in shown.modules.items()}
    return values | {
        "size": size,
        "modules": modules,
        "recipe": shown.recipe.as_dict(),
        "dimension": shown.dimension,
        "fingerprint": None if shown.error else shown.recipe.fingerprint,
        "error": shown.error or None,
    }


def as_text(shown: Inspection) -> str:
    """Return the description as text for a terminal."""
    return "\n".join(_lines(shown))


def _lines(shown: Inspection) -> Iterator[str]:
    d = shown.graph
    yield f"{shown.source.model}\n"
    for title, ends in (("inputs", d.inputs), ("outputs", d.outputs)):
        for number, end in enumerate(ends):
            yield f"{title if not number else '':10}{end.name:24} {end.dtype} ({', '.join(map(str, end.shape))})"
    yield f"{'opset':10}{', '.join(f'{domain} {version}' for domain, version in d.opset.items())}"
    yield f"{'weights':10}{d.whole.parameters:,} parameters, {megabytes(d.whole.bytes)}, mostly {d.precision}\n"
    for state in d.layers:
        mark = "cut ->" if state is d.cut or state.index == d.cut.index else ""
        yield f"{mark:8}{state.index:>3}  {state.hidden_size or '?'!s:>5}  {state.tensor}\n{'':20}{state.why}"
    if d.cut.tensor not in {state.tensor for state in d.layers}:
        yield f"cut ->    -  {d.cut.hidden_size or '?'!s:>5}  {d.cut.tensor}\n{'':20}{d.cut.why}"
    yield f"\n{'removed':10}{d.removed.nodes:,} nodes, {d.removed.parameters:,} parameters, {megabytes(d.removed.bytes)}"
    yield f"{'needed':10}{', '.join(d.kept_inputs)}\n"
    yield from _modules(shown)
    yield "recipe"
    yield from _recipe(shown.recipe)
    if shown.recipe.query is not None:
        yield "\nrecipe of queries"
        yield from _recipe(shown.recipe.query)
    if not shown.error:
        yield f"\n{'dimension':18}{shown.dimension}"
        yield f"{'fingerprint':18}{shown.recipe.fingerprint}"


def _modules(shown: Inspection) -> Iterator[str]:
    listed = shown.modules
    if not listed["document"]:
        yield "modules   none: the model has no modules.json\n"
        return
    same = listed["query"] == listed["document"]
    for role, modules in listed.items():
        if role == "document" or not same:
            yield f"modules{'' if same else f' of a {role}'}"
            yield from (f"  {module.kind:16}{module.folder or '.'}" for module in modules)
            yield ""


def _recipe(shown_recipe: Recipe) -> Iterator[str]:
    values = shown_recipe.as_dict() | {"normalize": shown_recipe.unit_length, "layer_norm": "layer_norm" in shown_recipe.steps}
    for key, origin in shown_recipe.origin.items():
        if key == "prompts":
            for role, prompt in shown_recipe.prompts.items():
                yield f"  {f'prompt {role}':16}{prompt!r:34} {_prompt_origin(shown_recipe)}"
            for name, prompt in shown_recipe.named_prompts.items():
                if name not in shown_recipe.prompts:
                    yield f"  {'prompt by name':16}{f'{name}: {prompt!r}':34} prompt_name={name} over HTTP"
        else:
            yield f"  {key:16}{values[key]!s:34} {origin}"
        if key == "max_length" and shown_recipe.stated_length not in (None, shown_recipe.max_length):
            yield f"  {'':16}{shown_recipe.stated_length!s:34} as stated by the files"


def _prompt_origin(shown_recipe: Recipe) -> str:
    origin = shown_recipe.origin["prompts"]
    if shown_recipe.named_prompts or origin == "argument":
        return origin
    return f"{origin}; if the model card lists prompts, pass prompts="
