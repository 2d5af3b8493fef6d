"""Damaged or malicious files: one clear error that names the file, without a hang, a crash or excessive memory."""

import json
import multiprocessing
import os
import re
import resource
import signal
import time
import traceback
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_kit import cut, hidden_states
from hypothesis import given, settings
from hypothesis import strategies as st
from models import bert_graph, bert_weights, tiny_model, write_json
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from penult import Embedder, Engine
from penult.core.config.config_json import read_object
from penult.core.config.tokenizer_limits import check_normalizer
from penult.core.recipe import Overrides, read
from penult.core.tokenizer import Tokenizer
from penult.graph.find.layers import NotATransformerError

SECONDS, MEMORY = 30, 6 * 2**30


def apart(work, *given):
    """Call a function in a child with limits of time and memory; return its result, or "ErrorName: message"."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            answer = work(*given)
        except (ValueError, FileNotFoundError) as error:
            answer = f"{type(error).__name__}: {error}"
        except BaseException:  # noqa: BLE001 - whatever it is, the parent judges it
            answer = f"unclear: {traceback.format_exc()}"
        theirs.send(answer)
        os._exit(0)
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        answer = "unclear: no answer"
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the process ended with the status {status}"
    return answer


def embeds(folder):
    """Load a model and embed a text; "ok" if there is a finite vector."""
    with Embedder.load(folder, threads=1) as e:
        return "ok" if np.isfinite(e.embed(["the cat"])).all() else "not finite"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A model whose graph file has no weights: they are external data."""
    folder = tiny_model(tmp_path_factory.mktemp("hostile") / "model")
    graph = folder / "onnx" / "model.onnx"
    onnx.save_model(onnx.load(graph), graph, save_as_external_data=True, location="weights.data", size_threshold=100)
    assert apart(embeds, folder) == "ok"
    return folder


@st.composite
def mutations(draw):
    """Draw a change of bytes at a relative position: truncate, flip, overwrite, repeat or remove."""
    kind = draw(st.sampled_from(["cut", "flip", "set", "repeat", "drop"]))
    places = st.floats(0, 1, exclude_max=True)
    changes = draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4))

    def mutate(content: bytes) -> bytes:
        result = bytearray(content)
        for place, value in changes:
            i = int(place * len(result))
            if kind == "cut":
                del result[i:]
            elif kind == "flip" and result:
                result[i] ^= 1 << value % 8
            elif kind == "set" and result:
                result[i] = value
            elif kind == "repeat":
                result[i:i] = result[i : i + value]
            elif kind == "drop":
                del result[i : i + value % 50]
        return bytes(result)

    return mutate


def check_one_file(folder, path, content):
    """With these bytes in one of its files, a model works or an error names one of its files."""
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        answer = apart(embeds, folder)
    finally:
        path.write_bytes(whole)
    assert answer == "ok" or (answer.startswith(("ValueError", "FileNotFoundError", "NotATransformer", "Unicode"))), answer
    assert answer == "ok" or str(folder) in answer, answer


@settings(deadline=None, max_examples=25)
@given(mutations())
def test_a_damaged_graph(bare, mutate):
    """A graph with truncated, flipped, repeated or missing bytes loads, or an error names it."""
    path = bare / "onnx" / "model.onnx"
    check_one_file(bare, path, mutate(path.read_bytes()))


