"""Append nodes to a graph under names that no exporter uses.

The builder handles the differences between operator versions in opsets 11 to 24, so that callers write each operation once.
It is independent of poolings and layers.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, helper, numpy_helper

PREFIX = "penult/"  # no exporter uses it, so names cannot clash
Attributes = Mapping[str, int | float | Sequence[int]]

_SMALL = 64  # maximum bytes of a constant that is added once and shared by all nodes that need its value


class Builder:
    """Builder that appends nodes to one graph."""

    def __init__(self, graph: GraphProto, opset: int, prefix: str = PREFIX) -> None:
        self._graph = graph
        self._opset = opset
        self._prefix = prefix
        self._count = 0
        self._constants: dict[tuple[object, ...], str] = {}

    def op(self, kind: str, *inputs: str, output: str = "", to: int | None = None) -> str:
        """Append a node with one output and return its name. `Squeeze1` removes axis 1, in the form of the opset."""
        if kind == "Squeeze1":
            if self._opset >= 13:
                return self.op("Squeeze", *inputs, self.ints([1]))
            return self.node("Squeeze", inputs, {"axes": [1]}, output=output)
        return self.node(kind, inputs, {} if to is None else {"to": to}, output=output)

    def node(
        self, kind: str, inputs: Sequence[str], attributes: Attributes | None = None, *, output: str = "", domain: str = ""
    ) -> str:
        """Append a node with one output and any attributes, and return the output's name."""
        output = output or self._name()
        node = helper.make_node(kind, list(inputs), [output], name=f"{self._prefix}{kind}/{output}", domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in (attributes or {}).items())
        self._graph.node.append(node)
        return output

    def reduce(self, kind: str, x: str, *, axis: int, keepdims: int = 0) -> str:
        """Append a reduction; `axes` is an input from opset 18 on."""
        if self._opset >= 18:
            return self.node(kind, (x, self.ints([axis])), {"keepdims": keepdims})
        return self.node(kind, (x,), {"axes": [axis], "keepdims": keepdims})

    def dot(self, left: str, right: str) -> str:
        """Append the dot product of rows: (B, T), (B, T) -> (B, 1, 1). For equal rows of 0 and 1, it counts the ones."""
        row, column = self.op("Reshape", left, self.ints([0, 1, -1])), self.op("Reshape", right, self.ints([0, -1, 1]))
        return self.op("MatMul", row, column)

    def cast_ids(self) -> str:
        """Return the token ids as int64."""
        self.need_input("input_ids")
        return self.op("Cast", "input_ids", to=TensorProto.INT64)

    def need_input(self, name: str) -> None:
        """Add a (B, T) input if the graph has no input of that name (an unmasked export has no attention_mask)."""
        if name not in {node.name for node in self._graph.input}:
            shape = ["batch", "sequence"]
            self._graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))

    def ints(self, values: Sequence[int] | int) -> str:
        """Add an int64 constant and return its name."""
        return self.constant(np.asarray(values, dtype=np.int64))

    def float(self, value: float) -> str:
        """Add a float32 constant and return its name."""
        return self.constant(np.asarray(value, dtype=np.float32))

    def constant(self, array: NDArray[np.generic] | np.generic) -> str:
        """Add an initializer and return its name; reuse an equal small one."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = str(array.dtype), array.shape, array.tobytes() if array.nbytes <= _SMALL else None
        if key[-1] is None or key not in self._constants:
            self._constants[key] = self._name()
            self._graph.initializer.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def _name(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"
