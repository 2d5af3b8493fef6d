"""int8: the numerical effect of each step, and the vectors of a complete model, whatever the other texts in the batch."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from folder_kit import bert, change, replace_graph, with_task_id
from graph_kit import find_linears, model_of, quantize, running, widen
from models import bert_graph, bert_weights, tiny_model
from onnx import TensorProto, helper, numpy_helper

from penult import Embedder, Engine
from penult.core import int8 as int8_module
from penult.core.engine import fuse
from penult.data import calibration_texts
from penult.graph.int8.activation_scales import Choice, Seen, apply, choices, error_of
from penult.graph.int8.calibrate import Goal, Outcome, make_int8
from penult.graph.int8.gptq import closest, nearest, what_follows
from penult.graph.int8.int8_support import scales_of, weight_limit
from penult.graph.int8.quantize import grouped

TEXTS = ["the cat sat on the mat", "a dog", "bright moon over the stone, and fish", "", "eats", "query passage " * 15]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def int8(tiny):
    """The tiny model in int8."""
    with Embedder.load(tiny, precision="int8", threads=1, truncate="right") as opened:
        yield opened


def run(model, **inputs):
    return Engine(model.SerializeToString(), threads=1).run(inputs)


def floats(*shape, scale=1.0):
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def outliers(rows=400, channels=64):
    """Rows whose channel 3 is twenty times as large as the others, as in a feed-forward block of BERT."""
    x = floats(rows, channels)
    x[:, 3] *= 20
    return x


def seen(x):
    half = len(x) // 2
    low, high = (np.stack([f(x[:half], axis=0), f(x[half:], axis=0)]) for f in (np.min, np.max))
    return Seen(low, high, x[half:])


# ---- rounding


@pytest.mark.parametrize("limit", [127, 64])
def test_nearest_stays_within_half_a_step(limit):
    """Every entry is within half a step of its column's scale, and no integer exceeds the limit."""
    weight = floats(32, 16)
    weight[:, 5] = 0
    whole, scale = nearest(weight, limit)
    assert np.abs(whole).max() <= limit
    assert (np.abs(whole * scale - weight) <= scale / 2 + 1e-6).all()


def test_closest_gives_closer_products_than_nearest():
    """For correlated channels, rounding for the products is better than rounding each entry."""
    x = floats(500, 8) @ floats(8, 64) + floats(500, 64, scale=0.1)
    weight = floats(64, 32)

    def error(rounded):
        whole, scale = rounded
        return np.square(x @ (whole * scale) - x @ weight).sum()

    assert error(closest(weight, what_follows(x), 64)) < 0.5 * error(nearest(weight, 64))


@pytest.mark.parametrize("channels", [1, 31, 64, 200])
def test_the_factor_is_the_upper_factor_of_the_inverse(channels):
    """It is triangular, and its square is the inverse of the damped Gram matrix."""
    x = floats(300, channels) * np.geomspace(0.1, 10, channels, dtype=np.float32)
    gram = (x.T @ x).astype(np.float64)
    gram += np.eye(channels) * 0.01 * gram.trace() / channels
    found = what_follows(x).astype(np.float64)
    assert not np.tril(found, -1).any()
    np.testing.assert_allclose(found.T @ found @ gram, np.eye(channels), atol=1e-3)


