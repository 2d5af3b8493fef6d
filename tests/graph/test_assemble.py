"""From a file and a recipe to the graph that runs: the chosen tensor, the appended reducer, the location of the weights."""

import dataclasses

import numpy as np
import onnx
import pytest
from graph_kit import Draft
from models import bert_graph, bert_weights
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from penult.core.assemble import assemble, read
from penult.core.recipe import Dense, Recipe, Rows
from penult.core.source import Source
from penult.graph.find.layers import NotATransformerError
from penult.graph.rewrite.external_data import data_file

RECIPE = Recipe(-1, "mean", (), None, 64, "right", {}, True, "fp32")
IDS = np.array([[3, 1, 4, 1], [9, 2, 0, 0]])
FEEDS = {"input_ids": IDS, "attention_mask": (IDS > 0).astype(np.int64), "pooling_mask": (IDS > 2).astype(np.int64)}


def source(folder, model=None):
    """Return the source of a folder with a graph."""
    if model is not None:
        (folder / "model.onnx").write_bytes(model.SerializeToString())
    return Source("the model", folder / "model.onnx", folder)


def description_of(folder, model, real=None, **recipe):
    """Assemble a graph; return its description."""
    target = folder / "made.onnx"
    return assemble(source(folder, model), dataclasses.replace(RECIPE, **recipe), real or {}, target)


def run(path):
    """Run an assembled graph; return its outputs by name."""
    import onnxruntime as ort

    opened = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in opened.get_outputs()]
    feeds = {node.name: FEEDS.get(node.name, np.zeros_like(IDS)) for node in opened.get_inputs()}
    return dict(zip(names, opened.run(names, feeds), strict=True))


def layered():
    """Build a small transformer with a head; return (draft, hidden states, logits)."""
    d = Draft()
    states = [d.norm(d.embed())]
    states.append(d.post_norm_layer(states[0]))
    states.append(d.post_norm_layer(states[1]))
    return d, states, d.dense(states[-1], 20)


def own(name, *shape):
    """Build a transformer whose outputs are its logits and a tensor of the given name and shape; return (graph, draft, states)."""
    d, states, logits = layered()
    kept = {2: {"keepdims": 0, "axes": [1]}, 3: {"keepdims": 1, "axes": [1]}}[len(shape)]
    d.nodes.append(helper.make_node("ReduceMax", [states[1]], [name], **kept))
    model = d.model(logits)
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
    return model, d, states


def mean(tokens, mask):
    return np.stack([rows[chosen > 0].mean(axis=0) for rows, chosen in zip(tokens, mask, strict=True)])


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_the_outputs_are_token_embeddings_and_their_mean(tmp_path, layer):
    """The outputs are the chosen hidden state and its mean; the choice is reported, and weights are in a file next to the graph."""
    d, states, logits = layered()
    description = description_of(tmp_path, d.model(logits), layer=layer)
    assert description.tensor == states[layer]
    assert description.why
    assert (description.external, description.scales) == (False, "none")
    found = run(tmp_path / "made.onnx")
    assert list(found) == ["token_embeddings", "sentence_embedding"]
    np.testing.assert_allclose(found["sentence_embedding"], mean(found["token_embeddings"], FEEDS["attention_mask"]), atol=1e-6)
    assert data_file(tmp_path / "made.onnx").exists()


def test_the_graphs_own_vector(tmp_path):
    """If no file states a pooling, an output `sentence_embedding` of shape (B, D) is used, and there is no output of tokens."""
    model, d, states = own("sentence_embedding", "batch", 8)
    description = description_of(tmp_path, model, pooling=None)
    assert (description.tensor, description.why) == (
        "sentence_embedding",
        "the graph's own pooled output; no file states another pooling",
    )
    found = run(tmp_path / "made.onnx")
    description_of(tmp_path, d.model(states[1]), layer=1)
    tokens = run(tmp_path / "made.onnx")["token_embeddings"]
    assert list(found) == ["sentence_embedding"]
    np.testing.assert_allclose(found["sentence_embedding"], tokens.max(axis=1), atol=1e-6)


def test_a_stated_pooling_overrides_the_graphs_own_vector(tmp_path):
    """A pooling from a file or the caller is applied to the hidden state."""
    model, _, states = own("sentence_embedding", "batch", 8)
    assert description_of(tmp_path, model).tensor == states[-1]


