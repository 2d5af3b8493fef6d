"""Layers of the residual stream: each property of a segment, in a graph that has only this property."""

from dataclasses import replace

import numpy as np
import pytest
from graph_kit import Draft, cut, hidden_states, run, run_uncut
from onnx import TensorProto, helper, numpy_helper

from penult import Engine
from penult.graph.find.flow import trace
from penult.graph.find.layers import NotATransformerError
from penult.graph.find.residual_stream import Stream, feeding, follow, learned, one_norm, trims
from penult.graph.find.skeleton import skeleton


def tensors(model):
    return [state.tensor for state in hidden_states(model)]


def flow_of(model):
    return trace(skeleton(model).graph)


def convolution(d, x, kernel=3):
    """Slide over the tokens of x (B, T, 8)."""
    turned = d.op("Transpose", x, perm=[0, 2, 1])
    before = kernel // 2
    slid = d.op("Conv", turned, d.weight(8, 8, kernel), d.weight(8), pads=[before, kernel - 1 - before])
    return d.op("Transpose", slid, perm=[0, 2, 1])


def test_a_convolution_after_attention_is_of_its_layer():
    """Attention, convolution, feed-forward: one layer, and not a second one that begins at the convolution."""
    d = Draft()
    states = [d.norm(d.embed())]
    for _ in range(3):
        x = d.norm(d.op("Add", d.attention(states[-1]), states[-1]))
        x = d.norm(d.op("Add", convolution(d, x), x))
        states.append(d.norm(d.op("Add", d.feed_forward(x), x)))
    assert tensors(d.model(d.dense(states[-1], 20))) == states


def test_a_convolution_in_place_of_attention_begins_a_layer():
    """In a hybrid, a convolution and a feed-forward block are a layer; a convolution of width 1 is a matrix."""
    for kernel, count in ((3, 4), (2, 4), (1, 2)):
        d = Draft()
        states = [d.norm(d.embed())]
        for attends in (True, False, True, False):
            x = states[-1]
            x = d.norm(d.op("Add", d.attention(x) if attends else convolution(d, x, kernel), x))
            states.append(d.norm(d.op("Add", d.feed_forward(x), x)))
        assert len(hidden_states(d.model(d.dense(states[-1], 20)))) == count + 1


def test_a_recurrence_in_place_of_attention_begins_a_layer():
    """In a hybrid, a GRU and a feed-forward block are a layer; GRUs alone are not a transformer."""

    def recurrent(d, x):
        turned = d.op("Transpose", x, perm=[1, 0, 2])
        states = d.op("GRU", turned, d.weight(1, 24, 8), d.weight(1, 24, 8), hidden_size=8)  # (T, 1, B, 8)
        return d.op("Transpose", d.op("Squeeze", states, d.constant([1])), perm=[1, 0, 2])

    for kinds in ((True, False, True, False), (False, False)):
        d = Draft()
        states = [d.norm(d.embed())]
        for attends in kinds:
            x = states[-1]
            x = d.norm(d.op("Add", d.attention(x) if attends else recurrent(d, x), x))
            states.append(d.norm(d.op("Add", d.feed_forward(x), x)))
        model = d.model(d.dense(states[-1], 20))
        if any(kinds):
            assert tensors(model) == states
        else:
            with pytest.raises(NotATransformerError, match="2 GRU"):
                hidden_states(model)


@pytest.mark.parametrize("products", [1, 2])
def test_independent_products_are_not_attention(products):
    """Scores of tokens without values: one product, or two of which neither reads the other."""
    d = Draft()
    x = d.norm(d.embed())
    for _ in range(2):
        compared = []
        for _ in range(products):
            scores = d.op("MatMul", d.dense(x), d.op("Transpose", d.dense(x), perm=[0, 2, 1]))  # (B, T, T)
            compared.append(d.op("MatMul", d.op("Softmax", scores, axis=-1), d.weight(5, 8)))
        mixed = compared[0] if products == 1 else d.op("Add", *compared)
        x = d.norm(d.op("Add", mixed, x))
    with pytest.raises(NotATransformerError):
        hidden_states(d.model(d.dense(x, 20)))


