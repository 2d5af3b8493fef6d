"""The description of a graph is exact to the byte, and the HTML picture shows it."""

import re
from dataclasses import replace

import pytest
from graph_kit import Draft
from onnx import TensorProto, helper, numpy_helper

from penult.graph.describe import End, Size, describe
from penult.graph.picture import draw, megabytes

F16, INT4, DOUBLE = TensorProto.FLOAT16, TensorProto.INT4, TensorProto.DOUBLE


def two_layers(**kwargs):
    """Build an encoder of two layers with a head of 172 parameters, the only reader of the input `extra`; return (draft, states)."""
    d = Draft(**kwargs)
    states = [d.norm(d.embed())]
    states += [d.post_norm_layer(states[0])]
    states += [d.post_norm_layer(states[1])]
    d.inputs.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, [None, 5, "wide"]))
    d.op("Add", d.dense(states[-1], 4), "extra")
    return d, states


def closed(d):
    """Close a graph with two outputs, the head's first."""
    return d.model(d.nodes[-1].output[0])


def test_the_parts_of_a_graph():
    """Inputs and outputs with their types and shapes, operator sets, layers, and the removed part."""
    d, states = two_layers()
    model = closed(d)
    model.graph.input.append(helper.make_tensor_value_info("w0", TensorProto.FLOAT, [20, 8]))  # a weight with a default
    described = describe(model)
    assert described.inputs == (
        End("input_ids", "int64", ("batch", "sequence")),
        End("extra", "float32", (None, 5, "wide")),
    )
    assert described.outputs == (End(d.nodes[-1].output[0], "float32", ()),)
    assert described.opset == {"ai.onnx": 17, "com.microsoft": 1, "strange": 1}
    assert [state.tensor for state in described.layers] == states
    assert described.cut.tensor == states[-1]
    assert described.kept_inputs == ("input_ids",)
    weights = [numpy_helper.to_array(tensor) for tensor in d.weights]
    count, size = sum(w.size for w in weights), sum(w.nbytes for w in weights)
    assert described.whole == Size(len(d.nodes), count, size)
    assert described.removed == Size(3, 8 * 4 + 4, 4 * (8 * 4 + 4))
    assert described.precision == "float32"


def test_a_layer_can_be_chosen():
    """By number or by tensor; then more is removed."""
    d, states = two_layers()
    model = closed(d)
    assert describe(model, 1).cut == describe(model, states[1]).cut == describe(model).layers[1]
    assert describe(model, 1).removed.nodes > describe(model).removed.nodes
    with pytest.raises(ValueError, match="layer=7 does not exist"):
        describe(model, 7)


def test_nodes_that_a_cut_adds_are_not_counted_as_removed():
    """If the graph ends at a hidden state that the cut transposes, nothing is removed."""
    d = Draft()
    x = d.op("Transpose", d.norm(d.embed()), perm=[1, 0, 2])
    end = d.post_norm_layer(d.post_norm_layer(x))
    described = describe(d.model(end))
    assert described.cut.axes == "TBH"
    assert described.removed == Size(0, 0, 0)


@pytest.mark.parametrize(
    ("dtype", "name", "count", "size"),
    [
        (TensorProto.DOUBLE, "float64", 900, 7200), (F16, "float16", 900, 1800), (TensorProto.INT8, "int8", 900, 900),
        (INT4, "int4", 901, 451), (TensorProto.UINT4, "uint4", 900, 450), (TensorProto.BOOL, "bool", 900, 900),
    ],
)  # fmt: skip
def test_bytes_of_every_type(dtype, name, count, size):
    """A constant node counts like a weight, by the bytes of its type; 4-bit values take half a byte, rounded up."""
    d, _ = two_layers(opset=21)
    before = describe(closed(d))
    value = TensorProto(data_type=dtype, dims=[count], raw_data=bytes(size))
    d.nodes.insert(0, helper.make_node("Constant", [], ["constant"], value=value))
    after = describe(closed(d))
    assert (after.whole.parameters, after.whole.bytes) == (before.whole.parameters + count, before.whole.bytes + size)
    d.nodes[0].attribute[0].t.dims[0] *= 100  # most of the bytes are of this type now
    assert describe(closed(d)).precision == name


