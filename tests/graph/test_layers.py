"""Hidden states are found by the data flow, in any architecture, any exporter's graph and with any names."""

import json
from itertools import pairwise

import numpy as np
import onnx
import pytest
from graph_kit import GRAPHS, ZOO, ZOO_FILES, Draft, cut, hidden_states, outlined, run, shuffled, stored
from onnx import TensorProto, helper

from penult.graph.find.flow import trace
from penult.graph.find.layers import HiddenState, NotATransformerError, select
from penult.graph.find.skeleton import skeleton

ANY = {"input_ids": np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])}


def tensors(model):
    return [state.tensor for state in hidden_states(model)]


def depends(model, later, earlier):
    flow = trace(skeleton(model).graph)
    return flow.depends(flow.producer[later], flow.producer[earlier])


@pytest.mark.parametrize("name", GRAPHS)
def test_every_layer_equals_torchs_hidden_state(name):
    """Each index equals transformers' hidden_states[index] at real tokens, for architectures that the rule was not developed on."""
    model, reference = stored(name)
    states = hidden_states(model)
    assert len(states) == sum(key.startswith("h") for key in reference)
    kept = reference["attention_mask"] == 1
    for state in states:
        found = run(cut(model, state.tensor, axes=state.axes), reference)
        assert np.abs(found - reference[f"h{state.index}"])[kept].max() <= 1e-4
        assert state.hidden_size == reference[f"h{state.index}"].shape[-1]


@pytest.mark.parametrize("name", GRAPHS)
def test_functions_hide_no_layer(name):
    """A graph whose nodes are all in local functions has the same hidden states."""
    model, reference = stored(name)
    packed = outlined(model)
    states = hidden_states(packed)
    assert len(states) == len(hidden_states(model))
    last = run(cut(packed, states[-1].tensor, axes=states[-1].axes), reference)
    kept = reference["attention_mask"] == 1
    assert np.abs(last - reference[f"h{len(states) - 1}"])[kept].max() <= 1e-4


@pytest.mark.parametrize("file", ZOO_FILES)
def test_zoo_layers_are_a_chain_under_any_names(file):
    """As many layers as the configuration states, each feeding the next, and the same ones if all names are shuffled."""
    model = onnx.load(ZOO / file, load_external_data=False)
    states = hidden_states(model)
    config = json.loads((ZOO / file.partition("/")[0] / "config.json").read_text())
    keys = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
    assert len(states) == next(config[k] for k in keys if k in config) + 1
    assert [s.index for s in states] == list(range(len(states)))
    found = [s.tensor for s in states]
    assert len(set(found)) == len(found)
    assert all(depends(model, b, a) for a, b in pairwise(found))
    other, names = shuffled(model)
    assert tensors(other) == [names.get(t, t) for t in found]


def test_rampart_ends_at_its_last_layer(shared):
    """The 4-bit token classifier is cut after layer 6, before its classifier."""
    model = onnx.load(shared / "models/rampart-bert-ner-q4/onnx/model_q4.onnx")
    states = hidden_states(model)
    assert states[-1].tensor == "/bert/encoder/layer.5/output/LayerNorm/LayerNormalization_output_0"
    assert (len(states), states[-1].hidden_size) == (7, 384)


def test_bert_tiny_ends_before_the_norm_of_its_head(shared):
    """The last LayerNormalization of a masked-language model belongs to the head."""
    model = onnx.load(shared / "models/bert-tiny-mlm/model.onnx")
    norms = [n.output[0] for n in model.graph.node if n.op_type == "LayerNormalization"]
    assert tensors(model) == [norms[0], norms[2], norms[4]]
    assert len(norms) == 6


@pytest.mark.parametrize(
    ("file", "found"),
    [("bilstm-int8", "2 DynamicQuantizeLSTM"), ("cnn-fp16", "6 Conv"), ("gru-seq2seq-encoder", "2 GRU")],
)
def test_other_networks_are_rejected(file, found, shared):
    """A network without attention is refused, and the message lists its operators with parameters."""
    model = onnx.load(shared / f"models/not-transformers/{file}.onnx")
    with pytest.raises(NotATransformerError, match=f"no residual block with attention. Its operators with parameters: {found}"):
        hidden_states(model)


def recurrent(draft, kind, gates):
    """Build a network that mixes tokens only by a recurrence."""
    tokens = draft.op("Transpose", draft.embed(), perm=[1, 0, 2])
    return draft.op(kind, tokens, draft.weight(1, gates * 8, 8), draft.weight(1, gates * 8, 8), hidden_size=8)


