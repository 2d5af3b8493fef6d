"""Data flow of a graph: tensors with token data, their sources, and the nodes between two nodes."""

import numpy as np
import onnx
import pytest
from graph_kit import Draft
from onnx import TensorProto, helper, numpy_helper

from penult.graph.find.flow import NUMBER, SHAPE, VALUE, ancestors, is_matrix, is_vector, operator, read_by, subgraphs, trace

FLOAT, HALF, INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def flow_of(d, *outputs):
    return trace(d.model(*outputs).graph)


def names(flow, nodes):
    """Name nodes by their outputs."""
    return [flow.nodes[node].output[0] for node in nodes]


def enters(d):
    """Name the tensors at which token data enters a graph."""
    flow = flow_of(d)
    return names(flow, flow.sources)


def add_input(d, name, kind, *shape):
    """Add an input."""
    d.inputs.append(helper.make_tensor_value_info(name, kind, shape))
    return name


def test_operators_by_the_standards_names():
    """A quantized operator has the name of its float counterpart, in any domain; an operator of an unknown domain is opaque."""
    node = helper.make_node
    assert operator(node("MatMul", [], [])) == operator(node("MatMul", [], [], domain="ai.onnx")) == "MatMul"
    assert operator(node("QLinearMatMul", [], [])) == "MatMul"
    assert operator(node("QLinearAdd", [], [], domain="com.microsoft")) == "Add"
    assert operator(node("FusedMatMul", [], [], domain="com.microsoft")) == ""


@pytest.mark.parametrize(
    ("dims", "axes"),
    [((), 0), ((1,), 0), ((1, 1), 0), ((5,), 1), ((1, 5, 1), 1), ((0,), 1), ((2,), 1), ((2, 2), 2), ((1, 3, 4), 2), ((0, 2), 2),
     ((2, 3, 4), 3)],
)  # fmt: skip
def test_matrices_and_vectors(dims, axes):
    """A matrix has at least two axes that are longer than one, a vector has one."""
    assert is_matrix(dims) is (axes >= 2)
    assert is_vector(dims) is (axes == 1)


def branch(nodes, output, inputs=(), weights=(), sparse=()):
    values = [helper.make_tensor_value_info(name, FLOAT, None) for name in (*inputs, output)]
    return helper.make_graph(nodes, "g", values[:-1], values[-1:], list(weights), sparse_initializer=list(sparse))


def test_a_node_reads_what_its_branches_capture():
    """Captured tensors, not those that a branch defines itself: its inputs, its dense and sparse weights, and its nodes' outputs."""
    weight = numpy_helper.from_array(np.ones(1, np.float32), "own weight")
    values = numpy_helper.from_array(np.ones(1, np.float32), "own sparse")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0])), [9])
    inner = branch([helper.make_node("Add", ["deep", "made"], ["last"])], "last")
    nodes = [
        helper.make_node("Sum", ["given", "own weight", "own sparse", "outside", ""], ["made"]),
        helper.make_node("If", ["made"], ["chosen"], then_branch=inner, else_branch=branch([], "far")),
    ]
    outer = branch(nodes, "chosen", ["given"], [weight], [sparse])
    node = helper.make_node("Loop", ["count", "", "count"], ["y"], body=outer)
    assert read_by(node)[:2] == ("count", "outside")
    assert sorted(read_by(node)[2:]) == ["deep", "far"]
    assert list(subgraphs(node)) == [outer]
    several = helper.make_node("Several", ["a"], ["y"], number=3)
    several.attribute.append(helper.make_attribute("graphs", [outer, inner]))
    assert list(subgraphs(several)) == [outer, inner]
    assert set(read_by(several)) == {"a", "outside", "deep", "far", "made"}


def test_ancestors_of_tensors():
    """All nodes that any of the tensors depends on, once each, in the graph's order."""
    d = Draft()
    a = d.embed()
    b = d.op("Neg", a)
    c = d.op("Abs", a)
    e = d.op("Add", b, c)
    d.op("Add", e, c)
    nodes = d.nodes
    assert ancestors(nodes, [e]) == [0, 1, 2, 3]
    assert ancestors(nodes, [c, b]) == [0, 1, 2]
    assert ancestors(nodes, [a]) == [0]
    assert ancestors(nodes, ["input_ids", "", "unknown"]) == []


# ---- where token data enters


