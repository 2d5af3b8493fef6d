"""Replace linear layers by int8 ones with constant scales, so that vectors do not depend on the other texts in the batch.

    x --> MatMul(W) --> Add(b) --> y        becomes

    x --> [Mul(factor)] --> [Add(offset)] --> QuantizeLinear(scale) --> MatMulIntegerToFloat(W8, scales, b) --> [Add] --> y
    `---> [Gather(split channels) ------------------> MatMul(their rows of W)] -----------------^

Layers with the same input share its quantization. The token embedding table is stored as 8-bit rows with one scale per row.
`activation_scales` chooses the scheme of each layer; this module writes the nodes.
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
_TABLE_ROWS = 256  # a table with fewer rows is too small to quantize


@dataclass(frozen=True, slots=True)
class Group:
    """Linear layers with the same input tensor."""

    input: str
    layers: tuple[Linear, ...]


def grouped(linears: Sequence[Linear]) -> list[Group]:
    """Group linear layers by their input tensor, in order."""
    by_input: dict[str, list[Linear]] = {}
    for linear in linears:
        by_input.setdefault(linear.input, []).append(linear)
    return [Group(name, tuple(layers)) for name, layers in by_input.items()]


def quantize(index: GraphIndex, treated: Mapping[str, tuple[Group, Treatment]], *, fast_gelu: bool = False) -> onnx.ModelProto:
    """Return a new model with the layers in `treated` in int8; the rest of the graph is unchanged.

    The model in `index` is not changed, because the caller may quantize it again in other ways. Only weights that the new
    model needs are copied.

    Args:
        index: index of a model that is loaded with its weights.
        treated: input tensor of a group -> the group and its scheme.
        fast_gelu: use the tanh form of Gelu, whose error (5e-4) is far below one step of the quantization after it.
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
    used = {name for node in out.graph.node for name in read_by(node)}
    out.graph.initializer.extend(tensor for tensor in index.model.graph.initializer if tensor.name in used)
    drop_unread(out.graph)
    return out


def _is_gelu(node: NodeProto) -> bool:
    """Return whether a node is the exact Gelu, of ONNX or of ONNX Runtime."""
    return node.op_type == "Gelu" and all(a.s == b"none" for a in node.attribute)


def _table(node: NodeProto, links: Links) -> NDArray[np.float32] | None:
    """Return the table of a lookup if no other node reads it; None for any other node."""
    fixed = links.constants
    if node.op_type != "Gather" or any(a.name == "axis" and a.i != 0 for a in node.attribute) or node.input[1] in fixed:
        return None
    tensor = fixed.get(node.input[0])
    if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or tensor.dims[0] < _TABLE_ROWS:
        return None
    return numpy_helper.to_array(tensor) if len(links.readers[node.input[0]]) == 1 else None


class _Writer:
    """Writer of int8 nodes and constants, under names that no exporter uses."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self._graph = graph
        self._build = Builder(graph, opset, _PREFIX)
        self._quantized: dict[str, tuple[str, str, str]] = {}

    def linear(self, group: Group, which: int, treatment: Treatment) -> None:
        """Append one layer of a group, and before the first one the shared quantization of its input."""
        linear, packed = group.layers[which], treatment.layers[which]
        steps, scale, zero = self._quantized.get(group.input) or self._quantize(group.input, treatment)
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
        """Append a lookup in a table of 8-bit rows."""
        rows, scales = nearest(table, axis=1)
        ids = node.input[1]
        build = self._build
        steps = build.op("Cast", build.op("Gather", build.constant(rows), ids), to=TensorProto.FLOAT)
        build.op("Mul", steps, build.op("Gather", build.constant(scales[:, None]), ids), output=node.output[0])

    def fast_gelu(self, node: NodeProto) -> None:
        """Append the tanh form of a Gelu."""
        self._build.node("FastGelu", node.input, output=node.output[0], domain=MICROSOFT)

    def _quantize(self, x: str, treatment: Treatment) -> tuple[str, str, str]:
        build = self._build
        scale, zero = build.float(treatment.scale), build.constant(np.uint8(treatment.zero))
        form = x if treatment.factor is None else build.op("Mul", x, build.constant(treatment.factor))
        form = form if treatment.offset is None else build.op("Add", form, build.constant(treatment.offset))
        self._quantized[x] = build.op("QuantizeLinear", form, scale, zero), scale, zero
        return self._quantized[x]

    def _rest(self, x: str, treatment: Treatment, packed: Packed, product: str, output: str) -> None:
        """Append the float32 product of the split channels, and add it."""
        name = f"{_PREFIX}split/{x}"
        if all(name not in node.output for node in self._graph.node):
            self._build.node("Gather", [x, self._build.constant(treatment.split)], {"axis": -1}, output=name)
        rest = self._build.op("MatMul", name, self._build.constant(packed.rest))
        self._build.op("Add", product, rest, output=output)