@pytest.mark.parametrize(
    ("name", "shape", "layer"),
    [("sentence_embedding", ("batch", 1, 8), -1), ("vectors", ("batch", 8), -1), ("vectors", ("batch", 8), None)],
)
def test_no_pooling_is_guessed(tmp_path, name, shape, layer):
    """Without a stated pooling, an output of tokens or of another name is rejected, and so is a first output of tokens."""
    model, _, _ = own(name, *shape)
    first = model.graph.output[0]
    first.CopyFrom(helper.make_tensor_value_info(first.name, TensorProto.FLOAT, ["batch", "sequence", 20]))
    with pytest.raises(ValueError, match=r"does not state a pooling .* pooling='mean'"):
        description_of(tmp_path, model, pooling=None, layer=layer)


def test_the_first_output_as_it_is(tmp_path):
    """layer=None uses vectors without a pooling, and tokens with one; with a layer, a first output of vectors is not used."""
    model, d, states = own("vectors", "batch", 8)
    del model.graph.output[0]
    description = description_of(tmp_path, model, pooling=None, layer=None)
    assert (description.tensor, description.why) == ("vectors", "the graph's own output, selected by layer=None")
    assert list(run(tmp_path / "made.onnx")) == ["sentence_embedding"]
    with pytest.raises(ValueError, match="does not state a pooling"):
        description_of(tmp_path, model, pooling=None, layer=-1)
    assert description_of(tmp_path, d.model(states[1], states[2]), layer=None).tensor == states[1]
    assert list(run(tmp_path / "made.onnx")) == ["token_embeddings", "sentence_embedding"]


def test_a_layer_by_name(tmp_path):
    """A hidden state keeps its axes and its reason; any other tensor or node is used unchanged, in any graph."""
    d = Draft()
    x = d.op("Transpose", d.norm(d.embed()), perm=[1, 0, 2])
    state = d.post_norm_layer(x)
    last = d.post_norm_layer(state)
    model = d.model(d.dense(last))
    description = description_of(tmp_path, model, layer=state)
    assert "attention" in description.why
    turned = run(tmp_path / "made.onnx")["token_embeddings"]
    assert turned.shape == (*IDS.shape, 8)
    description = description_of(tmp_path, model, layer="x0")
    assert (description.tensor, description.why) == ("x0", "the tensor or node named by layer=")
    d = Draft()
    d.nodes.append(helper.make_node("Neg", [d.embed()], ["tokens"], name="a node"))
    assert description_of(tmp_path, d.model("tokens"), layer="a node").tensor == "a node"
    assert run(tmp_path / "made.onnx")["token_embeddings"].shape == (*IDS.shape, 8)


def test_vectors_by_name_are_not_pooled(tmp_path):
    """A tensor (B, D) is already the vector; one of unknown shape counts as tokens; one with other axes is rejected."""
    model, d, states = own("vectors", "batch", 8)
    description_of(tmp_path, model, layer="vectors")
    found = run(tmp_path / "made.onnx")
    assert list(found) == ["sentence_embedding"]
    assert found["sentence_embedding"].shape == (2, 8)
    split = d.op("Reshape", states[1], d.constant(np.array([0, 0, 2, 4])))
    flat = d.op("ReduceMax", split, keepdims=0, axes=[1, 2, 3])
    for name, axes in ((split, 4), (flat, 1)):
        with pytest.raises(ValueError, match=f"'{name}' has {axes} axes\\. Pass a tensor of token"):
            description_of(tmp_path, d.model(split, flat), layer=name)
    unknown = d.op("Strange", states[1], domain="strange")
    assert description_of(tmp_path, d.model(unknown), layer=unknown).tensor == unknown
    prepared = onnx.load(tmp_path / "made.onnx", load_external_data=False)
    assert [output.name for output in prepared.graph.output] == ["token_embeddings", "sentence_embedding"]


def test_a_graph_without_layers_is_rejected(tmp_path):
    """The message names the file."""
    d = Draft()
    with pytest.raises(NotATransformerError, match=r"model\.onnx is "):
        description_of(tmp_path, d.model(d.op("Neg", d.embed())))


