"""Quantization of a graph file: the observed inputs, the chosen attempt, and the layers that stay in fp32."""

import numpy as np
import onnx
import pytest
from graph_kit import model_of, running
from onnx import TensorProto, helper, numpy_helper

from penult.graph.int8.calibrate import Goal, make_int8

RNG = np.random.default_rng(0)
MEAN_AND_LEAST = Goal(0.5, 0.5)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def write(folder, nodes, weights, outputs=("sentence_embedding",), shape=(None, 16)):
    """Write a graph with the input `x`, alone in a folder."""
    folder.mkdir()
    onnx.save(model_of(nodes, {"x": shape}, outputs, weights), folder / "graph.onnx")
    return folder / "graph.onnx"


def chain(folder, count):
    """Write a graph of consecutive layers."""
    names = ["x", *(f"y{i}" for i in range(count - 1)), "sentence_embedding"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(count)]
    return write(folder, nodes, {f"w{i}": floats(16, 16) / 4 for i in range(count)})


def same(source, target):
    """Fuse nothing."""
    onnx.save(onnx.load(source), target)


def with_cosines(*cosines):
    """Return vectors of length 1 that have these cosines to (1, 0)."""
    return np.array([(c, (1 - c * c) ** 0.5) for c in cosines], dtype=np.float32)


def fixed_vectors(*attempts):
    """Return a runner that really observes a graph, returns (1, 0) for every text, and vectors with the given cosines per attempt."""
    count = len(attempts[0])
    left = iter(attempts)

    def run(path, outputs):
        if outputs == ["sentence_embedding"]:
            yield {"sentence_embedding": with_cosines(*next(left))}
            return
        for found in running(*(floats(8, 16) for _ in range(count)))(path, outputs):
            yield found | {"sentence_embedding": with_cosines(1)}

    run.left = left
    return run


