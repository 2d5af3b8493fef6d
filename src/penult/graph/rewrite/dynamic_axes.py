"""Make batch and token axes dynamic that an exporter, or an engine that rewrites its models, fixed to numbers.

Fixed axes are slow: every text runs alone and at full length. Often only the shapes of the inputs are fixed, and the nodes
accept any size. Shape inference checks that.
"""

from collections.abc import Container

import onnx
from onnx import GraphProto, ModelProto

from penult.graph.find.graph_index import GraphIndex
from penult.graph.find.skeleton import Type, infer, stated_types

_NAMES = ("batch", "sequence")
_PROBE = (7, 11)  # rows and tokens that no model was exported with; their product is not a usual size either


def free_axes(graph: GraphIndex, tensor: str, axes: str = "BTH") -> None:
    """Make the row and token axes of a graph's inputs dynamic, if the rest of the graph allows it.

        input_ids (1, 128) --> ... --> tensor (1, 128, H)   becomes   input_ids (batch, sequence) --> ... --> (?, ?, H)

    1. The axes of 2-D inputs (ids and masks) become dynamic; the stated shapes of all other tensors are removed.
    2. Shape inference checks this with 7 rows of 11 tokens. If that contradicts a size in the nodes, or `tensor` gets a
       different number of rows or tokens, the model is not changed.

    Args:
        graph: index of the model.
        tensor: the tensor at which the graph will be cut.
        axes: the order of its axes, as in `HiddenState.axes`.
    """
    model = graph.model
    if not any(dim.HasField("dim_value") for node in model.graph.input for dim in _pair(node)):
        return
    weights = {tensor.name for tensor in model.graph.initializer}
    stated = {value.name for value in (*model.graph.value_info, *model.graph.output)} - weights
    probe = ModelProto()
    probe.CopyFrom(graph.bare)
    _forget_shapes(probe.graph, stated)
    for node in probe.graph.input:
        for dim, size in zip(_pair(node), _PROBE, strict=False):
            dim.dim_value = size
    inferred = infer(probe, strict=True)
    if inferred is None or not _fits(stated_types(inferred).get(tensor, (0, None)), axes):
        return
    _forget_shapes(model.graph, stated)
    for node in model.graph.input:
        for dim, name in zip(_pair(node), _NAMES, strict=False):
            dim.dim_param = name
    graph.changed()


def _forget_shapes(graph: GraphProto, tensors: Container[str]) -> None:
    for value in (*graph.value_info, *graph.output):
        if value.name in tensors:
            value.type.tensor_type.ClearField("shape")


def _fits(found: Type, axes: str) -> bool:
    """Return whether the numbers of rows and tokens are unchanged, where inference knows them."""
    _, sizes = found
    if sizes is None:
        return False
    order = axes if len(axes) == len(sizes) else "B" * (len(sizes) - 1) + "H"
    rows, tokens = _PROBE
    counted = [size for axis, size in zip(order, sizes, strict=True) if axis != "H"]
    return all(size in {rows, tokens, rows * tokens} for size in counted if isinstance(size, int))


def _pair(node: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    """Return the axes of a 2-D input; empty for any other input."""
    dims = node.type.tensor_type.shape.dim
    return list(dims) if len(dims) == 2 else []