@pytest.mark.parametrize(
    ("recipe", "chosen"),
    [
        ({}, IDS > 0),
        ({"include_prompt": False}, IDS > 2),
        ({"rows": Rows(exclude_ids=(1, 0))}, (IDS != 1) & (IDS != 0)),
        ({"rows": Rows(only_id=1), "pooling": "max"}, None),
    ],
)
def test_the_rows_that_are_pooled(tmp_path, recipe, chosen):
    """The rows are chosen by the mask, without the prompt's tokens, or by token id."""
    d, states, _ = layered()
    description_of(tmp_path, d.model(states[-1]), **recipe)
    found = run(tmp_path / "made.onnx")
    tokens = found["token_embeddings"]
    expected = np.stack([tokens[0, [1, 3]].max(axis=0), np.zeros(8)]) if chosen is None else mean(tokens, chosen)
    np.testing.assert_allclose(found["sentence_embedding"], expected, atol=1e-6)


def dense(folder, name="2_Dense", **tensors):
    """Write the weights of a dense layer."""
    (folder / name).mkdir()
    save_file({key.replace("_", "."): array for key, array in tensors.items()}, folder / name / "model.safetensors")
    return Dense(name, "Identity")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_dense_layers_and_lengths(tmp_path, bias, kind):
    """X W^T + b follows the pooling, then normalization, then truncation to the leading values; weights may have any type."""
    rng = np.random.default_rng(0)
    weight, shift = rng.standard_normal((5, 8)).astype(kind), rng.standard_normal(5).astype(kind)
    step = dense(tmp_path, linear_weight=weight, **({"linear_bias": shift} if bias else {}))
    second = dense(tmp_path, "3_Dense", linear_weight=np.eye(5, dtype=np.float32)[:, ::-1].copy())
    d, states, _ = layered()
    description_of(tmp_path, d.model(states[-1]), steps=(step, second, "normalize"), dimensions=3)
    found = run(tmp_path / "made.onnx")
    vectors = mean(found["token_embeddings"], FEEDS["attention_mask"]) @ weight.T.astype(np.float32) + (shift if bias else 0)
    vectors = vectors[:, :1:-1]
    np.testing.assert_allclose(found["sentence_embedding"], vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=2e-5)


@pytest.mark.parametrize(
    ("tensors", "held"),
    [
        ({}, "nothing"),
        ({"linear_bias": np.ones(5, np.float32)}, r"bias float32 \(5,\)"),
        ({"linear_weight": np.ones(5, np.float32)}, r"weight float32 \(5,\)"),
        ({"linear_weight": np.ones((5, 8, 1), np.float32)}, r"weight float32 \(5, 8, 1\)"),
        ({"linear_weight": np.ones((5, 8), np.float32), "linear_bias": np.ones(4, np.float32)}, r"bias float32 \(4,\)"),
        ({"linear_weight": np.ones((5, 8), np.float32), "linear_bias": np.ones((5, 8), np.float32)}, r"bias float32 \(5, 8\)"),
    ],
)
def test_a_dense_layer_of_another_shape(tmp_path, tensors, held):
    """The message names the shapes in the file."""
    d, states, _ = layered()
    step = dense(tmp_path, **tensors)
    with pytest.raises(ValueError, match=rf"model.safetensors has .*{held}.*; .*linear\.(weight|bias)"):
        description_of(tmp_path, d.model(states[-1]), steps=(step,))


def test_a_dense_layer_without_a_file(tmp_path):
    """A missing or incomplete file is reported."""
    d, states, _ = layered()
    step = Dense("2_Dense", "Identity")
    with pytest.raises(FileNotFoundError, match=r"2_Dense has neither model\.safetensors nor"):
        description_of(tmp_path, d.model(states[-1]), steps=(step,))
    dense(tmp_path, linear_weight=np.ones((5, 8), np.float32))
    path = tmp_path / "2_Dense" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete"):
        description_of(tmp_path, d.model(states[-1]), steps=(step,))