def test_convolutions_alone_are_not_a_transformer():
    """Residual blocks that mix only adjacent tokens."""
    d = Draft()
    x = d.norm(d.embed())
    for _ in range(2):
        x = d.norm(d.op("Add", convolution(d, x), x))
        x = d.norm(d.op("Add", d.feed_forward(x), x))
    with pytest.raises(NotATransformerError, match="Its operators with parameters: "):
        hidden_states(d.model(d.dense(x, 20)))


def fused_attention(d, x):
    """Attention with products as operators of ONNX Runtime, in the order in which exporters fuse them."""
    q, k, v = d.dense(x), d.dense(x), d.dense(x)
    scores = d.op("FusedMatMul", q, k, domain="com.microsoft", transB=1, alpha=0.5)
    return d.dense(d.op("FusedMatMul", d.op("Softmax", scores, axis=-1), v, domain="com.microsoft"))


def test_products_of_the_runtime_are_products():
    """FusedMatMul of token data with token data, twice, is attention; with a parameter matrix it is a learned matrix."""
    d = Draft()
    states = [d.norm(d.embed())]
    for _ in range(2):
        x = d.norm(d.op("Add", fused_attention(d, states[-1]), states[-1]))
        inner = d.op("Tanh", d.op("FusedMatMul", x, d.weight(8, 8), domain="com.microsoft"))
        states.append(d.norm(d.op("Add", d.dense(inner), x)))
    assert tensors(d.model(d.dense(states[-1], 20))) == states


def test_an_opaque_operator_with_parameters_alone_is_not_attention():
    """A fused bias and activation reads token data and a vector: residual blocks of it are not a transformer."""
    d = Draft()
    x = d.norm(d.embed())
    for _ in range(2):
        inner = d.op("BiasGelu", d.dense(x, bias=False), d.weight(8), domain="com.microsoft")
        x = d.norm(d.op("Add", d.dense(inner), x))
    with pytest.raises(NotATransformerError):
        hidden_states(d.model(d.dense(x, 20)))


def attending(x, second="MatMul", between="Softmax"):
    """Return the nodes of softmax(x x) x, and no weights."""
    return [
        helper.make_node("Transpose", [x], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", [x, "turned"], ["scores"]),
        helper.make_node(between, ["scores"], ["soft"]),
        helper.make_node(second, ["soft", x][: 1 + (second == "MatMul")], ["out"]),
    ], []


def weighing(x, held):
    """Return the nodes of softmax(x W) W, whose matrix is in the branch, as a node or as an initializer."""
    matrix = numpy_helper.from_array(np.eye(8, dtype=np.float32), "matrix")
    nodes = [
        helper.make_node("MatMul", [x, "matrix"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["soft"]),
        helper.make_node("MatMul", ["soft", "matrix"], ["out"]),
    ]
    return ([helper.make_node("Constant", [], ["matrix"], value=matrix), *nodes], []) if held else (nodes, [matrix])


def adding(x):
    """Return the nodes of attention whose products add a parameter vector to their result."""
    nodes = [
        helper.make_node("Gemm", [x, x, "vector"], ["scores"], transB=1),
        helper.make_node("Softmax", ["scores"], ["soft"]),
        helper.make_node("Gemm", ["soft", x, "vector"], ["out"]),
    ]
    return nodes, [numpy_helper.from_array(np.zeros(1, np.float32), "vector")]


def branching(d, condition, made_of=attending, **options):
    """Append two layers with attention in both branches of an If, with the same names in each; return the states."""
    states = [d.norm(d.embed())]

    def branch(x, name):
        nodes, weights = made_of(x, **options)
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)], weights)

    for _ in range(2):
        x, made = states[-1], f"if{len(states)}"
        branches = {f"{name}_branch": branch(x, name) for name in ("then", "else")}
        d.nodes.append(helper.make_node("If", [condition], [made], **branches))
        x = d.norm(d.op("Add", d.dense(made), x))
        states.append(d.norm(d.op("Add", d.feed_forward(x), x)))
    return states


def test_opaque_operators_that_read_two_branches_are_not_attention():
    """A gate in one unknown operator reads two projections of a token; two in a row still do not mix tokens."""
    d = Draft()
    x = d.norm(d.embed())
    for _ in range(2):
        gated = d.op("Gate", d.dense(x), d.dense(x), domain="strange")
        x = d.norm(d.op("Add", d.dense(d.op("Gate", gated, d.dense(x), domain="strange")), x))
    with pytest.raises(NotATransformerError):
        hidden_states(d.model(d.dense(x, 20)))