@pytest.mark.parametrize("limit", [127, 20])
def test_closest_distributes_rounding_errors(limit):
    """Entry by entry, the later ones compensate the rounding error, and none exceeds the limit."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((500, 8)) @ rng.standard_normal((8, 100)) + 0.1 * rng.standard_normal((500, 100))
    later, weight = what_follows(x.astype(np.float32)), rng.standard_normal((100, 16)).astype(np.float32)
    whole, scale = closest(weight, later, limit)
    left, expected = (weight / scale).astype(np.float64), np.zeros((100, 16))
    for i in range(100):
        expected[i] = np.clip(np.rint(left[i]), -limit, limit)
        left[i:] -= np.outer(later[i, i:], (left[i] - expected[i]) / later[i, i])
    assert (whole == expected).mean() > 0.98  # what lies between two numbers may fall to either side
    assert np.abs(whole).max() == limit
    np.testing.assert_allclose(scale, np.abs(weight).max(axis=0) / limit, rtol=1e-6)


def test_an_input_that_is_always_zero():
    """Its factor is finite, and its weights are rounded to nearest."""
    later, weight = what_follows(np.zeros((10, 40), dtype=np.float32)), np.sin(np.arange(320, dtype=np.float32)).reshape(40, 8)
    assert np.isfinite(later).all()
    np.testing.assert_array_equal(closest(weight, later, 127)[0], nearest(weight)[0])


# ---- treatments


def test_the_first_choice_is_a_plain_scale():
    """Choices are grouped by cost in ascending order, and the first one costs nothing."""
    narrow, wide = choices(384, 1536), choices(1536, 384)
    assert narrow[0] == wide[0] == [Choice(None, 0)]
    smoothed = [Choice(0.5, 0), Choice(0.65, 0), Choice(0.8, 0)]
    assert narrow[1] == smoothed
    assert [choice.center for choice in narrow[2]] == [True] * 3  # a sum for each of 384 values
    # Three sums for each of 384 results cost less than one product for each of 1536 values.
    assert wide[1:4] == [[Choice(None, 2)], [Choice(None, 8)], smoothed]
    assert sum(map(len, narrow)) == 21
    # A quarter of a small input is not split off.
    found = [{choice.split for same in choices(size, 64) for choice in same} for size in (8, 16, 32, 36)]
    assert found == [{0}, {0, 2}, {0, 2}, {0, 2, 8}]


@pytest.mark.parametrize("choice", [Choice(0.65, 0), Choice(None, 2), Choice(0.5, 2), Choice(0.65, 0, center=True)])
def test_smoothing_and_splitting_handle_outliers(choice):
    """A channel twenty times as large costs a plain scale most of its precision; both treatments restore it."""
    x, weight = outliers(), floats(64, 32)
    weight[3] /= 10  # training leaves large channels with small weights
    assert error_of(seen(x), [weight], choice) < 0.2 * error_of(seen(x), [weight], Choice(None, 0))


def test_centering_handles_channels_far_from_zero():
    """Channels around a value far from 0 need no wider step than the others after centering."""
    x, weight = floats(400, 64), floats(64, 32)
    x[:, ::4] += 20
    x[:, 1::4] -= 20
    off, on = (error_of(seen(x), [weight], Choice(0.5, 0, center=center)) for center in (False, True))
    assert on < 0.6 * off


def test_a_range_that_other_texts_exceed_counts_as_error():
    """The error is measured on rows that were not used for the range."""
    x, weight = floats(400, 64), floats(64, 32)
    wider = x.copy()
    wider[200:] *= 3
    assert error_of(seen(wider), [weight], Choice(None, 0)) > 10 * error_of(seen(x), [weight], Choice(None, 0))


def even(low, high, *, rows=400, width=64):
    """Return rows of the 256 values of a grid from `low` to `high`, with its ends in every channel of both halves."""
    x = np.random.default_rng(1).integers(0, 256, (rows, width))
    x[[0, 200]], x[[1, 201]] = 0, 255
    return (low + x * np.float32((high - low) / 255)).astype(np.float32)


@pytest.mark.parametrize(("low", "high", "zero"), [(-1, 1.55, 100), (0, 5.1, 0), (-2.55, 0, 255)])
def test_a_grid_has_256_steps(low, high, zero):
    """Values on a grid of uint8 are recognized, and then only the weights are rounded."""
    x, weight = even(low, high), np.sign(floats(64, 32))
    assert error_of(seen(x), [weight], Choice(None, 0)) < 1e-9
    treatment = apply(seen(x), [weight], [None], Choice(None, 0), limit=127)
    assert treatment.scale == pytest.approx((high - low) / 255)
    assert treatment.zero == zero


def test_a_grid_contains_zero():
    """The grid contains 0 even if no value is near it: the zero point shifts the sums."""
    for low, high, zero in ((5, 10, 0), (-10, -5, 255)):
        treatment = apply(seen(even(low, high)), [floats(64, 32)], [None], Choice(None, 0), limit=127)
        assert treatment.zero == zero
        assert 0.75 * 10 / 255 < treatment.scale < 1.2 * 10 / 255


def test_errors_are_relative():
    """Larger weights have no larger error, and weights that are all zero have none."""
    x, weight = floats(400, 64), floats(64, 32)
    assert error_of(seen(x), [100 * weight], Choice(0.5, 0)) == pytest.approx(
        error_of(seen(x), [weight], Choice(0.5, 0)), rel=1e-3
    )
    assert error_of(seen(x), [0 * weight], Choice(None, 0)) == 0
    # An input that is always 0 has a step all the same.
    nothing = apply(seen(0 * x), [weight], [None], Choice(None, 0), limit=127)
    assert (nothing.scale, nothing.zero) == (1, 0)


def test_an_error_equals_its_definition():
    """The variance of the difference relative to that of the outputs, with the range of the first half and rows of the second."""
    x, weight = floats(400, 64), floats(64, 32)
    low, high, rows = x[:200].min(), x[:200].max(), x[200:]
    scale = (high - low) / 255
    steps = np.clip(np.rint(rows / scale) + round(-low / scale), 0, 255) - round(-low / scale)
    whole, sizes = nearest(weight)
    wanted = rows @ weight
    error = (wanted - steps * scale @ (whole * sizes)).var(axis=0).sum() / wanted.var(axis=0).sum()
    assert error_of(seen(x), [weight], Choice(None, 0)) == pytest.approx(error, rel=1e-3)
    assert error_of(seen(x), [weight, weight], Choice(None, 0)) == pytest.approx(error, rel=1e-3)


def test_a_range_may_clip_rare_values():
    """If one value in thousands determines the range, a narrower one is chosen, by a stated factor."""
    x = floats(400, 512).clip(-1.9, 1.9)
    x[[0, 200], 0], x[[0, 200], 1] = 2.2, -2.2
    treatment = apply(seen(x), [floats(512, 32)], [None], Choice(None, 0), limit=127)
    assert treatment.scale * 255 / 4.4 == pytest.approx(0.9, rel=1e-3)
    assert treatment.zero == 128


def test_factors_follow_their_formula():
    """max|W| ** (1 - a) / max|x| ** a per channel, over the layers that share the input, 1 on average; also for 0."""
    x, weights = floats(400, 64), [floats(64, 32), 3 * floats(64, 48)]
    x[:, 5], weights[0][7], weights[1][7] = 0, 0, 0
    treatment = apply(seen(x), weights, [None, None], Choice(0.65, 0), limit=127)
    rows = np.maximum(np.abs(np.concatenate(weights, axis=1)).max(axis=1), 1e-5)
    wanted = rows**0.35 / np.maximum(np.abs(x).max(axis=0), 1e-5) ** 0.65
    np.testing.assert_allclose(treatment.factor, wanted / wanted.mean(), rtol=1e-5)
    assert treatment.offset is None
    assert apply(seen(x), weights, [None, None], Choice(None, 2), limit=127).factor is None


# ---- graphs


@pytest.mark.parametrize(
    "choice",
    [Choice(None, 0), Choice(0.65, 0), Choice(None, 2), Choice(0.65, 2), Choice(0.65, 0, True), Choice(0.65, 2, True)],
)
@pytest.mark.parametrize("limit", [127, 64])
def test_a_quantized_layer_computes_what_was_chosen(choice, limit):
    """Each treatment, written as a graph and run, approximates the float layer, with its bias."""
    limit = min(limit, weight_limit(lambda model, inputs: Engine(model, threads=1).run(inputs)))
    x, first, second, bias = outliers(), floats(64, 32), floats(64, 48), floats(32)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["p"]),
        helper.make_node("Add", ["b", "p"], ["y"]),
        helper.make_node("MatMul", ["x", "w2"], ["z"]),
    ]
    model = model_of(nodes, {"x": ["n", 64]}, ["y", "z"], {"w1": first, "b": bias, "w2": second})
    del model.opset_import[1]
    groups = grouped([*find_linears(model, "y"), *find_linears(model, "z")])
    assert [len(group.layers) for group in groups] == [2]
    weights, biases = [layer.weight for layer in groups[0].layers], [layer.bias for layer in groups[0].layers]
    treatment = apply(seen(x), weights, biases, choice, limit=limit)
    written = quantize(model, {"x": (groups[0], treatment)})
    assert sum(node.op_type == "QuantizeLinear" for node in written.graph.node) == 1  # shared by both layers
    assert {opset.domain for opset in written.opset_import} == {"", "com.microsoft"}
    y, z = run(written, x=x)
    form = x * (1 if treatment.factor is None else treatment.factor) + (0 if treatment.offset is None else treatment.offset)
    steps = np.clip(np.rint(form / np.float32(treatment.scale)) + treatment.zero, 0, 255) - treatment.zero
    for got, packed in zip((y, z), treatment.layers, strict=True):
        wanted = (steps @ packed.weight) * packed.scale * treatment.scale + packed.bias + x[:, treatment.split] @ packed.rest
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-3)
    # A plain scale over the outlier is coarse: its step is 20 times too wide.
    tolerance = 0.25 if choice == Choice(None, 0) else 0.06
    for got, wanted in ((y, x @ first + bias), (z, x @ second)):
        assert np.sqrt(np.square(got - wanted).mean() / wanted.var()) < tolerance


def lookups(tables, **gather):
    """Write a graph that looks up the same ids in several tables."""
    nodes = [helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64)]
    nodes += [helper.make_node("Gather", [name, "ids"], [f"{name} rows"], **gather) for name in tables]
    return model_of(nodes, {"x": ["n"]}, [f"{name} rows" for name in tables], tables)


@pytest.mark.parametrize("gather", [{}, {"axis": 0}])
def test_word_tables_are_kept_as_8_bit_rows(gather):
    """A row is within half a step of its own scale, also for two tables in one graph; from 256 rows on."""
    large, least = floats(300, 16) * np.geomspace(0.01, 100, 300, dtype=np.float32)[:, None], floats(256, 16)
    model = lookups({"large": large, "least": least, "small": floats(255, 16)}, **gather)
    written = quantize(model, {})
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    assert {array.shape for array in kept.values() if array.dtype == np.int8} == {(300, 16), (256, 16)}
    assert {"large", "least", "small"} & set(kept) == {"small"}
    ids = np.array([0, 7, 254, 7], dtype=np.float32)
    for got, table in zip(run(written, x=ids), (large, least), strict=False):
        rows = table[ids.astype(int)]
        assert (np.abs(got - rows) <= np.abs(rows).max(axis=1, keepdims=True) / 127 / 2 * 1.001).all()
        assert (got != rows).any()


@pytest.mark.parametrize(
    "model",
    [
        lookups({"along the other axis": np.ones((300, 300), dtype=np.float32)}, axis=1),
        lookups({"along the last axis": np.ones((300, 300), dtype=np.float32)}, axis=-1),
        lookups({"cube": np.ones((300, 4, 4), dtype=np.float32)}),
        lookups({"halves": np.ones((300, 4), dtype=np.float16)}),
        model_of(
            [helper.make_node("Gather", ["t", "first"], ["a"]), helper.make_node("Add", ["a", "x"], ["y"])],
            {"x": [4]}, ["y"], {"t": np.ones((300, 4), dtype=np.float32), "first": np.int64(0)},
        ),
        model_of(
            [helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64), helper.make_node("Gather", ["t", "ids"], ["a"]),
             helper.make_node("MatMul", ["a", "t"], ["y"])],
            {"x": [300]}, ["y"], {"t": np.ones((300, 300), dtype=np.float32)},
        ),
        model_of([helper.make_node("GatherND", ["x", "i"], ["y"])], {"x": [300, 4]}, ["y"], {"i": np.zeros((1, 1), np.int64)}),
    ],
    ids=["the other axis", "the last axis", "three axes", "half precision", "a constant row", "read twice", "another operator"],
)  # fmt: skip
def test_other_tables_are_not_quantized(model):
    """Tables with another kind of lookup or another reader are unchanged."""
    assert not any(tensor.data_type == TensorProto.INT8 for tensor in quantize(model, {}).graph.initializer)


def test_gelu_is_approximated_by_tanh_on_request():
    """Only the exact Gelu of ONNX and of ONNX Runtime; the tanh form of ONNX is unchanged."""
    nodes = [
        helper.make_node("Gelu", ["x"], ["a"], domain="com.microsoft"),
        helper.make_node("Gelu", ["a"], ["b"]),
        helper.make_node("Gelu", ["b"], ["y"], approximate="tanh"),
    ]
    model = model_of(nodes, {"x": ["n", 8]}, ["y"], {})
    assert [node.op_type for node in quantize(model, {}).graph.node] == ["Gelu"] * 3
    assert [node.op_type for node in quantize(model, {}, fast_gelu=True).graph.node] == ["FastGelu", "FastGelu", "Gelu"]


def test_half_precision_is_converted_everywhere():
    """Weights, casts and outputs in float16 become float32; a graph without any is returned unchanged."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    model = model_of(nodes, {"x": [2, 16]}, ["y"], {"w": floats(16, 8).astype(np.float16)})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    wide, x = widen(model), floats(2, 16)
    assert run(wide, x=x)[0].dtype == np.float32
    np.testing.assert_allclose(run(wide, x=x)[0], run(model, x=x)[0].astype(np.float32), rtol=2e-2, atol=2e-2)
    assert widen(wide) is wide


