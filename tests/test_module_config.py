"""Module configurations: their keys, the order of modules, and widths that must match."""

import re

import numpy as np
import pytest
import reference
from folder_kit import TEXTS, add_dense, difference, list_modules, states_of, vector_of
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model, write_json
from safetensors.numpy import save_file

from penult import Embedder
from penult.core.config.module_config import Dense, LayerNorm
from penult.core.recipe import Overrides, read

POOLING = {"pooling_mode": "mean", "embedding_dimension": 32}
TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}


@pytest.fixture
def folder(tmp_path):
    """A model with mean pooling of 32 values and no other module."""
    result = tiny_model(tmp_path / "model")
    list_modules(result, ("Transformer", ""), ("Pooling", "1_Pooling"))
    write_json(result / "1_Pooling" / "config.json", POOLING)
    return result


def embeds(folder, expected, **options):
    """Compare each text with the reference, to 2e-5."""
    with Embedder.load(folder, threads=1, truncate="right", **options) as e:
        assert difference(e.embed(TEXTS), np.stack([expected(text) for text in TEXTS])) <= 2e-5
        return e.recipe


def linear(x, layer, activation=np.tanh):
    """Apply a Dense module of the kit."""
    weight, bias, _ = layer
    return activation(x @ weight.T + bias)


# --- keys


@pytest.mark.parametrize(
    ("kind", "config", "harmless"),
    [
        ("Pooling", POOLING, {"word_embedding_dimension": 32, "include_prompt": True, "pooling_mode_cls_token": False}),
        ("Dense", {"in_features": 32, "out_features": 32}, {"bias": True, "use_residual": False, "activation_function": None}),
        ("Normalize", {}, {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}),
        ("LayerNorm", {"dimension": 32}, {}),
        ("Dropout", {"dropout": 0.1}, {}),
    ],
)
def test_each_module_has_its_keys(tmp_path, kind, config, harmless):
    """Known keys are read; an unknown one is an error that names the file, the key and the supported keys."""
    others = [] if kind == "Pooling" else [("Pooling", "1_Pooling")]
    list_modules(tmp_path, ("Transformer", ""), *others, (kind, "2_X"))
    write_json(tmp_path / "1_Pooling" / "config.json", POOLING)
    write_json(tmp_path / "2_X" / "config.json", config | harmless)
    assert read(tmp_path, Overrides()).pooling == "mean"
    for key in ("temperature", "pooling_mode_attention", "Bias", "dtype"):
        write_json(tmp_path / "2_X" / "config.json", config | {key: None})
        with pytest.raises(
            ValueError, match=rf"2_X/config\.json states '{key}', which penult does not support.*Supported: "
        ) as caught:
            read(tmp_path, Overrides())
        assert all(known in str(caught.value) for known in config)


@pytest.mark.parametrize("kind", ["Dense", "LayerNorm", "Pooling"])
def test_a_module_without_its_file(tmp_path, kind):
    """A module that needs a configuration is an error without it; Normalize and Dropout need none."""
    others = [] if kind == "Pooling" else [("Pooling", "1_Pooling")]
    list_modules(tmp_path, ("Transformer", ""), *others, (kind, "2_X"))
    write_json(tmp_path / "1_Pooling" / "config.json", POOLING)
    with pytest.raises(FileNotFoundError, match=rf"names the module {kind} in '2_X', but .*2_X/config\.json is missing"):
        read(tmp_path, Overrides())