@pytest.mark.parametrize("half", [False, True])
def test_slow_operators_are_decomposed(tmp_path, half):
    """A fused norm is decomposed and attention is fused, but not in half precision, where rounding would differ."""
    model = bert_graph(bert_weights(), 4)
    nodes = list(model.graph.node)
    at = next(i for i, node in reversed(list(enumerate(nodes))) if node.op_type == "LayerNormalization")
    (add,) = (node for node in nodes if node.output[0] == nodes[at].input[0])
    fused = helper.make_node(
        "SkipLayerNormalization", [*add.input, *nodes[at].input[1:]], nodes[at].output, domain="com.microsoft", epsilon=1e-12
    )
    nodes[at] = fused
    nodes.remove(add)
    if half:
        first = nodes[0]
        nodes[0:1] = [
            helper.make_node("Gather", first.input, ["first"]),
            helper.make_node("Cast", ["first"], ["first half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["first half"], first.output, to=TensorProto.FLOAT),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    description_of(tmp_path, model)
    kinds = [node.op_type for node in onnx.load(tmp_path / "made.onnx", load_external_data=False).graph.node]
    assert ("SkipLayerNormalization" in kinds) == half
    assert ("Softmax" in kinds) == half


def external(folder):
    """Write a graph with weights in two folders; return (the graph, real files by name)."""
    d, states, _ = layered()
    model = d.model(states[-1])
    names = {"a/one.bin": folder / "store" / "1", "b/two.bin": folder / "store" / "deeper" / "2"}
    for i, tensor in enumerate(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2):
        name = list(names)[i % 2]
        path = names[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            tensor.external_data.add(key="location", value=name)
            tensor.external_data.add(key="offset", value=str(file.tell()))
            tensor.external_data.add(key="length", value=str(len(tensor.raw_data)))
            file.write(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    return model, names, d.model(states[-1])


def test_weights_in_other_files_are_referenced(tmp_path):
    """The prepared graph refers to their real files relative to the common parent folder; none is copied."""
    model, real, whole = external(tmp_path)
    (tmp_path / "plain").mkdir()
    description_of(tmp_path / "plain", whole)
    expected = run(tmp_path / "plain" / "made.onnx")["sentence_embedding"]
    description = description_of(tmp_path, model, real)
    assert description.external
    assert not data_file(tmp_path / "made.onnx").exists()
    prepared = onnx.load(tmp_path / "made.onnx", load_external_data=False)
    places = {entry.value for tensor in prepared.graph.initializer for entry in tensor.external_data if entry.key == "location"}
    assert places == {"store/1", "store/deeper/2"}
    (tmp_path / "g.onnx").write_bytes(prepared.SerializeToString())
    assert np.array_equal(run(tmp_path / "g.onnx")["sentence_embedding"], expected)


def test_external_data_of_constants_are_rejected(tmp_path):
    """External data of a constant without a location is rejected, as for a weight."""
    d, states, _ = layered()
    far = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    d.nodes.insert(0, helper.make_node("Constant", [], ["c"], value=far))
    with pytest.raises(ValueError, match="has no location for the external weights 'c'"):
        description_of(tmp_path, d.model(d.op("Add", states[-1], "c")), layer=d.nodes[-1].output[0])


def test_an_incomplete_file_is_rejected(tmp_path):
    """An incomplete ONNX file gives one error that names it."""
    d, states, _ = layered()
    found = source(tmp_path, d.model(states[-1]))
    assert read(found.model, {}).graph.node == d.model(states[-1]).graph.node
    found.model.write_bytes(found.model.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"model\.onnx is not a complete ONNX file"):
        read(found.model, {})
    found.model.write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.onnx has no graph"):
        read(found.model, {})


def test_frozen_axes_are_freed(tmp_path):
    """An export for one row of four tokens runs with any size."""
    d, states, _ = layered()
    d.inputs[0] = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, 4])
    description_of(tmp_path, d.model(states[-1]))
    assert run(tmp_path / "made.onnx")["sentence_embedding"].shape == (2, 8)


def test_shapes_are_inferred_once(tmp_path, monkeypatch):
    """Layers, cut and attention share one shape inference; it is repeated only after axes are freed or operators are decomposed."""
    calls = []
    infer = onnx.shape_inference.infer_shapes
    monkeypatch.setattr(
        "onnx.shape_inference.infer_shapes", lambda *given, **description: calls.append(1) or infer(*given, **description)
    )
    description_of(tmp_path, bert_graph(bert_weights(), 4))
    assert len(calls) == 1
    kinds = [node.op_type for node in onnx.load(tmp_path / "made.onnx", load_external_data=False).graph.node]
    assert "Softmax" not in kinds


def test_dynamic_8_bit_scales_are_reported(tmp_path):
    """A graph that computes its scales from each batch is reported."""
    d, states, _ = layered()
    d.nodes.append(helper.make_node("DynamicQuantizeLinear", [states[-1]], ["q", "s", "z"]))
    end = d.op("DequantizeLinear", "q", "s", "z")
    assert description_of(tmp_path, d.model(end), layer=end).scales == "dynamic"