def convolutional(draft):
    """Build a network that mixes tokens only by convolutions."""
    channels = draft.op("Transpose", draft.embed(), perm=[0, 2, 1])
    for _ in range(2):
        channels = draft.op("Relu", draft.op("Conv", channels, draft.weight(8, 8, 3), pads=[1, 1]))
    return channels


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda draft: recurrent(draft, "GRU", 3), "1 GRU"),
        (lambda draft: recurrent(draft, "LSTM", 4), "1 LSTM"),
        (convolutional, "2 Conv"),
    ],
)
def test_networks_without_attention_are_rejected(build, found):
    """The message lists the operators with parameters."""
    draft = Draft()
    with pytest.raises(NotATransformerError, match=f"no residual block with attention. Its operators with parameters: {found}"):
        hidden_states(draft.model(build(draft)))


def test_a_graph_without_tokens_is_rejected():
    """A graph of feature vectors has no token axis; the message lists its inputs."""
    d = Draft()
    d.inputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 8])]
    model = d.model(d.op("Add", d.dense("features"), "features"))
    with pytest.raises(NotATransformerError, match=r"no integer input selects rows .* features float \(batch, 8\)$"):
        hidden_states(model)


def test_attention_without_a_residual_is_not_a_layer():
    """A recurrent network with attention pooling is not a transformer."""
    d = Draft()
    with pytest.raises(NotATransformerError, match="Its operators with parameters: "):
        hidden_states(d.model(d.attention(d.embed())))


def test_a_norm_after_the_last_block_is_the_models_only_before_a_matrix():
    """Pre-norm: the final norm counts, a second norm and everything after a matrix do not."""
    d = Draft()
    x0 = d.embed()
    x1 = d.pre_norm_layer(x0)
    x2 = d.pre_norm_layer(x1)
    final = d.norm(x2)
    assert tensors(d.model(d.norm(d.dense(final)))) == [x0, x1, final]
    assert tensors(d.model(d.dense(d.norm(final)))) == [x0, x1, final]
    assert tensors(d.model(d.norm(d.dense(x2)))) == [x0, x1, x2]


def test_a_second_norm_after_a_post_norm_block_is_the_heads():
    """Post-norm: each layer ends in its own norm, so one more belongs to the head."""
    d = Draft()
    x0 = d.norm(d.embed())
    x1 = d.post_norm_layer(x0)
    x2 = d.post_norm_layer(x1)
    assert tensors(d.model(d.dense(d.norm(x2)))) == [x0, x1, x2]


def test_a_decomposed_norm_is_one_norm():
    """Mean, variance, scale and shift as TensorFlow orders them, x * (w / s) + (b - m * (w / s)), are a norm."""
    d = Draft()

    def norm(x):
        mean = d.op("ReduceMean", x, axes=[-1])
        centered = d.op("Sub", x, mean)
        variance = d.op("ReduceMean", d.op("Mul", centered, centered), axes=[-1])
        root = d.op("Reciprocal", d.op("Sqrt", d.op("Add", variance, d.constant(np.float32(1e-6)))))
        scale = d.op("Mul", root, d.weight(8))
        return d.op("Add", d.op("Mul", x, scale), d.op("Sub", d.weight(8), d.op("Mul", mean, scale)))

    d.norm = norm
    x0 = d.embed()
    x1 = d.pre_norm_layer(x0)
    final = d.norm(d.pre_norm_layer(x1))
    assert tensors(d.model(d.dense(d.norm(d.dense(final))))) == [x0, x1, final]


def test_one_layer_is_enough():
    """A single layer has nothing to compare its end with."""
    d = Draft()
    x0 = d.norm(d.embed())
    x1 = d.post_norm_layer(x0)
    assert tensors(d.model(d.norm(d.dense(x1)))) == [x0, x1]


def test_a_gate_and_attention_pooling_are_not_layers():
    """Heads that multiply data with a function of it, or attend to it once more, are heads."""
    d = Draft()
    x0 = d.norm(d.embed())
    x1 = d.post_norm_layer(x0)
    gated = d.op("Mul", d.op("Sigmoid", d.dense(x1)), x1)
    scores = d.op("Softmax", d.op("Transpose", d.dense(gated, 1), perm=[0, 2, 1]), axis=-1)
    assert tensors(d.model(d.dense(d.op("MatMul", scores, gated)))) == [x0, x1]


