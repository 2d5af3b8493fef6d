"""Whether padding changes the vectors of real tokens: how this is measured and cached, and its effect on batches."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import reference
from folder_kit import TEXTS, bert, change, difference, list_modules, replace_graph, vector_of, without_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from models import bert_weights, tiny_model
from onnx import TensorProto, helper, numpy_helper

from penult import Embedder
from penult.core.cache import read_note, write_note
from penult.core.padding_check import reaches_tokens

QUIET = {"threads": 1, "truncate": "right"}
MANY = [*TEXTS, *(f"the {'cat ' * n}sat {'a' * (n % 7)}" for n in range(24))]


# --- how it is found out


class Graph:
    """A fake graph in which padding of at least `reach` tokens before row `length` changes tokens by `by`."""

    def __init__(self, by=0.0, reach=0):
        self.by, self.reach, self.calls = by, reach, []

    def __call__(self, length, padding):
        self.calls.append((length, padding))
        states = np.ones((length, 4), np.float32)
        return states + self.by if padding and length + padding >= self.reach else states


@pytest.fixture
def graph(tmp_path) -> Path:
    """The path of a prepared graph, which does not exist."""
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(
    ("by", "exact", "reaches"),
    [(0, True, False), (1e-3, True, False), (5e-3, True, True), (5e-3, False, False), (2e-2, False, True), (2, True, True)],
)
def test_rounding_is_not_padding(graph, by, exact, reaches):
    """A difference counts as padding only if it is more than rounding in the graph's precision."""
    assert reaches_tokens(graph, Graph(by), longest=64, exact=exact) is reaches


@pytest.mark.parametrize(("longest", "count"), [(3, 0), (4, 1), (15, 2), (32, 3), (64, 4), (255, 4), (256, 5), (8192, 5)])
def test_rows_that_are_tried(graph, longest, count):
    """Every pair of text and padding that fits a row is tried, without and with padding, and no other."""
    states = Graph()
    assert not reaches_tokens(graph, states, longest=longest, exact=True)
    assert len(states.calls) == 2 * count
    assert max((length + padding for length, padding in states.calls), default=0) <= longest


def test_the_result_is_cached(graph):
    """Rows up to the length that was tried are not tried again; longer ones are."""
    for longest, calls in ((16, 4), (16, 0), (4, 0), (20, 0), (64, 8), (16, 0), (64, 0), (512, 10), (8192, 0)):
        states = Graph()
        assert not reaches_tokens(graph, states, longest=longest, exact=True)
        assert len(states.calls) == calls, longest


def test_longer_rows_may_be_reached(graph):
    """A graph that processes long rows in blocks is detected when such rows may occur, and the result is cached."""
    assert not reaches_tokens(graph, Graph(1, reach=200), longest=64, exact=True)
    assert reaches_tokens(graph, Graph(1, reach=200), longest=512, exact=True)
    states = Graph(1, reach=200)
    assert reaches_tokens(graph, states, longest=512, exact=True)
    assert states.calls == []


def test_the_result_does_not_depend_on_earlier_ones(graph):
    """The result for short rows is the same whether longer ones were tried before or not."""
    assert not reaches_tokens(graph, Graph(1, reach=200), longest=64, exact=True)
    assert reaches_tokens(graph, Graph(1, reach=200), longest=512, exact=True)
    assert not reaches_tokens(graph, Graph(1, reach=200), longest=64, exact=True)


NO_VERDICTS = ["", "none", "none x", "none -1", "nothing 5", "\0", "none 5 5"]


@pytest.mark.parametrize(
    ("content", "write"),
    [*((text, write_note) for text in NO_VERDICTS), *((text, Path.write_text) for text in (*NO_VERDICTS, "none 5"))],
)
def test_a_damaged_result(graph, content, write):
    """A cached result that is invalid or has no checksum is measured again and replaced."""
    write(graph.with_name("padding"), content)
    assert reaches_tokens(graph, Graph(1), longest=64, exact=True)
    assert read_note(graph.with_name("padding")) == "reaches 0"
    assert [path.name for path in graph.parent.iterdir()] == ["padding"]


def test_an_unwritable_cache(tmp_path):
    """Without a place for the result, it is measured each time."""
    for _ in range(2):
        states = Graph(1)
        assert reaches_tokens(tmp_path / "gone" / "model.onnx", states, longest=64, exact=True)
        assert states.calls == [(3, 0), (3, 1)]


def test_texts_that_cannot_be_tried(graph):
    """A graph without output for a length gives no result for it."""
    assert not reaches_tokens(graph, lambda length, padding: None, longest=64, exact=True)
    assert not reaches_tokens(graph, lambda length, padding: np.zeros((0, 4)), longest=64, exact=True)
    assert not reaches_tokens(graph, lambda length, padding: np.full((2 + padding, 4), padding), longest=64, exact=True)


# --- graphs whose padding reaches tokens