@settings(deadline=None, max_examples=25)
@given(mutations())
def test_a_damaged_tokenizer(bare, mutate):
    """The same for tokenizer.json."""
    path = bare / "tokenizer.json"
    check_one_file(bare, path, mutate(path.read_bytes()))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A model with a dense layer after the pooling."""
    folder = tiny_model(tmp_path_factory.mktemp("dense") / "model")
    add_dense(folder, {"linear.weight": np.ones((5, 32), np.float32), "linear.bias": np.ones(5, np.float32)})
    assert apart(embeds, folder) == "ok"
    return folder


def add_dense(folder, tensors, name="2_Dense"):
    write_json(folder / name / "config.json", {"activation_function": "torch.nn.modules.linear.Identity"})
    save_file(tensors, folder / name / "model.safetensors")
    listed = json.loads((folder / "modules.json").read_text())
    listed.insert(2, {"type": "sentence_transformers.models.Dense", "path": name})
    write_json(folder / "modules.json", listed)


@settings(deadline=None, max_examples=25)
@given(mutations())
def test_damaged_weights_of_a_dense_layer(dense, mutate):
    """The same for the safetensors file of a dense layer."""
    path = dense / "2_Dense" / "model.safetensors"
    check_one_file(dense, path, mutate(path.read_bytes()))


@pytest.mark.parametrize(
    ("tensors", "held"),
    [
        ({}, "nothing"),
        ({"linear.bias": np.ones(5, np.float32)}, r"bias float32 \(5,\)"),
        ({"linear.weight": np.ones(5, np.float32)}, r"weight float32 \(5,\)"),
        ({"linear.weight": np.ones((5, 32), np.float32), "linear.bias": np.ones(4, np.float32)}, r"bias float32 \(4,\)"),
    ],
)
def test_a_dense_layer_without_a_matrix(tmp_path, tensors, held):
    """The error states what a dense layer's file has instead of a weight and a bias."""
    add_dense(tiny_model(tmp_path), tensors)
    with pytest.raises(ValueError, match=rf"2_Dense.model\.safetensors has .*{held}"):
        Embedder.load(tmp_path)


def test_a_false_header(dense):
    """A safetensors header that states more bytes than any disk has is rejected."""
    for size in (2**63 - 1, 2**40, 10**8 + 1, 0):
        check_one_file(dense, dense / "2_Dense" / "model.safetensors", size.to_bytes(8, "little") + b"{}")


# --- graphs that parse


def function(name, nodes):
    return helper.make_function("f", name, ["x"], ["y"], nodes, [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)])


def calling(*functions, first):
    """Return a BERT in which a function is called on the ids."""
    model = bert_graph(bert_weights(), 4)
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.functions.extend(functions)
    model.graph.node.insert(0, helper.make_node(first, ["input_ids"], ["called"], domain="f"))
    return model


def endless():
    """Return two functions that call each other."""
    return calling(
        *(function(a, [helper.make_node(b, ["x"], ["y"], domain="f")]) for a, b in (("a", "b"), ("b", "a"))), first="a"
    )


def billions():
    """Return twelve functions, each calling the one before ten times: 10^12 nodes."""
    functions = []
    for level in range(12):
        kind, domain = ("Identity", "") if level == 0 else (f"a{level - 1}", "f")
        names = ["x", *(f"t{i}" for i in range(9)), "y"]
        functions.append(
            function(f"a{level}", [helper.make_node(kind, [names[i]], [names[i + 1]], domain=domain) for i in range(10)])
        )
    return calling(*functions, first="a11")


def circle():
    model = bert_graph(bert_weights(), 4)
    model.graph.node[5].input[0] = model.graph.node[30].output[0]
    return model


def made_twice(by):
    """Return a tensor with two producers (found by the fuzzer): nodes, or an input or a weight and a node."""
    model = bert_graph(bert_weights(), 4)
    name = model.graph.node[30].output[0]
    if by == "input":
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "sequence", 32]))
    elif by == "weight":
        model.graph.initializer[0].name = name
    else:
        model.graph.node[5].output[0] = name
    return model


def bare_operator(kind):
    """Return a node without its required inputs (found by the fuzzer)."""
    model = bert_graph(bert_weights(), 4)
    del model.graph.node[0].input[:]
    model.graph.node[0].op_type = kind
    return model