def test_attention_in_a_branch():
    """An If with attention in its branches is attention; two products without a softmax, one with, or two with parameters are not."""
    for made_of in (attending, adding):
        d = Draft()
        states = branching(d, d.constant(np.array(True)), made_of)
        assert tensors(d.model(d.dense(states[-1], 20))) == states
    weighed = ({"made_of": weighing, "held": held} for held in (True, False))
    for parts in ({"between": "Identity"}, {"second": "Identity"}, *weighed):
        d = Draft()
        states = branching(d, d.constant(np.array(True)), **parts)
        with pytest.raises(NotATransformerError):
            hidden_states(d.model(d.dense(states[-1], 20)))


def test_branches_that_share_their_names():
    """Two Ifs on an input with the same names in their branches are not a cycle: ONNX Runtime reports the duplicate names."""
    d = Draft()
    states = branching(d, "flag")
    d.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    model = d.model(d.dense(states[-1], 20))
    assert tensors(model) == states
    with pytest.raises(ValueError, match="'turned' has been used as output names multiple times"):
        Engine(cut(model, states[-1]).SerializeToString())


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_a_parameter_vector_alone_is_not_a_norm(op):
    """After pre-norm layers, a scale or a shift alone belongs to the head."""
    d = Draft()
    states = [d.embed()]
    for _ in range(2):
        states.append(d.pre_norm_layer(states[-1]))
    assert tensors(d.model(d.dense(d.op(op, states[-1], d.weight(8)), 20))) == states


def test_a_norm_of_the_runtime_is_a_norm():
    """An opaque operator with a parameter vector after the last pre-norm block is the final norm."""
    d = Draft()
    states = [d.embed()]
    for _ in range(2):
        states.append(d.pre_norm_layer(states[-1]))
    final = d.op("RMSNorm", states[-1], d.weight(8), domain="strange")
    assert tensors(d.model(d.dense(final, 20))) == [*states[:-1], final]


def test_the_encoder_of_a_decoder():
    """The tensor of the encoder that the decoder reads; a stack without an encoder has none."""
    d = Draft()
    d.inputs.append(helper.make_tensor_value_info("decoder_input_ids", TensorProto.INT64, ["batch", "target"]))
    memory = d.post_norm_layer(d.post_norm_layer(d.norm(d.embed())))
    y = d.norm(d.embed("decoder_input_ids"))
    for _ in range(2):
        y = d.norm(d.op("Add", d.attention(y), y))
        y = d.norm(d.op("Add", d.attention(y, memory), y))
        y = d.norm(d.op("Add", d.feed_forward(y), y))
    flow = flow_of(d.model(y, memory))
    decoder, encoder = (follow(flow, [flow.producer[name]], {}) for name in (y, memory))
    assert flow.nodes[decoder.nodes[0]].input[1] == "decoder_input_ids"
    fed = feeding(flow, decoder)
    assert len(fed) == 4  # keys and values of two layers
    assert all(flow.depends(node, flow.producer[memory]) and not flow.depends(node, decoder.nodes[0]) for node in fed)
    assert follow(flow, fed, {}).nodes == encoder.nodes
    assert feeding(flow, encoder) == []


def test_a_decoder_that_reads_its_encoder_at_its_very_end():
    """If the only cross-attention block ends the graph, the encoder is still found."""
    d = Draft()
    d.inputs.append(helper.make_tensor_value_info("decoder_input_ids", TensorProto.INT64, ["batch", "target"]))
    states = [d.norm(d.embed())]
    for _ in range(2):
        states.append(d.post_norm_layer(states[-1]))
    y = d.norm(d.embed("decoder_input_ids"))
    for _ in range(3):
        y = d.norm(d.op("Add", d.attention(y), y))
    assert tensors(d.model(d.op("Add", d.attention(y, states[-1]), y))) == states


def test_a_first_block_is_not_an_encoder():
    """A first block that attends to the embedding output, without a norm between, is not an encoder of the others."""
    d = Draft()
    x = d.embed()
    for _ in range(2):
        x = d.op("Add", d.attention(x), x)
    flow = flow_of(d.model(x))
    assert feeding(flow, follow(flow, [flow.producer[x]], {})) == []


