"""Append pooling and the steps around it to a graph, so that the runtime returns only the final vectors.

Every pooling is a selection of rows followed by a weighted sum or a maximum: `cls` is the mean over the first selected row,
`last` over the last one. Only operators whose semantics are the same from opset 11 on are used, so the graph keeps its opset.

    token_embeddings (B, T, H) --> token steps --> unselected rows = 0 --> sum / count --> steps --> sentence_embedding
    attention_mask   (B, T)    --> selected rows ----------^                  ^
                                        `------------- count -----------------'
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from penult.graph.find.flow import every_node
from penult.graph.find.graph_index import GraphIndex
from penult.graph.output_names import VECTORS
from penult.graph.rewrite.builder import PREFIX, Builder
from penult.graph.rewrite.steps import Dense, LayerNorm, Step, append_step, normalize, width_after
from penult.types import Pooling

__all__ = ["Dense", "LayerNorm", "Reducer", "Step", "append_reducer"]


@dataclass(frozen=True, slots=True)
class Reducer:
    """The operations to append.

    Attributes:
        pooling: one, or several whose vectors are concatenated in this order. None if `source` is already (B, D).
        steps: the steps after the pooling, in order: dense layers, layer norms and "normalize".
        dimensions: number of leading values to keep. None: all.
        rows_input: the (B, T) input whose non-zero entries are the rows to pool.
        exclude_ids: select rows by id instead: all except these ids.
        only_id: select rows by id instead: only this id.
        token_steps: the steps applied to every token before the pooling, in order; empty if `pooling` is None.
        renormalize: normalize the kept values again. None: only if the last step is "normalize".
    """

    pooling: Pooling | tuple[Pooling, ...] | None
    steps: tuple[Step, ...] = ()
    dimensions: int | None = None
    rows_input: str = "attention_mask"
    exclude_ids: tuple[int, ...] = ()
    only_id: int | None = None
    token_steps: tuple[Step, ...] = ()
    renormalize: bool | None = None


def append_reducer(index: GraphIndex, source: str, reducer: Reducer) -> None:
    """Add the output `sentence_embedding`, (B, D) float32, to a model.

    With token steps, an output named `source` returns the tokens after these steps, as float32.

    Args:
        index: index of a graph with the float tensor `source`, (B, T, H), or (B, D) if `reducer.pooling` is None.
        source: the tensor to reduce; with token steps, the output of a node.
        reducer: the operations to append.

    Raises:
        ValueError: a pooling, step or activation is not supported, or there are token steps without tokens.
    """
    _check(reducer)
    graph = index.model.graph
    build = Builder(graph, index.opset)
    width = _declared_width(graph, source)
    inner = _rename(graph, source) if reducer.token_steps else source
    x = build.op("Cast", inner, to=TensorProto.FLOAT)  # half precision overflows in sums and norms
    if reducer.pooling is not None:
        for step in reducer.token_steps:
            x, width = append_step(build, x, step, axis=2), width_after(step, width)
        if inner != source:
            _expose(build, graph, x, source, width=width)
        x = _pool(build, x, reducer)
        width = width and width * len(_poolings(reducer))
    for step in reducer.steps:
        x, width = append_step(build, x, step, axis=1), width_after(step, width)
    if reducer.dimensions is not None:
        bounds = (build.ints(value) for value in ([0], [reducer.dimensions], [1]))
        x = build.op("Slice", x, *bounds)  # (B, D) -> (B, dimensions)
        again = reducer.steps[-1:] == ("normalize",) if reducer.renormalize is None else reducer.renormalize
        x = normalize(build, x, axis=1) if again else x
    build.op("Identity", x, output=VECTORS)
    kept = reducer.dimensions and min(reducer.dimensions, width or reducer.dimensions)
    graph.output.append(helper.make_tensor_value_info(VECTORS, TensorProto.FLOAT, ["batch", kept or "D"]))
    index.changed({source: inner})


def _check(reducer: Reducer) -> None:
    if reducer.token_steps and reducer.pooling is None:
        raise ValueError(
            "Token steps need token embeddings (B, T, H) and a pooling, but the output of the graph is already pooled."
        )
    wrong = [name for name in _poolings(reducer) if name not in _POOLINGS]
    if wrong or reducer.pooling == ():
        raise ValueError(f"pooling is {wrong[0] if wrong else ()!r}; it must be one of {', '.join(_POOLINGS)}.")


def _poolings(reducer: Reducer) -> tuple[Pooling, ...]:
    if reducer.pooling is None:
        return ()
    return (reducer.pooling,) if isinstance(reducer.pooling, str) else reducer.pooling


def _pool(build: Builder, x: str, reducer: Reducer) -> str:
    rows = _rows(build, reducer)  # (B, T) float, 1 = selected
    parts = [_POOLINGS[pooling](build, x, rows) for pooling in _poolings(reducer)]
    return parts[0] if len(parts) == 1 else build.node("Concat", parts, {"axis": 1})  # n x (B, H) -> (B, n H)


def _mean(build: Builder, x: str, rows: str) -> str:
    column, count = _column(build, rows), build.dot(rows, rows)  # (B, T, 1), (B, 1, 1)
    return _quotient(build, _sum(build, x, column, weights=rows), count)


def _mean_sqrt_length(build: Builder, x: str, rows: str) -> str:
    column, count = _column(build, rows), build.dot(rows, rows)
    return _quotient(build, _sum(build, x, column, weights=rows), count, root=True)


def _weighted_mean(build: Builder, x: str, rows: str) -> str:
    """Append the weighted mean: weight 1 for the first token of a text, 2 for the second, and so on.

    Prompt tokens that the pooling excludes are still counted, so the attention mask determines the first token.
    """
    build.need_input("attention_mask")
    real = build.op("CumSum", _zero_one(build, "attention_mask"), build.ints(1))
    begun = build.op("Cast", build.op("Greater", real, build.float(0.0)), to=TensorProto.FLOAT)  # from the first token on
    weights = build.op("Mul", rows, build.op("CumSum", begun, build.ints(1)))  # (B, T)
    column, total = _column(build, rows), build.dot(weights, rows)
    return _quotient(build, _sum(build, x, column, weights=weights), total)


def _first(build: Builder, x: str, rows: str) -> str:
    return _mean(build, x, _nth(build, rows, wanted=None))


def _last(build: Builder, x: str, rows: str) -> str:
    return _mean(build, x, _nth(build, rows, wanted=rows))


def _max(build: Builder, x: str, rows: str) -> str:
    column, count = _column(build, rows), build.dot(rows, rows)
    low = build.op("Where", column, x, build.float(float(np.finfo(np.float32).min)))
    pooled = build.reduce("ReduceMax", low, axis=1)  # (B, T, H) -> (B, H)
    some = build.op("Greater", build.op("Reshape", count, build.ints([-1, 1])), build.float(0.0))
    return build.op("Where", some, pooled, build.float(0.0))


# In the order of `penult.types.Pooling`.
_POOLINGS = {
    "mean": _mean,
    "max": _max,
    "cls": _first,
    "last": _last,
    "weightedmean": _weighted_mean,
    "mean_sqrt_len_tokens": _mean_sqrt_length,
}


def _nth(build: Builder, rows: str, *, wanted: str | None) -> str:
    """Keep one selected row: the first if `wanted` is None, else the last of `wanted`, (B, T) of 0 and 1."""
    nth = build.op("CumSum", rows, build.ints(1))
    number = build.float(1.0) if wanted is None else build.op("Reshape", build.dot(wanted, wanted), build.ints([-1, 1]))
    hit = build.op("And", build.op("Equal", nth, number), build.op("Greater", rows, build.float(0.0)))
    return build.op("Cast", hit, to=TensorProto.FLOAT)


def _column(build: Builder, rows: str) -> str:
    return build.op("Cast", build.op("Reshape", rows, build.ints([0, -1, 1])), to=TensorProto.BOOL)  # (B, T) -> (B, T, 1)


def _sum(build: Builder, x: str, column: str, *, weights: str) -> str:
    # Unselected rows are set to zero first: they may be NaN, and NaN x 0 is NaN.
    kept = build.op("Where", column, x, build.float(0.0))
    row = build.op("Reshape", weights, build.ints([0, 1, -1]))  # (B, 1, T)
    return build.op("MatMul", row, kept)  # (B, 1, T) x (B, T, H) -> (B, 1, H)


def _quotient(build: Builder, total: str, count: str, *, root: bool = False) -> str:
    """Divide a sum (B, 1, H) by the rows' count or weight, or by its square root; zeros if no row is selected."""
    divisor = build.op("Max", count, build.float(1e-9))  # a count is 0 or at least 1
    divisor = build.op("Sqrt", divisor) if root else divisor
    return build.op("Squeeze1", build.op("Div", total, divisor))  # (B, 1, H) -> (B, H)