def long_chain():
    model = bert_graph(bert_weights(), 4)
    for i in range(50_000):
        model.graph.node.append(helper.make_node("Relu", [f"c{i - 1}" if i else "last_hidden_state"], [f"c{i}"]))
    return model


def without(field):
    model = bert_graph(bert_weights(), 4)
    (model.opset_import if field == "opset_import" else getattr(model.graph, field)).__delitem__(slice(None))
    return model


def resized(*dims):
    model = bert_graph(bert_weights(), 4)
    table = next(i for i in model.graph.initializer if i.name.startswith("embeddings.word"))
    table.dims[:] = dims
    return model


def huge_constant():
    """Return a graph of a few bytes that allocates 4 TB."""
    model = bert_graph(bert_weights(), 4)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([2**40]), "huge"))
    graph.node[0].output[0] = "looked up"
    graph.node.insert(1, helper.make_node("ConstantOfShape", ["huge"], ["zeros"]))
    graph.node.insert(2, helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0))
    graph.node.insert(3, helper.make_node("Add", ["looked up", "sum"], ["t1"]))
    return model


def looping(kind, *inputs, nodes=(), weights=(), before=(), **attributes):
    """Return a BERT after a node that has a graph."""
    model = bert_graph(bert_weights(), 4)
    value = helper.make_tensor_value_info
    scan = kind == "Scan"
    body = helper.make_graph(
        [helper.make_node("Identity", ["x" if scan else "go"], ["again"]), *nodes],
        "body",
        [value("x", TensorProto.INT64, None)]
        if scan
        else [value("turn", TensorProto.INT64, []), value("go", TensorProto.BOOL, [])],
        [value("again", TensorProto.INT64 if scan else TensorProto.BOOL, None)],
    )
    if kind == "If":
        del body.input[:]
        body.node[0].CopyFrom(helper.make_node("Identity", ["yes"], ["again"]))
        other = helper.make_graph([helper.make_node("Identity", ["yes"], ["again"])], "other", [], body.output)
        attributes = {"then_branch": body, "else_branch": other}
    else:
        attributes |= {"body": body}
    weights = {"yes": np.array(True), **dict(weights)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    nodes = [*before, helper.make_node(kind, inputs, ["looped"] if kind != "Loop" else [], name="looping", **attributes)]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    return model


def loop(turns, **more):
    return looping("Loop", "turns", "yes", weights={"turns": np.array(turns), **more.pop("weights", {})}, **more)


def nested(depth, kind="If"):
    """Return an If in an If in an If, or as many loops of a few iterations."""
    node = None
    for _ in range(depth):
        inner = looping(kind, *(("turns", "yes") if kind == "Loop" else ("yes",)), weights={"turns": np.array(40)},
                        nodes=[] if node is None else [node])  # fmt: skip
        node = inner.graph.node[0]
        node.output[:] = [] if kind == "Loop" else [f"o{depth}{_}"]
    return inner


def called(node):
    """Return the node within a local function."""
    return calling(function("looping", [node, helper.make_node("Identity", ["x"], ["y"])]), first="looping")


def called_with_turns():
    """Return a function whose caller states the iterations of its loop; the function's own value is never used."""
    turns = helper.make_node("Constant", [], ["turns"], value_int=5)
    turns.attribute[0].ref_attr_name = "count"
    node = looping("Loop", "turns", "").graph.node[0]
    return calling(function("looping", [turns, node, helper.make_node("Identity", ["x"], ["y"])]), first="looping")


def cast(value, *types):
    """Return a loop over a constant that is cast to several types in turn."""
    nodes = [helper.make_node("Cast", [f"c{i}"], [f"c{i + 1}"], to=type_) for i, type_ in enumerate(types)]
    return looping("Loop", f"c{len(types)}", "yes", weights={"c0": np.array(value)}, before=nodes)


def length_of(tensor, *before):
    """Return a loop over the length of a tensor's last axis."""
    nodes = [*before, helper.make_node("Shape", [tensor], ["shape"]), helper.make_node("Gather", ["shape", "last"], ["turns"])]
    return looping("Loop", "turns", "yes", weights={"last": np.array(-1), "many": np.array([2**31])}, before=nodes)


def doubled(times):
    """Concatenate the ids with themselves repeatedly."""
    return [helper.make_node("Concat", [f"d{i - 1}" if i else "input_ids"] * 2, [f"d{i}"], axis=1) for i in range(times)]


ENDLESS = "whose number of iterations is neither a constant nor the length"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loop(2**62), r"has loops that run [\d,]+ nodes; at most 2,000,000 are allowed"),
        (lambda: loop(3), "ok"),
        (lambda: loop(-1), "ok"),
        (lambda: looping("Loop", "", "yes"), ENDLESS),
        (lambda: looping("Loop"), "model.onnx"),
        (lambda: looping("Loop", "attention_mask", "yes"), ENDLESS),
        (lambda: loop(3, before=[helper.make_node("Neg", ["turns"], ["t"])]), "ok"),
        (lambda: looping("Loop", "sum", "yes", weights={"turns": np.array(2**62)},
                         before=[helper.make_node("Add", ["turns", "turns"], ["sum"])]), ENDLESS),
        (lambda: looping("Loop", "same", "yes", weights={"turns": np.array(2**62)},
                         before=[helper.make_node("Identity", ["turns"], ["same"])]), "has loops that run"),
        (lambda: cast(3, TensorProto.FLOAT, TensorProto.INT64), "ok"),
        (lambda: cast(np.float32(np.inf), TensorProto.INT64), ENDLESS),
        (lambda: cast(-1, TensorProto.UINT32, TensorProto.INT64), ENDLESS),
        (lambda: cast(-(2**32) + 2**30, TensorProto.INT32, TensorProto.INT64), ENDLESS),
        (lambda: length_of("input_ids"), "ok"),
        (lambda: length_of("d2", *doubled(3)), "ok"),
        (lambda: length_of("d29", *doubled(30)), ENDLESS),
        (lambda: length_of("zeros", helper.make_node("ConstantOfShape", ["many"], ["zeros"])), ENDLESS),
        (lambda: looping("Scan", "input_ids", num_scan_inputs=1), "ok"),
        (lambda: looping("Scan", "zeros", num_scan_inputs=1, weights={"many": np.array([2**31])},
                         before=[helper.make_node("ConstantOfShape", ["many"], ["zeros"])]), ENDLESS),
        (lambda: looping("Scan", "table", num_scan_inputs=1,
                         before=[helper.make_node("Constant", [], ["table"], value_ints=[1] * 10_001)]), ENDLESS),
        (lambda: looping("Scan", "input_ids"), "model.onnx"),
        (lambda: nested(3), "ok"),
        (lambda: nested(30), "has subgraphs nested more than 4 levels deep"),
        (lambda: nested(4, "Loop"), "has loops that run"),
        (lambda: called(looping("Loop", "x", "").graph.node[0]), ENDLESS),
        (called_with_turns, ENDLESS),
        (lambda: called(nested(30).graph.node[0]), "has subgraphs nested more than 4 levels deep"),
    ],
)  # fmt: skip
def test_loops(tmp_path, make, message):
    """A loop with few iterations is accepted; one that may not end is rejected at once, wherever it is."""
    folder = tiny_model(tmp_path)
    (folder / "onnx" / "model.onnx").write_bytes(make().SerializeToString())
    answer = apart(embeds, folder)
    assert re.search(message, answer), answer
    assert answer == "ok" or str(folder) in answer
    assert not answer.startswith("unclear")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (endless, "local function that calls itself"),
        (billions, r"has 1,\d{3},\d{3},\d{3},\d{3} nodes; at most 50,000 are allowed"),
        (circle, "depends on its own output"),
        (lambda: made_twice("node"), r"has several nodes that output the tensor 't\d+'"),
        (lambda: made_twice("input"), r"has several nodes that output the tensor 't\d+'"),
        (lambda: made_twice("weight"), r"has several nodes that output the tensor 't\d+'"),
        (lambda: bare_operator("Loop"), "model.onnx"),
        (lambda: bare_operator("If"), "model.onnx"),
        (lambda: bare_operator("DequantizeLinear"), "model.onnx"),
        (lambda: bare_operator("Gather"), "model.onnx"),
        (lambda: bare_operator("Slice"), "model.onnx"),
        (long_chain, r"has 50,0\d\d nodes"),
        (lambda: without("node"), "has no graph"),
        (lambda: without("output"), "has no graph"),
        (lambda: without("input"), "not a transformer over tokens"),
        (lambda: without("opset_import"), "has no ONNX opset version"),
        (lambda: without("initializer"), "model.onnx"),
        (lambda: resized(2**40, 32), "cannot open"),
        (lambda: resized(2**62, 2**62), "cannot open"),
        (lambda: resized(-1, -32), "cannot open"),
        (huge_constant, "cannot embed even an empty text: .*ConstantOfShape|cannot open .*: std::bad_alloc"),
    ],
    ids=lambda value: None if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_invalid_or_malicious_graphs(tmp_path, make, message):
    """Each is rejected with one error that names the file, before it needs time or memory."""
    folder = tiny_model(tmp_path)
    (folder / "onnx" / "model.onnx").write_bytes(make().SerializeToString())
    answer = apart(embeds, folder)
    assert re.search(message, answer), answer
    assert str(folder) in answer
    assert not answer.startswith("unclear")


