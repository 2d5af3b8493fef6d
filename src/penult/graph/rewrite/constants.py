"""Convert Constant nodes with external data to initializers.

optimum saves exports over 2 GB with `convert_attribute=True`, which also moves the values of Constant nodes to external data.
All later code checks, copies and rewrites only the external data of initializers. The data itself is not read here.
"""

from collections import Counter

from onnx import GraphProto, ModelProto, NodeProto, TensorProto


def hoist_constants(model: ModelProto) -> None:
    """Replace, in place, each Constant node of the main graph that has external data by an initializer of the same name.

    1. A Constant that is a graph output becomes an Identity of an initializer with an unused name.
    2. A Constant with a duplicate name is kept: `check_whole` rejects the graph because of it.
    3. Constants of subgraphs and local functions are kept; `check_inner` rejects those that are used.
    """
    graph = model.graph
    constants = [
        (place, node, tensor) for place, node in enumerate(graph.node) if (tensor := _external_value(node)) is not None
    ]
    if not constants:
        return
    taken = _names(graph)
    outputs = {value.name for value in graph.output}
    for place, node, tensor in reversed(constants):  # last first, so that earlier positions stay valid
        name = node.output[0]
        if taken[name] > 1:
            continue
        initializer = graph.initializer.add()
        initializer.CopyFrom(tensor)
        initializer.name = name
        if name not in outputs:
            del graph.node[place]
            continue
        while initializer.name in taken:
            initializer.name += "_"
        taken[initializer.name] += 1
        node.op_type = "Identity"
        node.input.append(initializer.name)
        node.ClearField("attribute")


def _external_value(node: NodeProto) -> TensorProto | None:
    """Return the tensor of a Constant node if its data is external; otherwise None."""
    if node.op_type != "Constant" or node.domain not in {"", "ai.onnx"} or len(node.output) != 1 or not node.output[0]:
        return None
    if len(node.attribute) != 1 or node.attribute[0].name != "value" or not node.attribute[0].HasField("t"):
        return None
    tensor: TensorProto = node.attribute[0].t
    return tensor if tensor.data_location == TensorProto.EXTERNAL else None


def _names(graph: GraphProto) -> Counter[str]:
    """Return how often the main graph defines each tensor name."""
    names = Counter(value.name for value in (*graph.input, *graph.initializer))
    names.update(sparse.values.name for sparse in graph.sparse_initializer)
    names.update(output for node in graph.node for output in node.output)
    return names