def test_values_from_the_embedding_output():
    """Attention with values from the embedding output in every layer is attention over the same tokens."""
    d = Draft()
    table = d.embed()
    states = [d.norm(table)]
    for _ in range(2):
        x = states[-1]
        scores = d.op("MatMul", d.dense(x), d.op("Transpose", d.dense(x), perm=[0, 2, 1]))
        mixed = d.op("MatMul", d.op("Softmax", scores, axis=-1), d.dense(table))
        x = d.norm(d.op("Add", d.dense(mixed), x))
        states.append(d.norm(d.op("Add", d.feed_forward(x), x)))
    assert tensors(d.model(d.dense(states[-1], 20))) == states


class LimitedLookups(list):
    """Feeders of a graph's nodes; fails after a hundred lookups per node."""

    looks = 0

    def __getitem__(self, node):
        """Count a lookup."""
        self.looks += 1
        assert self.looks < 100 * len(self)
        return super().__getitem__(node)


def test_a_segment_with_many_paths_is_walked_once():
    """Twenty-four forks in a row are 16 million paths; each node is visited once."""
    d = Draft()
    x = d.norm(d.embed())
    y = d.dense(x, bias=False)
    for _ in range(24):
        y = d.op("Add", d.op("Tanh", y), d.op("Sigmoid", y))
    compared = d.op("Softmax", d.op("MatMul", y, d.op("Transpose", y, perm=[0, 2, 1])), axis=-1)
    end = d.op("Add", d.op("MatMul", compared, d.weight(5, 8)), d.op("Mul", y, d.dense(x)))
    flow = flow_of(d.model(end))
    feeders = LimitedLookups(flow.feeders)
    (segment,) = follow(replace(flow, feeders=feeders), [flow.producer[end]], {}).segments[1:]
    assert feeders.looks > len(flow.nodes)
    assert (segment.learned, segment.mixing, segment.around) == (True, False, None)


def test_a_stream_without_layers():
    """No layer starts in an empty stream."""
    assert Stream([], []).layers == Stream([0], []).starts == []


def test_a_slice_to_the_input_length_trims_padding():
    """A Slice to the length of the ids trims padding; one with fixed bounds, or another operator, selects tokens."""
    d = Draft()
    length = d.op("Slice", d.op("Shape", "input_ids"), d.constant([1]), d.constant([2]))
    x = d.embed()
    kept = {
        d.op("Slice", x, d.constant([0]), length, d.constant([1])): True,
        d.op("Slice", x, length, d.constant([9]), d.constant([1])): True,
        d.op("Slice", x, d.constant([0]), d.constant([1]), d.constant([1])): False,
        d.op("Slice", x, d.constant([0]), d.constant([1]), length): False,
        d.op("Reshape", x, length): False,
    }
    flow = flow_of(d.model(*kept))
    assert {name: trims(flow, flow.producer[name]) for name in kept} == kept


@pytest.mark.parametrize(("turns", "axes"), [(0, "BTH"), (1, "TBH"), (2, "BTH"), (3, "TBH")])
def test_transposed_ids(turns, axes):
    """Ids transposed an odd number of times before the lookup make a stream of (T, B, H)."""
    d = Draft()
    ids = "input_ids"
    for _ in range(turns):
        ids = d.op("Identity", d.op("Transpose", ids, perm=[1, 0]))
    final = d.post_norm_layer(d.norm(d.embed(ids)))
    assert {state.axes for state in hidden_states(d.model(final))} == {axes}


def test_the_state_is_a_graph_output():
    """Among several outputs of the last node, a graph output is the state; otherwise the first."""
    for given in (["s", "other"], ["s"]):
        d = Draft()
        x0 = d.norm(d.embed())
        x = d.norm(d.op("Add", d.attention(x0), x0))
        y = d.feed_forward(x)
        inputs = [x, y, d.weight(8), d.weight(8)]
        outputs = ["s", "", "", "sum"] if given == ["s"] else ["first", "", "", "s"]
        d.nodes.append(helper.make_node("SkipLayerNormalization", inputs, outputs, domain="com.microsoft"))
        assert hidden_states(d.model("s"))[-1].tensor == "s"