def test_the_source_of_scales_is_read_from_the_graph():
    """Computed scales are dynamic, constant ones static, weights alone none."""
    float_model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [2, 16]}, ["y"], {"w": floats(16, 8)})
    weight_only = model_of(
        [helper.make_node("DequantizeLinear", ["w", "s"], ["f"]), helper.make_node("MatMul", ["x", "f"], ["y"])],
        {"x": [2, 16]}, ["y"], {"w": np.ones((16, 8), np.int8), "s": np.float32(0.1)},
    )  # fmt: skip
    static = model_of(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        {"x": [2, 16]}, ["y"], {"s": np.float32(0.1), "z": np.uint8(3)},
    )  # fmt: skip
    dynamic = model_of(
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        {"x": [2, 16]}, ["y"], {},
    )  # fmt: skip
    own = model_of(
        [helper.make_node("ReduceMax", ["x"], ["s"], keepdims=0), helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
         helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        {"x": [2, 16]}, ["y"], {"z": np.uint8(3)},
    )  # fmt: skip
    held = model_of(
        [helper.make_node("Constant", [], ["s"], value_float=0.1), helper.make_node("QuantizeLinear", ["x", "s"], ["q"])],
        {"x": [2, 16]}, ["q"], {},
    )  # fmt: skip
    models = (float_model, weight_only, static, dynamic, own, held)
    assert [scales_of(m) for m in models] == ["none", "none", "static", "dynamic", "dynamic", "static"]


def test_a_processor_that_overflows_is_detected():
    """Wrong sums select the smaller limit, also if they are wrong only with many rows at a time."""
    right = 64 * 255 * 127

    def sums(wrong_rows):
        return lambda _, inputs: [np.full((len(inputs["x"]), 32), right - (len(inputs["x"]) == wrong_rows))]

    assert [weight_limit(sums(rows)) for rows in (0, 1, 37)] == [127, 64, 64]


@pytest.mark.parametrize(("most", "limit"), [(2**31 - 1, 127), (2 * 255 * 127, 127), (2 * 255 * 127 - 1, 64), (2**15 - 1, 64)])
def test_the_largest_8_bit_products_are_tried(most, limit):
    """The check sums the largest products: a processor that adds two of them exactly passes, another does not."""

    def sums(model, inputs):
        weight, zero = map(numpy_helper.to_array, onnx.load_model_from_string(model).graph.initializer)
        products = (inputs["x"].astype(np.int64) - zero)[:, :, None] * weight
        return [np.minimum(products[:, ::2] + products[:, 1::2], most).sum(axis=1)]

    assert weight_limit(sums) == limit


# ---- whole models


def test_int8_vectors_are_near_fp32(int8, embedder):
    """A tiny model's int8 vectors equal those of fp32 except for rounding."""
    cosines = (int8.embed(TEXTS) * embedder.embed(TEXTS)).sum(axis=1)
    assert cosines.min() > 0.995
    assert (int8.embed(TEXTS) != embedder.embed(TEXTS)).any()
    integer = sum(node.op_type == "MatMulIntegerToFloat" for node in onnx.load(int8.engine.model).graph.node)
    assert integer == 12


def test_an_int8_graph_is_that_of_its_settings(tiny, tmp_path, monkeypatch):
    """Earlier loads do not matter: settings that change the tokens have a graph of their own."""
    texts = ["The Cat SAT", "A Dog", "Moon"]
    lower = shutil.copytree(tiny, tmp_path / "lower")
    path = lower / "sentence_bert_config.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {"do_lower_case": True, "processing_kwargs": {"text": {"add_special_tokens": False}}}
        )
    )
    vectors = []
    for cache, folders in (("fresh", [lower]), ("used", [tiny, lower])):
        monkeypatch.setenv("PENULT_CACHE", str(tmp_path / cache))
        for folder in folders:
            with Embedder.load(folder, precision="int8", threads=1) as e:
                last = e.embed(texts)
        vectors.append(last)
        assert len([made for made in (tmp_path / cache).rglob("model.onnx") if made.is_file()]) == len(folders)
    np.testing.assert_array_equal(*vectors)


