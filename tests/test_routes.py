"""Models with separate transformers for documents and queries, and texts in all kinds of iterables."""

import collections
import copy
import pickle
import re
import warnings

import numpy as np
import onnxruntime as ort
import pytest
import reference
from folder_kit import (
    PACKAGE,
    TEXTS,
    add_dense,
    bert,
    change,
    command,
    difference,
    list_modules,
    replace_graph,
    states_of,
    static_model,
    two_routes,
    vector_of,
    with_task_id,
    without_mask,
)
from models import tiny_model, tokenizer, write_json

from penult import Embedder, TextError, TruncationWarning
from penult.core.source import NoGraphError, resolve

QUIET = {"threads": 1, "truncate": "right"}
ROLES = ("document", "query")
PROMPTS = {"query": "search ", "document": "document "}
LONG = "the cat sat on the mat in the bright moon " * 8


def home(folder, role):
    """Return the folder of a role's transformer."""
    return folder / f"{role}_0_Transformer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a model with two transformers, two maximum lengths and two prompts."""
    return two_routes(tmp_path_factory.mktemp("routes") / "model", lengths=(40, 12), prompts=PROMPTS)


@pytest.fixture(scope="module")
def routes(folder):
    """Load the model once."""
    with Embedder.load(folder, **QUIET) as e:
        yield e


def expected(folder, role, text, prompt=None):
    """Return the oracle's vector of a text of a role."""
    whole = (PROMPTS[role] if prompt is None else prompt) + text
    return vector_of(home(folder, role), whole, max_length={"document": 40, "query": 12}[role])


# --- two transformers


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_its_transformer(folder, routes, role):
    """Vectors of a role are from its own transformer, with its prompt and maximum length."""
    texts = [*TEXTS, LONG]
    assert difference(routes.embed(texts, role), [expected(folder, role, text) for text in texts]) <= 1e-5
    assert difference(routes.embed(texts, role, prompt=""), [expected(folder, role, text, "") for text in texts]) <= 1e-5
    assert difference(routes.embed(["dog"], "query"), routes.embed(["dog"])) > 0.1


@pytest.mark.parametrize("role", ROLES)
def test_every_call_takes_the_route(folder, routes, role):
    """Streams, token vectors, padded token vectors and counts use the role's own transformer."""
    texts = [*TEXTS, LONG]
    vectors = routes.embed(texts, role)
    assert difference(np.concatenate(list(routes.embed_stream(iter(texts), role, window=3))), vectors) <= 1e-6
    tokenized = routes.tokenize(texts, role)
    assert difference(routes.run(tokenized), vectors) <= 1e-6
    ids = [reference.read_ids(home(folder, role), PROMPTS[role] + text, 10_000) for text in texts]
    longest = {"document": 40, "query": 12}[role]
    lengths = [min(len(row), longest) for row in ids]
    assert tokenized.counts.tolist() == lengths == routes.count_tokens(texts, role).tolist()
    assert tokenized.dropped.tolist() == [len(row) - kept for row, kept in zip(ids, lengths, strict=True)]
    tokens = routes.embed_tokens(texts, role)
    padded = routes.embed_padded(texts, role)
    assert padded.shape == (len(texts), longest, 32)
    for text, states, rows in zip(texts, tokens, padded, strict=True):
        expected_values = states_of(home(folder, role), PROMPTS[role] + text, max_length=longest)
        assert difference(states, expected_values) <= 5e-5
        assert difference(rows[: len(expected_values)], expected_values) <= 5e-5


def test_no_texts_of_either_role(routes):
    """An empty list returns no rows, for both roles."""
    for role in ROLES:
        assert routes.embed([], role).shape == (0, 32)
        assert routes.run(routes.tokenize([], role)).shape == (0, 32)
        assert routes.embed_tokens([], role) == []
        assert routes.count_tokens([], role).shape == (0,)


def test_invalid_rows_and_roles(routes):
    """Both routes raise the same errors as any model."""
    for role in ROLES:
        with pytest.raises(TextError) as caught:
            routes.embed(["a", None, "b", "\ud800"], role)
        assert set(caught.value.rows) == {1, 3}
        with pytest.raises(TypeError, match="texts is a str"):
            routes.embed("text", role)
    for role in ("passage", "", None, 1, ["query"]):
        with pytest.raises(ValueError, match="it must be 'document' or 'query'"):
            routes.embed(["a"], role)