def test_the_operators_with_parameters_in_the_message():
    """They are counted, the most frequent first: matrices applied to token data, but no norms, lookups or unused nodes."""
    d = Draft()
    x = d.norm(d.embed())
    x = d.op("Gemm", d.op("Reshape", d.dense(d.dense(x)), d.constant(np.array([-1, 8]))), d.weight(8, 8))
    d.dense(x)  # leads nowhere
    with pytest.raises(NotATransformerError, match=r"Its operators with parameters: 2 MatMul, 1 Gemm$"):
        hidden_states(d.model(x))


def test_where_parameters_are_learned_matrices():
    """A matrix that token data is multiplied with, in any operator; not one that is added, selected from or used as a shape."""
    d = Draft()
    x = d.embed()
    wanted = {
        d.op("MatMul", x, d.weight(8, 8)): True,
        d.op("Einsum", x, d.weight(8, 8), equation="bth,hk->btk"): True,
        d.op("Mystery", x, d.weight(8, 8), domain="strange"): True,
        d.op("MatMul", x, d.op("Transpose", x, perm=[0, 2, 1])): False,
        d.op("Mystery", x, d.weight(8), domain="strange"): False,
        d.op("Add", x, d.weight(5, 8)): False,
        d.op("Where", d.constant(np.ones((5, 8), bool)), x, d.weight(5, 8)): False,
        d.op("Concat", x, d.weight(2, 5, 8), axis=1): False,
        d.op("DequantizeLinear", x, d.weight(2, 8), d.weight(2, 8)): False,
    }
    flow = flow_of(d.model(*wanted))
    assert {name: learned(flow, flow.producer[name]) for name in wanted} == wanted


def test_which_operators_are_norms():
    """Standard norms, with or without parameters, and an unknown operator with a parameter vector and no matrix."""
    d = Draft()
    x = d.embed()
    wanted = {
        d.norm(x): True,
        d.op("LpNormalization", x): True,
        d.op("SimplifiedLayerNormalization", x, d.weight(8)): True,
        d.op("Mystery", x, d.weight(8), domain="strange"): True,
        d.op("NotOfTheStandard", x, d.weight(8)): True,
        d.op("Mystery", x, d.weight(8), d.weight(8, 8), domain="strange"): False,
        d.op("Mystery", x, d.weight(8, 8), domain="strange"): False,
        d.op("Mystery", x, domain="strange"): False,
        d.op("Mul", x, d.weight(8)): False,
        d.op("Softmax", x, axis=-1): False,
    }
    flow = flow_of(d.model(*wanted))
    assert {name: one_norm(flow, flow.producer[name]) for name in wanted} == wanted


def segments(d, *ends):
    """Return the segments between adjacent nodes of the stream that ends in a tensor, and the tensors of its nodes."""
    flow = flow_of(d.model(*ends))
    stream = follow(flow, [flow.producer[ends[0]]], {})
    return [flow.nodes[n].output[0] for n in stream.nodes], stream.segments


def test_properties_of_a_segment():
    """Norm, feed-forward block, activation and statistic, each after the previous one."""
    d = Draft()
    x0 = d.embed()
    x1 = d.norm(x0)
    x2 = d.op("Add", d.feed_forward(x1), x1)
    x3 = d.op("Cast", d.op("Tanh", x2), to=TensorProto.FLOAT)
    x4 = d.op("Div", x3, d.op("ReduceL2", x3, axes=[-1]))
    x5 = d.op("Add", d.attention(x4), x4)
    x6 = d.op("ReduceMean", x5, axes=[1])
    names, found = segments(d, x6)
    facts = dict(zip(names[1:], found, strict=True))
    said = {name: (s.residual, s.learned, s.mixing, s.local, s.norm, s.plain) for name, s in facts.items()}
    assert said[x1] == (False, False, False, False, True, False)
    assert said[x2] == (True, True, False, False, False, False)
    assert said[x3] == (False, False, False, False, False, True)
    assert said[x4] == (False, False, False, False, True, True)
    assert said[x5] == (True, True, True, False, False, False)
    assert said[x6] == (False, False, False, False, False, False)
    assert [facts[name].tensor for name in (x1, x2, x4, x5)] == [x0, x1, x3, x4]


