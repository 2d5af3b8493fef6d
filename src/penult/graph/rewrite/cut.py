"""End a graph at one of its tensors and remove everything that is then unused.

This module is independent of transformers: the caller passes the tensor to end at (`layers` finds one). No weights are read
or copied.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from onnx import GraphProto, NodeProto, SparseTensorProto, TensorProto, helper

from penult.graph.find.flow import FLOATS, ancestors, every_node, read_by
from penult.graph.find.graph_index import GraphIndex
from penult.graph.find.skeleton import Type, inner_weights, restore
from penult.graph.rewrite.prune import keep, replace_nodes


def cut(graph: GraphIndex, tensor: str, *, output_name: str = "token_embeddings", axes: str = "BTH") -> None:
    """Make `tensor` the only output of a model, as float32, under the name `output_name`.

        ids --> ... --> tensor --> head --> logits      becomes      ids --> ... --> token_embeddings

    1. The name of a node selects its first float output.
    2. Integers between a quantizer and a dequantizer are dequantized, half precision is cast: no value changes.
    3. Other orders of axes are transposed to (B, T, H).
    4. Unused nodes, initializers, inputs and annotations are removed; local functions are inlined; opsets, metadata and
       references to external data are kept.

    Args:
        graph: index of the model.
        tensor: any float tensor of the graph with local functions inlined.
        output_name: an inner tensor or weight that already has this name is renamed.
        axes: the order of the tensor's axes, as in `HiddenState.axes`; "BTH" does not change a tensor of any shape.

    Raises:
        ValueError: no tensor or node has that name, its values are integers without a scale, or an input that it depends on
            is named `output_name`.
    """
    bare, types, model = graph.bare, graph.types, graph.model
    name, added = _float_tensor(bare.graph, _resolve(bare.graph, tensor, types), types)
    added += _tail(bare.graph, name, types, axes)
    last = added[-1].output[0] if added else name
    nodes = [*bare.graph.node, *added]
    nodes = restore([nodes[i] for i in ancestors(nodes, [last])], model)
    renamed = _renamed(nodes, bare.graph, last, output_name)
    inner = list(inner_weights(model))
    replace_nodes(model.graph, nodes)
    _rename(model.graph, renamed, last, output_name)
    _keep_read(model.graph, bare.graph, inner, renamed)
    _, dims = types.get(name, (0, None))
    shape = [dims[axes.index(a)] for a in "BTH"] if dims and sorted(axes) == sorted("BTH") and len(dims) == 3 else dims
    del model.graph.output[:], model.functions[:], model.opset_import[:]
    model.graph.output.append(
        helper.make_tensor_value_info(output_name, TensorProto.FLOAT, [None] * 3 if axes == "NH" else shape)
    )
    model.opset_import.extend(bare.opset_import)
    model.ir_version = max(model.ir_version, 4)  # in version 3, initializers must also be inputs; those of a cut graph are not
    graph.changed({**renamed, last: output_name})


def _resolve(graph: GraphProto, selected: str, types: dict[str, Type]) -> str:
    """Return the name of the tensor that the name of a tensor or a node selects."""
    tensors = [str(i.name) for i in graph.input] + [str(o) for n in graph.node for o in n.output if o]
    if selected in set(tensors):
        return selected
    for node in graph.node:
        outputs = [str(o) for o in node.output if o]
        if outputs and node.name and node.name == selected:
            return next((o for o in outputs if types.get(o, (0, None))[0] in FLOATS), outputs[0])
    near = get_close_matches(selected, [*tensors, *(n.name for n in graph.node)], n=3, cutoff=0.5)
    hint = f"; similar names: {', '.join(map(repr, dict.fromkeys(near)))}" if near else ""
    raise ValueError(f"No tensor or node of the graph is named {selected!r} ({len(tensors)} tensors){hint}.")


def _float_tensor(graph: GraphProto, name: str, types: dict[str, Type]) -> tuple[str, list[NodeProto]]:
    """Return the tensor if it may hold floats; otherwise its dequantized tensor, and the node to add for that.

    Nodes that read quantized data take its scale and zero point as the next inputs; nodes that quantize also have them.
    """
    kind = types.get(name, (TensorProto.UNDEFINED, None))[0]
    if kind in FLOATS:
        return name, []
    reads: list[str] = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and name in node.input[:1] and any(node.output[:1]):
            return str(node.output[0]), []
        if node.op_type.startswith("QLinear") and name in node.input:
            reads = list(node.input)[list(node.input).index(name) :][:3]
        elif name in node.output[:1] and node.op_type == "QuantizeLinear":
            reads = [name, *node.input[1:]]
        elif name in node.output[:1] and node.op_type == "DynamicQuantizeLinear":
            reads = list(node.output)
    if len(reads) >= 2:
        floats = _free(graph, f"{name}/float")
        return floats, [helper.make_node("DequantizeLinear", reads, [floats])]
    if kind == TensorProto.UNDEFINED:
        return name, []
    known = kind in TensorProto.DataType.values()
    dtype = TensorProto.DataType.Name(kind).lower() if known else f"type {kind}"
    raise ValueError(
        f"Tensor {name!r} has {dtype} values, and the graph has no scale to dequantize them. Pass the name of a float tensor, "
        "such as a hidden state."
    )


def _tail(graph: GraphProto, name: str, types: dict[str, Type], axes: str) -> list[NodeProto]:
    """Return the nodes that convert a tensor to float32 (B, T, H), in order; empty if it has that form already."""
    nodes: list[NodeProto] = []
    current = name
    if types.get(name, (TensorProto.UNDEFINED, None))[0] != TensorProto.FLOAT:
        current = _free(graph, f"{name}/float32")
        nodes.append(helper.make_node("Cast", [name], [current], to=TensorProto.FLOAT))
    if axes == "NH":
        ids = next(n for n, (t, d) in types.items() if d and len(d) == 2 and t in _IDS and n in _inputs(graph))
        sizes, rest, shape, target = (_free(graph, f"{name}/{part}") for part in ("sizes", "rest", "shape", "rows"))
        nodes.append(helper.make_node("Shape", [ids], [sizes]))
        nodes.append(helper.make_node("Constant", [], [rest], value=helper.make_tensor(rest, TensorProto.INT64, [1], [-1])))
        nodes.append(helper.make_node("Concat", [sizes, rest], [shape], axis=0))
        nodes.append(helper.make_node("Reshape", [current, shape], [target]))  # (B T, H) -> (B, T, H)
    elif axes != "BTH":
        target = _free(graph, f"{name}/turned")
        nodes.append(helper.make_node("Transpose", [current], [target], perm=[axes.index(a) for a in "BTH"]))
    elif not nodes and name in _inputs(graph):
        nodes.append(helper.make_node("Identity", [name], [_free(graph, f"{name}/same")]))
    return nodes


_IDS = frozenset((TensorProto.INT64, TensorProto.INT32))


def _inputs(graph: GraphProto) -> set[str]:
    return {i.name for i in graph.input}


def _free(graph: GraphProto, name: str) -> str:
    """Return `name` with as many underscores appended as make it unused."""
    taken = _inputs(graph) | {i.name for i in graph.initializer} | {o for n in graph.node for o in n.output}
    while name in taken:
        name += "_"
    return name


def _renamed(nodes: Sequence[NodeProto], bare: GraphProto, old: str, new: str) -> dict[str, str]:
    """Return a new name for an inner tensor that already has the output's new name: old -> new."""
    if old == new or all(new not in (*read_by(n), *n.output) for n in nodes):
        return {}
    if new in _inputs(bare) - {i.name for i in bare.initializer}:
        raise ValueError(f"An input of the graph is named {new!r}. Pass another name for the output as output_name.")
    return {new: _free(bare, f"{new}/inner")}


