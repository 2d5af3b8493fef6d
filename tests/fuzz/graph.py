"""ONNX files: hidden states at each of which the graph can be cut, or one clear error."""

import tempfile
from pathlib import Path

import onnx
from draw import Draw
from graph_kit import cut, drop_guards, fuse_attention, hidden_states
from models import Size, bert_graph, bert_weights
from onnx import ModelProto, TensorProto

from penult.core.assemble import read
from penult.graph.find.layers import NotATransformerError

PATH = Path(tempfile.mkdtemp()) / "model.onnx"
WHOLE = bert_graph(bert_weights(Size(8, 1, 2, 16)), 2, mlm_head=True).SerializeToString()
SEEDS = [b"\x00" + bytes(range(1, 50)), b"\x00" * 9, b"\x00" + bytes(range(255, 200, -1)), b"\x01" + WHOLE[:15_000]]
OPS = ["", "Add", "MatMul", "If", "Loop", "Scan", "Constant", "Transpose", "Reshape", "Gather", "QuantizeLinear", "Cast",
       "DynamicQuantizeLinear", "DequantizeLinear", "Split", "Einsum", "Conv", "LSTM", "Shape", "Slice", "Attention", "Strange"]  # fmt: skip


def one(data: bytes) -> None:
    """Read a graph with changed fields, or the bytes themselves; list its hidden states, cut at each and fuse attention."""
    draw = Draw(data)
    PATH.write_bytes(draw.take(20_000) if draw.whole(1) else _altered(draw))
    try:
        model = read(PATH, {})
    except ValueError as error:
        assert str(PATH) in str(error)
        return
    try:
        states = hidden_states(model)
    except NotATransformerError:
        return
    assert [state.index for state in states] == list(range(len(states)))
    for state in states:
        try:
            made = cut(model, state.tensor, axes=state.axes)
        except ValueError as error:
            assert "give a float tensor" in str(error)
            continue
        assert [o.name for o in made.graph.output] == ["token_embeddings"]
        read_there = {i for node in made.graph.node for i in node.input} | {"token_embeddings"}
        assert {i.name for i in made.graph.initializer} <= read_there
        fused = fuse_attention(drop_guards(made))
        assert [o.name for o in fused.graph.output] == ["token_embeddings"]


def _altered(draw: Draw) -> bytes:
    """Change a few fields of the graph: names, operators, attributes, shapes, types, order."""
    model = ModelProto.FromString(WHOLE)
    graph = model.graph
    names = [i.name for i in graph.initializer] + [o for n in graph.node for o in n.output] + ["input_ids", "", "no such"]
    for _ in range(1 + draw.whole(4)):
        what, node, weight = draw.whole(15), draw.of(graph.node), draw.of(graph.initializer)
        if what == 0:
            node.op_type = draw.of(OPS)
        elif what == 1 and node.input:
            node.input[draw.whole(len(node.input) - 1)] = draw.of(names)
        elif what == 2 and node.output:
            node.output[0] = draw.of(names)
        elif what == 3:
            del node.input[draw.whole(2) :]
        elif what == 4:
            del node.output[:]
        elif what == 5:
            del node.attribute[:]
        elif what == 6:
            node.attribute.append(onnx.helper.make_attribute(draw.of(["perm", "axis", "to", "num_heads"]), _attribute(draw)))
        elif what == 7:
            weight.dims[:] = [draw.of([0, 1, 8, -1, 2**40, 2**62]) for _ in range(draw.whole(4))]
        elif what == 8:
            weight.data_type = draw.whole(30)
        elif what == 9:
            weight.name = draw.of(names)
        elif what == 10:
            del graph.output[:]
        elif what == 11:
            graph.input.append(onnx.helper.make_tensor_value_info(draw.of(names), 1 + draw.whole(15), [draw.whole(3), "x"]))
        elif what == 12:
            del graph.node[draw.whole(len(graph.node) - 1)]
        elif what == 13:
            node.domain = draw.of(["com.microsoft", "strange", "ai.onnx.ml"])
        elif what == 14:
            inner = onnx.helper.make_graph(list(graph.node[: draw.whole(4)]), "g", [], list(graph.output))
            node.attribute.append(onnx.helper.make_attribute(draw.of(["body", "then_branch"]), inner))
        else:
            weight.ClearField(draw.of(["raw_data", "dims", "data_type", "name"]))
        if not graph.node:
            break
    if draw.whole(9) == 9:
        model.opset_import[0].version = draw.of([0, 1, 7, 11, 13, 18, 21, 99])
    if draw.whole(9) == 9:
        graph.initializer[0].data_location = TensorProto.EXTERNAL
    return model.SerializeToString()


def _attribute(draw: Draw):
    return draw.of([[0, 1, 2], [1, 0, 2], [0], [5, -9], -1, 7, 2**40, 1.5, "text"])
