"""Build the graph of a static embedding: the mean of a table's rows, one row for each token of a text.

The rows are summed a few thousand tokens at a time, because static embeddings have no maximum length, and the rows of a long
text would take a thousand times the memory of its token ids.

    input_ids (B, T)      --> part of the tokens --> rows of the table --.
    attention_mask (B, T) --> part of the tokens --> (B, 1, part) x (B, part, D), added up --> / count --> sentence_embedding
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from penult.graph.output_names import VECTORS

_ROWS = 4096  # tokens of a batch with rows in memory at a time: 4 MB at 256 values per row
_OPSET, _IR = 17, 8


def static_graph(table: TensorProto) -> onnx.ModelProto:
    """Return a graph that computes the mean of the table's rows over each text's tokens, or zeros for a text without tokens.

    Its inputs are `input_ids` and `attention_mask`, (B, T) int64. Its output is `sentence_embedding`, (B, D) float32.

    Args:
        table: (V, D) float32, one row per token id, all values finite; its data may be external.
    """
    weights = {
        "none": np.asarray(0, np.int64),
        "one": np.asarray([1], np.int64),
        "some": np.asarray(_ROWS, np.int64),
        "width": np.asarray([table.dims[1]], np.int64),
        "least": np.asarray(1, np.float32),
    }
    nodes = [
        # Masked ids may be any number, and an id that the table lacks would be an error.
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.BOOL),
        helper.make_node("Where", ["real", "input_ids", "none"], ["ids"]),
        helper.make_node("Cast", ["real"], ["mask"], to=TensorProto.FLOAT),
        # Parts of _ROWS // B tokens, at least one.
        helper.make_node("Shape", ["ids"], ["batch"], start=0, end=1),
        helper.make_node("Shape", ["ids"], ["length"], start=1, end=2),
        helper.make_node("Max", ["batch", "one"], ["texts"]),  # a batch without texts must not divide by zero
        helper.make_node("Div", ["some", "texts"], ["quotient"]),
        helper.make_node("Max", ["quotient", "one"], ["part"]),
        helper.make_node("Add", ["length", "part"], ["beyond"]),
        helper.make_node("Sub", ["beyond", "one"], ["last"]),
        helper.make_node("Div", ["last", "part"], ["parts_1"]),
        helper.make_node("Squeeze", ["parts_1"], ["parts"]),
        helper.make_node("Concat", ["batch", "width"], ["size"], axis=0),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("Loop", ["parts", "", "zeros"], ["sum"], body=_add_part()),
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),  # (B, T) -> (B, 1)
        helper.make_node("Max", ["count", "least"], ["divisor"]),
        helper.make_node("Div", ["sum", "divisor"], [VECTORS]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info(VECTORS, TensorProto.FLOAT, ["batch", table.dims[1]])
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "static_embedding", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR, producer_name="penult")
    model.graph.initializer.append(table)  # added here, because make_graph and make_model copy their contents
    model.graph.initializer[-1].name = "table"
    return model


def _add_part() -> onnx.GraphProto:
    """Return the loop body, which adds the rows of one part of the tokens to the sums (B, D)."""
    nodes = [
        helper.make_node("Mul", ["number", "part"], ["start"]),
        helper.make_node("Add", ["start", "part"], ["end"]),
        helper.make_node("Slice", ["ids", "start", "end", "one"], ["part_ids"]),
        helper.make_node("Slice", ["mask", "start", "end", "one"], ["part_mask"]),
        helper.make_node("Gather", ["table", "part_ids"], ["rows"]),  # (B, part) -> (B, part, D)
        helper.make_node("Unsqueeze", ["part_mask", "one"], ["weights"]),  # (B, 1, part)
        helper.make_node("MatMul", ["weights", "rows"], ["part_sum_1"]),
        helper.make_node("Squeeze", ["part_sum_1", "one"], ["part_sum"]),  # (B, 1, D) -> (B, D)
        helper.make_node("Add", ["sum_before", "part_sum"], ["sum_after"]),
        helper.make_node("Identity", ["going"], ["still_going"]),
    ]
    inputs = [
        helper.make_tensor_value_info("number", TensorProto.INT64, []),
        helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        helper.make_tensor_value_info("sum_before", TensorProto.FLOAT, ["batch", "width"]),
    ]
    outputs = [
        helper.make_tensor_value_info("still_going", TensorProto.BOOL, []),
        helper.make_tensor_value_info("sum_after", TensorProto.FLOAT, ["batch", "width"]),
    ]
    return helper.make_graph(nodes, "add_part", inputs, outputs)