def test_a_residual_connection_is_added():
    """Data that is multiplied with the matrix product, or read by the same operator as a matrix, does not bypass anything."""
    d = Draft()
    x = d.embed()
    ends = {
        d.op("Add", d.feed_forward(x), x): True,
        d.op("Sub", x, d.feed_forward(x)): True,
        d.op("Join", d.feed_forward(x), x, domain="strange"): True,
        d.op("Mul", d.op("Sigmoid", d.dense(x)), x): False,
        d.op("Join", d.feed_forward(x), x, d.weight(8, 8), domain="strange"): False,
        d.op("FusedMatMul", d.feed_forward(x), x, domain="com.microsoft", transB=1): False,
    }
    flow = flow_of(d.model(*ends))
    found = {end: follow(flow, [flow.producer[end]], {}).segments for end in ends}
    assert all(len(segments) == 1 for segments in found.values())
    assert {end: segments[0].residual for end, segments in found.items()} == ends


def test_a_quantization_scale_is_not_data():
    """Two integer products, added: the scale bypasses both matrices, data does not; dequantized data does."""
    for widened in (False, True):
        d = Draft()
        d.nodes.append(helper.make_node("DynamicQuantizeLinear", [d.norm(d.embed())], ["q", "scale", "zero"]))

        def product(d=d):
            weight = d.constant(d.rng.integers(-9, 9, (8, 8)).astype(np.int8))
            cast = d.op("Cast", d.op("MatMulInteger", "q", weight, "zero"), to=TensorProto.FLOAT)
            return d.op("Mul", cast, d.op("Mul", "scale", d.constant(np.float32(0.1))))

        end = d.op("Add", product(), d.op("DequantizeLinear", "q", "scale", "zero") if widened else product())
        names, found = segments(d, end)
        assert names[-2:] == ["q", end]
        assert found[-1].residual is widened
        assert not widened or found[-1].tensor == "q"


def test_the_output_that_continues_the_stream():
    """If a head reads two outputs of a fused norm, the state is the one that continues, not the gate."""
    d = Draft()
    states = [d.norm(d.embed())]
    for last in (False, True):
        x = d.norm(d.op("Add", d.attention(states[-1]), states[-1]))
        inputs, name = [x, d.feed_forward(x), d.weight(8), d.weight(8)], f"s{last}"
        outputs = [name, "", "", "sum"] if last else [name]
        d.nodes.append(helper.make_node("SkipLayerNormalization", inputs, outputs, domain="com.microsoft"))
        states.append(name)
    gated = d.op("Mul", d.op("Sigmoid", d.dense("sum")), states[-1])
    assert tensors(d.model(d.dense(gated, 20))) == states


def test_a_statistic_of_selected_tokens_is_not_a_norm():
    """X divided by a statistic is a norm if each value keeps its position, and not if tokens were selected before."""
    for moved in (False, True):
        d = Draft()
        x0 = d.norm(d.embed())
        x1 = d.op("Slice", x0, d.constant([0]), d.constant([2]), d.constant([1])) if moved else x0
        x2 = d.op("Div", x1, d.op("ReduceL2", d.op("Mul", x0, x0), axes=[1]))
        names, found = segments(d, x2)
        assert names[-1] == x2
        assert found[-1].norm is not moved


def test_a_state_is_taken_in_the_requested_order_of_axes():
    """A last state that is transposed back to (B, T, H), directly or after a cast, is taken there; the others as they are."""
    for cast in (False, True):
        d = Draft()
        states = [d.norm(d.embed(d.op("Transpose", "input_ids", perm=[1, 0])))]
        for _ in range(2):
            states.append(d.post_norm_layer(states[-1]))
        back = d.op("Transpose", states[-1], perm=[1, 0, 2])
        end = d.op("Cast", back, to=TensorProto.FLOAT) if cast else back
        found = hidden_states(d.model(d.dense(end, 20)))
        assert [(state.tensor, state.axes) for state in found] == [(states[0], "TBH"), (states[1], "TBH"), (back, "BTH")]


