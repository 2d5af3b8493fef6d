"""Build the graph that runs from an ONNX file: read, choose the tensor, cut there, append the reducer, write.

This module composes the passes of `graph/` and passes each its settings of the recipe. The original is only read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from penult.core import recipe as recipes
from penult.core.config.module_weights import PICKLE, SAFETENSORS, dense_weights, layer_norm_weights, static_table, stored_table
from penult.core.recipe import Recipe, Rows, Step, usable_rows
from penult.core.source import STATIC_TABLE, Source, data_home
from penult.graph.find.graph_index import GraphIndex
from penult.graph.find.layers import HiddenState, NotATransformerError, hidden_states, select
from penult.graph.find.positions import position_offset, position_table
from penult.graph.find.unit_length import ends_in_normalize
from penult.graph.int8.fp16 import has_half
from penult.graph.int8.int8_support import Scales, scales_of
from penult.graph.model_file import OWN, location_of, read_model, read_values, refer
from penult.graph.output_names import TOKENS, VECTORS
from penult.graph.rewrite.blockwise import fuse_attention
from penult.graph.rewrite.constants import hoist_constants
from penult.graph.rewrite.cut import cut
from penult.graph.rewrite.dynamic_axes import free_axes
from penult.graph.rewrite.external_data import save
from penult.graph.rewrite.input_names import name_inputs
from penult.graph.rewrite.nan_guards import drop_guards
from penult.graph.rewrite.pooling import Dense, LayerNorm, Reducer, append_reducer
from penult.graph.rewrite.static_embedding import static_graph
from penult.graph.rewrite.unfuse import unfuse
from penult.graph.rewrite.validate import check_inner, check_whole
from penult.graph.wire_format import LARGE

_MOVES = frozenset(("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Cast", "CastLike"))
_OWN = "the export's own hidden state"
_OWN_TOKENS = ("last_hidden_state", TOKENS)  # names of an export's hidden-state output


@dataclass(frozen=True, slots=True)
class Assembled:
    """Properties of the written graph.

    Attributes:
        tensor: the chosen tensor of the original.
        why: reason for choosing it.
        external: whether the weights are in the original's files, at paths relative to `data_home`.
        scales: quantization of the activations, if the original is 8-bit.
        positions: maximum tokens per text by the graph's position table. None: it has no table.
        position_offset: position of a text's first token, if positions are an input of the graph.
        made_unit: whether the chosen vector is normalized inside the graph.
        own_tokens: the export's own hidden-state output, if it was chosen instead of a layer.
        exact: whether the graph computes in fp32 throughout.
    """

    tensor: str
    why: str
    external: bool
    scales: Scales
    positions: int | None = None
    position_offset: int = 0
    made_unit: bool = False
    own_tokens: str | None = None
    exact: bool = True


def assemble(source: Source, recipe: Recipe, real: Mapping[str, Path], target: Path) -> Assembled:
    """Write the cut graph with its reducer to `target`.

    Args:
        source: the original.
        recipe: settings of the passes.
        real: the real file of each external data location in the graph.
        target: the new file. It refers to the weights in the original's files; other weights are inside, or beside it if it
            does not refer to any.

    Raises:
        ValueError: not a complete ONNX graph, not a transformer, or no pooling is stated.
    """
    home = data_home(source, real)
    real = {**real, OWN: source.model.resolve()}
    index = GraphIndex(read(source.model, real), real[OWN])
    graph = index.model.graph
    name_inputs(index)
    state = choose(index, recipe, source)
    free_axes(index, state.tensor, state.axes)
    cut(index, state.tensor, axes=state.axes)
    is_vector = _is_vector(graph.output[0], state.tensor)
    made_unit = is_vector and ends_in_normalize(index, TOKENS)
    most, offset = _positions(index, recipe, source, real)
    reducer = _reducer(
        source, recipe, is_vector=is_vector, made_unit=made_unit, inside=state.tensor == VECTORS and not recipe.static
    )
    append_reducer(index, TOKENS, reducer)
    if is_vector:
        del graph.output[0]
    check_inner(index.model, source.model)
    if not has_half(graph):  # in half precision other operators would round differently
        unfuse(index, only=frozenset(("SkipLayerNormalization",)))
        drop_guards(index)
        fuse_attention(index)
    external = _point_to(index.model, real, home)
    if not external:
        # All weights are small, or in a form that cannot be mapped from their files.
        save(index.model, target)
    else:
        target.write_bytes(index.model.SerializeToString())
    scales = scales_of(index.model)
    own_tokens = state.tensor if state.why.startswith(_OWN) else None
    exact = scales == "none" and not has_half(graph)
    return Assembled(state.tensor, state.why, external, scales, most, offset, made_unit, own_tokens, exact)


def choose(index: GraphIndex, recipe: Recipe, source: Source) -> HiddenState:
    """Return the tensor to pool, or the tensor that is already the vector.

    Raises:
        ValueError: no pooling is stated, the graph lacks a tensor that the files name, or it is not a transformer.
    """
    model = index.model
    outputs = {node.name: len(node.type.tensor_type.shape.dim) for node in model.graph.output}
    own, rank = next(iter(outputs.items()))
    _check_vector(outputs, recipe, source)
    vector = _own_vector(model, outputs, recipe, source)
    if vector is not None:
        return vector
    if recipe.pooling is None and not (recipe.layer is None and rank == 2):
        raise ValueError(_no_pooling(recipe, source))
    if recipe.layer is None:
        return _named(own, "the graph's own output, selected by layer=None")
    if isinstance(recipe.layer, str):
        return _by_name(index, recipe.layer)
    return _hidden_state(index, recipe, source)


def _own_vector(model: onnx.ModelProto, outputs: Mapping[str, int], recipe: Recipe, source: Source) -> HiddenState | None:
    """Return the output of the graph that is already the vector; None if tokens must be pooled.

    Args:
        model: the graph.
        outputs: rank of each output by name; the first is the graph's main output.
        recipe: configuration from the files and the arguments.
        source: files of the graph, for messages.
    """
    own, rank = next(iter(outputs.items()))
    if recipe.layer == -1:
        if recipe.output is not None:
            return _stated_output(outputs, recipe.output, source)
        if recipe.pooling is None and outputs.get(VECTORS) == 2:
            return _named(VECTORS, "the graph's own pooled output; no file states another pooling")
        if recipe.pooling is None and rank == 2 and _is_static(model):
            return _named(own, "the graph is a table of token vectors with their mean")
        if outputs.get(VECTORS) == 2 and _modules_inside(model, recipe, source):
            return _named(VECTORS, "the graph's own output; the weights of its modules are only in the graph")
    elif recipe.layer is None and recipe.pooling is None and outputs.get(VECTORS) == 2:
        return _named(VECTORS, "the graph's own pooled output, selected by layer=None")
    if isinstance(recipe.layer, str) and recipe.pooling is None and outputs.get(recipe.layer) == 2:
        return _named(recipe.layer, "the graph's own output, selected by layer=")
    return None


def _check_vector(outputs: Mapping[str, int], recipe: Recipe, source: Source) -> None:
    """Raise an error for an explicit pooling if the chosen tensor is already one vector per text."""
    own = next(iter(outputs))
    name = recipe.output if recipe.layer == -1 else own if recipe.layer is None else recipe.layer
    if recipe.origin.get("pooling") == "argument" and isinstance(name, str) and outputs.get(name) == 2:
        raise ValueError(
            f"the output {name!r} of {source.model} is already one vector per text, so pooling does not apply. Omit pooling, "
            "or pass the name of a hidden state as layer=."
        )


def _stated_output(outputs: Mapping[str, int], name: str, source: Source) -> HiddenState:
    """Return the vector output that a file names, or that of a full export under its conventional name."""
    for candidate in (name, VECTORS):
        if outputs.get(candidate) == 2:
            return _named(candidate, f"the graph's own output {candidate!r}, which the model's files name")
    raise ValueError(
        f"The files of {source.reference!r} name the output {name!r}; {source.model} has the outputs "
        f"{', '.join(outputs)}. Export the model with an output {name!r} of shape (batch, size)."
    )


def _is_static(model: onnx.ModelProto) -> bool:
    """Return whether a graph takes all token ids in one row, with the offset of each text."""
    ranks = {node.name: len(node.type.tensor_type.shape.dim) for node in model.graph.input}
    return ranks.get("input_ids") == 1 and ranks.get("offsets") == 1


def _modules_inside(model: onnx.ModelProto, recipe: Recipe, source: Source) -> bool:
    """Return whether modules have their weights only in the graph, whose output is then already the vector."""
    folders = [source.folder / step.folder for step in recipe.steps if not isinstance(step, str)]
    missing = [folder for folder in folders if not any((folder / name).exists() for name in (SAFETENSORS, PICKLE))]
    width = _width(model, VECTORS)
    return bool(missing) and recipe.vector_width is not None and width in (None, recipe.vector_width)


def _no_pooling(recipe: Recipe, source: Source) -> str:
    if recipe.hint:
        return recipe.hint
    base = source.base_model()
    if base:
        mirror = f"Or pass files_from={base!r}, the base model on the card, to use its files."
    else:
        mirror = "For a mirror of another model, pass files_from='ORG/ORIGINAL' to use its files."
    return (
        f"{source.folder} does not state a pooling (modules.json, 1_Pooling/config.json). Pass pooling='mean', 'cls', 'max' or "
        f"'last', as the model's card says. {mirror} A wrong pooling gives vectors that look right but do not work for search."
    )


def _hidden_state(index: GraphIndex, recipe: Recipe, source: Source) -> HiddenState:
    """Return a hidden state by its number.

    For the last one, the export's own hidden-state output takes precedence over the graph's structure: a projection after the
    final norm that belongs to the encoder is not a head. Its width must be the one that the files state.
    """
    model = index.model
    own = _own_tokens(model, recipe) if recipe.layer == -1 else None
    try:
        state = select(hidden_states(index), recipe.layer)  # type: ignore[arg-type] # a number here
    except NotATransformerError as error:
        # Models with other token mixers (FNet, state spaces) are encoders too, if they take token ids and name a hidden state.
        if own is None or not any(node.name == "input_ids" for node in model.graph.input):
            raise NotATransformerError(f"{source.model} is {error}") from error
        state = HiddenState(-1, own, _width(model, own), f"{_OWN}; its layers were not found")
    if own is not None and not _is_same(index, own, state.tensor):
        state = HiddenState(-1, own, _width(model, own), _OWN)
    stated = recipe.width
    if recipe.layer == -1 and stated is not None and state.hidden_size not in (None, stated):
        raise ValueError(
            f"The modules of {source.reference!r} expect token embeddings of {stated} values, but the tensor {state.tensor!r} "
            f"of {source.model} has {state.hidden_size}. Pass another model_file, or the right tensor as layer=."
        )
    return state


def _is_same(index: GraphIndex, output: str, tensor: str) -> bool:
    """Return whether an output has the same values as a tensor, possibly in another shape or order."""
    for _ in range(16):  # there are at most a few nodes between them
        if output == tensor:
            return True
        node = index.links.maker(output)
        if node.op_type not in _MOVES or not node.input:
            return False
        output = node.input[0]
    return False


def _own_tokens(model: onnx.ModelProto, recipe: Recipe) -> str | None:
    """Return the export's own hidden-state output; None if there is none, or it is a decoder's.

    `token_embeddings` of a full sentence-transformers export already includes the modules that change tokens.
    """
    if any("decoder" in node.name for node in model.graph.input):
        return None
    outputs = {node.name: len(node.type.tensor_type.shape.dim) for node in model.graph.output}
    if any("encoder" in name for name in outputs):
        return None
    names = _OWN_TOKENS if not recipe.token_steps else _OWN_TOKENS[:1]
    return next((name for name in names if outputs.get(name) == 3), None)


def _width(model: onnx.ModelProto, output: str) -> int | None:
    """Return the size of an output's last axis; None if the graph does not state it."""
    for node in model.graph.output:
        dims = node.type.tensor_type.shape.dim
        if node.name == output and dims and dims[-1].HasField("dim_value"):
            return int(dims[-1].dim_value)
    return None


