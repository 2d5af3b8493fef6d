"""Append the reducer to a graph, so that only finished vectors leave the runtime.

Every pooling is a choice of rows followed by a mean or a maximum: `cls` is the mean over the first chosen row, `last` over
the last one. The operators used have one meaning from opset 11 on, so that a graph of any age keeps its opset.

    token_embeddings (B, T, H) --> rows not chosen = 0 --> sum / count --> dense ... --> normalise --> sentence_embedding
    attention_mask   (B, T)    --> chosen rows ----^          ^
                                        `---------- count ----'
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from penult.graph.opsets import opset_of
from penult.types import Pooling

OUTPUT = "sentence_embedding"
_PREFIX = "penult/"  # no exporter writes it, so no name can clash


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer y = activation(x W + b); weight (H, D), bias (D,) or None."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: str


@dataclass(frozen=True, slots=True)
class Reducer:
    """What is appended.

    Attributes:
        pooling: None where `source` is (B, D) already.
        steps: what follows, in order: dense layers and "normalize".
        dimensions: the leading values kept, normalised again if the last step is "normalize".
        rows_input: the (B, T) input whose non-zero entries are the rows to pool.
        exclude_ids: choose rows by their ids instead: all but these.
        only_id: choose rows by their ids instead: only this one.
    """

    pooling: Pooling | None
    steps: tuple[Dense | str, ...] = ()
    dimensions: int | None = None
    rows_input: str = "attention_mask"
    exclude_ids: tuple[int, ...] = ()
    only_id: int | None = None


def append_reducer(model: onnx.ModelProto, source: str, reducer: Reducer) -> onnx.ModelProto:
    """Give a new model with one more output, `sentence_embedding` (B, D) float32.

    Args:
        model: a graph with the float tensor `source`, (B, T, H), or (B, D) with `reducer.pooling` None. It is not changed.
        source: the tensor to reduce.
        reducer: how.

    Raises:
        ValueError: an activation that penult does not have.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    build = _Builder(out.graph, opset_of(out))
    x = build.op("Cast", source, to=TensorProto.FLOAT)  # half precision overflows in sums and norms
    if reducer.pooling is not None:
        x = _pool(build, x, reducer)
    for step in reducer.steps:
        x = _normalize(build, x) if isinstance(step, str) else _dense(build, x, step)
    if reducer.dimensions is not None:
        bounds = (build.ints(value) for value in ([0], [reducer.dimensions], [1]))
        x = build.op("Slice", x, *bounds)  # (B, D) -> (B, dimensions)
        x = _normalize(build, x) if reducer.steps and reducer.steps[-1] == "normalize" else x
    build.op("Identity", x, output=OUTPUT)
    out.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", reducer.dimensions or "D"]))
    return out


def _pool(build: "_Builder", x: str, reducer: Reducer) -> str:
    rows = _rows(build, reducer)  # (B, T) float, 1 = chosen
    if reducer.pooling in ("cls", "last"):
        nth = build.op("CumSum", rows, build.ints(1))
        last = reducer.pooling == "last"
        wanted = build.op("Reshape", build.count(rows), build.ints([-1, 1])) if last else build.float(1.0)  # (B, 1), ()
        hit = build.op("And", build.op("Equal", nth, wanted), build.op("Greater", rows, build.float(0.0)))
        rows = build.op("Cast", hit, to=TensorProto.FLOAT)
    column = build.op("Cast", build.op("Reshape", rows, build.ints([0, -1, 1])), to=TensorProto.BOOL)  # (B, T, 1)
    count = build.count(rows)  # (B, 1, 1)
    if reducer.pooling == "max":
        low = build.op("Where", column, x, build.float(float(np.finfo(np.float32).min)))
        pooled = build.reduce("ReduceMax", low, axis=1)  # (B, T, H) -> (B, H)
        some = build.op("Greater", build.op("Reshape", count, build.ints([-1, 1])), build.float(0.0))
        return build.op("Where", some, pooled, build.float(0.0))
    # Rows that are not chosen are set to zero first: what stands there may be NaN, and NaN x 0 is NaN.
    kept = build.op("Where", column, x, build.float(0.0))
    row = build.op("Reshape", rows, build.ints([0, 1, -1]))  # (B, 1, T)
    total = build.op("MatMul", row, kept)  # (B, 1, T) x (B, T, H) -> (B, 1, H)
    mean = build.op("Div", total, build.op("Max", count, build.float(1e-9)))
    return build.op("Squeeze1", mean)  # (B, 1, H) -> (B, H)


