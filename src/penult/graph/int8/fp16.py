"""Convert a graph from float16 to float32: the same values, in a type that CPUs compute in.

CPU runtimes have no float16 kernels: they cast before and after every operator. The conversion covers tensor types and the
attributes of operators that name a type.
"""

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

_HALF, _FULL = TensorProto.FLOAT16, TensorProto.FLOAT
_NAMING = frozenset(("to", "dtype", "output_datatype"))  # attributes whose value is a type


def widen(model: onnx.ModelProto) -> None:
    """Convert every float16 of a model, which must be loaded with its weights, to float32."""
    if has_half(model.graph):
        _widen(model.graph)
        for function in model.functions:
            for node in function.node:
                _widen_node(node)


def has_half(graph: onnx.GraphProto) -> bool:
    """Return whether a graph uses float16 anywhere outside of its subgraphs."""
    return any(tensor.data_type == _HALF for tensor in graph.initializer) or any(
        a.t.data_type == _HALF or (a.name in _NAMING and a.i == _HALF) for node in graph.node for a in node.attribute
    )


def _widen(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == _HALF:
            value.type.tensor_type.elem_type = _FULL
    for node in graph.node:
        _widen_node(node)


def _widen_node(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in _NAMING and attribute.type == AttributeProto.INT and attribute.i == _HALF:
            attribute.i = _FULL
        elif attribute.type == AttributeProto.TENSOR:
            _widen_tensor(attribute.t)
        elif attribute.type == AttributeProto.GRAPH:
            _widen(attribute.g)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == _HALF:
        wide = numpy_helper.to_array(tensor).astype(np.float32)
        # Infinities stay infinite. The largest float16 number, which masks add, is still large enough.
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
