"""Walk a graph from node to node: who makes a tensor, who alone reads it, and which single numbers it is multiplied by."""

from contextlib import suppress

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from penult.graph.find.flow import operator
from penult.graph.find.linear import constants, readers, sole_reader
from penult.graph.rewrite.opsets import MICROSOFT

_READS = {"Softmax": 1, "Transpose": 1, "Reshape": 2, "MatMul": 2, "FusedMatMul": 2, "Add": 2, "Mul": 2, "Div": 2, "Where": 3}


class Links:
    """The nodes of a graph by the tensors between them; a node is its position.

    Attributes:
        nodes: the graph's nodes.
        read: tensor -> the nodes that read it, -1 for the graph's outputs.
        whole: whether the nodes of attention read as many tensors as they need, and write one; in a broken graph they may not.
    """

    def __init__(self, model: ModelProto) -> None:
        self.nodes = model.graph.node
        self.read = readers(model.graph)
        self._made = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self._fixed = constants(model.graph)
        asked = [node for node in self.nodes if node.op_type in _READS]
        self.whole = all(len(node.input) >= _READS[node.op_type] and any(node.output[:1]) for node in asked)

    def before(self, tensor: str) -> int | None:
        """Give the node that makes a tensor which one node alone reads."""
        return self._made.get(tensor) if len(self.read.get(tensor, ())) == 1 else None

    def after(self, node: int) -> int | None:
        """Give the node that alone reads a node's first output."""
        return sole_reader(self.read, self.nodes[node].output[0])

    def maker(self, tensor: str) -> NodeProto:
        """Give the node that makes a tensor, one of no operator if none does."""
        return self.nodes[self._made[tensor]] if tensor in self._made else NodeProto()

    def number(self, name: str) -> float | None:
        """Give the value of a constant that is one number, of four axes at most."""
        tensor = self._fixed.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL or tensor.data_type != TensorProto.FLOAT:
            return None
        if len(tensor.dims) > 4 or any(size != 1 for size in tensor.dims):
            return None
        with suppress(ValueError):  # it has no number
            return float(numpy_helper.to_array(tensor).reshape(()))
        return None

    def scaled(self, tensor: str) -> tuple[float, str]:
        """Follow a tensor back through products with single numbers; give their product and where it began."""
        scale = 1.0
        while (made := self.before(tensor)) is not None:
            node = self.nodes[made]
            if operator(node) not in {"Mul", "Div"}:
                break
            numbers = [self.number(name) for name in node.input]
            if operator(node) == "Mul" and numbers[0] is not None:
                factor, tensor = numbers[0], node.input[1]
            elif numbers[1]:
                factor, tensor = numbers[1] if operator(node) == "Mul" else 1 / numbers[1], node.input[0]
            else:
                break
            scale *= factor
        return scale, tensor


def kind(node: NodeProto) -> str:
    """Name a node's operator, ONNX Runtime's product with a factor as the plain one."""
    return "MatMul" if (node.domain, node.op_type) == (MICROSOFT, "FusedMatMul") else operator(node)