def test_an_int8_graph_of_every_task(tmp_path):
    """Calibration covers each adapter, so that queries in int8 are as close to fp32 as documents."""
    rows = np.random.default_rng(2).standard_normal((2, 32)) * [[1], [8]]
    folder = replace_graph(tiny_model(tmp_path), with_task_id(bert(), rows))
    change(folder / "config.json", lora_adaptations=["retrieval.passage", "retrieval.query"])
    with (
        Embedder.load(folder, threads=1, truncate="right") as e,
        Embedder.load(folder, threads=1, truncate="right", precision="int8") as int8,
    ):
        for role in ("document", "query"):
            exact, rough = e.embed(TEXTS, role), int8.embed(TEXTS, role)
            cosines = (exact * rough).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
            assert cosines.min() >= 0.995


def test_int8_far_from_fp32_is_an_error(tiny, tmp_path, monkeypatch):
    """The message names the alternatives."""
    monkeypatch.setattr(int8_module, "make_int8", lambda *a, **k: Outcome(1, 0, 0.59, -0.15))
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"mean cosine .* is 0\.59, .*calibration=.*precision='fp32'"):
        Embedder.load(tiny, precision="int8", threads=1)


def test_an_int8_vector_does_not_depend_on_its_batch(int8):
    """A text has the same vector alone, among short texts, among long ones, and in another order."""
    together = int8.embed(TEXTS)
    alone = np.concatenate([int8.embed([text]) for text in TEXTS])
    backwards = int8.embed(TEXTS[::-1])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together, backwards, atol=1e-6)