def deep(layers=2, kind="post_norm_layer"):
    """Build layers without a head; return (draft, hidden states)."""
    d = Draft()
    states = [d.norm(d.embed())]
    for _ in range(layers):
        states.append(getattr(d, kind)(states[-1]))
    return d, states


@pytest.mark.parametrize("kind", ["post_norm_layer", "pre_norm_layer"])
@pytest.mark.parametrize("taken", [(0, 3), (2, 3), (3, 2, 1, 0)])
@pytest.mark.parametrize("how", ["Sum", "Add", "Concat"])
def test_hidden_states_that_a_head_sums_are_found(kind, taken, how):
    """A head that combines several layers' states, first and last or a weighted sum, hides none of them."""
    d, states = deep(3, kind)
    parts = [d.op("Mul", states[i], d.constant(np.float32(0.3 + i))) for i in taken]
    if how == "Add":
        mixed = parts[0]
        for part in parts[1:]:
            mixed = d.op("Add", mixed, part)
    else:
        mixed = d.op(how, *parts, **({"axis": -1} if how == "Concat" else {}))
    out = d.op("MatMul", mixed, d.weight(8 * len(taken) if how == "Concat" else 8, 20))
    assert tensors(d.model(out)) == states


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_residual_block_in_the_head_is_not_a_layer(layers):
    """A head with its own feed-forward block, as for question answering, comes after the last layer."""
    d, states = deep(layers)
    head = d.norm(d.op("Add", d.feed_forward(states[-1]), states[-1]))
    assert tensors(d.model(d.dense(head))) == states
    first = d.op("Gather", states[-1], d.constant(0), axis=1)
    assert tensors(d.model(d.dense(d.norm(d.op("Add", d.dense(first), first))))) == states


def test_a_matrix_after_each_layer_is_not_the_heads():
    """Layers that each end in a matrix: the last one counts too, but a matrix of another shape belongs to the head."""
    for ends_alike in (True, False):
        d = Draft()
        states = [d.embed()]
        for another in (True, ends_alike):
            x = d.op("Add", d.attention(states[-1]), states[-1])
            states.append(d.dense(x, bias=False) if another else x)
        assert tensors(d.model(d.dense(states[-1], 20, bias=False))) == states


def test_a_norm_before_a_gate_of_the_head_is_not_the_final_norm():
    """A head that attends to the last state, and gates the result with a norm of it: the state is the input of both."""
    d, states = deep(2, "pre_norm_layer")
    gate = d.op("Sigmoid", d.dense(d.norm(states[-1])))
    gated = d.op("Mul", gate, d.attention(states[-1]))
    assert tensors(d.model(d.dense(gated, 20))) == states


def test_an_output_inside_the_last_layer():
    """Among outputs with equally many layers, the one with most nodes before it is followed, in any order of outputs."""
    d, states = deep(1)
    middle = d.norm(d.op("Add", d.attention(states[-1]), states[-1]))
    side = d.norm(d.norm(middle))
    last = d.op("Add", d.feed_forward(middle), middle)
    for outputs in ((side, last), (last, side)):
        assert tensors(d.model(*outputs)) == [*states, last]


@pytest.mark.parametrize("layers", [1, 2])
def test_an_attention_probe_is_a_head(layers):
    """Attention pooling with a learned query, with a residual block on its result, is a head."""
    d, states = deep(layers)
    keys, values = d.dense(states[-1]), d.dense(states[-1])
    scores = d.op("Softmax", d.op("MatMul", d.weight(1, 8), d.op("Transpose", keys, perm=[0, 2, 1])), axis=-1)
    found = d.op("MatMul", scores, values)
    assert tensors(d.model(d.op("Add", d.feed_forward(found), found))) == states


def test_heads_may_be_mixed_between_scores_and_values():
    """Talking heads: a parameter matrix applied to the attention weights does not hide the attention."""
    d = Draft()

    def attention(x):
        split, merge = d.constant(np.array([0, 0, 2, 4])), d.constant(np.array([0, 0, 8]))
        q, k, v = (d.op("Reshape", d.dense(x), split) for _ in range(3))
        scores = d.op("Einsum", q, k, equation="bihd,bjhd->bijh")
        spoken = d.op("Softmax", d.op("MatMul", scores, d.weight(2, 2)), axis=2)
        return d.dense(d.op("Reshape", d.op("Einsum", spoken, v, equation="bijh,bjhd->bihd"), merge))

    d.attention = attention
    x0 = d.norm(d.embed())
    x1 = d.post_norm_layer(x0)
    assert tensors(d.model(d.dense(x1, 20))) == [x0, x1]