def _rows(build: Builder, reducer: Reducer) -> str:
    if reducer.only_id is not None:
        same = build.op("Equal", build.cast_ids(), build.ints(reducer.only_id))
        return build.op("Cast", same, to=TensorProto.FLOAT)
    if reducer.exclude_ids:
        ids = build.cast_ids()
        keep = ""
        for token in reducer.exclude_ids:
            other = build.op("Not", build.op("Equal", ids, build.ints(token)))
            keep = build.op("And", keep, other) if keep else other
        return build.op("Cast", keep, to=TensorProto.FLOAT)
    build.need_input(reducer.rows_input)
    return _zero_one(build, reducer.rows_input)


def _zero_one(build: Builder, mask: str) -> str:
    return build.op("Cast", build.op("Cast", mask, to=TensorProto.BOOL), to=TensorProto.FLOAT)


def _declared_width(graph: onnx.GraphProto, source: str) -> int | None:
    """Return the size of the last axis of an output; None if it is not stated."""
    dims = [dim for output in graph.output if output.name == source for dim in output.type.tensor_type.shape.dim]
    return dims[-1].dim_value or None if dims else None


def _rename(graph: onnx.GraphProto, source: str) -> str:
    """Rename the tensor of an output, so that other nodes can produce the output; return the new name."""
    if source not in {output.name for output in graph.output}:
        return source
    inner = f"{PREFIX}{source}"
    for node in every_node(graph.node):
        node.input[:] = [inner if name == source else name for name in node.input]
        node.output[:] = [inner if name == source else name for name in node.output]
    for value in graph.value_info:
        value.name = inner if value.name == source else value.name
    for note in graph.quantization_annotation:
        note.tensor_name = inner if note.tensor_name == source else note.tensor_name
    return inner


def _expose(build: Builder, graph: onnx.GraphProto, tensor: str, output: str, *, width: int | None) -> None:
    """Make an output (B, T, H) of a graph return `tensor`, as float32."""
    build.op("Identity", tensor, output=output)
    kind = next(value.type.tensor_type for value in graph.output if value.name == output)
    kind.elem_type = TensorProto.FLOAT
    if kind.shape.dim:
        kind.shape.dim[-1].Clear()
        if width is not None:
            kind.shape.dim[-1].dim_value = width