def test_modules_that_need_no_file(tmp_path):
    """Normalize and Dropout may have no folder; Dropout is not a step."""
    list_modules(tmp_path, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dropout", "2_D"), ("Normalize", "3_N"))
    write_json(tmp_path / "1_Pooling" / "config.json", POOLING)
    assert read(tmp_path, Overrides()).steps == ("normalize",)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pooling_mode": ["mean"] * 7}, "concatenates 7 poolings; penult supports at most 6"),
        ({"pooling_mode": 1}, "pooling_mode is 1"),
        ({"pooling_mode": [["mean"]]}, "the pooling \"\\['mean'\\]\""),
        ({"pooling_mode": "mean", "include_prompt": "yes"}, "include_prompt is 'yes'"),
        ({"pooling_mode": "mean", "embedding_dimension": 0}, "embedding_dimension is 0; it must be from 1"),
        ({"pooling_mode": "mean", "embedding_dimension": "32"}, "embedding_dimension is '32'"),
    ],
)
def test_values_of_a_pooling(folder, config, message):
    """An invalid pooling value is an error that names it."""
    write_json(folder / "1_Pooling" / "config.json", config)
    with pytest.raises(ValueError, match=message) as caught:
        read(folder, Overrides())
    assert "1_Pooling/config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.GLU"}, "the activation 'torch.nn.modules.activation.GLU'"),
        ({"activation_function": "my.own.Tanh"}, "the activation 'my.own.Tanh'"),
        ({"activation_function": 1}, "activation_function is 1"),
        ({"use_residual": True, "in_features": None}, "use_residual without in_features and out_features"),
        ({"use_residual": 1}, "use_residual is 1"),
        ({"bias": "no"}, "bias is 'no'"),
        ({"in_features": -32}, "in_features is -32"),
        ({"out_features": 1.5}, "out_features is 1.5"),
        ({"module_input_name": "cls_token_embeddings"}, "reads 'cls_token_embeddings' and writes 'cls_token_embeddings'"),
        ({"module_input_name": 1}, "module_input_name is 1"),
        ({"module_input_name": "sentence_embedding", "module_output_name": "token_embeddings"}, "writes 'token_embeddings'"),
        ({"module_input_name": "token_embeddings", "module_output_name": "sentence_embedding"}, "reads 'token_embeddings'"),
    ],
)
def test_values_of_a_dense_layer(folder, config, message):
    """An invalid value of a dense layer is an error that names it."""
    list_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    write_json(folder / "2_Dense" / "config.json", {"in_features": 32, "out_features": 8} | config)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(folder, Overrides())
    assert "2_Dense/config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("stated", "activation"),
    [
        ({}, "Tanh"),
        ({"activation_function": None}, "Identity"),
        ({"activation_function": "torch.nn.modules.linear.Identity"}, "Identity"),
        ({"activation_function": "torch.nn.ReLU"}, "ReLU"),
        ({"activation_function": "GELU"}, "GELU"),
    ],
)
def test_the_activation(folder, stated, activation):
    """Without the key, a dense layer has Tanh; with null it has none."""
    list_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    write_json(folder / "2_Dense" / "config.json", {"in_features": 32, "out_features": 8} | stated)
    assert read(folder, Overrides()).steps == (Dense("2_Dense", activation),)


# --- widths


@pytest.mark.parametrize(
    ("pooling", "dense", "norm", "message"),
    [
        ({"embedding_dimension": 32}, (64, 8), None, "2_Dense/config.json expects embeddings of 64 values, but .* outputs 32"),
        (
            {"pooling_mode": ["mean", "max"], "embedding_dimension": 32},
            (32, 8),
            None,
            "2_Dense/config.json expects embeddings of 32 values, but .* outputs 64",
        ),
        ({"embedding_dimension": 32}, (32, 8), 32, "3_LayerNorm/config.json expects embeddings of 32 values, but .* outputs 8"),
    ],
)
def test_modules_that_do_not_fit(folder, pooling, dense, norm, message):
    """Each module must expect as many values as the module before it outputs."""
    write_json(folder / "1_Pooling" / "config.json", POOLING | pooling)
    list_modules(
        folder,
        ("Transformer", ""),
        ("Pooling", "1_Pooling"),
        ("Dense", "2_Dense"),
        *[("LayerNorm", "3_LayerNorm")] * bool(norm),
    )
    write_json(folder / "2_Dense" / "config.json", dict(zip(("in_features", "out_features"), dense, strict=True)))
    write_json(folder / "3_LayerNorm" / "config.json", {"dimension": norm})
    with pytest.raises(ValueError, match=message + r"\. Fix the files"):
        read(folder, Overrides())


def test_widths_that_fit(folder):
    """Two poolings give twice the values, which the following dense layer takes."""
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": ["max", "mean"], "word_embedding_dimension": 32})
    list_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("LayerNorm", "3_LayerNorm"))
    layer = add_dense(folder / "2_Dense", 64, 8)
    write_json(folder / "3_LayerNorm" / "config.json", {"dimension": 8})
    rng = np.random.default_rng(4)
    weight, bias = rng.standard_normal((2, 8)).astype(np.float32)
    save_file({"norm.weight": weight, "norm.bias": bias}, folder / "3_LayerNorm" / "model.safetensors")
    actual = read(folder, Overrides())
    assert (actual.width, actual.vector_width, actual.pooling) == (32, 8, ("max", "mean"))
    assert actual.steps == (Dense("2_Dense", "Tanh", bias=True), LayerNorm("3_LayerNorm"))

    def expected(text):
        states = states_of(folder, text)
        both = np.concatenate([reference.pool(states, "max"), reference.pool(states, "mean")])
        return reference.layer_norm(linear(both, layer), weight, bias)

    embeds(folder, expected)