def test_a_layer_may_begin_before_its_attention():
    """Half a feed-forward block on both sides of the attention: a layer begins with the first half."""
    d = Draft()
    states = [d.embed()]
    for _ in range(3):
        x = d.op("Add", d.feed_forward(d.norm(states[-1])), states[-1])
        x = d.op("Add", d.attention(d.norm(x)), x)
        states.append(d.norm(d.op("Add", d.feed_forward(d.norm(x)), x)))
    assert tensors(d.model(d.dense(states[-1], 20))) == states


def test_the_final_norm_after_padding_was_cut_off():
    """Tokens padded to whole blocks inside the graph are sliced before the final norm; the selection of one token is a head."""
    d = Draft()
    length = d.op("Slice", d.op("Shape", "input_ids"), d.constant([1]), d.constant([2]))
    x0 = d.op("Pad", d.embed(), d.constant(np.array([0, 0, 0, 0, 3, 0])))
    x1 = d.pre_norm_layer(x0)
    x2 = d.pre_norm_layer(x1)
    final = d.norm(d.op("Slice", x2, d.constant([0]), length, d.constant([1])))
    assert tensors(d.model(d.dense(final))) == [x0, x1, final]
    assert run(cut(d.model(d.dense(final)), final), ANY).shape == (2, 5, 8)
    first = d.norm(d.op("Slice", x2, d.constant([0]), d.constant([1]), d.constant([1])))
    assert tensors(d.model(d.dense(first))) == [x0, x1, x2]


def test_a_similarity_of_two_tokens_is_not_a_norm():
    """A quotient of selected or averaged values of a state is a head, though it resembles a norm."""
    d, states = deep(2, "pre_norm_layer")
    first = d.op("Gather", states[-1], d.constant(0), axis=1)
    mean = d.op("ReduceMean", states[-1], axes=[1], keepdims=0)
    similar = d.op("Div", first, d.op("ReduceL2", mean, axes=[1], keepdims=1))
    assert tensors(d.model(similar)) == states


def test_a_cast_like_does_not_read_data():
    """A final norm cast to the type of its input, as exporters write before optimization, is still a norm."""
    d, states = deep(2, "pre_norm_layer")
    squared = d.op("ReduceMean", d.op("Mul", states[-1], states[-1]), axes=[-1])
    final = d.op("Mul", d.op("Div", states[-1], d.op("Sqrt", squared)), d.weight(8))
    cast = d.op("CastLike", final, states[-1])
    assert tensors(d.model(d.dense(cast, 20))) == [*states[:-1], final]


def test_the_scale_of_a_norm_may_be_a_number():
    """Data divided by its norm times sqrt(H) is a norm with its scale; a second scalar, or one after a vector, is the head's."""
    d, states = deep(2, "pre_norm_layer")
    unit = d.op("Div", states[-1], d.op("ReduceL2", states[-1], axes=[-1], keepdims=1))
    final = d.op("Mul", unit, d.constant(np.float32(8**0.5)))
    assert tensors(d.model(d.dense(d.op("Mul", final, d.constant(np.float32(0.5))))))[-1] == final
    scaled = d.op("Mul", unit, d.weight(8))
    assert tensors(d.model(d.dense(d.op("Mul", scaled, d.constant(np.float32(0.5))))))[-1] == scaled


@pytest.mark.parametrize("kind", ["unknown", "heads", "mask"])
def test_attention_in_one_unknown_operator(kind):
    """An opaque operator is attention if it reads q, k and v, has a number of heads, or reads a mask and token data."""
    d = Draft()
    d.inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "sequence"]))

    def attention(x):
        if kind == "unknown":
            return d.dense(d.op("Mystery", d.dense(x), d.dense(x), d.dense(x), domain="strange"))
        if kind == "heads":
            return d.op("Mystery", x, d.weight(8, 24), d.weight(24), domain="strange", heads_of_query=2)
        return d.op("Mystery", d.dense(x, 24), "attention_mask", domain="strange")

    d.attention = attention
    x0 = d.norm(d.embed())
    x1 = d.post_norm_layer(x0)
    x2 = d.post_norm_layer(x1)
    assert tensors(d.model(d.norm(d.op("Mystery", d.dense(x2), domain="strange")))) == [x0, x1, x2]