def _positions(index: GraphIndex, recipe: Recipe, source: Source, real: Mapping[str, Path]) -> tuple[int | None, int]:
    """Return the maximum tokens per text by the position table, and a text's first position if positions are an input."""
    table = position_table(index)
    if table is None:
        return None, 0
    if not table.asked:
        return table.rows - table.first if table.first is not None else usable_rows(table.rows), 0

    def read_tensor(tensor: onnx.TensorProto) -> NDArray[np.generic] | None:
        file = real.get(location_of(tensor))
        return None if file is None else read_values(tensor, file)

    offset = position_offset(
        index,
        recipes.pad_token_id(source.home),
        stated_rows=recipes.stated_positions(source.home),
        stated_length=recipe.stated_length,
        read=read_tensor,
    )
    return table.rows - (offset or table.first or 0), offset


def _by_name(index: GraphIndex, name: str) -> HiddenState:
    """Return the hidden state with this tensor, else any tensor or node of this name."""
    try:
        states = {state.tensor: state for state in hidden_states(index)}
    except NotATransformerError:
        states = {}
    return states.get(name) or _named(name, "the tensor or node named by layer=")


def _named(name: str, why: str) -> HiddenState:
    return HiddenState(-1, name, None, why)


def _is_vector(output: onnx.ValueInfoProto, tensor: str) -> bool:
    """Return whether a cut graph's output is (B, D) rather than (B, T, H)."""
    kind = output.type.tensor_type
    rank = len(kind.shape.dim) if kind.HasField("shape") else 3
    if rank not in (2, 3):
        raise ValueError(
            f"{tensor!r} has {rank} axes. Pass a tensor of token embeddings (B, T, H) or of vectors (B, D) as layer=."
        )
    return rank == 2