def test_local_functions_are_inlined(tmp_path, embedder):
    """Functions that end are inlined, and change no vector."""
    folder = tiny_model(tmp_path)
    model = calling(function("twice", [helper.make_node("Identity", ["x"], ["y"])]), first="twice")
    model.graph.node[1].input[1] = "called"
    (folder / "onnx" / "model.onnx").write_bytes(model.SerializeToString())
    with Embedder.load(folder) as e:
        assert np.array_equal(e.embed(["the cat"]), embedder.embed(["the cat"]))


# --- random graphs, well formed


_BINARY = ("Add", "Mul", "Sub", "Div", "MatMul")
_UNARY = ("Relu", "Tanh", "Sigmoid", "Softmax", "Erf", "Identity", "Neg")


@st.composite
def graphs(draw):
    """Draw a graph over token ids in which every tensor is (B, T, 8): lookups, matrices, norms, attention, residuals, heads."""
    nodes, weights, tensors = [], {}, []
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))

    def op(kind, *inputs, **attributes):
        output = f"t{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [output], name=f"n{len(nodes)}", **attributes))
        return output

    def weight(*shape):
        name = f"w{len(weights)}"
        weights[name] = (rng.standard_normal(shape) / 3).astype(np.float32)
        return name

    tensors.append(op("Gather", weight(50, 8), "input_ids"))
    for step in draw(st.lists(st.sampled_from(["one", "two", "matrix", "norm", "attention", "ffn", "gather"]), max_size=14)):
        x = draw(st.sampled_from(tensors[-3:]))
        if step == "one":
            result = op(draw(st.sampled_from(_UNARY)), x)
        elif step == "two":
            kind, y = draw(st.sampled_from(_BINARY)), draw(st.sampled_from(tensors))
            result = (
                op("MatMul", op("MatMul", x, op("Transpose", y, perm=[0, 2, 1])), y) if kind == "MatMul" else op(kind, x, y)
            )
        elif step == "matrix":
            result = op("MatMul", x, weight(8, 8))
        elif step == "norm":
            result = op("LayerNormalization", x, weight(8), weight(8), axis=-1)
        elif step == "ffn":
            result = op("Add", x, op("MatMul", op("Relu", op("MatMul", x, weight(8, 16))), weight(16, 8)))
        elif step == "gather":
            result = op("Add", x, op("Gather", weight(50, 8), "attention_mask"))
        else:
            q, k, v = (op("MatMul", x, weight(8, 8)) for _ in range(3))
            scores = op("Softmax", op("MatMul", q, op("Transpose", k, perm=[0, 2, 1])), axis=-1)
            result = op("Add", x, op("MatMul", op("MatMul", scores, v), weight(8, 8)))
        tensors.append(result)
    outputs = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3, unique=True))
    if draw(st.booleans()):
        outputs.append(op("MatMul", outputs[0], weight(8, 50)))
    ids = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"]) for n in ("input_ids", "attention_mask")]
    graph = helper.make_graph(
        nodes,
        "random",
        ids,
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


IDS = np.array([[2, 5, 6, 3], [2, 7, 3, 0]])


@settings(deadline=None, max_examples=100)
@given(graphs())
def test_random_graphs_are_cut_or_rejected(model):
    """Each graph is not a transformer, with a clear error, or all its hidden states can be cut, run and are correct."""
    before = model.SerializeToString()
    try:
        states = hidden_states(model)
    except NotATransformerError:
        return
    finally:
        assert model.SerializeToString() == before
    assert [state.index for state in states] == list(range(len(states)))
    whole = onnx.ModelProto.FromString(before)
    del whole.graph.output[:]
    whole.graph.output.extend(helper.make_tensor_value_info(s.tensor, TensorProto.FLOAT, None) for s in states)
    feed = {"input_ids": IDS, "attention_mask": (IDS > 0).astype(np.int64)}
    with Engine(whole.SerializeToString(), threads=1) as engine:
        expected = engine.mapped_run({name: feed[name] for name in engine.input_names})
    for state in states:
        result = cut(model, state.tensor, axes=state.axes)
        onnx.checker.check_model(result)
        with Engine(result.SerializeToString(), threads=1) as engine:
            assert engine.output_names == ["token_embeddings"]
            (actual,) = engine.run({name: feed[name] for name in engine.input_names})
        assert actual.shape == (2, 4, 8)
        np.testing.assert_allclose(actual, expected[state.tensor], rtol=1e-5, atol=1e-6)


# --- configuration


JUNK = [
    True, 7, -1, 1.5, float("nan"), 1e400, 10**30, "x", "../x", "", [], [1], ["x"], [[]], [{}], {"a": 1}, {"list": [1]},
]  # fmt: skip
# What each key of each file may hold; everything else must be refused, or change nothing.
KEYS = {
    "modules.json": {None: [[]]},
    "1_Pooling/config.json": {None: [], "pooling_mode": ["", []], "include_prompt": [True]},
    "sentence_bert_config.json": {None: [], "max_seq_length": [7, -1, 1.5, float("nan"), 1e400, 10**30]},
    "config_sentence_transformers.json": {None: [{"a": 1}, {"list": [1]}], "prompts": [], "default_prompt_name": []},
    "config.json": {None: [{"a": 1}, {"list": [1]}], "max_position_embeddings": [7, -1, 1.5, float("nan"), 1e400, 10**30]},
    "tokenizer_config.json": {
        None: [{"a": 1}, {"list": [1]}], "model_max_length": [7, -1, 1.5, float("nan"), 1e400, 10**30], "truncation_side": [],
        "padding_side": [j for j in JUNK if not isinstance(j, str)] + [""],
    },
    "special_tokens_map.json": {None: [{"a": 1}, {"list": [1]}]},
}  # fmt: skip


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in KEYS.items() for key in keys])
def test_a_value_of_the_wrong_type(tmp_path, name, key):
    """Whatever value replaces a name, a number or a list: it is accepted as intended, or one error names the file."""
    folder = tiny_model(tmp_path)
    path = folder / name
    whole = json.loads(path.read_text()) if path.exists() else {}
    for junk in JUNK:
        write_json(path, junk if key is None else {**whole, key: junk})
        if repr(junk) in map(repr, KEYS[name][key]):
            assert use(folder)
        else:
            with pytest.raises(ValueError, match=re.escape(str(path if key != "padding_side" else folder))):
                use(folder)