def test_the_residual_stream_continues_in_the_sum_output():
    """Pre-norm layers fused to SkipLayerNormalization pass the stream in the fourth output, the last one in the first."""
    d = Draft()

    def skip(x, branch):
        name = f"s{len(d.nodes)}"
        outputs = [name, "", "", f"{name}_sum"]
        d.nodes.append(
            helper.make_node("SkipLayerNormalization", [x, branch, d.weight(8), d.weight(8)], outputs, domain="com.microsoft")
        )
        return outputs[0], outputs[3]

    x0 = total = d.embed()
    normed, sums = d.norm(x0), []
    for _ in range(2):
        normed, total = skip(total, d.attention(normed))
        normed, total = skip(total, d.feed_forward(normed))
        sums.append(total)
    model = d.model(d.dense(normed))
    model.graph.node[[normed in n.output for n in model.graph.node].index(True)].output[3] = ""
    states = hidden_states(model)
    assert [s.tensor for s in states] == [x0, sums[0], normed]
    assert states[-1].hidden_size == 8
    run(cut(model, sums[0]), ANY)


def test_a_sum_left_unfused_has_its_norm_after_it():
    """Pre-norm sums are fused with the next norm except the last, which a Transpose separates from the final norm."""
    d = Draft()

    def skip(x, branch):
        name = f"s{len(d.nodes)}"
        inputs = [x, branch, d.weight(8), d.weight(8)]
        d.nodes.append(
            helper.make_node("SkipLayerNormalization", inputs, [name, "", "", f"{name}_sum"], domain="com.microsoft")
        )
        return name, f"{name}_sum"

    x0 = total = d.embed()
    normed, sums = d.norm(x0), [x0]
    for _ in range(2):
        normed, total = skip(total, d.attention(normed))
        normed, total = skip(total, d.feed_forward(normed))
        sums.append(total)
    normed, total = skip(total, d.attention(normed))
    turned = d.op("Transpose", d.op("Add", total, d.feed_forward(normed)), perm=[1, 0, 2])
    final = d.norm(turned)
    states = hidden_states(d.model(d.dense(final)))
    assert [s.tensor for s in states] == [*sums, final]
    assert states[-1].axes == "TBH"


def test_a_quantized_head_is_not_a_residual_block():
    """The scale of a dynamically quantized product bypasses its matrix, but carries no data."""
    d = Draft()
    x0 = d.norm(d.embed())
    x1 = d.post_norm_layer(x0)
    names = ["q", "scale", "zero"]
    d.nodes.append(helper.make_node("DynamicQuantizeLinear", [x1], names))
    weight = d.constant(d.rng.integers(-9, 9, (8, 8)).astype(np.int8))
    product = d.op("Cast", d.op("MatMulInteger", "q", weight, "zero"), to=TensorProto.FLOAT)
    logits = d.op("Mul", product, d.op("Mul", "scale", d.constant(np.float32(0.1))))
    assert tensors(d.model(d.norm(logits))) == [x0, x1]


def test_the_encoder_is_the_embedding():
    """Of two stacks, the one that feeds the other is used, even if the decoder is longer, in any order of inputs."""
    d = Draft()
    d.inputs.insert(0, helper.make_tensor_value_info("decoder_input_ids", TensorProto.INT64, ["batch", "target"]))
    table = d.weight(20, 8)
    x0 = d.op("Gather", table, "input_ids")
    memory = d.post_norm_layer(x0)
    y = d.op("Gather", table, "decoder_input_ids")
    for _ in range(3):
        y = d.norm(d.op("Add", d.attention(y), y))
        y = d.norm(d.op("Add", d.attention(y, memory), y))
        y = d.norm(d.op("Add", d.feed_forward(y), y))
    model = d.model(d.dense(y))
    assert tensors(model) == [x0, memory]
    assert [i.name for i in cut(model, memory).graph.input] == ["input_ids"]


