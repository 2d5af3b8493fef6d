"""End a graph at one of its tensors and drop all that no longer has a reader.

It knows graphs, not transformers: which tensor to end at is told by the caller (`layers` finds one). Weights that stay
are copied once, weights in external files not at all: only their references are.
"""

from collections.abc import Mapping
from difflib import get_close_matches

from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper

from penult.graph.find.flow import FLOATS, ancestors, every_node, read_by
from penult.graph.find.skeleton import Type, restore, shapes, skeleton, weights


def cut(model: ModelProto, tensor: str, *, output_name: str = "token_embeddings", axes: str = "BTH") -> ModelProto:
    """Give a new model whose only output is `tensor`, as float32, under the name `output_name`.

        ids --> ... --> tensor --> head --> logits      becomes      ids --> ... --> token_embeddings

    1. A name of a node means its first float output.
    2. Integers between a quantiser and a dequantiser are dequantised, half precision is cast: no value changes.
    3. Axes in another order are turned to (B, T, H).
    4. Nodes, initialisers, inputs and annotations nobody reads any more go; local functions are inlined; opsets,
       metadata and references to external data stay.

    Args:
        model: may be loaded without its external data. It is not changed.
        tensor: any float tensor of the graph, local functions inlined.
        output_name: a tensor or weight inside that has this name already is renamed.
        axes: the order of the tensor's axes, as `HiddenState.axes` says; "BTH" leaves a tensor of any shape as it is.

    Raises:
        ValueError: no tensor or node has that name, it holds integers that stand for no floats, or an input that it depends on
            is called `output_name`.
    """
    bare = skeleton(model)
    types = shapes(bare)
    name = _float_tensor(bare.graph, _resolve(bare.graph, tensor, types), types)
    tail = _tail(bare.graph, name, types, axes)
    last = tail[-1].output[0] if tail else name
    result = ModelProto(
        ir_version=max(model.ir_version, 4),  # of 3, initializers must be inputs, which a cut graph's are not
        opset_import=bare.opset_import,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        metadata_props=model.metadata_props,
    )
    result.graph.name = model.graph.name
    nodes = (*bare.graph.node, *tail)
    result.graph.node.extend(restore([nodes[i] for i in ancestors(nodes, [last])], model))
    renamed = _rename(result.graph, bare.graph, last, output_name)
    _keep_read(result.graph, bare.graph, model, renamed)
    _, dims = types.get(name, (0, None))
    shape = [dims[axes.index(a)] for a in "BTH"] if dims and sorted(axes) == sorted("BTH") and len(dims) == 3 else dims
    result.graph.output.append(
        helper.make_tensor_value_info(output_name, TensorProto.FLOAT, [None] * 3 if axes == "NH" else shape)
    )
    return result


def _resolve(graph: GraphProto, wanted: str, types: dict[str, Type]) -> str:
    """Turn the name of a tensor or a node into that of a tensor."""
    tensors = [str(i.name) for i in graph.input] + [str(o) for n in graph.node for o in n.output if o]
    if wanted in set(tensors):
        return wanted
    for node in graph.node:
        outputs = [str(o) for o in node.output if o]
        if outputs and node.name and node.name == wanted:
            return next((o for o in outputs if types.get(o, (0, None))[0] in FLOATS), outputs[0])
    near = get_close_matches(wanted, [*tensors, *(n.name for n in graph.node)], n=3, cutoff=0.5)
    hint = f"; the nearest names are {', '.join(map(repr, dict.fromkeys(near)))}" if near else ""
    raise ValueError(f"no tensor or node of the graph is named {wanted!r} ({len(tensors)} tensors){hint}")


def _float_tensor(graph: GraphProto, name: str, types: dict[str, Type]) -> str:
    """Give the tensor itself if it holds floats, or may; else the floats its integers stand for.

    Whoever reads quantised data reads its scale and zero point right after it; whoever quantises has them too. Where no
    DequantizeLinear reads the tensor, one is added to `graph`.
    """
    kind = types.get(name, (TensorProto.UNDEFINED, None))[0]
    if kind in FLOATS:
        return name
    reads: list[str] = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and name in node.input[:1] and any(node.output[:1]):
            return str(node.output[0])
        if node.op_type.startswith("QLinear") and name in node.input:
            reads = list(node.input)[list(node.input).index(name) :][:3]
        elif name in node.output[:1] and node.op_type == "QuantizeLinear":
            reads = [name, *node.input[1:]]
        elif name in node.output[:1] and node.op_type == "DynamicQuantizeLinear":
            reads = list(node.output)
    if len(reads) >= 2:
        floats = _free(graph, f"{name}/float")
        graph.node.append(helper.make_node("DequantizeLinear", reads, [floats]))
        return floats
    if kind == TensorProto.UNDEFINED:
        return name
    known = kind in TensorProto.DataType.values()
    held = TensorProto.DataType.Name(kind).lower() if known else f"type {kind}"
    raise ValueError(
        f"tensor {name!r} holds {held} values that no scale turns into floats: give a float tensor, such as a hidden state"
    )