def test_a_graph_that_ends_with_its_last_state():
    """Without a head: transposed back, the state is the output; only cast, it is the input of the cast, in its own order."""
    for turned in (True, False):
        d = Draft()
        state = d.post_norm_layer(d.norm(d.embed(d.op("Transpose", "input_ids", perm=[1, 0]))))
        end = d.op("Transpose", state, perm=[1, 0, 2]) if turned else d.op("Cast", state, to=TensorProto.FLOAT)
        last = hidden_states(d.model(end))[-1]
        assert (last.tensor, last.axes) == ((end, "BTH") if turned else (state, "TBH"))


def orders(model):
    return [(state.tensor, state.axes) for state in hidden_states(model)]


def test_an_embedding_that_is_transposed_after_its_lookup():
    """The lookup gives (B, T, H); the layers' states have the transposed order."""
    d = Draft()
    looked_up = d.embed()
    x = d.pre_norm_layer(d.op("Transpose", looked_up, perm=[1, 0, 2]))
    final = d.norm(x)
    assert orders(d.model(d.dense(final, 20))) == [(looked_up, "BTH"), (final, "TBH")]


def test_flattened_tokens_between_two_layers():
    """A feed-forward block on (B T, H) keeps the order of axes, once there are three again."""
    for turned in (False, True):
        d = Draft()
        ids = d.op("Transpose", "input_ids", perm=[1, 0]) if turned else "input_ids"
        x0 = d.norm(d.embed(ids))
        y = d.norm(d.op("Add", d.attention(x0), x0))
        rows = d.op("Reshape", y, d.constant(np.array([-1, 8])))
        rows = d.norm(d.op("Add", d.feed_forward(rows), rows))
        x1 = d.op("Reshape", rows, d.constant(np.array([-1, 5, 8])))
        x2 = d.post_norm_layer(x1)
        found = orders(d.model(d.dense(x2, 20)))
        assert found == ([(x0, "TBH"), (rows, "NH"), (x2, "TBH")] if turned else [(x0, "BTH"), (x1, "BTH"), (x2, "BTH")])


def test_channels_divided_between_two_layers():
    """A reshape of the stream to four axes, transposed and back, changes nothing."""
    d = Draft()
    x0 = d.norm(d.embed())
    x1 = d.post_norm_layer(x0)
    divided = d.op("Transpose", d.op("Reshape", x1, d.constant(np.array([0, 0, 2, 4]))), perm=[0, 2, 1, 3])
    joined = d.op("Reshape", d.op("Transpose", divided, perm=[0, 2, 1, 3]), d.constant(np.array([0, 0, 8])))
    x2 = d.post_norm_layer(joined)
    assert orders(d.model(d.dense(x2, 20))) == [(x0, "BTH"), (x1, "BTH"), (x2, "BTH")]


def test_features_that_a_convolution_reads():
    """Input of (B, H, T), as a convolution requires: transposed after it, it is (B, T, H)."""
    d = Draft()
    d.inputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4, "time"])]
    turned = d.op("Transpose", d.op("Conv", "features", d.weight(8, 4, 3), pads=[1, 1]), perm=[0, 2, 1])
    x0 = d.norm(turned)
    x1 = d.post_norm_layer(x0)
    assert orders(d.model(d.dense(x1, 20))) == [(x0, "BTH"), (x1, "BTH")]


def test_a_branch_with_a_second_output():
    """An If on the stream whose second output is a matrix: the order of axes of the first one counts."""
    d = Draft()
    x0 = d.norm(d.embed())
    x1 = d.post_norm_layer(x0)

    def branch(name):
        given = [helper.make_tensor_value_info(f"{name}{i}", TensorProto.FLOAT, None) for i in (0, 1)]
        table = d.weight(20, 8)
        nodes = [helper.make_node("Identity", [read], [v.name]) for read, v in zip((x1, table), given, strict=True)]
        return helper.make_graph(nodes, name, [], given)

    branches = {f"{name}_branch": branch(name) for name in ("then", "else")}
    d.nodes.append(helper.make_node("If", [d.constant(np.array(True))], ["same", "table"], **branches))
    x2 = d.post_norm_layer("same")
    assert orders(d.model(d.dense(x2, 20))) == [(x0, "BTH"), ("same", "BTH"), (x2, "BTH")]


