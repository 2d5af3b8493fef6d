"""Helpers of the tests of `graph/`: run a graph in plain ONNX Runtime, rename it, move nodes to functions, build one."""

import random
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from conftest import data_folder
from onnx import TensorProto, helper, numpy_helper

from penult import Engine
from penult.graph.find import attention as _attention
from penult.graph.find import layers as _layers
from penult.graph.find import linear as _linear
from penult.graph.find import positions as _positions
from penult.graph.find import unit_length as _unit_length
from penult.graph.find.flow import read_by
from penult.graph.find.graph_index import GraphIndex
from penult.graph.find.skeleton import infer, stated_types
from penult.graph.int8 import fp16
from penult.graph.int8 import quantize as _quantize
from penult.graph.rewrite import blockwise as _blockwise
from penult.graph.rewrite import cut as _cut
from penult.graph.rewrite import dynamic_axes as _dynamic_axes
from penult.graph.rewrite import input_names as _input_names
from penult.graph.rewrite import nan_guards as _nan_guards
from penult.graph.rewrite import pooling as _pooling
from penult.graph.rewrite import unfuse as _unfuse

HERE = Path(__file__).parent
ZOO = data_folder("zoo")
GRAPHS = sorted(p.stem for p in (HERE / "data" / "graphs").glob("*.onnx"))
ZOO_FILES = sorted(path.relative_to(ZOO).as_posix() for path in ZOO.rglob("*.onnx"))
_NAMES = {"int64": np.int64, "int32": np.int32, "float": np.float32, "float16": np.float16, "bool": np.bool_}
_TYPES = {f"tensor({name})": kind for name, kind in _NAMES.items()}


def load(file):
    """Load a graph with its weights."""
    return onnx.load(file)


def stored(name):
    """Return (graph, reference) of tests/data/graphs."""
    folder = HERE / "data" / "graphs"
    with np.load(folder / f"{name}.npz") as z:
        return onnx.load(folder / f"{name}.onnx"), dict(z)


def zoo_reference(file):
    """Return the reference of a zoo file."""
    with np.load(ZOO / file.partition("/")[0] / "reference.npz") as z:
        return dict(z)


def session(model):
    """Open a graph unchanged, without optimizations that could change a value."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def model_of(nodes, inputs, outputs, weights, opset=17):
    """Build a graph; an input is the shape of floats, or an array of its type and shape. Outputs are floats of any shape."""
    kinds = {name: given.dtype if isinstance(given, np.ndarray) else np.dtype(np.float32) for name, given in inputs.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kinds[name]), getattr(given, "shape", given))
         for name, given in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def running(*batches):
    """Return a function that runs a graph file from `x` on consecutive batches, as calibration needs it."""

    def run(path, outputs):
        engine = Engine(path, threads=1)
        for x in batches:
            yield dict(zip(outputs, engine.run({"x": x}, outputs=outputs), strict=True))

    return run


def run(model, given, fetch=None):
    """Run a graph: inputs beyond `given` are positions, or an empty cache. Returns the first output fetched."""
    opened = session(model)
    rows = len(given["input_ids"])
    feeds = {}
    for wanted in opened.get_inputs():
        if wanted.name in given:
            value = given[wanted.name]
        elif wanted.name == "position_ids":
            value = np.maximum(np.cumsum(given["attention_mask"], 1) - 1, 0)
        else:
            value = np.zeros([d if isinstance(d, int) else 0 if i else rows for i, d in enumerate(wanted.shape)])
        feeds[wanted.name] = np.ascontiguousarray(value.astype(_TYPES[wanted.type]))
    return opened.run([fetch] if fetch else None, feeds)[0]


def run_uncut(model, given, tensor):
    """Run the complete graph with a tensor as one more output."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    if tensor not in {o.name for o in whole.graph.output}:
        whole.graph.output.append(onnx.ValueInfoProto(name=tensor))
    return run(whole, given, tensor)


def shuffled(model, seed=0):
    """Return (copy with every tensor, initializer and node renamed and initializers reordered, old name -> new name).

    Graph inputs and outputs are named by their users and keep their names.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = {v.name for v in (*copy.graph.input, *copy.graph.output)}
    every = [o for n in copy.graph.node for o in n.output] + [i.name for i in copy.graph.initializer]
    old = [n for n in dict.fromkeys(every) if n and n not in kept]
    numbers = list(range(len(old)))
    random.Random(seed).shuffle(numbers)
    names = {n: f"v{i}" for n, i in zip(old, numbers, strict=True)}
    _rename(copy.graph, names)
    weights = list(copy.graph.initializer)
    random.Random(seed).shuffle(weights)
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(weights)
    return copy, names


def _rename(graph, names):
    for tensor in (*graph.initializer, *graph.value_info, *graph.output):
        tensor.name = names.get(tensor.name, tensor.name)
    for i, node in enumerate(graph.node):
        node.name = f"n{i * 7919 % 10007}"
        node.input[:] = [names.get(x, x) for x in node.input]
        node.output[:] = [names.get(x, x) for x in node.output]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, names)


def outlined(model, size=9):
    """Move every `size` adjacent nodes into a local function, as exporters that keep modules do."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(copy.graph.node)
    outputs = {o.name for o in copy.graph.output}
    del copy.graph.node[:]
    for start in range(0, len(nodes), size):
        inside = nodes[start : start + size]
        made = {o for n in inside for o in n.output if o}
        later = {r for n in nodes[start + size :] for r in read_by(n)} | outputs
        takes = sorted({r for n in inside for r in read_by(n)} - made)
        gives = sorted(made & later)
        name = f"module_{start}"
        copy.functions.append(helper.make_function("local", name, takes, gives, inside, list(copy.opset_import)))
        copy.graph.node.append(helper.make_node(name, takes, gives, domain="local"))
    copy.opset_import.append(helper.make_opsetid("local", 1))
    return copy


