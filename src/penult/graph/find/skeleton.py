"""A model without its weights: small enough to copy, inline and shape-infer, whatever the model size.

`skeleton` drops the data of initializers, Constant nodes and subgraphs; `restore` puts the weights of selected nodes back.
`skeleton` also inlines local functions and each If on a graph input. Exporters use such an If to store a decoder with and
without a cache in one file.
The weight data must never be read: `len(tensor.raw_data)` alone would copy it, and so would `tensor.ByteSize()`.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from math import prod

import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from penult.graph.find.flow import read_by, subgraphs

# Besides its own error, onnx passes on what its C++ code raises for missing inputs, such as a Loop without inputs.
_NOT_INFERRED = (onnx.shape_inference.InferenceError, ValueError, IndexError, MemoryError, RuntimeError)
_SMALL = 512  # elements; shapes, axes and scalars are far below, weights far above
Type = tuple[int, tuple[int | str | None, ...] | None]


def skeleton(model: ModelProto) -> ModelProto:
    """Return a copy of a model without its weights, with its local functions inlined.

    An If on a graph input is replaced by the branch that reads fewer graph inputs: the one without a cache.
    Top-level tensor names do not change. `restore` puts the weights of the remaining nodes back.
    """
    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    bare.graph.CopyFrom(_bare_graph(model.graph, deep=not model.functions, top=True))
    return onnx.inliner.inline_local_functions(bare) if model.functions else bare


def infer(bare: ModelProto, *, strict: bool = False) -> ModelProto | None:
    """Infer the tensor types of a skeleton, for operators that ONNX defines; None if the graph is inconsistent."""
    if not _has_broken_scan(bare.graph):
        with suppress(*_NOT_INFERRED):
            return onnx.shape_inference.infer_shapes(bare, data_prop=True, strict_mode=strict)
    return None


def stated_types(model: ModelProto) -> dict[str, Type]:
    """Return (element type, shape) of the tensors for which the model states them.

    A dimension is a number, a symbol or None; a shape of unknown rank is None.
    """
    known: dict[str, Type] = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        dims = None
        if kind.HasField("shape"):
            dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
        known[value.name] = kind.elem_type, dims
    return known


def _has_broken_scan(graph: GraphProto) -> bool:
    """Return whether a Scan lacks its body or scan inputs: onnx 1.17 crashes the process on such a graph."""
    return any(
        (node.op_type == "Scan" and not _is_whole_scan(node)) or any(map(_has_broken_scan, subgraphs(node)))
        for node in graph.node
    )


def _is_whole_scan(node: NodeProto) -> bool:
    over = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
    return any(subgraphs(node)) and 0 < over <= len(node.input)


def restore(nodes: Iterable[NodeProto], model: ModelProto) -> list[NodeProto]:
    """Return the nodes with the weights of the model instead of the skeleton's stubs."""
    bulky = {tuple(n.output): n for n in _nodes(model.graph) if _is_bulky(n, deep=not model.functions)}
    return [bulky.get(tuple(n.output), n) for n in nodes]


def inner_weights(model: ModelProto) -> Iterator[TensorProto | SparseTensorProto]:
    """Yield the initializers, with data, of the If branches that a skeleton inlines."""
    for graph in _branches(model.graph).values():
        yield from graph.initializer
        yield from graph.sparse_initializer


def _branches(graph: GraphProto) -> dict[int, GraphProto]:
    """Return the branch to inline for every If on a graph input: position of the If -> branch.

    A branch that redefines a name of the outer graph or of another branch is not inlined: its nodes could form a cycle.
    ONNX Runtime rejects such a graph with a clear message.
    """
    inputs = {i.name for i in graph.input}
    defined = inputs | {i.name for i in graph.initializer} | {o for node in graph.node for o in node.output}
    branches = {}
    for place, node in enumerate(graph.node):
        if _decided(node, inputs):
            branch = min((a.g for a in node.attribute if a.HasField("g")), key=lambda g: len(inputs & _read(g)))
            own = {i.name for i in branch.initializer} | {o for inner in branch.node for o in inner.output if o}
            if defined.isdisjoint(own):
                defined |= own
                branches[place] = branch
    return branches


def _decided(node: NodeProto, inputs: set[str]) -> bool:
    """Return whether a node is an If with branches on a graph input; a broken If may lack either."""
    return node.op_type == "If" and not inputs.isdisjoint(node.input[:1]) and any(a.HasField("g") for a in node.attribute)


def _read(graph: GraphProto) -> set[str]:
    return {name for node in graph.node for name in read_by(node)}


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph, with each If on a graph input replaced by the nodes of the branch to inline."""
    branches = _branches(graph)
    for place, node in enumerate(graph.node):
        if (branch := branches.get(place)) is not None:
            yield from branch.node
            for inner, outer in zip(branch.output, node.output, strict=False):
                yield NodeProto(op_type="Identity", input=[inner.name], output=[outer])
        else:
            yield node


def _is_bulky(node: NodeProto, *, deep: bool) -> bool:
    """Return whether a node may hold weights: a large Constant or, with `deep`, a node with subgraphs."""
    if node.op_type == "Constant":
        return any(prod(a.t.dims) > _SMALL for a in node.attribute)
    return deep and any(a.HasField("g") or a.graphs for a in node.attribute)


def _bare_graph(graph: GraphProto, *, deep: bool, top: bool = False) -> GraphProto:
    bare = GraphProto(name=graph.name, input=graph.input, output=graph.output)
    for part in (graph, *(_branches(graph).values() if top else ())):
        bare.initializer.extend(_stub(i) for i in part.initializer)
        bare.sparse_initializer.extend(part.sparse_initializer)
        bare.value_info.extend(part.value_info)
    nodes = _nodes(graph) if top else graph.node
    bare.node.extend(_bare_node(n, deep=deep) if _is_bulky(n, deep=deep) else n for n in nodes)
    return bare


def _bare_node(node: NodeProto, *, deep: bool) -> NodeProto:
    bare = NodeProto(op_type=node.op_type, domain=node.domain, name=node.name, input=node.input, output=node.output)
    for attribute in node.attribute:
        if attribute.HasField("t"):
            bare.attribute.append(AttributeProto(name=attribute.name, type=attribute.type, t=_stub(attribute.t)))
        elif attribute.HasField("g"):
            inner = _bare_graph(attribute.g, deep=deep)
            bare.attribute.append(AttributeProto(name=attribute.name, type=attribute.type, g=inner))
        else:
            bare.attribute.append(attribute)
    return bare


def _stub(tensor: TensorProto) -> TensorProto:
    if prod(tensor.dims) <= _SMALL:
        return tensor
    return TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