def test_long_queries(folder):
    """Truncation is refused or reported with the maximum length of the role."""
    with Embedder.load(folder, threads=1, truncate="error") as e:
        with pytest.raises(TextError, match="the model's maximum is 12"):
            e.embed([LONG], "query")
        with pytest.raises(TextError, match="the model's maximum is 40"):
            e.embed([LONG])
    with Embedder.load(folder, threads=1) as e:
        with pytest.warns(TruncationWarning, match="more than 12 tokens"):
            e.embed([LONG], "query")
        with pytest.warns(TruncationWarning, match="more than 40 tokens"):
            e.embed([LONG])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            e.embed([LONG], "query")


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_keep_both_routes(routes, copying):
    """A copy has both transformers and the same fingerprint."""
    with copying(routes) as copied:
        assert copied.fingerprint == routes.fingerprint
        for role in ROLES:
            assert difference(copied.embed(TEXTS, role), routes.embed(TEXTS, role)) <= 1e-6


def test_closing_closes_both(folder):
    """A closed model raises RuntimeError for both roles."""
    e = Embedder.load(folder, **QUIET)
    e.close()
    e.close()
    for role in ROLES:
        with pytest.raises(RuntimeError, match="closed"):
            e.embed(["a"], role)


def test_the_recipe_has_both_routes(routes, folder):
    """The recipe contains the recipe of queries, with its own graph."""
    query = routes.recipe.query
    assert query is not None
    assert query.graph_sha256 != routes.recipe.graph_sha256
    assert (routes.recipe.longest("document"), routes.recipe.longest("query")) == (40, 12)
    assert (routes.dimension, routes.gives_tokens(), routes.gives_tokens("query")) == (32, True, True)


def test_the_fingerprint_covers_both(tmp_path):
    """The fingerprint depends on both transformers, tokenizers and lengths, but not on the order of the routes."""
    model_folder = two_routes(tmp_path / "model")
    marks = [fingerprint(model_folder)]
    replace_graph(home(model_folder, "query"), bert(seed=8))
    marks.append(fingerprint(model_folder))
    change(home(model_folder, "query") / "sentence_bert_config.json", max_seq_length=9)
    marks.append(fingerprint(model_folder))
    change(home(model_folder, "query") / "tokenizer_config.json", truncation_side="left")
    marks.append(fingerprint(model_folder))
    replace_graph(home(model_folder, "document"), bert(seed=9))
    marks.append(fingerprint(model_folder))
    assert len(set(marks)) == 5
    change(model_folder / "router_config.json", structure={role: [f"{role}_0_Transformer"] for role in ROLES})
    assert fingerprint(model_folder) == marks[-1]
    assert fingerprint(two_routes(tmp_path / "swapped", seeds=(7, 0))) != marks[0]


def fingerprint(model, **options):
    """Load a model and return its fingerprint."""
    with Embedder.load(model, **{"threads": 1} | options) as e:
        return e.fingerprint


def test_a_router_in_a_folder_of_its_own(tmp_path, routes):
    """The router and its transformers can be in a subfolder."""
    model_folder = two_routes(tmp_path, router="0_Router", lengths=(40, 12), prompts=PROMPTS)
    with Embedder.load(model_folder, **QUIET) as e:
        assert e.fingerprint == routes.fingerprint
        assert difference(e.embed(TEXTS, "query"), routes.embed(TEXTS, "query")) <= 1e-6


def test_arguments_apply_to_both_routes(folder):
    """max_length, pooling, dimensions and prompts override the files of both routes."""
    with Embedder.load(folder, max_length=8, pooling="cls", dimensions=4, prompts={"query": "fish "}, **QUIET) as e:
        for role in ROLES:
            prompt = "fish " if role == "query" else PROMPTS["document"]
            vector = states_of(home(folder, role), prompt + LONG, max_length=8)[0]
            unit = reference.normalize(reference.normalize(vector)[:4])
            assert difference(e.embed([LONG], role)[0], unit) <= 1e-5
            assert e.count_tokens([LONG], role).tolist() == [8]