def _rows(build: "_Builder", reducer: Reducer) -> str:
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
    return build.op("Cast", build.op("Cast", reducer.rows_input, to=TensorProto.BOOL), to=TensorProto.FLOAT)


def _normalize(build: "_Builder", x: str) -> str:
    """Divide by the Euclidean norm, or by 1e-12 where that is larger, as torch.nn.functional.normalize does."""
    norm = build.reduce("ReduceL2", x, axis=1, keepdims=1)
    return build.op("Div", x, build.op("Max", norm, build.float(1e-12)))


def _dense(build: "_Builder", x: str, dense: Dense) -> str:
    y = build.op("MatMul", x, build.constant(dense.weight))  # (B, H) -> (B, D)
    if dense.bias is not None:
        y = build.op("Add", y, build.constant(dense.bias))
    if dense.activation == "GELU":  # x / 2 (1 + erf(x / sqrt 2)), the exact form, torch's default
        erf = build.op("Erf", build.op("Div", y, build.float(2.0**0.5)))
        return build.op("Mul", build.op("Mul", y, build.float(0.5)), build.op("Add", erf, build.float(1.0)))
    if dense.activation == "SiLU":
        return build.op("Mul", y, build.op("Sigmoid", y))
    operators = {"Identity": "Identity", "Tanh": "Tanh", "ReLU": "Relu", "Sigmoid": "Sigmoid"}
    if dense.activation not in operators:
        raise ValueError(f"The activation {dense.activation!r} is none of {', '.join([*operators, 'GELU', 'SiLU'])}.")
    return build.op(operators[dense.activation], y)


class _Builder:
    """Appends nodes to a graph under names that no exporter writes."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self._graph = graph
        self._opset = opset
        self._made = 0

    def op(self, kind: str, *inputs: str, output: str = "", to: int | None = None) -> str:
        """Append a node with one output and give its name. `Squeeze1` takes axis 1 out, in whatever way the opset says."""
        if kind == "Squeeze1":
            if self._opset >= 13:
                return self.op("Squeeze", *inputs, self.ints([1]))
            return self._node("Squeeze", inputs, output, {"axes": [1]})
        return self._node(kind, inputs, output, {} if to is None else {"to": to})

    def reduce(self, kind: str, x: str, *, axis: int, keepdims: int = 0) -> str:
        """Append a reduction; its axes became an input with opset 18."""
        if self._opset >= 18:
            return self._node(kind, (x, self.ints([axis])), "", {"keepdims": keepdims})
        return self._node(kind, (x,), "", {"axes": [axis], "keepdims": keepdims})

    def count(self, rows: str) -> str:
        """Count the chosen rows: (B, T) of 0 and 1 -> (B, 1, 1)."""
        row, column = (self.op("Reshape", rows, self.ints(shape)) for shape in ([0, 1, -1], [0, -1, 1]))
        return self.op("MatMul", row, column)

    def cast_ids(self) -> str:
        """Give the token ids as int64."""
        self.need_input("input_ids")
        return self.op("Cast", "input_ids", to=TensorProto.INT64)

    def need_input(self, name: str) -> None:
        """Add a (B, T) input where the graph has none of that name (an unmasked export has no attention_mask)."""
        if name not in {node.name for node in self._graph.input}:
            shape = ["batch", "sequence"]
            self._graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))

    def ints(self, values: Sequence[int] | int) -> str:
        return self.constant(np.asarray(values, dtype=np.int64))

    def float(self, value: float) -> str:
        return self.constant(np.asarray(value, dtype=np.float32))

    def constant(self, array: NDArray[np.generic]) -> str:
        name = self._name()
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def _node(self, kind: str, inputs: Sequence[str], output: str, attributes: Mapping[str, int | list[int]]) -> str:
        output = output or self._name()
        node = helper.make_node(kind, list(inputs), [output], name=_PREFIX + output)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._graph.node.append(node)
        return output

    def _name(self) -> str:
        self._made += 1
        return f"{_PREFIX}{self._made}"
