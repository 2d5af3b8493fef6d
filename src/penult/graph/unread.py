"""Drop from a graph what nothing reads any more after a change."""

from onnx import GraphProto

from penult.graph.flow import read_by


def drop_unread(graph: GraphProto) -> None:
    """Drop nodes, initialisers and what is stated of tensors that no output depends on; inputs and outputs stay."""
    made = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    stack, read, kept = [output.name for output in graph.output], set[str](), set[int]()
    while stack:
        name = stack.pop()
        read.add(name)
        if (i := made.get(name)) is not None and i not in kept:
            kept.add(i)
            stack.extend(read_by(graph.node[i]))
    there = {name for i in kept for name in graph.node[i].output}
    for field, left in (
        (graph.node, [node for i, node in enumerate(graph.node) if i in kept]),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read]),
        (graph.value_info, [info for info in graph.value_info if info.name in there]),
    ):
        del field[:]
        field.extend(left)
