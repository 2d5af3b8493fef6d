"""The one index of a model: who makes and who reads each tensor, its constants, its data flow and its tensors' shapes.

All that looks for something in a graph asks it, and all that changes the graph tells it.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from penult.graph.find.flow import Flow, operator, read_by, trace
from penult.graph.find.skeleton import Type, infer, skeleton, stated_types
from penult.graph.opsets import MICROSOFT, opset_of

_READS = {"Softmax": 1, "Transpose": 1, "Reshape": 2, "MatMul": 2, "FusedMatMul": 2, "Add": 2, "Mul": 2, "Div": 2, "Where": 3}


class Links:
    """The nodes of one graph by the tensors between them; a node is its position.

    Attributes:
        nodes: the graph's nodes.
        read: tensor -> the nodes that read it, in a subgraph too; -1 for the graph's outputs.
        constants: the tensors that are constants: initializers, and what Constant nodes hold.
    """

    def __init__(self, graph: GraphProto) -> None:
        self.nodes = graph.node
        self._made = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.read: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in read_by(node):
                self.read.setdefault(name, []).append(i)
        for output in graph.output:
            self.read.setdefault(output.name, []).append(-1)
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.output and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    @cached_property
    def whole(self) -> bool:
        """Whether the nodes of attention read as many tensors as they need, and write one; in a broken graph they may not."""
        known = [node for node in self.nodes if node.op_type in _READS]
        return all(len(node.input) >= _READS[node.op_type] and any(node.output[:1]) for node in known)

    def before(self, tensor: str) -> int | None:
        """Return the node that makes a tensor which one node alone reads."""
        return self._made.get(tensor) if len(self.read.get(tensor, ())) == 1 else None

    def after(self, node: int) -> int | None:
        """Return the node that alone reads a node's first output."""
        found = self.read.get(self.nodes[node].output[0], [])
        return found[0] if len(found) == 1 and found[0] >= 0 else None

    def maker(self, tensor: str) -> NodeProto:
        """Return the node that makes a tensor, one of no operator if none does."""
        return self.nodes[self._made[tensor]] if tensor in self._made else NodeProto()

    def number(self, name: str) -> float | None:
        """Return the value of a constant that is one number, of four axes at most."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL or tensor.data_type != TensorProto.FLOAT:
            return None
        if len(tensor.dims) > 4 or any(size != 1 for size in tensor.dims):
            return None
        with suppress(ValueError):  # it has no number
            return float(numpy_helper.to_array(tensor).reshape(()))
        return None

    def scaled(self, tensor: str) -> tuple[float, str]:
        """Follow a tensor back through products with single numbers; return their product and where it began."""
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


class GraphIndex:
    """A model, and what follows from its graph; each part is worked out when it is first asked for.

    A pass changes `model` in place and calls `changed`.

    Attributes:
        model: may be loaded without its external data.
        file: its own file, where some of its weights have been left there.
    """

    def __init__(self, model: ModelProto, file: Path | None = None) -> None:
        self.model = model
        self.file = file

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return opset_of(self.model)

    @cached_property
    def links(self) -> Links:
        """The graph's own nodes."""
        return Links(self.model.graph)

    @cached_property
    def bare(self) -> ModelProto:
        """The model without its weights, its local functions inlined."""
        return skeleton(self.model)

    @cached_property
    def flow(self) -> Flow:
        """The data flow of `bare`."""
        return trace(self.bare.graph)

    @property
    def types(self) -> dict[str, Type]:
        """Element type and shape of the tensors of `bare`, as far as they are known."""
        return self._types[0]

    @cached_property
    def _types(self) -> tuple[dict[str, Type], bool]:
        """The types, and whether they could be inferred; else they are what the graph states."""
        inferred = infer(self.bare)
        return stated_types(inferred or self.bare), inferred is not None

    def changed(self, renamed: Mapping[str, str] | None = None) -> None:
        """Forget what was worked out.

        Args:
            renamed: tensor before -> now, by a pass that has taken nodes away and added some that nobody asks about: the types
                of all others stay, if they were inferred. None: anything may have changed.
        """
        types, inferred = vars(self).get("_types", ({}, False))
        for name in ("links", "bare", "flow", "_types"):
            vars(self).pop(name, None)
        if inferred and renamed is not None:
            vars(self)["_types"] = {renamed.get(name, name): kind for name, kind in types.items()}, True


def kind(node: NodeProto) -> str:
    """Return a node's operator, ONNX Runtime's product with a factor as the plain one."""
    return "MatMul" if (node.domain, node.op_type) == (MICROSOFT, "FusedMatMul") else operator(node)
