"""Description of a graph as values: inputs, outputs, hidden states, the cut and the removed part."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx

from penult.graph.find.graph_index import GraphIndex
from penult.graph.find.layers import HiddenState, NotATransformerError, hidden_states, select
from penult.graph.rewrite.cut import cut

# Bits per value of the data types that do not take whole bytes.
_BITS = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4}


@dataclass(frozen=True, slots=True)
class End:
    """An input or output of a graph."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """Number of nodes, number of parameters, and bytes of the parameters."""

    nodes: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """A graph and its cut.

    Attributes:
        precision: the data type of most of the weights, by bytes.
        layers: hidden states, the embedding output first.
        cut: the hidden state at which the graph is cut.
        kept_inputs: the inputs that the cut graph still needs.
    """

    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    opset: dict[str, int]
    precision: str
    layers: tuple[HiddenState, ...]
    cut: HiddenState
    kept_inputs: tuple[str, ...]
    whole: Size
    removed: Size


def describe(model: onnx.ModelProto, layer: int | str = -1, *, chosen: HiddenState | None = None) -> Description:
    """Describe a graph and its cut, without changing the model; external data need not be loaded.

    Args:
        model: the graph.
        layer: the hidden state at which to cut.
        chosen: the tensor at which to cut, if it is known; then the graph need not have layers.

    Raises:
        ValueError: the graph is not a transformer, or the layer does not exist.
    """
    index = GraphIndex(model)
    try:
        states = hidden_states(index)
    except NotATransformerError:
        if chosen is None:
            raise
        states = []
    if chosen is None:
        chosen = select(states, layer)
    else:
        chosen = next((state for state in states if state.tensor == chosen.tensor), chosen)
    rest = index.bare
    cut(GraphIndex(rest), chosen.tensor, axes=chosen.axes)
    whole, kept = _size(model.graph), _size(rest.graph)
    weights = {tensor.name for tensor in model.graph.initializer}
    return Description(
        inputs=tuple(_end(value) for value in model.graph.input if value.name not in weights),
        outputs=tuple(_end(value) for value in model.graph.output),
        opset={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        precision=_precision(model.graph),
        layers=tuple(states),
        cut=chosen,
        kept_inputs=tuple(value.name for value in rest.graph.input if value.name not in weights),
        whole=whole,
        removed=Size(max(0, whole.nodes - kept.nodes), whole.parameters - kept.parameters, whole.bytes - kept.bytes),
    )


def _end(value: onnx.ValueInfoProto) -> End:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None for axis in tensor.shape.dim)
    return End(value.name, _dtype(tensor.elem_type), shape)


def _dtype(elem_type: int) -> str:
    name: str = onnx.TensorProto.DataType.Name(elem_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _size(graph: onnx.GraphProto) -> Size:
    tensors = list(_tensors(graph))
    return Size(
        nodes=len(graph.node),
        parameters=sum(math.prod(tensor.dims) for tensor in tensors),
        bytes=sum(_bytes(tensor) for tensor in tensors),
    )


def _precision(graph: onnx.GraphProto) -> str:
    sizes: Counter[str] = Counter()
    for tensor in _tensors(graph):
        sizes[_dtype(tensor.data_type)] += _bytes(tensor)
    return sizes.most_common(1)[0][0] if sizes else "none"


def _bytes(tensor: onnx.TensorProto) -> int:
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(-(-math.prod(tensor.dims) * bits // 8))  # the last byte of 4-bit values may be half used


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _constants(graph.node)


def _constants(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