def _reducer(source: Source, recipe: Recipe, *, is_vector: bool, made_unit: bool, inside: bool) -> Reducer:
    chosen = recipe.rows or Rows()
    # A vector that the graph pools itself includes the modules; the explicit steps are appended to them.
    steps = tuple(step for step in recipe.steps if isinstance(step, str)) if is_vector and inside else recipe.steps
    return Reducer(
        pooling=None if is_vector else recipe.pooling,
        steps=tuple(_step(source.folder, step) for step in steps),
        dimensions=recipe.dimensions,
        rows_input="attention_mask" if recipe.include_prompt else "pooling_mask",
        exclude_ids=chosen.exclude_ids,
        only_id=chosen.only_id,
        token_steps=() if is_vector else tuple(_step(source.folder, step) for step in recipe.token_steps),
        renormalize=recipe.renormalize and (made_unit or bool(steps and steps[-1] == "normalize")),
    )


def _step(root: Path, step: Step) -> Dense | LayerNorm | str:
    """Return a step with its weights."""
    if step == "layer_norm":
        return LayerNorm(np.ones(1, np.float32), np.zeros(1, np.float32))
    if isinstance(step, str):
        return step
    if isinstance(step, recipes.LayerNorm):
        norm = layer_norm_weights(root / step.folder)
        return LayerNorm(norm["norm.weight"], norm["norm.bias"])
    projected = step.residual == "projected"
    weights = dense_weights(root / step.folder, bias=step.bias, residual=projected)
    turned = {key: np.ascontiguousarray(array.T) for key, array in weights.items()}  # torch stores (D, H)
    if projected:
        return Dense(turned["linear.weight"], turned.get("linear.bias"), step.activation, turned["residual.weight"])
    same = "same" if step.residual == "same" else None
    return Dense(turned["linear.weight"], turned.get("linear.bias"), step.activation, same)  # type: ignore[arg-type] # a literal