def test_routes_of_other_sizes(tmp_path):
    """A model with two vector sizes is refused, because its vectors cannot be compared."""
    model_folder = two_routes(tmp_path, normalize=False)
    types = {"query_0_Transformer": "Transformer", "document_0_Transformer": "Transformer", "pool_q": "Pooling", "pool_d": "Pooling",
             "dense_q": "Dense"}  # fmt: skip
    write_json(model_folder / "router_config.json", {
        "types": types,
        "structure": {"query": ["query_0_Transformer", "pool_q", "dense_q"], "document": ["document_0_Transformer", "pool_d"]},
        "parameters": {},
    })  # fmt: skip
    for name in ("pool_q", "pool_d"):
        write_json(model_folder / name / "config.json", {"pooling_mode": "mean"})
    layer = add_dense(model_folder / "dense_q", 32, 8)
    list_modules(model_folder, ("Router", ""))
    with pytest.raises(ValueError, match="has document vectors of 32 values and query vectors of 8: they cannot be compared"):
        Embedder.load(model_folder)
    layer = add_dense(model_folder / "dense_q", 32, 32)
    with Embedder.load(model_folder, **QUIET) as e:
        assert difference(e.embed(["dog"])[0], states_of(home(model_folder, "document"), "dog").mean(0)) <= 2e-5
        expected_values = np.tanh(layer[0] @ states_of(home(model_folder, "query"), "dog").mean(0) + layer[1])
        assert difference(e.embed(["dog"], "query")[0], expected_values) <= 2e-5


def test_one_transformer_and_two_heads(tmp_path):
    """With Asym after the pooling, both roles share the graph, and each has its own dense layer."""
    model_folder = tiny_model(tmp_path)
    list_modules(model_folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Asym", "2_Asym"))
    write_json(model_folder / "2_Asym" / "config.json", {
        "types": {"q": f"{PACKAGE}Dense", "d": f"{PACKAGE}Dense"},
        "structure": {"query": ["q"], "doc": ["d"]},
        "parameters": {"allow_empty_key": True},
    })  # fmt: skip
    layers = {role: add_dense(model_folder / "2_Asym" / role[0], 32, 8, seed=len(role)) for role in ROLES}
    for model in (model_folder, model_folder / "onnx" / "model.onnx"):
        with Embedder.load(model, **QUIET) as e:
            for role, (weight, bias, _) in layers.items():
                expected_values = [np.tanh(weight @ states_of(model_folder, text).mean(0) + bias) for text in TEXTS]
                assert difference(e.embed(TEXTS, role), expected_values) <= 2e-5
            assert e.count_tokens(["dog"], "query").tolist() == [3]


def test_static_queries(tmp_path):
    """A static embedding for queries and a transformer for documents have their own tokenizers."""
    model_folder = two_routes(tmp_path, normalize=False)
    table = static_model(model_folder / "aside", dimension=32)
    (model_folder / "aside" / "0_StaticEmbedding").rename(model_folder / "query_0_StaticEmbedding")
    write_json(model_folder / "router_config.json", {
        "types": {"query_0_StaticEmbedding": "StaticEmbedding", "document_0_Transformer": "Transformer", "p": "Pooling"},
        "structure": {"query": ["query_0_StaticEmbedding"], "document": ["document_0_Transformer", "p"]},
        "parameters": {},
    })  # fmt: skip
    write_json(model_folder / "p" / "config.json", {"pooling_mode": "mean"})
    list_modules(model_folder, ("Router", ""))
    with Embedder.load(model_folder, **QUIET) as e:
        ids = tokenizer().encode("the cat", add_special_tokens=False).ids[:2]
        assert difference(e.embed(["the cat"], "query")[0], table[ids].mean(0)) <= 1e-5
        assert difference(e.embed(["the cat"])[0], states_of(home(model_folder, "document"), "the cat").mean(0)) <= 2e-5
        assert (e.gives_tokens(), e.gives_tokens("query")) == (True, False)
        assert e.count_tokens(["the cat"], "query").tolist() == [2]
        assert e.embed_tokens(["the cat"])[0].shape == (4, 32)
        with pytest.raises(ValueError, match="no token embeddings"):
            e.embed_tokens(["the cat"], "query")


def test_padding_of_one_route(tmp_path):
    """The padding check runs for each route separately."""
    model_folder = two_routes(tmp_path)
    replace_graph(home(model_folder, "query"), without_mask(bert(seed=7)))
    with Embedder.load(model_folder, **QUIET) as e:
        assert e.recipe.query is not None
        assert (e.recipe.padding, e.recipe.query.padding) == (True, False)
        for role in ROLES:
            alone = np.concatenate([e.embed([text], role) for text in TEXTS])
            assert difference(e.embed(TEXTS, role), alone) <= 1e-6
            assert difference(alone, [vector_of(home(model_folder, role), text) for text in TEXTS]) <= 1e-5


def test_tasks_of_routes(tmp_path):
    """Each route uses the adapters of its own configuration."""
    rows = np.random.default_rng(2).standard_normal((2, 32))
    model_folder = two_routes(tmp_path)
    for role in ROLES:
        replace_graph(home(model_folder, role), with_task_id(bert(), rows))
        change(home(model_folder, role) / "config.json", lora_adaptations=["retrieval.query", "retrieval.passage"])
    with Embedder.load(model_folder, **QUIET) as e, Embedder.load(model_folder, task=1, **QUIET) as fixed:
        assert difference(e.embed(["dog"]), fixed.embed(["dog"])) <= 1e-6
        assert difference(e.embed(["dog"], "query"), fixed.embed(["dog"], "query")) > 1e-2
        assert difference(fixed.embed(["dog"]), fixed.embed(["dog"], "query")) <= 1e-6


def test_a_task_of_queries_alone(tmp_path):
    """The model for queries does not need a task for documents."""
    model_folder = two_routes(tmp_path)
    rows = np.random.default_rng(2).standard_normal((2, 32))
    replace_graph(home(model_folder, "query"), with_task_id(bert(seed=7), rows))
    change(home(model_folder, "query") / "config.json", lora_adaptations=["query", "other"])
    with Embedder.load(model_folder, **QUIET) as e:
        assert e.embed(["dog"], "query").shape == (1, 32)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("onnx/model.onnx", "{}_0_Transformer"),
        ("tokenizer.json", "{}_0_Transformer has no tokenizer"),
    ],
)  # fmt: skip
def test_a_route_that_lacks_a_file(tmp_path, role, file, message):
    """The error about a missing file states the folder of the route."""
    model_folder = two_routes(tmp_path)
    (home(model_folder, role) / file).unlink()
    (home(model_folder, role) / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=message.format(role)):
        Embedder.load(model_folder)


