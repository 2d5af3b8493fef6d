"""Drop from a graph what nothing reads any more after a change."""

from collections.abc import Container, MutableSequence, Sequence

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

from penult.graph.find.flow import ancestors, read_by


def drop_unread(graph: GraphProto) -> None:
    """Drop nodes, initialisers and what is stated of tensors that no output depends on; inputs and outputs stay."""
    outputs = [output.name for output in graph.output]
    kept = [graph.node[i] for i in ancestors(graph.node, outputs)]
    read = {*outputs, *(name for node in kept for name in read_by(node))}
    there = {name for node in kept for name in node.output}
    replace_nodes(graph, kept)
    keep(graph.initializer, read)
    keep(graph.value_info, there)


def replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Make these the nodes of a graph."""
    del graph.node[:]
    graph.node.extend(nodes)


def keep(tensors: MutableSequence[TensorProto] | MutableSequence[ValueInfoProto], names: Container[str]) -> None:
    """Keep the tensors of these names. No other way to drop the rest would not copy the weights that stay."""
    for i in reversed(range(len(tensors))):
        if tensors[i].name not in names:
            del tensors[i]