@pytest.fixture(scope="module")
def described():
    d, _ = two_layers()
    return describe(closed(d), 1)


def rows(page):
    """Return (class, text) of every row of a picture, from the top."""
    found = re.findall(r'<li class="([^"]+)">(.*?)</li>', page)
    return [(kind, re.sub(r"<(?!/?s>)[^>]+>", "", text)) for kind, text in found]


def test_the_picture_is_the_stack(described):
    """Outputs at the top, inputs at the bottom, layers between them with the cut; inputs and outputs that the cut graph lacks are struck through."""
    page = draw(described, "a <b> & c")
    assert page.startswith("<!doctype html>")
    assert page.endswith("</ol></html>\n")
    assert page.count("a &lt;b&gt; &amp; c") == 2
    assert f"<p>2 layers, {described.whole.parameters:,} parameters (float32, " in page
    assert "opset ai.onnx 17, com.microsoft 1, strange 1" in page
    found = rows(page)
    assert [kind for kind, _ in found] == ["end", "gone", "gone", "cut", "keep chosen", "keep", "end"]
    out, head, second, cut, first, zero, given = [text for _, text in found]
    assert out == f"outputs: <s>{described.outputs[0].name} float32()</s>"
    assert head == "Head"
    assert second == f"hidden size 8Layer 2 {described.layers[2].tensor}{described.layers[2].why}"
    assert cut.startswith("cut here: layer 1 gives the token embeddingsremoved: ")
    assert f"{described.removed.nodes} nodes, {described.removed.parameters:,} parameters, " in cut
    assert first == f"hidden size 8Layer 1 {described.layers[1].tensor}{described.layers[1].why}"
    assert zero.startswith("hidden size 8Embedding output ")
    lowest = rows(draw(replace(described, cut=described.layers[0]), "t"))
    assert [kind for kind, _ in lowest] == ["end", "gone", "gone", "gone", "cut", "keep chosen", "end"]
    assert given == "inputs: input_ids int64(batch, sequence), <s>extra float32(None, 5, wide)</s>"


def test_the_picture_of_a_graph_without_a_head(described):
    """No head and nothing struck through; a layer of unknown hidden size shows none."""
    bare = replace(
        described,
        removed=Size(0, 0, 0),
        cut=described.layers[-1],
        kept_inputs=("input_ids", "extra"),
        layers=tuple(replace(layer, hidden_size=None) for layer in described.layers),
    )
    page = draw(bare, "t")
    assert "<s>" not in page
    assert "hidden size" not in page
    assert rows(page)[2] == ("cut", "cut here: layer 2 gives the token embeddings")
    assert rows(page)[1] == ("end", "nothing to remove: the graph ends at this hidden state")
    assert [kind for kind, _ in rows(page)] == ["end", "end", "cut", "keep chosen", "keep", "keep", "end"]


@pytest.mark.parametrize("removed", [Size(0, 9, 36), Size(1, 0, 0)])
def test_a_head_may_have_only_nodes_or_only_weights(described, removed):
    """Weights of a replaced node, and nodes without weights, are also listed as removed."""
    page = draw(replace(described, removed=removed), "t")
    assert ("gone", "Head") in rows(page)
    assert "removed: " in page
    assert ("<s>" + described.outputs[0].name in page) == bool(removed.nodes)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0.0 kB"),
        (1234, "1.2 kB"),
        (99_999, "100.0 kB"),
        (100_000, "0.1 MB"),
        (90_900_000, "90.9 MB"),
        (2.5e9, "2,500.0 MB"),
    ],
)
def test_sizes_are_readable(count, said):
    """Units of 10^6 bytes, or of 10^3 for small sizes."""
    assert megabytes(int(count)) == said
