"""Drop from a graph what nothing reads any more after a change."""

from onnx import GraphProto

from penult.graph.find.flow import ancestors, read_by


def drop_unread(graph: GraphProto) -> None:
    """Drop nodes, initialisers and what is stated of tensors that no output depends on; inputs and outputs stay."""
    outputs = [output.name for output in graph.output]
    kept = [graph.node[i] for i in ancestors(graph.node, outputs)]
    read = {*outputs, *(name for node in kept for name in read_by(node))}
    there = {name for node in kept for name in node.output}
    for field, left in (
        (graph.node, kept),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read]),
        (graph.value_info, [info for info in graph.value_info if info.name in there]),
    ):
        del field[:]
        field.extend(left)