def kinds(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def make(folder, graph, run, goal=MEAN_AND_LEAST, before="", limit=127, fuse=same):
    target = folder / "target.onnx"
    return make_int8(graph, target, fuse=fuse, run=run, limit=limit, before=before, goal=goal), target


WORSE = (0.1, 0.1)


@pytest.mark.parametrize(
    ("attempts", "taken", "tried"),
    [
        ([(1, 1)], 0, 1),
        ([(0.6, 0.7), (1, 1)], 0, 1),
        ([(0.45, 0.45), (0.9, 0.9)], 1, 2),
        ([WORSE, WORSE, WORSE, WORSE, WORSE], 0, 5),
        ([WORSE, (0.2, 0.2), WORSE, WORSE, WORSE], 1, 5),
        ([WORSE, WORSE, (0.2, 0.2), WORSE, WORSE], 2, 5),
        ([WORSE, WORSE, WORSE, (0.2, 0.2), WORSE], 3, 5),
        ([WORSE, WORSE, WORSE, WORSE, (0.2, 0.2)], 4, 5),
        ([WORSE, WORSE, WORSE, (0.6, 0.6), (1, 1)], 3, 4),
    ],
)
def test_the_best_attempt_is_kept(tmp_path, attempts, taken, tried):
    """The first attempt that reaches the goal is kept, else the best: two tolerances, then more and more of the worst layers in fp32."""
    run = fixed_vectors(*attempts)
    got, target = make(tmp_path, chain(tmp_path / "work", 40), run)
    assert len(attempts) - len(list(run.left)) == tried
    kept = (0, 0, 2, 4, 8)[taken]
    assert (got.layers, got.kept) == (40 - kept, kept)
    assert got.mean == pytest.approx(np.mean(attempts[taken]))
    assert got.least == pytest.approx(min(attempts[taken]))
    assert kinds(target).count("MatMulIntegerToFloat") == 40 - kept


def test_a_goal_that_is_exactly_met_is_reached(tmp_path):
    """No further attempt is made."""
    got, _ = make(tmp_path, chain(tmp_path / "work", 1), fixed_vectors((0, 0), (1, 1)), Goal(0, 0))
    assert (got.mean, got.least) == (0, 0)


@pytest.mark.parametrize(
    ("goal", "far", "near"),
    [(Goal(0.99, 0.5), (0.99, 0.6), (0.9, 0.9)), (Goal(0.5, 0.99), (1, 1, 1, 0.9), (0.96, 0.96, 0.96, 0.96))],
)
@pytest.mark.parametrize("first", [True, False])
def test_mean_and_minimum_are_weighted_by_their_tolerance(tmp_path, goal, far, near, first):
    """The best attempt has the smallest maximum of both errors, each relative to its tolerance."""
    attempts = (near, far) if first else (far, near)
    bad = (0,) * len(near)
    got, _ = make(tmp_path, chain(tmp_path / "work", 1), fixed_vectors(*attempts, bad, bad, bad), goal)
    assert got.mean == pytest.approx(np.mean(near))


def test_at_least_one_layer_returns_to_fp32(tmp_path):
    """A twentieth of few layers rounds to 0; the worst layer stays in fp32 nevertheless."""
    got, target = make(tmp_path, chain(tmp_path / "work", 3), fixed_vectors(WORSE, WORSE, (0.9, 0.9)))
    assert (got.layers, got.kept) == (2, 1)
    assert kinds(target).count("MatMul") == 1


def test_the_default_goal(tmp_path):
    """0.998 on average and at least 0.991; vectors of any length are compared by cosine similarity."""
    graph = chain(tmp_path / "work", 2)
    got, _ = make(tmp_path, graph, fixed_vectors((0.99799, 0.99799), (0.998005, 0.998005)), Goal())
    assert got.mean == pytest.approx(0.998005, abs=2e-6)
    graph = chain(tmp_path / "more", 2)
    got, _ = make(tmp_path, graph, fixed_vectors((1, 1, 1, 1, 1, 1, 1, 0.9909), (1, 1, 1, 1, 1, 1, 1, 0.9911)), Goal())
    assert got.least == pytest.approx(0.9911, abs=2e-6)


def test_cosine_similarity_is_compared(tmp_path):
    """Vectors may have any length; a zero vector has a cosine similarity of 0."""
    small = [floats(4, 16) / 1000 for _ in range(2)]
    got, _ = make(tmp_path, chain(tmp_path / "small", 1), running(*small), Goal(0.5, -1))
    assert 0.99 < got.mean <= 1.000001
    texts = [floats(4, 16), np.zeros((4, 16), np.float32)]
    got, _ = make(tmp_path, chain(tmp_path / "zeros", 1), running(*texts), Goal(-1, -1))
    assert got.least == 0
    assert got.mean == pytest.approx(0.5, abs=0.01)


# ---- how they are treated


def operators_around(folder, x, weight, *attempts):
    """Return the operators around one layer after some attempts."""
    graph = write(
        folder, [helper.make_node("MatMul", ["x", "w"], ["sentence_embedding"])], {"w": weight}, shape=(None, len(weight))
    )
    left = iter(attempts)

    def run(path, outputs):
        if outputs == ["sentence_embedding"]:
            yield {"sentence_embedding": with_cosines(next(left), next(left))}
            return
        half = len(x) // 2
        for rows in (x[:half], x[half:]):
            yield {"sentence_embedding": with_cosines(1), "x": rows}

    make(folder.parent, graph, run)
    return set(kinds(folder.parent / "target.onnx"))


PLAIN = {"QuantizeLinear", "MatMulIntegerToFloat"}


def test_accurate_layers_use_a_plain_scale(tmp_path):
    """If a plain scale is accurate enough, neither tolerance uses anything else."""
    x, weight = RNG.uniform(-1, 1, (400, 64)).astype(np.float32), floats(64, 32)
    assert operators_around(tmp_path / "one", x, weight, 1, 1) == PLAIN
    assert operators_around(tmp_path / "two", x, weight, 0, 0, 1, 1) == PLAIN


def test_ranges_of_one_half_are_tried_on_the_other(tmp_path):
    """A range that later texts exceed is not accurate enough; a range that covers them is."""
    x, weight = np.random.default_rng(1).uniform(-1, 1, (400, 64)).astype(np.float32), floats(64, 32)
    x[200:] *= 1.15
    assert operators_around(tmp_path / "wider", x, weight, 1, 1) > PLAIN
    assert operators_around(tmp_path / "narrower", x[::-1], weight, 1, 1) == PLAIN


@pytest.mark.parametrize(("outputs", "kind"), [(8, "Gather"), (96, "Mul")])
def test_the_cheapest_sufficient_treatment_is_used(tmp_path, outputs, kind):
    """A large channel is split off if there are few outputs, and smoothed if there are many."""
    rng = np.random.default_rng(1)
    x, weight = rng.uniform(-1, 1, (400, 64)).astype(np.float32), rng.standard_normal((64, outputs)).astype(np.float32)
    x[:, 3] *= 20
    weight[3] /= 10
    assert kind in operators_around(tmp_path / "one", x, weight, 1, 1)


def test_the_second_tolerance_is_smaller(tmp_path):
    """A layer with a plain scale in the first attempt is treated in the second if the vectors were not close enough."""
    x, weight = np.random.default_rng(1).standard_normal((400, 64)).astype(np.float32), floats(64, 32)
    x[:, 3] *= 2
    weight[3] /= 2
    assert operators_around(tmp_path / "one", x, weight, 1, 1) == PLAIN
    assert operators_around(tmp_path / "two", x, weight, 0, 0, 1, 1) > PLAIN


def test_inaccurate_layers_are_treated(tmp_path):
    """Outlier channels are smoothed or split off in the first attempt, as far as possible if nothing is sufficient."""
    x, weight = floats(400, 64), floats(64, 32)
    x[:, 3] *= 20
    weight[3] /= 10
    assert operators_around(tmp_path / "one", x, weight, 1, 1) > PLAIN
    assert operators_around(tmp_path / "two", x**3, weight, 1, 1) > PLAIN


# ---- which layers


def test_layers_after_the_token_embeddings_stay_in_fp32(tmp_path):
    """A layer after the named tensor is not quantized; if that tensor does not exist, all layers count."""
    for before, layers in (("y0", 1), ("nowhere", 2)):
        got, target = make(tmp_path, chain(tmp_path / before, 2), running(floats(8, 16), floats(8, 16)), Goal(0, 0), before)
        assert (got.layers, got.kept) == (layers, 0)
        assert kinds(target).count("MatMul") == 2 - layers


def test_layers_that_share_their_input(tmp_path):
    """A shared input is observed once, even if it is already a graph output, and both layers count."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["left"]),
        helper.make_node("MatMul", ["h", "a"], ["right"]),
        helper.make_node("Concat", ["left", "right"], ["sentence_embedding"], axis=1),
    ]
    graph = write(tmp_path / "work", nodes, {"a": floats(16, 16), "b": floats(16, 40)}, ("sentence_embedding", "h"))
    got, target = make(tmp_path, graph, running(floats(8, 16), floats(8, 16)), Goal(0.9, 0.9))
    assert (got.layers, got.kept) == (3, 0)
    assert kinds(target).count("QuantizeLinear") == 2
    got, _ = make(
        tmp_path,
        write(tmp_path / "more", nodes, {"a": floats(16, 16), "b": floats(16, 40)}),
        fixed_vectors(WORSE, WORSE, (1, 1)),
    )
    assert got.layers + got.kept == 3


def test_half_precision_and_fused_operators_are_seen_through(tmp_path):
    """Layers are found in float16 graphs, and if the bias is part of another operator."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["p"]),
        helper.make_node("Cast", ["p"], ["sentence_embedding"], to=TensorProto.FLOAT),
    ]
    graph = write(tmp_path / "half", nodes, {"w": floats(16, 16).astype(np.float16)})
    assert make(tmp_path, graph, running(floats(8, 16), floats(8, 16)), Goal(0.9, 0.9))[0].layers == 1

    def fuse(source, target):
        model = onnx.load(source)
        del model.graph.node[:]
        model.graph.node.append(helper.make_node("MatMul", ["x", "w0"], ["p"]))
        model.graph.node.append(
            helper.make_node("SkipLayerNormalization", ["p", "p", "g"], ["sentence_embedding"], domain="com.microsoft")
        )
        model.graph.initializer.append(numpy_helper.from_array(floats(16), "g"))
        onnx.save(model, target)

    got, target = make(tmp_path, chain(tmp_path / "fused", 1), running(floats(8, 16), floats(8, 16)), Goal(0.9, 0.9), fuse=fuse)
    assert got.layers == 1
    assert "LayerNormalization" in kinds(target)