class Draft:
    """A graph under construction; weights are random, H = 8, two heads, a vocabulary of 20."""

    def __init__(self, opset=17, seed=0):
        """Start with `input_ids` (B, T)."""
        self.nodes, self.weights, self.rng, self.opset = [], [], np.random.default_rng(seed), opset
        self.inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]

    def op(self, kind, *inputs, domain="", **attributes):
        """Append a node with one output, and return its name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [f"x{len(self.nodes)}"], domain=domain, **attributes))
        return self.nodes[-1].output[0]

    def weight(self, *shape):
        """Add a random weight."""
        return self.constant(self.rng.normal(0, 0.4, shape).astype(np.float32))

    def constant(self, value):
        """Add an initializer."""
        self.weights.append(numpy_helper.from_array(np.asarray(value), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def embed(self, ids="input_ids"):
        """Look up tokens."""
        return self.op("Gather", self.weight(20, 8), ids)

    def dense(self, x, width=8, bias=True):
        """Multiply with a matrix; x is 8 wide unless the name of a wider one is in `widths`."""
        y = self.op("MatMul", x, self.weight(8, width))
        return self.op("Add", y, self.weight(width)) if bias else y

    def norm(self, x):
        """Append a LayerNormalization."""
        return self.op("LayerNormalization", x, self.weight(8), self.weight(8))

    def attention(self, x, source=None):
        """Append softmax(q k / 2) v over two heads of 4 channels."""
        split, merge = self.constant(np.array([0, 0, 2, 4])), self.constant(np.array([0, 0, 8]))
        q, k, v = (
            self.op("Transpose", self.op("Reshape", self.dense(s), split), perm=[0, 2, 1, 3])
            for s in (x, source or x, source or x)
        )
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        return self.dense(self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), merge))

    def feed_forward(self, x):
        """Append two matrices with Tanh between."""
        return self.dense(self.op("Tanh", self.dense(x)))

    def post_norm_layer(self, x):
        """Append a layer as BERT's."""
        x = self.norm(self.op("Add", self.attention(x), x))
        return self.norm(self.op("Add", self.feed_forward(x), x))

    def pre_norm_layer(self, x):
        """Append a layer as GPT's."""
        x = self.op("Add", self.attention(self.norm(x)), x)
        return self.op("Add", self.feed_forward(self.norm(x)), x)

    def model(self, *outputs):
        """Close the graph."""
        given = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "draft", self.inputs, given, self.weights)
        opsets = [
            helper.make_opsetid("", self.opset),
            helper.make_opsetid("com.microsoft", 1),
            helper.make_opsetid("strange", 1),
        ]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def changed(change, model, *args, **kwargs):
    """Apply an in-place change to a copy; return the copy, or the model itself if nothing changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy, *args, **kwargs)
    return model if copy.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True) else copy


def by_index(work):
    """Return a function of a model, for a function of its index."""
    return lambda model, *args, **kwargs: work(GraphIndex(model), *args, **kwargs)


def on_a_copy(change):
    """Return a function that returns a changed copy of a model, for an in-place change of its index."""
    return lambda model, *args, **kwargs: changed(by_index(change), model, *args, **kwargs)


hidden_states = by_index(_layers.hidden_states)
find_attention = by_index(_attention.find_attention)
find_linears = by_index(_linear.find_linears)
ends_in_normalize = by_index(_unit_length.ends_in_normalize)
position_table = by_index(_positions.position_table)
position_offset = by_index(_positions.position_offset)
quantize = by_index(_quantize.quantize)
name_inputs = by_index(_input_names.name_inputs)
cut = on_a_copy(_cut.cut)
free_axes = on_a_copy(_dynamic_axes.free_axes)
append_reducer = on_a_copy(_pooling.append_reducer)
unfuse = on_a_copy(_unfuse.unfuse)
drop_guards = on_a_copy(_nan_guards.drop_guards)
fuse_attention = on_a_copy(_blockwise.fuse_attention)


def widen(model):
    """Return a copy in single precision."""
    return changed(fp16.widen, model)


def shapes(bare, *, strict=False):
    """Return (element type, shape) of the tensors of a skeleton."""
    inferred = infer(bare, strict=strict)
    return {} if inferred is None and strict else stated_types(inferred or bare)