def _tail(graph: GraphProto, name: str, types: dict[str, Type], axes: str) -> list[NodeProto]:
    """Make the nodes that turn a tensor into float32 (B, T, H), in order; none if it is that."""
    nodes: list[NodeProto] = []
    here = name
    if types.get(name, (TensorProto.UNDEFINED, None))[0] != TensorProto.FLOAT:
        here = _free(graph, f"{name}/float32")
        nodes.append(helper.make_node("Cast", [name], [here], to=TensorProto.FLOAT))
    if axes == "NH":
        ids = next(n for n, (t, d) in types.items() if d and len(d) == 2 and t in _IDS and n in _inputs(graph))
        sizes, rest, shape, there = (_free(graph, f"{name}/{part}") for part in ("sizes", "rest", "shape", "rows"))
        nodes.append(helper.make_node("Shape", [ids], [sizes]))
        nodes.append(helper.make_node("Constant", [], [rest], value=helper.make_tensor(rest, TensorProto.INT64, [1], [-1])))
        nodes.append(helper.make_node("Concat", [sizes, rest], [shape], axis=0))
        nodes.append(helper.make_node("Reshape", [here, shape], [there]))  # (B T, H) -> (B, T, H)
    elif axes != "BTH":
        there = _free(graph, f"{name}/turned")
        nodes.append(helper.make_node("Transpose", [here], [there], perm=[axes.index(a) for a in "BTH"]))
    elif not nodes and name in _inputs(graph):
        nodes.append(helper.make_node("Identity", [name], [_free(graph, f"{name}/same")]))
    return nodes


_IDS = frozenset((TensorProto.INT64, TensorProto.INT32))


def _inputs(graph: GraphProto) -> set[str]:
    return {i.name for i in graph.input}


def _free(graph: GraphProto, name: str) -> str:
    """Give a name no tensor has, as near to `name` as can be."""
    taken = _inputs(graph) | {i.name for i in graph.initializer} | {o for n in graph.node for o in n.output}
    while name in taken:
        name += "_"
    return name


def _rename(graph: GraphProto, bare: GraphProto, old: str, new: str) -> dict[str, str]:
    """Give the last tensor of a graph of ours its new name, and whoever had that name another one: name before -> now."""
    renamed: dict[str, str] = {}
    if old != new and any(new in (*read_by(n), *n.output) for n in graph.node):
        if new in _inputs(bare) - {i.name for i in bare.initializer}:
            raise ValueError(f"an input of the graph is named {new!r}, so the output needs another name: give output_name")
        renamed[new] = other = _free(bare, f"{new}/inner")
        for node in every_node(graph.node):
            node.input[:] = [other if i == new else i for i in node.input]
            node.output[:] = [other if o == new else o for o in node.output]
    for node in graph.node:
        node.output[:] = [new if o == old else o for o in node.output]
    return renamed


def _keep_read(result: GraphProto, bare: GraphProto, model: ModelProto, renamed: Mapping[str, str]) -> None:
    """Add the inputs, weights and annotations that the nodes of `result` read, under the names they read them by."""
    read = {name for node in result.node for name in read_by(node)}
    made = {o for n in result.node for o in n.output}
    result.input.extend(i for i in bare.input if i.name in read)
    for weight in weights(model):
        if isinstance(weight, SparseTensorProto):
            name = renamed.get(weight.values.name, weight.values.name)
            if name in read:
                result.sparse_initializer.append(weight)
                result.sparse_initializer[-1].values.name = name
        elif (name := renamed.get(weight.name, weight.name)) in read:
            result.initializer.append(weight)
            result.initializer[-1].name = name
    result.value_info.extend(v for v in bare.value_info if v.name in read & made)
    noted = model.graph.quantization_annotation
    result.quantization_annotation.extend(a for a in noted if a.tensor_name in read & made)