def use(folder):
    """Read a folder's recipe and tokenize with it."""
    actual = read(folder, Overrides())
    return Tokenizer(folder, max_length=max(actual.max_length, 6), side=actual.side).tokenize(["a"], actual.prompts["query"])


def test_a_tokenizer_that_repeats_the_text(tmp_path):
    """A template with the text twice (found by the fuzzer) returns more tokens than the maximum, and is rejected."""
    path = tiny_model(tmp_path) / "tokenizer.json"
    whole = json.loads(path.read_text())
    cls, text, sep = whole["post_processor"]["single"]
    whole["post_processor"]["single"] = [cls, text, sep, text]
    write_json(path, whole)
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(tmp_path))}: the tokenizer returns 4 tokens where at most 3 are possible"
    ):
        use(tmp_path)


def test_a_tokenizer_whose_template_lacks_a_token(tmp_path):
    """A panic of the library (found by the fuzzer) is one error."""
    path = tiny_model(tmp_path) / "tokenizer.json"
    whole = json.loads(path.read_text())
    del whole["post_processor"]["special_tokens"]["[SEP]"]
    write_json(path, whole)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        use(tmp_path)


def replacing(*pairs, kind="String"):
    return [{"type": "Replace", "pattern": {kind: pattern}, "content": content} for pattern, content in pairs]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (replacing(*[("a", "a" * 10)] * 8), "may make a text 100,000,000 times as long; the maximum is 64"),
        (replacing(("a", "b" * 65)), "65 times"),
        (replacing(("", "b" * 64), kind="Regex"), "65 times"),
        ([{"type": "Prepend", "prepend": "x" * 100}], "100 times"),
        ([{"type": "Sequence", "normalizers": replacing(("a", "bb"))}] * 7, "128 times"),
        (replacing((" ", "_"), ("``", "x"), ("\\s+", "__________"), ("a", "bbbb")), None),
    ],
)
@pytest.mark.parametrize("escaped", [False, True])
def test_a_normalizer_that_lengthens_texts(tmp_path, parts, message, escaped):
    """Replacements that make a text many times as long are rejected before any text or added token is normalized."""
    path = tiny_model(tmp_path) / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["normalizer"] = {"type": "Sequence", "normalizers": parts}
    whole["added_tokens"].append({"id": len(whole["model"]["vocab"]), "content": "a" * 9, "single_word": False, "lstrip": False,
                                  "rstrip": False, "normalized": True, "special": False})  # fmt: skip
    text = json.dumps(whole)
    path.write_text(text.replace("normalizer", "normal\\u0069zer").replace("Replace", "Repl\\u0061ce") if escaped else text)
    if message is None:
        assert use(tmp_path)
    else:
        answer = apart(lambda folder: use(folder) and "ok", tmp_path)
        assert f"{path}: the normalizer" in answer
        assert message in answer