def test_the_width_from_shapes_alone():
    """If no parameter vector is applied to the stream, H is the size of the H axis."""
    for turned in (False, True):
        d = Draft()
        x = d.embed(d.op("Transpose", "input_ids", perm=[1, 0]) if turned else "input_ids")
        for _ in range(2):
            x = d.op("Add", d.attention(x), x)
        assert [state.hidden_size for state in hidden_states(d.model(d.dense(x, 20, bias=False)))] == [8, 8, 8]


def test_the_width_from_parameters_alone():
    """If no shape is inferred, H is the length of the parameter vector applied last."""
    d = Draft()
    states = [d.norm(d.op("Mystery", d.embed(), domain="strange"))]
    for _ in range(2):
        x = d.op("Mystery", d.attention(states[-1]), domain="strange")
        states.append(d.norm(d.op("Add", d.feed_forward(x), d.op("Add", x, states[-1]))))
    found = hidden_states(d.model(d.dense(states[-1], 20)))
    assert {state.hidden_size for state in found} == {8}


def test_attention_without_a_residual_is_not_an_encoder():
    """If attention without a residual connection computes the memory of a decoder, the decoder itself is searched."""
    d = Draft()
    d.inputs.append(helper.make_tensor_value_info("memory_ids", TensorProto.INT64, ["batch", "source"]))
    memory = d.attention(d.norm(d.embed("memory_ids")))
    states = [d.norm(d.embed())]
    for _ in range(2):
        x = d.norm(d.op("Add", d.attention(states[-1]), states[-1]))
        x = d.norm(d.op("Add", d.attention(x, memory), x))
        states.append(d.norm(d.op("Add", d.feed_forward(x), x)))
    assert tensors(d.model(d.dense(states[-1], 20))) == states


def test_an_embedding_that_is_cast_after_its_lookup():
    """A half-precision table is looked up and cast: the embedding output is the result of the lookup."""
    d = Draft()
    table = d.constant(d.rng.normal(0, 0.4, (20, 8)).astype(np.float16))
    looked_up = d.op("Gather", table, "input_ids")
    states = [d.op("Cast", looked_up, to=TensorProto.FLOAT)]
    for _ in range(2):
        states.append(d.pre_norm_layer(states[-1]))
    assert tensors(d.model(d.dense(states[-1], 20))) == [looked_up, *states[1:]]


def test_states_that_are_sums_of_integers():
    """The state of a layer that ends in a sum of integers is the input of the next one, which is float."""
    d = Draft()
    scale, zero = d.constant(np.float32(0.1)), d.constant(np.uint8(128))
    states = [d.norm(d.embed())]
    for _ in range(2):
        y = d.norm(d.op("Add", d.attention(states[-1]), states[-1]))
        a, b = (d.op("QuantizeLinear", part, scale, zero) for part in (d.feed_forward(y), y))
        added = d.op("QLinearAdd", a, scale, zero, b, scale, zero, scale, zero, domain="com.microsoft")
        states.append(d.op("DequantizeLinear", added, scale, zero))
    assert tensors(d.model(d.dense(states[-1], 20))) == states


def test_quantized_states():
    """A quantized and dequantized state is the state before; for integer sums, the cut dequantizes."""
    d = Draft()
    scale, zero = d.constant(np.float32(0.1)), d.constant(np.uint8(128))

    def rounded(x):
        return d.op("DequantizeLinear", d.op("QuantizeLinear", x, scale, zero), scale, zero)

    x0 = d.norm(d.embed())
    x1 = d.post_norm_layer(rounded(x0))
    y = rounded(x1)
    y = d.norm(d.op("Add", d.attention(y), y))
    inputs = [d.op("QuantizeLinear", part, scale, zero) for part in (d.feed_forward(y), y)]
    integers = d.op("QLinearAdd", inputs[0], scale, zero, inputs[1], scale, zero, scale, zero, domain="com.microsoft")
    x2 = d.op("DequantizeLinear", integers, scale, zero)
    for end, made in ((x2, integers), (d.norm(rounded(x2)), None)):
        model = d.model(d.dense(end, 20))
        found = tensors(model)
        assert found == [x0, x1, made or end]
        given = {"input_ids": np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])}
        assert np.array_equal(run(cut(model, found[-1]), given), run_uncut(model, given, end))