def test_another_pooling_than_the_modules_fit(folder):
    """A pooling argument keeps the following modules, and must match their width."""
    list_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    layer = add_dense(folder / "2_Dense", 32, 8)
    with pytest.raises(
        ValueError, match=r"expects embeddings of 32 values, but .* outputs 64\. Pass another pooling, or omit it\."
    ):
        read(folder, Overrides(pooling=["mean", "max"]))
    embeds(folder, lambda text: linear(reference.pool(states_of(folder, text), "max"), layer), pooling="max")


@pytest.mark.parametrize("stated", [{"embedding_dimension": 48}, {"word_embedding_dimension": 384}])
def test_a_width_that_is_not_the_graphs(folder, stated):
    """If the stated width differs from that of the graph's token embeddings, the error states both."""
    (width,) = stated.values()
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"} | stated)
    with pytest.raises(ValueError, match=rf"expect token embeddings of {width} values, but .* (has|outputs) 32"):
        Embedder.load(folder)


def test_weights_that_are_not_as_stated(folder):
    """A dense layer with another width than the tokens is an error, even if no file states a width."""
    list_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    add_dense(folder / "2_Dense", 48, 8)
    write_json(folder / "2_Dense" / "config.json", {"activation_function": None})
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        Embedder.load(folder)


# --- order


def test_a_dense_layer_before_the_pooling(folder):
    """A dense layer before the pooling changes each token, including the activation."""
    list_modules(folder, ("Transformer", ""), ("Dense", "1_Dense"), ("Pooling", "2_Pooling"), ("Normalize", "3_N"))
    layer = add_dense(folder / "1_Dense", 32, 12, **TOKENS)
    write_json(folder / "2_Pooling" / "config.json", {"pooling_mode": "max", "embedding_dimension": 12})
    actual = embeds(folder, lambda text: reference.normalize(linear(states_of(folder, text), layer).max(0)))
    assert actual.token_steps == (Dense("1_Dense", "Tanh", bias=True),)
    assert (actual.steps, actual.pooling, actual.width) == (("normalize",), "max", 32)


def test_token_vectors_have_passed_the_steps_before_the_pooling(folder):
    """embed_tokens returns the input of the pooling."""
    list_modules(folder, ("Transformer", ""), ("Dense", "1_Dense"), ("Pooling", "1_Pooling"))
    layer = add_dense(folder / "1_Dense", 32, 12, **TOKENS)
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    with Embedder.load(folder, threads=1, truncate="right") as e:
        for text, actual in zip(TEXTS, e.embed_tokens(TEXTS), strict=True):
            assert difference(actual, linear(states_of(folder, text), layer)) <= 2e-5


def test_normalize_before_the_pooling(folder):
    """Normalize on tokens gives each token the length 1; their mean does not have it."""
    list_modules(folder, ("Transformer", ""), ("Normalize", "1_N"), ("Pooling", "1_Pooling"))
    write_json(folder / "1_N" / "config.json", TOKENS)

    def expected(text):
        states = states_of(folder, text)
        return (states / np.linalg.norm(states, axis=1, keepdims=True)).mean(0)

    actual = embeds(folder, expected)
    assert (actual.token_steps, actual.steps, actual.unit_length) == (("normalize",), (), False)


def test_normalize_on_a_vector_that_is_not_there_yet(folder):
    """Normalize on sentence embeddings before the pooling changes nothing, as in sentence-transformers."""
    list_modules(folder, ("Transformer", ""), ("Normalize", "1_N"), ("Pooling", "1_Pooling"))
    actual = embeds(folder, lambda text: states_of(folder, text).mean(0))
    assert (actual.token_steps, actual.steps) == ((), ())


def test_normalize_before_a_dense_layer(folder):
    """Normalize between pooling and Dense keeps its place, and the final vectors are not normalized."""
    list_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_N"), ("Dense", "3_D"))
    layer = add_dense(folder / "3_D", 32, 8)
    actual = embeds(folder, lambda text: linear(vector_of(folder, text), layer))
    assert (actual.steps, actual.unit_length) == (("normalize", Dense("3_D", "Tanh", bias=True)), False)


def test_dense_layers_follow_each_other(folder):
    """Two dense layers are applied in order, the second without a bias."""
    list_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_D"), ("Dense", "3_D"))
    first = add_dense(folder / "2_D", 32, 8)
    second, _, _ = add_dense(folder / "3_D", 8, 5, seed=9, bias=False, activation_function=None)
    embeds(folder, lambda text: linear(states_of(folder, text).mean(0), first) @ second.T)


