"""Write linear layers as 8-bit integer ones whose scales are constants, so that no vector depends on its batch mates.

    x --> MatMul(W) --> Add(b) --> y        becomes

    x --> [Mul(factor)] --> [Add(offset)] --> QuantizeLinear(scale) --> MatMulIntegerToFloat(W8, scales, b) --> [Add] --> y
    `---> [Gather(split channels) ------------------> MatMul(their rows of W)] -----------------^

Layers that read the same tensor share its quantisation. The word table is kept as 8-bit rows with a scale each.
How each layer is treated is `scales`' business; this file writes nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from penult.graph.find.linear import Linear, constants, readers
from penult.graph.int8.activation_scales import Packed, Treatment
from penult.graph.int8.gptq import nearest
from penult.graph.rewrite.opsets import MICROSOFT, allow_microsoft
from penult.graph.rewrite.prune import drop_unread

_PREFIX = "penult/int8/"
_TABLE_ROWS = 256  # a table of fewer rows is small as it is


@dataclass(frozen=True, slots=True)
class Group:
    """Linear layers that read one tensor."""

    input: str
    layers: tuple[Linear, ...]


def grouped(linears: Sequence[Linear]) -> list[Group]:
    """Put the layers together that read the same tensor, in order."""
    found: dict[str, list[Linear]] = {}
    for linear in linears:
        found.setdefault(linear.input, []).append(linear)
    return [Group(name, tuple(layers)) for name, layers in found.items()]


def quantize(
    model: onnx.ModelProto, treated: Mapping[str, tuple[Group, Treatment]], *, fast_gelu: bool = False
) -> onnx.ModelProto:
    """Give a new model with the treated layers in 8 bits; the rest of the graph stays as it is.

    Args:
        model: loaded with its data. It is not changed.
        treated: by the tensor that a group reads.
        fast_gelu: whether Gelu takes its tanh form, whose error (5e-4) is far below a step of what quantises it next.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    write = _Writer(out.graph)
    fixed = constants(model.graph)
    read = readers(model.graph)
    instead = {linear.nodes[0]: (group, i) for group, _ in treated.values() for i, linear in enumerate(group.layers)}
    gone = {node for group, _ in treated.values() for linear in group.layers for node in linear.nodes}
    del out.graph.node[:]
    for i, node in enumerate(model.graph.node):
        if i in instead:
            group, which = instead[i]
            write.linear(group, which, treated[group.input][1])
        elif fast_gelu and _is_gelu(node):
            write.add("FastGelu", list(node.input), node.output[0], domain=MICROSOFT)
        elif (table := _table(node, fixed, read)) is not None:
            write.table(node, table)
        elif i not in gone:
            out.graph.node.append(node)
    allow_microsoft(out)
    drop_unread(out.graph)
    return out


def _is_gelu(node: NodeProto) -> bool:
    """Say whether this is the exact Gelu, of ONNX or of ONNX Runtime."""
    return node.op_type == "Gelu" and all(a.s == b"none" for a in node.attribute)


def _table(node: NodeProto, fixed: Mapping[str, TensorProto], read: Mapping[str, list[int]]) -> NDArray[np.float32] | None:
    """Give the table of a lookup that alone reads it; None for any other node."""
    if node.op_type != "Gather" or any(a.name == "axis" and a.i != 0 for a in node.attribute) or node.input[1] in fixed:
        return None
    tensor = fixed.get(node.input[0])
    if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or tensor.dims[0] < _TABLE_ROWS:
        return None
    return numpy_helper.to_array(tensor) if len(read[node.input[0]]) == 1 else None


class _Writer:
    """Appends nodes and constants to a graph under names that no exporter writes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._made = 0
        self._quantised: dict[str, tuple[str, str, str]] = {}

    def linear(self, group: Group, which: int, treatment: Treatment) -> None:
        """Write one layer of a group, and before the first one what they share."""
        linear, packed = group.layers[which], treatment.layers[which]
        steps, scale, zero = self._quantised.get(group.input) or self._quantise(group.input, treatment)
        product = self.add(
            "MatMulIntegerToFloat",
            [steps, self.constant(packed.weight), scale, self.constant(packed.scale), zero,
             self.constant(np.int8(0)), self.constant(packed.bias)],
            "" if len(treatment.split) else linear.output,
            domain=MICROSOFT,
        )  # fmt: skip
        if len(treatment.split):
            self._rest(group.input, treatment, packed, product, linear.output)

    def table(self, node: NodeProto, table: NDArray[np.float32]) -> None:
        """Write a lookup in a table of 8-bit rows."""
        rows, scales = nearest(table, axis=1)
        ids = node.input[1]
        steps = self.add("Cast", [self.add("Gather", [self.constant(rows), ids])], to=TensorProto.FLOAT)
        self.add("Mul", [steps, self.add("Gather", [self.constant(scales[:, None]), ids])], node.output[0])

    def add(self, kind: str, inputs: Sequence[str], output: str = "", *, domain: str = "", to: int | None = None,
            axis: int | None = None) -> str:  # fmt: skip
        """Append a node with one output and give its name."""
        output = output or self._name()
        node = helper.make_node(kind, list(inputs), [output], name=f"{_PREFIX}{kind}/{output}", domain=domain)
        node.attribute.extend(
            helper.make_attribute(key, value) for key, value in (("to", to), ("axis", axis)) if value is not None
        )
        self._graph.node.append(node)
        return output

    def constant(self, array: NDArray[np.generic] | np.generic) -> str:
        name = self._name()
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _quantise(self, x: str, treatment: Treatment) -> tuple[str, str, str]:
        scale, zero = self.constant(np.float32(treatment.scale)), self.constant(np.uint8(treatment.zero))
        form = x if treatment.factor is None else self.add("Mul", [x, self.constant(treatment.factor)])
        form = form if treatment.offset is None else self.add("Add", [form, self.constant(treatment.offset)])
        self._quantised[x] = self.add("QuantizeLinear", [form, scale, zero]), scale, zero
        return self._quantised[x]

    def _rest(self, x: str, treatment: Treatment, packed: Packed, product: str, output: str) -> None:
        """Add what the split channels contribute."""
        name = f"{_PREFIX}split/{x}"
        if all(name not in node.output for node in self._graph.node):
            self.add("Gather", [x, self.constant(treatment.split)], name, axis=-1)
        self.add("Add", [product, self.add("MatMul", [name, self.constant(packed.rest)])], output)

    def _name(self) -> str:
        self._made += 1
        return f"{_PREFIX}{self._made}"
