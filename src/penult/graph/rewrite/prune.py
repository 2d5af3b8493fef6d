"""Remove the unused nodes and tensors of a graph."""

from collections.abc import Container, MutableSequence, Sequence

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

from penult.graph.find.flow import ancestors, read_by


def drop_unread(graph: GraphProto) -> None:
    """Remove nodes, initializers and value infos that no output depends on; keep inputs and outputs."""
    outputs = [output.name for output in graph.output]
    kept = [graph.node[i] for i in ancestors(graph.node, outputs)]
    used = {*outputs, *(name for node in kept for name in read_by(node))}
    written = {name for node in kept for name in node.output}
    replace_nodes(graph, kept)
    keep(graph.initializer, used)
    keep(graph.value_info, written)


def replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Replace the nodes of a graph."""
    del graph.node[:]
    graph.node.extend(nodes)


def keep(tensors: MutableSequence[TensorProto] | MutableSequence[ValueInfoProto], names: Container[str]) -> None:
    """Remove the tensors whose names are not in `names`, in place: anything else would copy the remaining weights."""
    for i in reversed(range(len(tensors))):
        if tensors[i].name not in names:
            del tensors[i]