def test_an_embedding_lookup():
    """A Gather of a table by ids; not a Gather of a vector, by a shape or by a constant, nor another data movement."""
    d = Draft()
    table = d.weight(20, 8)
    first = d.op("Gather", table, "input_ids")
    d.op("Gather", d.weight(20), "input_ids")
    d.op("Gather", table, d.op("Shape", "input_ids"))
    d.op("Gather", table, d.constant(np.array([1])))
    d.op("GatherElements", first, "input_ids")
    second = d.op("GatherND", table, "input_ids")
    d.op("Slice", table, "input_ids", "input_ids")
    d.op("Add", "input_ids", d.constant(np.ones((2, 2), np.int64)))
    d.op("Reshape", d.op("Cast", "input_ids", to=FLOAT), d.constant(np.array([[0, 0], [0, 0]])))
    assert enters(d) == [first, second]


def test_an_embedding_lookup_by_another_operator():
    """A product of a table with ids, in any operator; a product with floats is not, but a selection by floats is."""
    d = Draft()
    floats = add_input(d, "weights of rows", FLOAT, "batch", "sequence")
    found = d.op("EmbedLayerNormalization", "input_ids", d.weight(20, 8), domain="com.microsoft")
    d.op("MatMul", floats, d.weight(20, 8))
    hot = d.op("MatMul", d.op("OneHot", "input_ids", d.constant(np.array([20])), d.constant(np.array([0, 1]))), d.weight(20, 8))
    chosen = d.op("Gather", d.weight(20, 8), d.op("Cast", floats, to=INT))
    assert enters(d) == [found, hot, chosen]


def test_weights_selected_by_token_data_are_not_token_data():
    """A router's selection of an expert's weights is not; a selection from token data is still token data."""
    d = Draft()
    x = d.embed()
    expert = d.op("Gather", d.weight(3, 8), d.op("ArgMax", x))
    moved = d.op("Gather", x, d.constant(np.array([0])))
    both = d.op("Gather", x, d.op("ArgMax", x))
    alone = d.op("Neg", expert)
    flow = flow_of(d)
    assert flow.feeders[flow.producer[alone]] == []
    assert enters(d) == [x]
    assert flow.beside(expert)
    assert [flow.beside(name) for name in (moved, both)] == [False, False]


@pytest.mark.parametrize(("kind", "shape", "there"), [
    (FLOAT, ["b", "t", 8], True), (HALF, ["b", "t", 8], True), (INT, ["b", "t", 8], False), (FLOAT, ["b", 8], False),
    (FLOAT, ["b", 2, "t", 8], False), (FLOAT, None, False),
])  # fmt: skip
def test_embeddings_as_an_input(kind, shape, there):
    """A float input with three axes carries token data; a mask with two or four axes, and integers, do not."""
    d = Draft()
    d.inputs.append(helper.make_tensor_value_info("x", kind, shape))
    d.op("Neg", "x")
    flow = flow_of(d)
    assert names(flow, flow.sources) == ["x"] * there
    assert flow.nodes[0].output == (["x"] if there else ["x0"])
    assert flow.beside("x") != there
    assert flow.bits["x"] & (VALUE | NUMBER) == (VALUE if kind == INT else NUMBER)


def test_a_weight_with_a_default_is_not_an_input():
    """An initializer that the caller may override is a constant."""
    d = Draft()
    weight = d.weight(2, 3, 4)
    add_input(d, weight, FLOAT, 2, 3, 4)
    d.op("Neg", weight)
    flow = flow_of(d)
    assert flow.sources == ()
    assert (weight in flow.bits, flow.dims[weight]) == (False, (2, 3, 4))


# ---- what is beside


def test_masks_positions_and_sizes_are_not_token_data():
    """They depend on the input and carry no token data; constants depend on nothing."""
    d = Draft()
    x = d.embed()
    mask = d.op("Cast", "input_ids", to=FLOAT)
    size = d.op("Shape", x)
    positions = d.op("Gather", d.weight(9, 8), d.op("Range", d.constant(np.array(0)), size, d.constant(np.array(1))))
    fixed = d.op("Neg", d.weight(2, 3))
    fixed_size = d.op("Shape", fixed)
    flow = flow_of(d)
    assert [flow.beside(name) for name in (mask, size, positions)] == [True] * 3
    assert [flow.beside(name) for name in (x, fixed, fixed_size, "unknown")] == [False] * 4
    assert (flow.bits[size], flow.bits[positions], flow.bits[mask]) == (SHAPE, SHAPE, VALUE)
    assert len({SHAPE, VALUE, NUMBER}) == 3
    assert fixed not in flow.bits
    assert fixed_size not in flow.bits