def test_the_recipe_contains_precision_and_calibration(int8, embedder):
    """Precision and calibration are part of the fingerprint; the achieved similarity is in the origin."""
    assert int8.fingerprint != embedder.fingerprint
    assert int8.recipe.calibration_sha256
    assert not embedder.recipe.calibration_sha256
    said = re.search(
        "12 linear layers in 8 bits; cosine to fp32 on the calibration texts: mean (.+), minimum (.+)",
        int8.recipe.origin["precision"],
    )
    assert said is not None
    assert 0.99 < float(said[2]) <= float(said[1]) <= 1
    assert int8.recipe.batch_invariant


def two_layers(folder):
    """Write a graph with a matrix that is hard to quantize, because its values differ widely in size, and one that is easy."""
    nodes = [
        helper.make_node("Mul", ["x", "sizes"], ["a"]),
        helper.make_node("MatMul", ["a", "hard"], ["b"]),
        helper.make_node("Tanh", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "easy"], ["sentence_embedding"]),
    ]
    weights = {
        "sizes": np.geomspace(0.1, 10, 64, dtype=np.float32),
        "hard": floats(64, 64, scale=0.5) ** 5,
        "easy": np.sign(floats(64, 32)),
    }
    folder.mkdir()
    onnx.save(model_of(nodes, {"x": [None, 64]}, ["sentence_embedding"], weights), folder / "graph.onnx")
    return folder / "graph.onnx"


