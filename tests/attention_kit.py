"""Attention in the forms that exporters write, and inputs for it."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

LOWEST = float(np.finfo(np.float32).min)
MASKS = {
    "none": [[1] * 9, [1] * 9],
    "right": [[1] * 9, [1] * 4 + [0] * 5],
    "left": [[0] * 3 + [1] * 6, [1] * 9],
    "holes": [[1, 0, 1, 0, 1, 0, 1, 0, 1], [1] * 9],
    "nothing": [[1] * 9, [0] * 9],
}
WINDOW = 170


def attention(*, heads=2, width=8, value_width=8, scale="after", turn="direct", mask="row", low=LOWEST, guard="", end="turned"):
    """Build one attention layer over tables of queries, keys and values, in the forms that exporters write."""
    rng = np.random.default_rng(1)
    weights = {name: rng.standard_normal((40, heads * w)).astype(np.float32) for name, w in
               (("Q", width), ("K", width), ("V", value_width))}  # fmt: skip
    weights |= {"q4": np.array([0, 0, heads, width]), "v4": np.array([0, 0, heads, value_width]), "axes": np.array([1, 2])}
    weights |= {
        "one": np.float32(1),
        "low": np.float32(low),
        "zero": np.float32(0),
        "s": np.float32(0.3),
        "s2": np.float32(0.5),
        "in front": np.array([0, 1, 2]),
        "by head": np.arange(1, heads + 1, dtype=np.float32).reshape(1, heads, 1, 1),
    }
    nodes = []

    def op(kind, *reads, name=None, domain="", **said):
        nodes.append(helper.make_node(kind, list(reads), [name or f"t{len(nodes)}"], domain=domain, **said))
        return nodes[-1].output[0]

    q, k, v = (op("Reshape", op("Gather", name, "input_ids"), shape) for name, shape in
               (("Q", "q4"), ("K", "q4"), ("V", "v4")))  # fmt: skip
    q, v = (op("Transpose", x, perm=[0, 2, 1, 3]) for x in (q, v))
    if turn == "rotary":  # something happens to queries and keys after their heads were put apart
        q, k = op("Neg", q), op("Neg", op("Transpose", k, perm=[0, 2, 1, 3]))
    elif turn == "gated":
        q = op("Mul", q, op("Sigmoid", q))
    elif turn == "twice":
        k = op("Transpose", k, perm=[0, 2, 1, 3])
    elif turn in {"flat", "regrouped"}:  # queries times keys of three axes, as torch takes its operators apart
        k = _swapped(op, k, turn)
    if scale == "both":
        q, k = op("Mul", q, "s2"), op("Mul", "s2", k)
    if scale == "fused":
        k = k if turn in {"twice", "rotary"} else op("Transpose", k, perm=[0, 2, 1, 3])
        scores = op("FusedMatMul", q, k, domain="com.microsoft", alpha=0.3, transB=1)
    else:
        perm = [0, 1, 3, 2] if turn in {"twice", "rotary"} else [0, 2, 3, 1]
        k = k if turn in {"flat", "regrouped"} else op("Transpose", k, perm=perm)
        scores = op("MatMul", q, k)
    after = {
        "after": ("Mul", scores, "s"),
        "before": ("Mul", "s", scores),
        "divided": ("Div", scores, "s"),
        "heads": ("Mul", scores, "by head"),
    }
    scores = op(*after[scale]) if scale in after else scores
    masked = op("Add", _bias(op, mask), scores)
    shares = op("Softmax", masked, axis=-1)
    if guard:
        asked = op("IsNaN", masked if guard == "of scores" else shares)
        pair = (shares, "zero") if guard == "turned over" else ("one" if guard == "by ones" else "zero", shares)
        shares = op("Where", asked, *pair)
    mixed = op("MatMul", shares, v)
    out = mixed
    if end in {"reshaped", "regrouped", "read"}:
        out = _reshaped(op, mixed, q, v, regrouped=end == "regrouped")
    op("Transpose", out, perm=[0, 2, 1, 3] if end != "apart" else [0, 1, 2, 3], name="mixed")
    weights |= {str(number): np.array([number]) for number in (-1, 0, 1, 2, 3, 4)}
    weights |= {"zeros": np.array([0]), "half": np.array([value_width // 2])}
    weights |= {
        "ax": np.int64(1),
        "from": np.int64(0),
        "step": np.int64(1),
        "col": np.array([-1, 1]),
        "window": np.int64(WINDOW),
        "near": np.int64(64),
    }
    graph = helper.make_graph(
        nodes, "attention",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("mixed", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )  # fmt: skip
    if end == "read":
        size = next(node.output[0] for node in nodes if node.op_type == "Shape" and node.input[0] == mixed)
        graph.output.append(helper.make_tensor_value_info(size, TensorProto.INT64, None))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _swapped(op, k, turn):
    """Swap the last two axes of keys (B, T, N, H) with three axes, as torch decomposes its operators."""
    k = op("Transpose", k, perm=[0, 2, 1, 3])
    first, tokens, last = (op("Slice", op("Shape", k), *pair, "zeros") for pair in (("0", "2"), ("2", "3"), ("3", "4")))
    merged = op("Reshape", k, op("Concat", "-1", tokens, last, axis=0))
    if turn == "regrouped":
        first = op("Concat", op("Slice", first, "1", "2"), op("Slice", first, "0", "1"), axis=0)
    return op("Reshape", op("Transpose", merged, perm=[0, 2, 1]), op("Concat", first, last, tokens, axis=0))


def _bias(op, mask):
    """Append the tensor that is added to the scores."""
    there = op("Unsqueeze", "attention_mask", "axes")
    if mask == "heads":
        return op("Mul", op("Sub", "one", op("Cast", there, to=TensorProto.FLOAT)), "by head")
    if mask in {"shared", "shared row"}:  # by all texts
        least = op("ReduceMin", op("Cast", "attention_mask", to=TensorProto.FLOAT), axes=[0], keepdims=0)
        bias = op("Mul", op("Sub", "one", least), "low")
        return op("Unsqueeze", bias, "in front") if mask == "shared row" else bias
    if mask == "column":
        return op("Transpose", op("Sub", "one", op("Cast", there, to=TensorProto.FLOAT)), perm=[0, 1, 3, 2])
    if mask == "row":
        return op("Mul", op("Sub", "one", op("Cast", there, to=TensorProto.FLOAT)), "low")
    bias = op("Where", op("And", op("Cast", there, to=TensorProto.BOOL), _allowed(op, mask)), "zero", "low")
    return op("Mul", bias, "by head") if mask == "heads and queries" else bias


def _reshaped(op, mixed, q, v, *, regrouped):
    """Append a Reshape to the sizes of the attention output, or to others with the same product."""
    rows, tokens = op("Slice", op("Shape", mixed), "0", "1"), op("Slice", op("Shape", q), "2", "3")
    last = "half" if regrouped else op("Slice", op("Shape", v), "3", "4")
    return op("Reshape", mixed, op("Concat", rows, "-1", tokens, last, axis=0))


def _allowed(op, mask):
    """Return which query may see which key, as (T, T) or (T, 1)."""
    places = op("Range", "from", op("Gather", op("Shape", "input_ids"), "ax"), "step")
    rows = op("Reshape", places, "col")
    if mask == "causal":
        return op("LessOrEqual", places, rows)
    if mask in {"window", "near"}:
        return op("Less", op("Abs", op("Sub", places, rows)), mask)
    return op("GreaterOrEqual", rows, "from")  # the same for all, which only running it shows


def ids(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, 40, (rows, length))


def operators(model):
    """Return the operators of a graph, in order."""
    return [node.op_type for node in model.graph.node]
