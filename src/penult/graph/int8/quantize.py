"""Write linear layers as 8-bit integer ones whose scales are constants, so that no vector depends on its batch mates.

    x --> MatMul(W) --> Add(b) --> y        becomes

    x --> [Mul(factor)] --> [Add(offset)] --> QuantizeLinear(scale) --> MatMulIntegerToFloat(W8, scales, b) --> [Add] --> y
    `---> [Gather(split channels) ------------------> MatMul(their rows of W)] -----------------^

Layers that read the same tensor share its quantisation. The word table is kept as 8-bit rows with a scale each.
`activation_scales` decides how each layer is quantized; this file writes the nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from penult.graph.find.flow import read_by
from penult.graph.find.graph_index import GraphIndex, Links
from penult.graph.find.linear import Linear
from penult.graph.int8.activation_scales import Packed, Treatment
from penult.graph.int8.gptq import nearest
from penult.graph.opsets import MICROSOFT, allow_microsoft
from penult.graph.rewrite.builder import Builder
from penult.graph.rewrite.external_data import without_weights
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


def quantize(index: GraphIndex, treated: Mapping[str, tuple[Group, Treatment]], *, fast_gelu: bool = False) -> onnx.ModelProto:
    """Return a new model with the treated layers in 8 bits; the rest of the graph stays as it is.

    A new one, since others may be made of the same model, treated in other ways; it copies no weight that it does not need.

    Args:
        index: of a model that is loaded with its data.
        treated: by the tensor that a group reads.
        fast_gelu: whether Gelu takes its tanh form, whose error (5e-4) is far below a step of what quantises it next.
    """
    out = without_weights(index.model)
    del out.graph.node[:]
    write = _Writer(out.graph, index.opset)
    links = index.links
    instead = {linear.nodes[0]: (group, i) for group, _ in treated.values() for i, linear in enumerate(group.layers)}
    gone = {node for group, _ in treated.values() for linear in group.layers for node in linear.nodes}
    for i, node in enumerate(links.nodes):
        if i in instead:
            group, which = instead[i]
            write.linear(group, which, treated[group.input][1])
        elif fast_gelu and _is_gelu(node):
            write.fast_gelu(node)
        elif (table := _table(node, links)) is not None:
            write.table(node, table)
        elif i not in gone:
            out.graph.node.append(node)
    allow_microsoft(out)
    read = {name for node in out.graph.node for name in read_by(node)}
    out.graph.initializer.extend(tensor for tensor in index.model.graph.initializer if tensor.name in read)
    drop_unread(out.graph)
    return out


def _is_gelu(node: NodeProto) -> bool:
    """Say whether this is the exact Gelu, of ONNX or of ONNX Runtime."""
    return node.op_type == "Gelu" and all(a.s == b"none" for a in node.attribute)


def _table(node: NodeProto, links: Links) -> NDArray[np.float32] | None:
    """Give the table of a lookup that alone reads it; None for any other node."""
    fixed = links.constants
    if node.op_type != "Gather" or any(a.name == "axis" and a.i != 0 for a in node.attribute) or node.input[1] in fixed:
        return None
    tensor = fixed.get(node.input[0])
    if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or tensor.dims[0] < _TABLE_ROWS:
        return None
    return numpy_helper.to_array(tensor) if len(links.readers[node.input[0]]) == 1 else None


class _Writer:
    """Appends nodes and constants to a graph under names that no exporter writes."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self._graph = graph
        self._build = Builder(graph, opset, _PREFIX)
        self._quantised: dict[str, tuple[str, str, str]] = {}

    def linear(self, group: Group, which: int, treatment: Treatment) -> None:
        """Write one layer of a group, and before the first one what they share."""
        linear, packed = group.layers[which], treatment.layers[which]
        steps, scale, zero = self._quantised.get(group.input) or self._quantise(group.input, treatment)
        constant = self._build.constant
        product = self._build.node(
            "MatMulIntegerToFloat",
            [steps, constant(packed.weight), scale, constant(packed.scale), zero, constant(np.int8(0)), constant(packed.bias)],
            output="" if len(treatment.split) else linear.output,
            domain=MICROSOFT,
        )
        if len(treatment.split):
            self._rest(group.input, treatment, packed, product, linear.output)

    def table(self, node: NodeProto, table: NDArray[np.float32]) -> None:
        """Write a lookup in a table of 8-bit rows."""
        rows, scales = nearest(table, axis=1)
        ids = node.input[1]
        build = self._build
        steps = build.op("Cast", build.op("Gather", build.constant(rows), ids), to=TensorProto.FLOAT)
        build.op("Mul", steps, build.op("Gather", build.constant(scales[:, None]), ids), output=node.output[0])

    def fast_gelu(self, node: NodeProto) -> None:
        """Write a Gelu in its tanh form."""
        self._build.node("FastGelu", node.input, output=node.output[0], domain=MICROSOFT)

    def _quantise(self, x: str, treatment: Treatment) -> tuple[str, str, str]:
        build = self._build
        scale, zero = build.float(treatment.scale), build.constant(np.uint8(treatment.zero))
        form = x if treatment.factor is None else build.op("Mul", x, build.constant(treatment.factor))
        form = form if treatment.offset is None else build.op("Add", form, build.constant(treatment.offset))
        self._quantised[x] = build.op("QuantizeLinear", form, scale, zero), scale, zero
        return self._quantised[x]

    def _rest(self, x: str, treatment: Treatment, packed: Packed, product: str, output: str) -> None:
        """Add what the split channels contribute."""
        name = f"{_PREFIX}split/{x}"
        if all(name not in node.output for node in self._graph.node):
            self._build.node("Gather", [x, self._build.constant(treatment.split)], {"axis": -1}, output=name)
        rest = self._build.op("MatMul", name, self._build.constant(packed.rest))
        self._build.op("Add", product, rest, output=output)