def test_a_single_calibration_text(tmp_path):
    """One run gives ranges and a sample for the errors, although there is no second half of the texts."""
    graph, runs = two_layers(tmp_path / "one"), running(floats(16, 64))
    got = make_int8(graph, tmp_path / "one.onnx", fuse=fuse, run=runs, limit=64, before="", goal=Goal(0.9, 0.9))
    assert (got.layers, got.kept) == (2, 0)
    assert 0.9 < got.least <= got.mean < 1


def test_the_worst_layer_stays_in_fp32_where_the_goal_is_not_reached(tmp_path):
    """If no tolerance is sufficient, the layer with the largest error is not quantized, and is counted."""
    runs = running(floats(16, 64), floats(16, 64))
    nearly = Goal(1 - 1e-9, 1 - 1e-9)
    graph = two_layers(tmp_path / "two")
    got = make_int8(graph, tmp_path / "two.onnx", fuse=fuse, run=runs, limit=64, before="", goal=nearly)
    assert (got.layers, got.kept) == (1, 1)
    kept = {tensor.name for tensor in onnx.load(tmp_path / "two.onnx").graph.initializer}
    assert {"hard", "easy"} & kept == {"hard"}


def test_own_calibration_texts_give_another_recipe(tiny, int8):
    """The user's calibration texts are part of the fingerprint, survive pickling and give vectors close to fp32."""
    with Embedder.load(tiny, precision="int8", threads=1, calibration=["the moon", "stone fish, dog"]) as own:
        assert own.fingerprint != int8.fingerprint
        with pickle.loads(pickle.dumps(own)) as copy:
            assert copy.fingerprint == own.fingerprint
            np.testing.assert_array_equal(copy.embed(TEXTS[:3]), own.embed(TEXTS[:3]))
    with Embedder.load(tiny, precision="int8", threads=1, calibration=calibration_texts()) as same:
        assert same.fingerprint == int8.fingerprint