@pytest.mark.parametrize("result", [32, 8])
def test_a_residual(folder, result):
    """With use_residual, the input, projected if the sizes differ, is added after the activation."""
    list_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_D"))
    layer = add_dense(folder / "2_D", 32, result, residual=result != 32, use_residual=True)

    def expected(text):
        x = states_of(folder, text).mean(0)
        return linear(x, layer) + (x if result == 32 else x @ layer[2].T)

    embeds(folder, expected)


@pytest.mark.parametrize(
    ("kind", "config", "place", "order"),
    [
        ("Dense", {}, "before", "before"),
        ("LayerNorm", {"dimension": 32}, "before", "before"),
        ("Dense", TOKENS, "after", "after"),
        ("Normalize", TOKENS, "after", "after"),
    ],
)
def test_steps_in_the_wrong_place(folder, kind, config, place, order):
    """A step on vectors before the pooling, or on tokens after it, is an error that names it."""
    pooling = ("Pooling", "1_Pooling")
    list_modules(folder, ("Transformer", ""), *((kind, "2_X"), pooling)[:: 1 if place == "before" else -1])
    write_json(folder / "2_X" / "config.json", config)
    with pytest.raises(ValueError, match=rf"2_X/config\.json: the module changes .* {order} the pooling"):
        read(folder, Overrides())


def test_two_poolings(folder):
    """A second pooling has no tokens to pool."""
    list_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Pooling", "2_P"))
    write_json(folder / "2_P" / "config.json", POOLING)
    with pytest.raises(ValueError, match=r"2_P/config\.json: the input of this module is already pooled"):
        read(folder, Overrides())


@pytest.mark.parametrize(
    "mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ["cls", "lasttoken", "weightedmean"]]
)
def test_every_pooling_of_the_files(folder, mode):
    """Each pooling name gives the vectors of its formula; several are concatenated."""
    write_json(folder / "1_Pooling" / "config.json", POOLING | {"pooling_mode": mode})
    names = ["last" if name == "lasttoken" else name for name in ([mode] if isinstance(mode, str) else mode)]
    embeds(folder, lambda text: np.concatenate([reference.pool(states_of(folder, text), name) for name in names]))


def test_an_explicit_pooling_keeps_include_prompt(folder):
    """A pooling argument overrides the mode of the files and nothing else."""
    write_json(folder / "1_Pooling" / "config.json", POOLING | {"include_prompt": False})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: "}})
    states = states_of(folder, "query: cat dog")[3:]  # without [CLS] query :
    with Embedder.load(folder, pooling="max", threads=1) as e:
        assert difference(e.embed(["cat dog"], "query")[0], states.max(0)) <= 2e-5
        assert e.recipe.origin["pooling"] == "argument"
        assert e.recipe.origin["include_prompt"] == "1_Pooling/config.json"


def test_an_explicit_pooling_needs_no_file(tmp_path):
    """If the file of a listed pooling is missing, a pooling argument is enough."""
    folder = tiny_model(tmp_path)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"1_Pooling/config\.json is missing"):
        read(folder, Overrides())
    assert read(folder, Overrides(pooling="cls")).steps == ("normalize",)


def test_a_folder_with_a_pooling_and_no_list(tmp_path):
    """1_Pooling is read without modules.json, unless a pooling is passed; no other module is."""
    write_json(
        tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "cls", "include_prompt": False, "embedding_dimension": 8}
    )
    actual = read(tmp_path, Overrides())
    assert (actual.pooling, actual.include_prompt, actual.steps, actual.width) == ("cls", False, (), 8)


# --- junk

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FILES = {
    "1_Pooling": ["pooling_mode", "include_prompt", "embedding_dimension", "word_embedding_dimension", "pooling_mode_cls_token",
                  "pooling_mode_mean_tokens", "pooling_mode_lasttoken"],
    "2_Dense": ["in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name",
                "use_residual"],
    "3_LayerNorm": ["dimension"],
    "4_Dropout": ["dropout"],
    "5_Normalize": ["module_input_name", "module_output_name"],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one module of each kind, with arbitrary weights."""
    result = tmp_path_factory.mktemp("junk")
    list_modules(result, ("Transformer", ""), *[(name[2:], name) for name in FILES])
    return result


@pytest.mark.parametrize("name", FILES)
def test_any_value_of_any_key(place, name):
    """Whatever the value of a module's known key: it is read, or one error names the file."""

    @settings(deadline=None, max_examples=120)
    @given(st.dictionaries(st.sampled_from(FILES[name]), json_values, max_size=3) | json_values)
    def check(content):
        for other in FILES:
            write_json(place / other / "config.json", {})
        write_json(place / name / "config.json", content)
        try:
            read(place, Overrides())
        except ValueError as error:
            assert f"{name}/config.json" in str(error)  # noqa: PT017 - an error is one of the outcomes

    check()