def test_a_graph_without_linear_layers_is_rejected(tmp_path):
    """A graph without a linear layer is an error."""
    nodes = [helper.make_node("Neg", ["x"], ["sentence_embedding"])]
    with pytest.raises(ValueError, match="has no float32 linear layer that int8 could replace"):
        make(tmp_path, write(tmp_path / "work", nodes, {}), running(floats(8, 16)))


@pytest.mark.parametrize(("limit", "kind"), [(127, "Gelu"), (126, "FastGelu"), (64, "FastGelu")])
def test_the_form_of_gelu(tmp_path, limit, kind):
    """Gelu is approximated by tanh where 8-bit sums may overflow with the largest weights."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Gelu", ["p"], ["sentence_embedding"], domain="com.microsoft"),
    ]
    graph = write(tmp_path / "work", nodes, {"w": floats(16, 16)})
    got, target = make(tmp_path, graph, running(floats(8, 16), floats(8, 16)), Goal(0.9, 0.9), limit=limit)
    assert got.layers == 1
    assert kind in kinds(target)


# ---- what is watched


def scale_of(path):
    """Return the step of the one quantized input, and its zero point."""
    model = onnx.load(path)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (node,) = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    return float(held[node.input[1]]), int(held[node.input[2]])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("axes", [(64, 16), (8, 8, 16)])
def test_every_text_counts_for_the_range(tmp_path, count, axes):
    """The range covers the minimum and the maximum of all texts."""
    weights = {"w": np.sign(floats(16, 16))}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["sentence_embedding"])]
    for one in range(count):
        texts = [RNG.integers(-100, 101, axes).astype(np.float32) / 100 for _ in range(count)]
        texts[one].flat[[9, 500]] = -1.3, 1.25  # 255 steps
        graph = write(tmp_path / f"work{one}", nodes, weights, shape=[None] * len(axes))

        def run(path, outputs, texts=texts):
            for found in running(*texts)(path, outputs):
                yield found | {"sentence_embedding": found["sentence_embedding"].reshape(-1, 16)[:1]}

        got, target = make(tmp_path, graph, run, Goal(-1, -1))
        scale, zero = scale_of(target)
        assert got.layers == 1
        assert 0.0099 < scale < 0.0116
        assert zero == 130


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_fp32_vectors_with_nan_are_rejected(tmp_path, bad):
    """A model with NaN in its float32 vectors cannot be quantized; the error states for how many texts."""
    graph = chain(tmp_path / "work", 2)

    def run(path, outputs):
        for i, found in enumerate(running(*(floats(8, 16) for _ in range(3)))(path, outputs)):
            yield found | (
                {"sentence_embedding": np.full((1, 2), bad, np.float32)} if i == 1 else {"sentence_embedding": with_cosines(1)}
            )

    with pytest.raises(ValueError, match="1 of 3 calibration texts"):
        make(tmp_path, graph, run)
    assert not (tmp_path / "target.onnx").exists()