def read(path: Path, real: Mapping[str, Path]) -> onnx.ModelProto:
    """Read a graph without its external weights, which are only checked to be present and complete.

    Raises:
        ValueError: not a complete numeric ONNX graph (see `graph.rewrite.validate`), or its external data are truncated.
    """
    if path.name == STATIC_TABLE:
        return static_graph(_table(path.parent))
    try:
        model = read_model(path)
    except DecodeError as error:
        raise ValueError(f"{path} is not a complete ONNX file ({error}). Download it again.") from error
    hoist_constants(model)
    check_whole(model, path, {**real, OWN: path})
    return model


def _table(folder: Path) -> onnx.TensorProto:
    """Return the table of a static embedding; its data stay in their file if they can be mapped from it."""
    table = static_table(folder)
    place = stored_table(folder)
    if place is None or table.nbytes < LARGE:
        return onnx.numpy_helper.from_array(table)
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.FLOAT, dims=table.shape)
    refer(tensor, OWN, *place)
    return tensor


def _point_to(model: onnx.ModelProto, real: Mapping[str, Path], home: Path) -> bool:
    """Rewrite external data locations to the real files, relative to `home`; return whether there are any."""
    tensors = [tensor for tensor in model.graph.initializer if location_of(tensor)]
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = real[entry.value].relative_to(home).as_posix()
    return bool(tensors)