def test_nested_normalizers_are_read_once(tmp_path):
    """A file of many megabytes of nested objects is read once, not once per depth."""
    text = '{"normalizer":' * 200 + '"' + "a" * 5_000_000 + '"' + "}" * 200
    began = time.monotonic()
    check_normalizer(tmp_path, text)
    assert time.monotonic() - began < 0.5


def test_an_unlimited_word_length(tmp_path):
    """WordPiece takes quadratic time in a word's length; a file that allows any length is rejected."""
    path = tiny_model(tmp_path) / "tokenizer.json"
    whole = json.loads(path.read_text())
    for length, message in ((1000, None), (1001, "is 1,001; it must be at most 1,000"), (10**12, "is 1,000,000,000,000")):
        whole["model"]["max_input_chars_per_word"] = length
        write_json(path, whole)
        if message is None:
            assert use(tmp_path)
        else:
            with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: max_input_chars_per_word {message}"):
                use(tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config_sentence_transformers.json", "prompts", {"query": "\ud800: ", "document": ""}),
        ("tokenizer_config.json", "pad_token", "\udfff"),
        ("special_tokens_map.json", "cls_token", {"content": "\ud83d\ud83d\ude00"}),
    ],
)
def test_a_lone_surrogate(tmp_path, name, key, value):
    """JSON can contain a character that UTF-8 cannot encode, which the tokenizer cannot read; the error names the file."""
    path = tiny_model(tmp_path) / name
    write_json(path, {**(json.loads(path.read_text()) if path.exists() else {}), key: value})
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is not JSON .*surrogates not allowed.*\. Download it again"):
        use(tmp_path)
    path.write_text(json.dumps({key: "\U0001f600"}))  # both halves are a character
    assert json.loads(path.read_text()) == read_object(path)