def test_shapes_of_constants():
    """A computed constant has its largest ancestor's shape; a node with a constant has its own; each node lists its inputs."""
    d = Draft()
    small, large = d.weight(2, 3), d.weight(3, 4)
    computed = d.op("MatMul", small, large)
    held = [
        d.op("Constant", value=numpy_helper.from_array(np.ones((4, 5), np.float32))),
        d.op("Constant", value_ints=[1, 2, 3]),
        d.op("Constant", value_floats=[1.0, 2.0]),
        d.op("Constant", value_strings=["a"] * 4),
        d.op("Constant", value_int=7),
        d.op("RandomNormal", shape=[2, 2]),
    ]
    x = d.op("Sum", d.embed(), computed, held[1])
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    model = d.model(x)
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0])), [6, 7])
    model.graph.sparse_initializer.append(sparse)
    flow = trace(model.graph)
    assert flow.dims[computed] == (3, 4)
    assert [flow.dims[name] for name in held] == [(4, 5), (3,), (2,), (4,), (), ()]
    assert flow.dims["sparse"] == (6, 7)
    assert flow.constants(len(flow.nodes) - 1) == [(3, 4), (3,)]


def test_a_cast_like_reads_its_first_input():
    """The second input provides the type, not data."""
    d = Draft()
    x = d.embed()
    mask = d.op("CastLike", d.op("Cast", "input_ids", to=FLOAT), x)
    other = d.op("CastLike", x, mask)
    flow = flow_of(d)
    assert (flow.beside(mask), flow.beside(other)) == (True, False)
    assert flow.reads[flow.producer[other]] == (x,)


# ---- between nodes


def diamond():
    """Build x0 -> Neg -> {Abs, Exp} -> Add, with a second lookup that joins at the end."""
    d = Draft()
    a = d.embed()
    b = d.op("Neg", a)
    c, e = d.op("Abs", b), d.op("Exp", b)
    f = d.op("Add", c, e)
    other = d.embed()
    end = d.op("Add", f, other)
    return flow_of(d), [a, b, c, e, f, other, end]


def test_dependencies_over_token_data():
    """A node depends on itself and on all previous nodes over token data."""
    flow, tensors = diamond()
    at = {name: flow.producer[name] for name in tensors}
    expected = ["a", "ab", "abc", "abe", "abcef", "o", "abcefog"]
    keys = dict(zip("abcefog", tensors, strict=True))
    for (node, name), before in zip(keys.items(), expected, strict=True):
        assert "".join(key for key in keys if flow.depends(at[name], at[keys[key]])) == before, node
    assert [names(flow, flow.feeders[at[name]]) for name in tensors] == [
        [], tensors[:1], tensors[1:2], tensors[1:2], tensors[2:4], [], tensors[4:6],
    ]  # fmt: skip
    assert flow.active_reads(at[tensors[-1]]) == [(tensors[4], at[tensors[4]]), (tensors[5], at[tensors[5]])]


def test_the_nodes_between_two():
    """The nodes on a path, the end first, each once; not the start, nor nodes that join from elsewhere."""
    flow, (a, b, c, e, f, _, end) = diamond()

    def between(start, stop):
        return names(flow, flow.between(flow.producer[start], flow.producer[stop]))

    found = between(b, end)
    assert found[0] == end
    assert sorted(found) == sorted([end, f, c, e])
    assert sorted(between(a, f)) == sorted([f, c, e, b])
    assert between(c, f) == [f]


def test_the_last_node_on_every_path():
    """With two branches, the node before them; with a second source, the node that depends on most; none without a common one."""
    flow, (a, b, c, e, f, other, end) = diamond()

    def common(*tensors):
        found = flow.common_dominator([flow.producer[name] for name in tensors])
        return None if found is None else names(flow, [found])[0]

    assert common(c, e) == b
    assert common(c, f) == b
    assert common(f) == f
    assert common(a, e) == a
    assert common(f, end) == f
    assert common(other, end) == other
    assert common(end) == end
    assert common(c, other) is None
    assert common(c, e) == b  # asked twice


def test_nodes_in_any_order():
    """A graph with unsorted nodes has the same flow; sorted nodes keep their order."""
    d = Draft()
    x = d.op("Exp", d.op("Neg", d.embed()))
    model = d.model(x)
    assert names(trace(model.graph), range(3)) == ["x0", "x1", "x2"]
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    flow = trace(model.graph)
    assert names(flow, range(3)) == ["x0", "x1", "x2"]
    assert flow.feeders == [[], [0], [1]]
    loop = onnx.GraphProto(node=[helper.make_node("Neg", ["y"], ["y"])])
    with pytest.raises(ValueError, match="cycle"):
        trace(loop)
