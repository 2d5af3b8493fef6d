"""Index of a model: producer and readers of each tensor, constants, data flow, types and shapes.

All graph searches share it. Every pass that changes the graph calls `changed`.
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
    """The nodes of one graph by the tensors that connect them. Nodes are identified by their position.

    Attributes:
        nodes: the graph's nodes.
        readers: tensor -> the nodes that read it, in a subgraph too; -1 for an output of the graph.
        constants: name -> tensor, of initializers and of Constant nodes.
    """

    def __init__(self, graph: GraphProto) -> None:
        self.nodes = graph.node
        self._makers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in read_by(node):
                self.readers.setdefault(name, []).append(i)
        for output in graph.output:
            self.readers.setdefault(output.name, []).append(-1)
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.output and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    @cached_property
    def well_formed(self) -> bool:
        """True if the nodes of attention have all their inputs and an output, which a broken graph may lack."""
        known = [node for node in self.nodes if node.op_type in _READS]
        return all(len(node.input) >= _READS[node.op_type] and any(node.output[:1]) for node in known)

    def before(self, tensor: str) -> int | None:
        """Return the node that produces a tensor, if the tensor has exactly one reader."""
        return self._makers.get(tensor) if len(self.readers.get(tensor, ())) == 1 else None

    def after(self, node: int) -> int | None:
        """Return the reader of a node's first output, if it is the only one."""
        readers = self.readers.get(self.nodes[node].output[0], [])
        return readers[0] if len(readers) == 1 and readers[0] >= 0 else None

    def maker(self, tensor: str) -> NodeProto:
        """Return the node that produces a tensor; an empty node if none does."""
        return self.nodes[self._makers[tensor]] if tensor in self._makers else NodeProto()

    def number(self, name: str) -> float | None:
        """Return the value of a constant with one element and at most four axes; None for any other tensor."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL or tensor.data_type != TensorProto.FLOAT:
            return None
        if len(tensor.dims) > 4 or any(size != 1 for size in tensor.dims):
            return None
        with suppress(ValueError):  # its data is missing
            return float(numpy_helper.to_array(tensor).reshape(()))
        return None

    def scaled(self, tensor: str) -> tuple[float, str]:
        """Return the product of the scalars that a tensor was multiplied by, and the tensor before these multiplications."""
        scale = 1.0
        while (maker := self.before(tensor)) is not None:
            node = self.nodes[maker]
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
    """A model and the index of its graph; each part is computed at its first use.

    A pass changes `model` in place and calls `changed`.

    Attributes:
        model: the model, possibly loaded without its external data.
        file: the model file, if some of its weights were not loaded.
    """

    def __init__(self, model: ModelProto, file: Path | None = None) -> None:
        self.model = model
        self.file = file

    @property
    def opset(self) -> int:
        """Version of the standard ONNX operators."""
        return opset_of(self.model)

    @cached_property
    def links(self) -> Links:
        """Nodes of the graph, without those of subgraphs and functions."""
        return Links(self.model.graph)

    @cached_property
    def bare(self) -> ModelProto:
        """The model without its weights, with its local functions inlined."""
        return skeleton(self.model)

    @cached_property
    def flow(self) -> Flow:
        """Data flow of `bare`."""
        return trace(self.bare.graph)

    @property
    def types(self) -> dict[str, Type]:
        """Element type and shape of the tensors of `bare`, where known."""
        return self._types[0]

    @cached_property
    def _types(self) -> tuple[dict[str, Type], bool]:
        """The types, and whether they were inferred; otherwise they are the ones that the graph states."""
        inferred = infer(self.bare)
        return stated_types(inferred or self.bare), inferred is not None

    def changed(self, renamed: Mapping[str, str] | None = None) -> None:
        """Drop the index after a pass.

        Args:
            renamed: old -> new tensor names, for a pass that removed nodes and added only nodes whose types are not needed:
                the inferred types of the other tensors are kept. None: anything may have changed.
        """
        types, inferred = vars(self).get("_types", ({}, False))
        for name in ("links", "bare", "flow", "_types"):
            vars(self).pop(name, None)
        if inferred and renamed is not None:
            vars(self)["_types"] = {renamed.get(name, name): kind for name, kind in types.items()}, True


def kind(node: NodeProto) -> str:
    """Return a node's operator, with ONNX Runtime's FusedMatMul as MatMul."""
    return "MatMul" if (node.domain, node.op_type) == (MICROSOFT, "FusedMatMul") else operator(node)