def with_convolution(graph):
    """Mix each token's embedding with its neighbors, including padding, before the first layer."""
    kernel = np.tile(np.array([0.3, 0.5, 0.4], np.float32), (32, 1, 1))  # (H, 1, 3)
    first = next(node for node in graph.graph.node if node.op_type == "LayerNormalization")
    first.output[0], mixed = "alone", first.output[0]
    at = list(graph.graph.node).index(first) + 1
    graph.graph.initializer.append(numpy_helper.from_array(kernel, "kernel"))
    nodes = [
        helper.make_node("Transpose", ["alone"], ["channels"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["channels", "kernel"], ["convolved"], pads=[1, 1], group=32),
        helper.make_node("Transpose", ["convolved"], [mixed], perm=[0, 2, 1]),
    ]
    for number, node in enumerate(nodes):
        graph.graph.node.insert(at + number, node)
    return graph


def pooled_inside(graph):
    """Make the graph output the mean over all its rows, including padding, as a vector."""
    graph.graph.node.append(helper.make_node("ReduceMean", ["last_hidden_state"], ["sentence_embedding"], axes=[1], keepdims=0))
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 32]))
    return graph


KINDS = {
    "no mask": lambda: without_mask(bert()),
    "a mask that is not read": lambda: without_mask(bert(), keep_input=True),
    "a convolution": lambda: with_convolution(bert()),
    "pooled inside": lambda: pooled_inside(without_mask(bert())),
}


def reached(folder, kind):
    """Write a model of one kind."""
    tiny_model(folder)
    if kind == "pooled inside":
        list_modules(folder, ("Transformer", ""))
    return replace_graph(folder, KINDS[kind]())


@pytest.fixture(scope="module", params=KINDS)
def exposed(request, tmp_path_factory):
    """A model in which padding changes the vectors of tokens."""
    with Embedder.load(reached(tmp_path_factory.mktemp("reached"), request.param), **QUIET) as e:
        yield e


@pytest.fixture(scope="module")
def maskless(tmp_path_factory):
    """A model without a mask, and its folder."""
    folder = reached(tmp_path_factory.mktemp("reached"), "no mask")
    with Embedder.load(folder, **QUIET) as e:
        yield folder, e


def test_the_recipe_says_so(exposed, embedder):
    """The recipe states that nothing is padded, and why; a graph that reads its mask is padded."""
    assert exposed.recipe.padding is False
    assert exposed.recipe.origin["padding"].startswith("padding changes the vectors of real tokens in this graph")
    assert (embedder.recipe.padding, "padding" in embedder.recipe.origin) == (True, False)


def test_batches_have_one_length(exposed):
    """A text's vector is the same alone and among texts of other lengths, in any order."""
    alone = np.concatenate([exposed.embed([text]) for text in MANY])
    assert difference(exposed.embed(MANY), alone) <= 1e-6
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(MANY))
        assert difference(exposed.embed([MANY[i] for i in order]), alone[order]) <= 1e-6


def test_no_call_pads(exposed):
    """Streams and counted calls give the same vectors as single texts."""
    alone = np.concatenate([exposed.embed([text]) for text in MANY])
    assert difference(np.concatenate(list(exposed.embed_stream(iter(MANY), window=7))), alone) <= 1e-6
    assert difference(exposed.run(exposed.tokenize(MANY)), alone) <= 1e-6
    with pickle.loads(pickle.dumps(exposed)) as copied:
        assert difference(copied.embed(MANY), alone) <= 1e-6
        assert copied.fingerprint == exposed.fingerprint


def test_vectors_of_a_graph_without_a_mask(maskless):
    """Without padding, the vectors equal the reference, odd lengths and token embeddings included."""
    folder, e = maskless
    weights = bert_weights()
    for text, vector, tokens in zip(MANY, e.embed(MANY), e.embed_tokens(MANY), strict=True):
        states = reference.bert(weights, reference.read_ids(folder, text, 64), 4)[-1]
        assert difference(vector, reference.normalize(states.mean(0))) <= 1e-5
        assert difference(tokens, states) <= 5e-5


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(alphabet="abc thecat日", max_size=30), max_size=8))
def test_any_batch_without_a_mask(maskless, batch):
    """Whatever the texts of a batch: each has the vector that it has alone."""
    together = maskless[1].embed(batch)
    for row, text in enumerate(batch):
        assert difference(together[row], maskless[1].embed([text])[0]) <= 1e-6


def test_other_budgets_change_nothing(maskless):
    """Batches of one text, or of all of one length, give the same vectors."""
    folder, e = maskless
    for most in (1, 100_000):
        with Embedder.load(folder, max_batch_tokens=most, **QUIET) as other:
            assert difference(other.embed(MANY), e.embed(MANY)) <= 1e-6
            assert other.fingerprint == e.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_buckets_are_rejected(tmp_path, kind):
    """Buckets pad, so they are rejected with the reason; a graph that reads its mask accepts them."""
    folder = reached(tmp_path, kind)
    with pytest.raises(
        ValueError, match=r"buckets=\[16, 64\] pads texts, but in .* padding changes the vectors of real tokens"
    ):
        Embedder.load(folder, buckets=[16, 64], threads=1)