def _rename(graph: GraphProto, renamed: Mapping[str, str], old: str, new: str) -> None:
    """Rename the tensors of a graph, and its last tensor to the output name."""
    for node in every_node(graph.node) if renamed else ():
        node.input[:] = [renamed.get(i, i) for i in node.input]
        node.output[:] = [renamed.get(o, o) for o in node.output]
    for node in graph.node:
        if old in node.output:
            node.output[:] = [new if o == old else o for o in node.output]


def _keep_read(
    graph: GraphProto, bare: GraphProto, inner: Sequence[TensorProto | SparseTensorProto], renamed: Mapping[str, str]
) -> None:
    """Keep the inputs, weights and annotations that the nodes read; `inner` are the weights of inlined If branches."""
    graph.initializer.extend(weight for weight in inner if isinstance(weight, TensorProto))
    graph.sparse_initializer.extend(weight for weight in inner if isinstance(weight, SparseTensorProto))
    for weight in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        weight.name = renamed.get(weight.name, weight.name)
    used = {name for node in graph.node for name in read_by(node)}
    outputs = {o for n in graph.node for o in n.output}
    keep(graph.input, used)
    keep(graph.initializer, used)
    for field, kept in (
        (graph.sparse_initializer, [sparse for sparse in graph.sparse_initializer if sparse.values.name in used]),
        (graph.value_info, [value for value in bare.value_info if value.name in used & outputs]),
        (graph.quantization_annotation, [note for note in graph.quantization_annotation if note.tensor_name in used & outputs]),
    ):
        del field[:]
        field.extend(kept)