def test_an_encoder_that_ends_in_a_fused_norm():
    """Among the outputs of the encoder's last node, none of them a graph output, the first is its state."""
    d = Draft()
    d.inputs.append(helper.make_tensor_value_info("decoder_input_ids", TensorProto.INT64, ["batch", "target"]))
    x0 = d.norm(d.embed())
    x = d.norm(d.op("Add", d.attention(x0), x0))
    inputs = [x, d.feed_forward(x), d.weight(8), d.weight(8)]
    d.nodes.append(helper.make_node("SkipLayerNormalization", inputs, ["memory", "", "", "sum"], domain="com.microsoft"))
    y = d.norm(d.embed("decoder_input_ids"))
    y = d.norm(d.op("Add", d.attention(y), y))
    y = d.norm(d.op("Add", d.attention(y, "memory"), y))
    assert tensors(d.model(d.dense(y))) == [x0, "memory"]


def test_a_decoder_alone_counts_its_own_attention():
    """Cross-attention to an encoder's states, an input here, does not start a layer."""
    d = Draft()
    d.inputs.append(helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, ["batch", "source", 8]))
    y, ends = d.norm(d.embed()), []
    for _ in range(2):
        ends.append(y)
        y = d.norm(d.op("Add", d.attention(y), y))
        y = d.norm(d.op("Add", d.attention(y, "encoder_hidden_states"), y))
        y = d.norm(d.op("Add", d.feed_forward(y), y))
    assert tensors(d.model(d.dense(y))) == [*ends, y]


def test_float_input_of_rank_three_is_the_embedding_output():
    """A graph that takes embeddings starts with them."""
    d = Draft()
    d.inputs = [helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, ["batch", "sequence", 8])]
    x1 = d.pre_norm_layer("inputs_embeds")
    final = d.norm(x1)
    assert tensors(d.model(d.dense(final))) == ["inputs_embeds", final]


def test_nodes_in_any_order():
    """A graph with unsorted nodes has the same hidden states."""
    d = Draft()
    model = d.model(d.dense(d.post_norm_layer(d.norm(d.embed()))))
    expected = tensors(model)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert tensors(model) == expected


def test_a_branch_inside_the_stream():
    """The stream is followed through an If that captures it, as exporters write for a squeeze."""
    d = Draft()
    x0 = d.embed()
    x1 = d.pre_norm_layer(x0)
    made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("same", "other")]
    branches = [helper.make_graph([helper.make_node("Identity", [x1], [m.name])], m.name, [], [m]) for m in made]
    d.nodes.append(
        helper.make_node("If", [d.constant(np.array(True))], ["after"], then_branch=branches[0], else_branch=branches[1])
    )
    final = d.norm(d.pre_norm_layer("after"))
    model = d.model(d.dense(final))
    assert tensors(model) == [x0, "after", final]
    assert run(cut(model, final), ANY).shape == (2, 5, 8)


def test_a_decoder_with_and_one_without_a_cache_in_one_file():
    """Of the two branches of an If on an input, the one without a cache is inlined."""
    d = Draft()
    x0 = d.embed()
    x1 = d.pre_norm_layer(x0)
    final = d.norm(x1)
    logits = d.dense(final)
    flag = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    past = helper.make_tensor_value_info("past", TensorProto.FLOAT, ["batch", "sequence", 20])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    cached = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["c"]), helper.make_node("Add", ["c", "past"], ["d"])],
        "cached",
        [],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, None)],
        [helper.make_tensor("table", 1, [20, 20], [0.0] * 400)],
    )
    fresh = helper.make_graph(d.nodes, "fresh", [], [helper.make_tensor_value_info(logits, TensorProto.FLOAT, None)], d.weights)
    choice = helper.make_node("If", ["use_cache_branch"], ["logits"], then_branch=cached, else_branch=fresh)
    graph = helper.make_graph([choice], "merged", [*d.inputs, past, flag], [given])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert tensors(model) == [x0, final]
    alone = cut(model, final)
    assert [i.name for i in alone.graph.input] == ["input_ids"]
    assert np.array_equal(run(alone, ANY), run(cut(d.model(logits), final), ANY))


def test_select_counts_from_both_ends():
    """0 is the embedding output, -1 the last, a name picks its state."""
    states = [HiddenState(i, f"t{i}", 8, "") for i in range(3)]
    assert [select(states, i).tensor for i in (0, 2, -1, -3)] == ["t0", "t2", "t2", "t0"]
    assert select(states, "t1").index == 1


@pytest.mark.parametrize("layer", [3, -4, "t9", True])
def test_select_lists_the_hidden_states(layer):
    """A wrong layer is an error that lists every hidden state."""
    states = [HiddenState(i, f"t{i}", 8, "") for i in range(3)]
    with pytest.raises(ValueError, match="0 't0', 1 't1', 2 't2'"):
        select(states, layer)