@pytest.mark.parametrize("texts", [[], "one text"])
def test_calibration_must_be_a_list_of_texts(tiny, texts):
    """An empty list is a ValueError, a string is a TypeError."""
    with pytest.raises((ValueError, TypeError), match=r"calibration is empty|is a str"):
        Embedder.load(tiny, precision="int8", calibration=texts)


def test_int8_is_cached(tiny, int8, monkeypatch):
    """A second load uses the graph from the cache."""
    monkeypatch.setattr("penult.core.int8.convert", lambda *_, **__: pytest.fail("made again"))
    Embedder.load(tiny, precision="int8", threads=1).close()


def test_a_head_is_cut_before_int8(tmp_path):
    """The int8 graph of a masked language model is that of its encoder."""
    folder = tiny_model(tmp_path / "mlm", mlm_head=True)
    exact, small = (Embedder.load(folder, precision=precision, threads=1) for precision in ("fp32", "int8"))
    assert (exact.embed(TEXTS[:3]) * small.embed(TEXTS[:3])).sum(axis=1).min() > 0.995


def test_a_graph_without_matrices_cannot_be_int8(tmp_path):
    """The message for a model of embeddings alone states that it has no linear layer."""
    folder = tiny_model(tmp_path / "flat")
    with pytest.raises(ValueError, match="has no float32 linear layer"):
        Embedder.load(folder, layer=0, precision="int8")


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory) -> Path:
    """The tiny model with every matrix product quantized in each run by the range of the batch."""
    folder = tiny_model(tmp_path_factory.mktemp("dynamic") / "tiny")
    path = folder / "onnx" / "model.onnx"
    model = bert_graph(bert_weights(), 4)
    fixed = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for i, node in enumerate(model.graph.node):
        if node.op_type != "MatMul" or node.input[1] not in fixed:
            nodes.append(node)
            continue
        whole, scale = nearest(numpy_helper.to_array(fixed[node.input[1]]), 64)
        model.graph.initializer.extend([numpy_helper.from_array(whole, f"w{i}"), numpy_helper.from_array(scale, f"s{i}")])
        nodes += [
            helper.make_node("DynamicQuantizeLinear", [node.input[0]], [f"q{i}", f"a{i}", f"z{i}"]),
            helper.make_node("MatMulInteger", [f"q{i}", f"w{i}", f"z{i}"], [f"p{i}"]),
            helper.make_node("Cast", [f"p{i}"], [f"f{i}"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"a{i}", f"s{i}"], [f"m{i}"]),
            helper.make_node("Mul", [f"f{i}", f"m{i}"], list(node.output)),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_graph_with_dynamic_scales_is_reported(dynamic, precision):
    """Its recipe states that vectors depend on the other texts in the batch, and they do; one by one they do not."""
    with Embedder.load(dynamic, precision=precision, threads=1) as plain:
        assert not plain.recipe.batch_invariant
        assert "depends on the other texts in the batch" in plain.recipe.origin["batch_invariant"]
        alone = np.concatenate([plain.embed([text]) for text in TEXTS])
        assert np.abs(plain.embed(TEXTS) - alone).max() > 1e-5
    with Embedder.load(dynamic, precision=precision, threads=1, batch_invariant=True) as single:
        assert single.recipe.batch_invariant
        assert single.fingerprint != plain.fingerprint
        np.testing.assert_allclose(single.embed(TEXTS), alone, atol=1e-7)


def test_preparation_ignores_files_of_the_current_folder(tiny, tmp_path, monkeypatch):
    """A file with the name of a prepared graph's weights in the current folder has no effect."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.onnx.data").write_bytes(b"mine")
    Embedder.load(tiny, threads=1).close()
    assert (tmp_path / "model.onnx.data").read_bytes() == b"mine"


def test_calibration_texts_are_diverse():
    """There are many, of many lengths and scripts, and no two are equal."""
    texts = calibration_texts()
    assert len(set(texts)) == len(texts) >= 50
    assert min(map(len, texts)) < 10 < 400 < max(map(len, texts))
    assert sum(any(ord(letter) > 0x370 for letter in text) for text in texts) >= 8


def test_minilm_in_int8(minilm, shared):
    """The benchmark model keeps the documented quality, on real chunks, and is batch-invariant."""
    lines = (shared / "eval" / "text" / "chunks1000.dev.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[:: len(lines) // 60]]
    exact, small = (Embedder.load(minilm, precision=p, threads=1, truncate="right") for p in ("fp32", "int8"))
    vectors = small.embed(texts)
    cosines = (vectors * exact.embed(texts)).sum(axis=1)
    assert cosines.mean() >= 0.998
    assert cosines.min() >= 0.995
    np.testing.assert_allclose(np.concatenate([small.embed([text]) for text in texts[:20]]), vectors[:20], atol=1e-6)