def test_routes_of_weights(tmp_path):
    """Two routes with torch weights and without graphs are exported as one model."""
    model_folder = two_routes(tmp_path)
    for role in ROLES:
        (home(model_folder, role) / "onnx" / "model.onnx").unlink()
        (home(model_folder, role) / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(NoGraphError) as caught:
        resolve(model_folder)
    assert caught.value.folder == model_folder


@pytest.mark.parametrize("place", ["query_0_Transformer", "document_0_Transformer"])
def test_one_graph_of_two(folder, place):
    """One of the two graphs, passed as path or as model_file, is refused."""
    with pytest.raises(
        ValueError, match=rf"one graph of a model that has one for queries .* Pass the folder {re.escape(str(folder))}"
    ):
        Embedder.load(folder / place / "onnx" / "model.onnx")
    with pytest.raises(
        ValueError, match=r"one graph for queries and one for documents, but model_file='onnx/model\.onnx' names only one"
    ):
        Embedder.load(folder, model_file="onnx/model.onnx")


def test_a_graph_above_the_routes(tmp_path):
    """A graph in the model's main folder is not used for the two routes."""
    model_folder = two_routes(tmp_path)
    (home(model_folder, "query") / "onnx" / "model.onnx").unlink()
    (model_folder / "onnx").mkdir()
    replace_graph(model_folder, bert())
    with pytest.raises(FileNotFoundError, match=r"has no \.onnx file"):
        Embedder.load(model_folder)


def test_a_mirror_of_a_model_with_routes(folder, tmp_path):
    """files_from with a model of two transformers is refused for a single graph."""
    mirror = tiny_model(tmp_path, pooling=None)
    with pytest.raises(ValueError, match=r"has one model per role .* without files_from"):
        Embedder.load(mirror, files_from=folder)


@pytest.mark.parametrize("role", ROLES)
def test_cutting_one_route(folder, routes, tmp_path, capsys, role):
    """`penult cut --role` writes the graph of a role, and reports that there are two."""
    out = tmp_path / "cut.onnx"
    result = command(capsys, "cut", folder, out, "--role", role)
    assert result.status == 0, result.err
    assert f"has separate models for queries and documents; writing the {role} model (--role)" in result.err
    session = ort.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
    ids = np.array([reference.read_ids(home(folder, role), PROMPTS[role] + "dog", 12)])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    (vectors,) = session.run(["sentence_embedding"], {node.name: feed[node.name] for node in session.get_inputs()})
    assert difference(vectors, routes.embed(["dog"], role)) <= 1e-5


def test_cutting_a_model_without_routes(tiny, tmp_path, capsys):
    """A model with one transformer has the same graph for both roles."""
    for role in ROLES:
        result = command(capsys, "cut", tiny, tmp_path / f"{role}.onnx", "--role", role)
        assert result.status == 0, result.err
        assert "this is the" not in result.err
    assert (tmp_path / "document.onnx").read_bytes() == (tmp_path / "query.onnx").read_bytes()


# --- iterables


ITERABLES = {
    "list": list,
    "tuple": tuple,
    "generator": lambda texts: (text for text in texts),
    "iterator": iter,
    "map": lambda texts: map(str, texts),
    "filter": lambda texts: filter(lambda text: True, texts),
    "dict": lambda texts: dict.fromkeys(texts, 1),
    "keys": lambda texts: dict.fromkeys(texts, 1).keys(),
    "values": lambda texts: dict(enumerate(texts)).values(),
    "deque": collections.deque,
    "array": np.array,
    "objects": lambda texts: np.array(texts, dtype=object),
    "Series": lambda texts: pytest.importorskip("pandas").Series(texts),
    "shifted Series": lambda texts: pytest.importorskip("pandas").Series(texts, index=range(5, 5 + len(texts))),
    "Index": lambda texts: pytest.importorskip("pandas").Index(texts),
}
WORDS = ["the cat sat", "dog", "", "a bright moon over the river", "日本"]


@pytest.mark.parametrize("kind", ITERABLES)
@pytest.mark.parametrize("role", ROLES)
def test_any_iterable(routes, kind, role):
    """All calls accept any iterable, consume it once, and keep the order."""

    def make():
        return ITERABLES[kind](WORDS)

    whole = routes.embed(WORDS, role)
    assert difference(routes.embed(make(), role), whole) <= 1e-6
    assert difference(np.concatenate(list(routes.embed_stream(make(), role, window=2))), whole) <= 1e-6
    assert difference(routes.run(routes.tokenize(make(), role)), whole) <= 1e-6
    assert routes.count_tokens(make(), role).tolist() == routes.count_tokens(WORDS, role).tolist()
    assert routes.tokenize(make(), role) == routes.tokenize(WORDS, role)
    for result, expected_values in zip(routes.embed_tokens(make(), role), routes.embed_tokens(WORDS, role), strict=True):
        assert difference(result, expected_values) <= 1e-6
    assert difference(routes.embed_padded(make(), role), routes.embed_padded(WORDS, role)) <= 1e-6


CALLS = ("embed", "tokenize", "count_tokens", "embed_tokens", "embed_padded")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrong", ["text", b"text", "", b"", None, 7, object()], ids=lambda value: type(value).__name__)
def test_values_that_are_not_texts(routes, call, wrong):
    """A str, bytes and None raise TypeError with the type."""
    with pytest.raises(TypeError, match=f"texts is a {type(wrong).__name__}; pass a list"):
        getattr(routes, call)(wrong)


@pytest.mark.parametrize(
    "wrong",
    ["text", b"text", None],
)
def test_a_stream_of_values_that_are_not_texts(routes, wrong):
    """embed_stream refuses a str, bytes and None."""
    with pytest.raises(TypeError, match=f"texts is a {type(wrong).__name__}; pass"):
        list(routes.embed_stream(wrong))


def test_an_iterator_that_fails(routes):
    """An exception in the caller's iterator is propagated."""

    def texts():
        yield "a"
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        routes.embed(texts())
    with pytest.raises(LookupError, match="mine"):
        list(routes.embed_stream(texts()))


def test_an_iterator_used_up(routes):
    """A consumed iterator returns no rows."""
    texts = iter(["a"])
    assert routes.embed(texts).shape == (1, 32)
    assert routes.embed(texts).shape == (0, 32)


@pytest.mark.parametrize("dimensions", [(2, 2), (1, 0)])
def test_arrays_of_more_axes(routes, dimensions):
    """Rows of a 2-D array raise TextError."""
    texts = np.full(dimensions, "a")
    with pytest.raises(TextError, match="is a ndarray, not a str"):
        routes.embed(texts)