def test_a_mask_that_is_read(tmp_path, embedder):
    """The same weights with a mask have another fingerprint, and batches with padding."""
    folder = tiny_model(tmp_path / "model")
    with Embedder.load(folder, buckets=[16, 64], **QUIET) as e:
        assert e.recipe.padding
        assert difference(e.embed(MANY), embedder.embed(MANY)) <= 1e-6
    replace_graph(folder, without_mask(bert(), keep_input=True))
    with Embedder.load(folder, **QUIET) as e:
        assert e.fingerprint != embedder.fingerprint
        assert difference(e.embed(MANY), embedder.embed(MANY)) <= 1e-5  # one length a batch: a mask of ones


def test_padding_on_the_left(tmp_path):
    """The padding side of the tokenizer does not matter if nothing is padded."""
    folder = reached(tmp_path, "no mask")
    with Embedder.load(folder, **QUIET) as e:
        expected = e.embed(MANY)
    change(folder / "tokenizer_config.json", padding_side="left")
    with Embedder.load(folder, **QUIET) as e:
        assert difference(e.embed(MANY), expected) <= 1e-6


def test_longer_texts_are_tried_later(tmp_path, monkeypatch):
    """An Embedder with a larger max_length tries longer rows than the one before, in the same cache entry."""
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    folder = tiny_model(tmp_path / "model")
    for length, remembered in ((8, "none 1"), (16, "none 2"), (64, "none 4"), (8, "none 4")):
        Embedder.load(folder, max_length=length, threads=1).close()
        (memo,) = (tmp_path / "cache" / "graphs").glob("*/padding")
        assert read_note(memo) == remembered


# --- graphs of fixed lengths, or with scales of each batch


def of_length(graph, length):
    """Write a length into the graph, as an export without dynamic axes has it."""
    for tensor in graph.graph.initializer:
        if tensor.name in ("split", "merge"):
            shape = numpy_helper.to_array(tensor).copy()
            shape[1] = length
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = length
    return graph


def test_a_fixed_length_with_a_mask(tmp_path):
    """A graph with a fixed length pads every text to it, and its mask excludes the padding."""
    folder = replace_graph(tiny_model(tmp_path, max_length=16), of_length(bert(), 16))
    with Embedder.load(folder, **QUIET) as e:
        assert difference(e.embed(TEXTS), [vector_of(folder, text, max_length=16) for text in TEXTS]) <= 1e-5


@pytest.mark.parametrize("kind", ["no mask", "a mask that is not read"])
def test_a_fixed_length_without_a_mask(tmp_path, kind):
    """A graph with a fixed length and no mask cannot give a shorter text's vector, and is rejected."""
    folder = replace_graph(tiny_model(tmp_path, max_length=16), of_length(KINDS[kind](), 16))
    with pytest.raises(ValueError, match="padding"):
        Embedder.load(folder, **QUIET)


def dynamic(folder, graph):
    """Write a graph whose activation scales are computed on each batch."""
    from onnxruntime.quantization import quantize_dynamic

    replace_graph(folder, graph)
    place = folder / "onnx" / "model.onnx"
    place.rename(folder / "fp32.onnx")
    quantize_dynamic(
        folder / "fp32.onnx", place, op_types_to_quantize=["MatMul"]
    )  # ONNX Runtime 1.23 has no ConvInteger of int8
    (folder / "fp32.onnx").unlink()
    return folder


def cosines(e):
    """Return the cosine of each text's vector in a batch with its vector alone."""
    alone, together = np.concatenate([e.embed([text]) for text in MANY]), e.embed(MANY)
    return (alone * together).sum(axis=1) / np.linalg.norm(alone, axis=1) / np.linalg.norm(together, axis=1)


def test_scales_of_each_batch_with_a_mask(tmp_path):
    """Scales computed per batch change vectors a little; padding changes nothing else."""
    with Embedder.load(dynamic(tiny_model(tmp_path), bert()), **QUIET) as e:
        assert not e.recipe.batch_invariant
        assert cosines(e).min() >= 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_scales_of_each_batch_without_a_mask(tmp_path, kind):
    """If such a graph reads its padding too, its batches have one length, as for other graphs."""
    with Embedder.load(dynamic(reached(tmp_path, kind), KINDS[kind]()), **QUIET) as e:
        assert e.recipe.padding is False
        assert cosines(e).min() >= 0.999


def test_padded_rows_without_a_mask(maskless):
    """embed_padded gives the token embeddings of embed_tokens, or rejects a graph in which padding changes them."""
    _, e = maskless
    try:
        padded = e.embed_padded(TEXTS)
    except ValueError as error:
        assert "padding" in str(error)  # noqa: PT017 - one of the outcomes
        return
    for tokens, rows in zip(e.embed_tokens(TEXTS), padded, strict=True):
        assert difference(rows[: len(tokens)], tokens) <= 1e-5