def test_an_invalid_text_is_not_an_error_of_the_files(tiny):
    """A caller's mistake stays a TypeError: the model's files are valid."""
    for text in (5, "a \ud800"):
        with pytest.raises(TypeError, match="TextEncodeInput must be") as caught:
            Tokenizer(tiny, max_length=64).tokenize([text])
        assert str(tiny) not in str(caught.value)


def test_json_that_is_too_deep_or_too_large(tmp_path):
    """A hundred thousand brackets, or a file larger than any tokenizer, are rejected and not read into memory."""
    folder = tiny_model(tmp_path)
    (folder / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is not JSON .*recursion"):
        Embedder.load(folder)
    tiny_model(folder)
    for name in ("config.json", "tokenizer.json"):
        with (folder / name).open("r+b") as file:
            file.truncate(10**12)  # a hole: it takes no room on the disk
        assert f"{name} has 1,000,000,000,000 bytes" in apart(embeds, folder)
        tiny_model(folder)


def test_a_sparse_file(bare):
    """A graph or its data with a hole of a terabyte, which takes no disk space, is rejected at once."""
    for name, message in (
        ("onnx/model.onnx", r"has 1,000,000,000,000 bytes; an ONNX file has at most 2,147,483,647"),
        (
            "onnx/weights.data",
            r"has 1,000,000,000,000 bytes, but .*model\.onnx uses only the first [\d,]+\. Download the file again",
        ),
    ):
        path = bare / name
        size = path.stat().st_size
        os.truncate(path, 10**12)
        try:
            answer = apart(embeds, bare)
        finally:
            os.truncate(path, size)
        assert re.search(message, answer), answer


@pytest.mark.parametrize("name", ["onnx/model.onnx", "tokenizer.json", "config.json", "modules.json"])
def test_a_pipe_or_a_folder_in_place_of_a_file(tmp_path, name):
    """Anything but a file is rejected: opening a pipe would block."""
    for make in (os.mkfifo, Path.mkdir):
        folder = tiny_model(tmp_path / make.__name__)
        (folder / name).unlink()
        make(folder / name)
        answer = apart(embeds, folder)
        assert "is not a file" in answer
        assert str(folder) in answer


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=30), max_size=5), st.text(max_size=12))
def test_any_text_and_any_prompt(embedder, texts, prompt):
    """Whatever the characters: ids and segment ids have one length within the limit, and valid counts."""
    encoded = embedder.model.runner.tokenizer.tokenize([t.encode("utf-8", "replace").decode() for t in texts], prompt)
    assert [len(ids) for ids in encoded.ids] == [len(types) for types in encoded.types]
    assert all(2 <= len(ids) <= 64 for ids in encoded.ids)
    assert all(dropped >= 0 for dropped in encoded.dropped)
    assert all(0 <= count <= 64 for count in encoded.prompt_tokens)
