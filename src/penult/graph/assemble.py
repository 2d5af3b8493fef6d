"""From an ONNX file to the graph that runs: read, choose the tensor, cut there, append the reducer, write.

The one file that puts the changes of this folder together, and the one that knows where their settings stand in a recipe. The
original is only read.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from penult.graph.axes import free_axes
from penult.graph.blockwise import fuse_attention
from penult.graph.cut import cut
from penult.graph.files import save
from penult.graph.guards import drop_guards
from penult.graph.integer import Scales, scales_of
from penult.graph.layers import HiddenState, NotATransformerError, hidden_states, select
from penult.graph.plain import unfuse
from penult.graph.pooling import OUTPUT, Dense, Reducer, append_reducer
from penult.graph.whole import check_inner, check_whole
from penult.graph.widen import has_half
from penult.recipe import WEIGHTS, Recipe, Rows
from penult.recipe import Dense as Step
from penult.source import Source

TOKENS = "token_embeddings"


@dataclass(frozen=True, slots=True)
class Assembled:
    """What was written: the original's tensor that was taken, why, and where external data lie (None: beside the file).

    `scales` says how the graph's activations become 8 bits wide, if it came so.
    """

    tensor: str
    why: str
    data_folder: Path | None
    scales: Scales


def assemble(source: Source, recipe: Recipe, real: Mapping[str, Path], target: Path) -> Assembled:
    """Write the cut graph with its reducer to `target`.

    Args:
        source: the original.
        recipe: what to do with it.
        real: the real file of each name under which the graph keeps external data.
        target: the new file; weights that were inside the original are written beside it, external ones stay where they are.

    Raises:
        ValueError: no whole ONNX graph, no transformer, or nothing says how to pool.
    """
    model = read(source.model, real)
    state = _choose(model, recipe, source)
    short = cut(free_axes(model, state.tensor, state.axes), state.tensor, axes=state.axes)
    is_vector = _is_vector(short.graph.output[0], state.tensor)
    reduced = append_reducer(short, TOKENS, _reducer(source, recipe, is_vector=is_vector))
    if is_vector:
        del reduced.graph.output[0]
    check_inner(reduced, source.model)
    if not has_half(reduced.graph):  # there other operators would round differently
        reduced = unfuse(reduced, only=frozenset(("SkipLayerNormalization",)))
        reduced = fuse_attention(drop_guards(reduced))
    home = _point_to(reduced, real)
    if home is None:
        # Beside the graph, ONNX Runtime maps the weights; inside it, they are parsed and copied.
        save(reduced, target)
    else:
        target.write_bytes(reduced.SerializeToString())
    return Assembled(state.tensor, state.why, home, scales_of(reduced))


def _choose(model: onnx.ModelProto, recipe: Recipe, source: Source) -> HiddenState:
    """Choose the tensor that is pooled, or that is a vector already."""
    outputs = {node.name: len(node.type.tensor_type.shape.dim) for node in model.graph.output}
    if recipe.pooling is None and outputs.get(OUTPUT) == 2:
        return _named(OUTPUT, "the graph's own pooled output; no file states another pooling")
    own, rank = next(iter(outputs.items()))
    if recipe.pooling is None and not (recipe.layer is None and rank == 2):
        raise ValueError(
            f"Nothing in {source.folder} says how {source.reference!r} pools its tokens into one vector (there is no "
            "modules.json with 1_Pooling/config.json). Say it: pooling='mean', 'cls', 'max' or 'last'; the model's card knows. "
            "A wrong one gives vectors that look right and find nothing."
        )
    if recipe.layer is None:
        return _named(own, "the graph's own output, as layer=None asks")
    if isinstance(recipe.layer, str):
        return _by_name(model, recipe.layer)
    try:
        return select(hidden_states(model), recipe.layer)
    except NotATransformerError as error:
        raise NotATransformerError(f"{source.model} is {error}") from error


def _by_name(model: onnx.ModelProto, name: str) -> HiddenState:
    """Find a hidden state by its tensor, else take any tensor or node of that name as it is."""
    try:
        states = {state.tensor: state for state in hidden_states(model)}
    except NotATransformerError:
        states = {}
    return states.get(name) or _named(name, "the tensor or node of that name, as layer= asks")


def _named(name: str, why: str) -> HiddenState:
    return HiddenState(-1, name, None, why)


def _is_vector(output: onnx.ValueInfoProto, tensor: str) -> bool:
    """Say whether a cut graph's output is (B, D) rather than (B, T, H)."""
    kind = output.type.tensor_type
    rank = len(kind.shape.dim) if kind.HasField("shape") else 3
    if rank not in (2, 3):
        raise ValueError(f"{tensor!r} has {rank} axes; give a tensor of tokens (B, T, H) or of vectors (B, D).")
    return rank == 2


def _reducer(source: Source, recipe: Recipe, *, is_vector: bool) -> Reducer:
    chosen = recipe.rows or Rows()
    return Reducer(
        pooling=None if is_vector else recipe.pooling,
        steps=tuple(step if isinstance(step, str) else _dense(source.folder, step) for step in recipe.steps),
        dimensions=recipe.dimensions,
        rows_input="attention_mask" if recipe.include_prompt else "pooling_mask",
        exclude_ids=chosen.exclude_ids,
        only_id=chosen.only_id,
    )


def _dense(root: Path, step: Step) -> Dense:
    path = root / step.folder / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(
            f"The dense layer {step.folder!r} has no {path}; a pickled pytorch_model.bin is not read. Fetch or convert it."
        )
    try:
        weights = {name.rpartition(".")[2]: array.astype(np.float32) for name, array in load_file(path).items()}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file of numbers ({error}); fetch it again.") from error
    weight, bias = weights.get("weight"), weights.get("bias")
    if weight is None or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        held = ", ".join(f"{name} {array.shape}" for name, array in weights.items()) or "nothing"
        raise ValueError(f"{path} holds {held}; a dense layer has a weight (D, H) and at most a bias (D,). Fetch it again.")
    return Dense(np.ascontiguousarray(weight.T), bias, step.activation)  # torch keeps (D, H)


def read(path: Path, real: Mapping[str, Path]) -> onnx.ModelProto:
    """Read a graph without its external data, which are only checked to be there to their last byte.

    Raises:
        ValueError: no whole ONNX graph of numbers (`whole` says what is missing), or its data end too early.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{path} is not a whole ONNX file ({error}); fetch it again.") from error
    check_whole(model, path, real)
    return model


def _point_to(model: onnx.ModelProto, real: Mapping[str, Path]) -> Path | None:
    """Rewrite the places of external data to real files; give the folder they are relative to, None if there are none."""
    tensors = list(_external(model))
    if not tensors:
        return None
    home = Path(os.path.commonpath([path.parent for path in real.values()]))
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = real[entry.value].relative_to(home).as_posix()
    return home


def _external(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
