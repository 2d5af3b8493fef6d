"""The configuration of a Transformer module: its names, lengths per role, tokenizer arguments and output."""

import re

import numpy as np
import pytest
import reference
from folder_kit import PACKAGE, TEXTS, bert, difference, list_modules, replace_graph, states_of
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model, tokenizer, write_json
from onnx import TensorProto, helper

from penult import Embedder, TextError
from penult.core.config.transformer_config import FILES, TransformerConfig, read_transformer
from penult.core.recipe import Overrides, read

MAIN = FILES[0]
OLDER = FILES[1:]
TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


def stated(folder, **config):
    """Write the file and return what is read from it."""
    write_json(folder / MAIN, config)
    return read_transformer(folder)


# --- the file


def test_no_file(tmp_path):
    """Without a file, nothing is stated."""
    assert read_transformer(tmp_path) == TransformerConfig()


@pytest.mark.parametrize("name", OLDER)
def test_the_older_names(tmp_path, name):
    """Each of the six older names is read, lower case and length alike."""
    write_json(tmp_path / name, {"max_seq_length": 77, "do_lower_case": True})
    actual = read_transformer(tmp_path)
    assert (actual.name, actual.max_seq_length, actual.lowercase) == (name, 77, True)
    assert read(tmp_path, Overrides()).origin["max_length"] == name


def test_there_are_six_older_names():
    """The names are those of sentence-transformers."""
    kinds = {name.removeprefix("sentence_").removesuffix("_config.json") for name in OLDER}
    assert kinds == {"roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"}


def test_the_newer_name_takes_precedence(tmp_path):
    """Of two files the newer applies; an empty one is ignored, as in sentence-transformers."""
    write_json(tmp_path / OLDER[0], {"max_seq_length": 77})
    assert stated(tmp_path, max_seq_length=66).max_seq_length == 66
    write_json(tmp_path / MAIN, {})
    assert read_transformer(tmp_path).max_seq_length == 77


@pytest.mark.parametrize("value", [0, -1, None, 1e30, float("inf"), float("nan"), 2_000_000])
def test_lengths_without_a_limit(tmp_path, value):
    """Values that mean "no limit" are not lengths."""
    assert stated(tmp_path, max_seq_length=value).max_seq_length is None


@pytest.mark.parametrize("value", [True, "512", [512], {}])
def test_lengths_that_are_not_numbers(tmp_path, value):
    """A length of another type is an error that names it."""
    with pytest.raises(ValueError, match=rf"{MAIN}: max_seq_length is .*; it must be a number"):
        stated(tmp_path, max_seq_length=value)


# --- the allow-list


@pytest.mark.parametrize(
    "harmless",
    [
        {"model_args": {"torch_dtype": "float16", "attn_implementation": "sdpa", "add_pooling_layer": False}},
        {
            "model_kwargs": {
                "dtype": "auto",
                "device_map": "cuda",
                "provider": "CPUExecutionProvider",
                "file_name": "onnx/m.onnx",
            }
        },
        {"config_args": {"trust_remote_code": True}},
        {"config_kwargs": {"use_cache": False}},
        {"unpad_inputs": True, "backend": "onnx"},
        {"processing_kwargs": {"text": {"padding": "max_length", "return_token_type_ids": False}, "image": {"size": 224}}},
        {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}},
        {"transformer_task": "feature-extraction", "modality_config": {"text": TEXT}},
        {"tokenizer_name_or_path": ""},
        {"query_expansion": None},
    ],
)
def test_harmless_keys(tmp_path, harmless):
    """Keys that decide no vector of an exported graph are skipped."""
    assert stated(tmp_path, **harmless, max_seq_length=9) == TransformerConfig(MAIN, 9)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"pooling": "mean"}, "states 'pooling', which penult does not support"),
        ({"max_length": 7}, "states 'max_length', which penult does not support"),
        ({"model_args": {"num_hidden_layers": 3}}, "states 'num_hidden_layers', which penult does not support"),
        ({"model_kwargs": {"quantization_config": {}}}, "states 'quantization_config'"),
        ({"config_args": {"hidden_act": "relu"}}, "states 'hidden_act'"),
        ({"config_kwargs": {"layer_norm_eps": 1}}, "states 'layer_norm_eps'"),
        ({"processing_kwargs": {"pdf": {}}}, "states 'pdf'"),
        ({"processing_kwargs": {"text": {"stride": 8}}}, "states 'stride'"),
        ({"processing_kwargs": {"common": {"text_pair": "x"}}}, "states 'text_pair'"),
        ({"processing_kwargs": {"text": {"truncation": False}}}, "disables truncation"),
        ({"processing_kwargs": {"common": {"truncation": "do_not_truncate"}}}, "disables truncation"),
        ({"processing_kwargs": {"text": [1]}}, "processing_kwargs.text is"),
        ({"processing_kwargs": 1}, "processing_kwargs is 1"),
        ({"tokenizer_name_or_path": "bert-base-uncased"}, "names the tokenizer of another model"),
        ({"do_lower_case": "yes"}, "do_lower_case is 'yes'"),
        ({"model_args": []}, "model_args is []"),
    ],
)
def test_unsupported_keys_and_values(tmp_path, config, said):
    """Any other key, or a value of another type, is one error that names the file."""
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        stated(tmp_path, **config)
    assert MAIN in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"transformer_task": "sequence-classification"}, "a reranker"),
        ({"transformer_task": "text-generation"}, "a reranker"),
        ({"transformer_task": "any-to-any"}, "a reranker"),
        ({"transformer_task": "fill-mask"}, "a sparse encoder"),
        ({"transformer_task": "retrieval"}, "a late-interaction model"),
        ({"transformer_task": "depth-estimation"}, "a model for 'depth-estimation'"),
        ({"query_expansion": {"strategy": "fixed", "length": 32}}, "a late-interaction model"),
    ],
)
def test_models_of_other_kinds(tmp_path, config, said):
    """For another task, the error states the model's kind, whatever pooling is passed, and suggests none."""
    folder = tiny_model(tmp_path)
    write_json(folder / MAIN, config)
    for pooling in (None, "mean"):
        with pytest.raises(ValueError, match=said) as caught:
            Embedder.load(folder, pooling=pooling)
        assert "pooling=" not in str(caught.value)


# --- lengths by role


@pytest.mark.parametrize(
    ("config", "lengths", "longest"),
    [
        ({"max_seq_length": 50}, {}, (50, 50)),
        ({"max_seq_length": 50, "query_length": 20}, {"query": 20, "document": 50}, (50, 20)),
        ({"max_seq_length": 50, "document_length": 20}, {"query": 50, "document": 20}, (20, 50)),
        ({"max_seq_length": 50, "query_length": 60, "document_length": 60}, {}, (60, 60)),
        ({"query_length": 8, "document_length": 24}, {"query": 8, "document": 24}, (24, 8)),
        ({"max_seq_length": 50, "query_length": 20, "processing_kwargs": {"text": {"max_length": 30}}}, {}, (30, 30)),
        ({"max_seq_length": 50, "processing_kwargs": {"common": {"max_length": 10}, "text": {"max_length": 30}}}, {}, (10, 10)),
        ({"tokenizer_args": {"model_max_length": 40}, "max_seq_length": 50}, {}, (40, 40)),
    ],
)
def test_lengths_by_role(tmp_path, config, lengths, longest):
    """A role's own length takes precedence over the common one, and the length of the tokenizer call over both."""
    write_json(tmp_path / MAIN, config)
    actual = read(tmp_path, Overrides())
    assert actual.lengths == lengths
    assert (actual.longest("document"), actual.longest("query")) == longest
    assert actual.max_length == max(longest)
    assert actual.origin["max_length"] == MAIN


def test_a_max_length_argument(tmp_path):
    """max_length= applies to both roles, and overrides the file."""
    write_json(tmp_path / MAIN, {"query_length": 8, "document_length": 24, "processing_kwargs": {"text": {"max_length": 30}}})
    actual = read(tmp_path, Overrides(max_length=12))
    assert (actual.longest("document"), actual.longest("query"), actual.lengths) == (12, 12, {})


def test_texts_are_truncated_by_role(tmp_path):
    """A query is truncated at the query's length, a document at its own; an error states the length of the role."""
    folder = tiny_model(tmp_path)
    write_json(folder / MAIN, {"max_seq_length": 64, "query_length": 6, "document_length": 10})
    text = "the cat sat on the mat in the moon " * 3
    with Embedder.load(folder, truncate="right", threads=1) as e:
        assert e.count_tokens([text, "dog"]).tolist() == [10, 3]
        assert e.count_tokens([text, "dog"], "query").tolist() == [6, 3]
        for role, length in (("document", 10), ("query", 6)):
            ids = states_of(folder, text, max_length=length)
            assert difference(e.embed([text], role)[0], reference.normalize(ids.mean(0))) <= 1e-5
    with Embedder.load(folder, truncate="error", threads=1) as e:
        with pytest.raises(TextError, match="the model's maximum is 6\\."):
            e.embed([text], "query")
        with pytest.raises(TextError, match="the model's maximum is 10"):
            e.embed([text])
        assert e.embed(["the cat sat on the"], "document").shape == (1, 32)


# --- how the tokenizer is called and made


def test_lower_case_comes_before_the_tokenizer(tmp_path):
    """do_lower_case lowercases texts for a cased tokenizer."""
    folder = tiny_model(tmp_path)
    result = tokenizer()
    result.normalizer = None
    result.save(str(folder / "tokenizer.json"))
    with Embedder.load(folder, threads=1) as e:
        assert difference(e.embed(["CAT"]), e.embed(["cat"])) > 1e-2
        before = e.fingerprint
    write_json(folder / MAIN, {"max_seq_length": 64, "do_lower_case": True})
    with Embedder.load(folder, threads=1) as e:
        assert difference(e.embed(["CAT"]), e.embed(["cat"])) == 0
        assert e.fingerprint != before


@pytest.mark.parametrize("key", ["tokenizer_args", "processor_kwargs"])
def test_tokenizer_arguments(tmp_path, key):
    """Arguments of the tokenizer override its own file, and are in the fingerprint."""
    folder = tiny_model(tmp_path)
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "pad_token": "[PAD]"}
    )
    with Embedder.load(folder, threads=1) as e:
        assert difference(e.embed(["CAT"]), e.embed(["cat"])) == 0
        before = e.fingerprint
    write_json(folder / MAIN, {"max_seq_length": 64, key: {"do_lower_case": False, "use_fast": True}})
    with Embedder.load(folder, threads=1) as e:
        assert difference(e.embed(["CAT"]), e.embed(["cat"])) > 1e-2
        assert e.recipe.tokenizer == {"do_lower_case": False, "use_fast": True}
        assert e.fingerprint != before
    write_json(folder / MAIN, {key: {"vocab_file": "x"}})
    with pytest.raises(ValueError, match="tokenizer setting 'vocab_file' is not supported"):
        Embedder.load(folder)


@pytest.mark.parametrize("place", ["common", "text"])
def test_no_special_tokens(tmp_path, place):
    """add_special_tokens false omits [CLS] and [SEP]."""
    folder = tiny_model(tmp_path)
    write_json(folder / MAIN, {"max_seq_length": 64, "processing_kwargs": {place: {"add_special_tokens": False}}})
    weights = reference.read_weights(folder / "onnx" / "model.onnx")
    with Embedder.load(folder, threads=1) as e:
        assert e.count_tokens(["cat dog"]).tolist() == [2]
        expected = reference.bert(weights, reference.read_ids(folder, "cat dog", 64)[1:-1], 4)[-1].mean(0)
        assert difference(e.embed(["cat dog"])[0], reference.normalize(expected)) <= 1e-5


@pytest.mark.parametrize("place", ["common", "text"])
def test_the_side_of_truncation(tmp_path, place):
    """A truncation_side of the call has no effect, as measured with sentence-transformers 6.2: the tokenizer's own applies."""
    write_json(tmp_path / "tokenizer_config.json", {"truncation_side": "right"})
    write_json(tmp_path / MAIN, {"processing_kwargs": {place: {"truncation_side": "left"}}})
    assert read(tmp_path, Overrides()).side == "right"


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_side_of_the_tokenizer_arguments(tmp_path, side):
    """truncation_side of the tokenizer's arguments overrides its file, and the caller's overrides both."""
    write_json(tmp_path / "tokenizer_config.json", {"truncation_side": "right" if side == "left" else "left"})
    write_json(tmp_path / MAIN, {"tokenizer_args": {"truncation_side": side}})
    assert read(tmp_path, Overrides()).side == side
    assert read(tmp_path, Overrides(truncate="right")).side == "right"
    write_json(tmp_path / MAIN, {"tokenizer_args": {"truncation_side": "both"}})
    with pytest.raises(ValueError, match="truncation_side is 'both'; it must be 'right' or 'left'"):
        read(tmp_path, Overrides())


def test_common_arguments_take_precedence(tmp_path):
    """If `common` and `text` differ, `common` applies, as measured with sentence-transformers 6.2."""
    for common in (True, False):
        both = {"common": {"add_special_tokens": common}, "text": {"add_special_tokens": not common}}
        assert stated(tmp_path, processing_kwargs=both).special_tokens is common


@pytest.mark.parametrize("place", ["common", "text"])
def test_a_call_without_a_length(tmp_path, place):
    """A max_length of null in the call removes the role's own length, as measured with sentence-transformers 6.2."""
    write_json(tmp_path / MAIN, {"max_seq_length": 50, "query_length": 6, "processing_kwargs": {place: {"max_length": None}}})
    assert read(tmp_path, Overrides()).longest("query") == 50


@pytest.mark.parametrize("place", ["common", "text"])
def test_a_truncation_of_null(tmp_path, place):
    """A truncation of null turns it off in sentence-transformers, so it is rejected like false."""
    with pytest.raises(ValueError, match="disables truncation"):
        stated(tmp_path, processing_kwargs={place: {"truncation": None}})


# --- outputs


@pytest.mark.parametrize(
    ("modalities", "feature", "expected"),
    [
        ({"text": TEXT}, "token_embeddings", (None, None)),
        ({"text": TEXT}, None, (None, None)),
        ({"text": TEXT, "image": {"method": "forward"}}, None, (None, None)),
        ({"text": {"method": "forward", "method_output_name": ["hidden_states", 3]}}, None, (None, 3)),
        ({"text": {"method": "forward", "method_output_name": ["hidden_states", -2]}}, None, (None, -2)),
        ({"text": {"method": "forward", "method_output_name": "pooler_output"}}, "sentence_embedding", ("pooler_output", None)),
        ({"text": {"method": "forward", "method_output_name": "embeds"}}, "sentence_embedding", ("embeds", None)),
        (
            {"text": {"method": "get_text_features", "method_output_name": "pooler_output"}},
            "sentence_embedding",
            ("text_embeds", None),
        ),
        ({"text": TEXT | {"format": "flat"}}, None, (None, None)),
    ],
)
def test_the_output_of_text(tmp_path, modalities, feature, expected):
    """The last hidden state, another one by its number, or a vector that the graph outputs."""
    named = {} if feature is None else {"module_output_name": feature}
    actual = stated(tmp_path, modality_config=modalities, **named)
    assert (actual.output, actual.layer) == expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"modality_config": {"message": TEXT}},
            "chat template to every text (modality `message`), which penult does not support. Apply",
        ),
        (
            {"modality_config": {"text": TEXT, "message": TEXT | {"format": "flat"}}},
            "chat template to every text (modality `message`)",
        ),
        ({"modality_config": {"image": TEXT}}, "has no modality `text` (it has image): the model does not take text"),
        ({"modality_config": {"text": "forward"}}, "has no modality `text`"),
        ({"modality_config": {"text": None}}, "has no modality `text`"),
        ({"modality_config": {"text": TEXT | {"layer": 1}}}, "states 'layer', which penult does not support"),
        (
            {"modality_config": {"text": {"method": "forward", "method_output_name": "logits"}}},
            "gives 'logits' as token_embeddings",
        ),
        (
            {"modality_config": {"text": {"method": "generate", "method_output_name": "last_hidden_state"}}},
            "through 'generate'",
        ),
        ({"modality_config": {"text": {"method": ["forward"], "method_output_name": {}}}}, "through"),
        ({"modality_config": {"text": {"method": "forward", "method_output_name": ["hidden_states", "3"]}}}, "hidden_states"),
        ({"modality_config": {"text": {"method": "forward", "method_output_name": ["hidden_states", True]}}}, "hidden_states"),
        ({"modality_config": {"text": {"method": "forward", "method_output_name": ["hidden_states"]}}}, "hidden_states"),
        ({"modality_config": {"text": TEXT}, "module_output_name": "scores"}, "the module outputs 'scores'"),
        ({"modality_config": {"text": TEXT}, "module_output_name": 3}, "module_output_name is 3"),
        ({"modality_config": [TEXT]}, "modality_config is"),
    ],
)
def test_unsupported_outputs(tmp_path, config, said):
    """An unsupported modality or output is an error that names it."""
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        stated(tmp_path, **config)
    assert MAIN in str(caught.value)


@pytest.mark.parametrize("number", [0, 1, -1, -2])
def test_a_hidden_state_by_its_number(tmp_path, number):
    """The hidden state that the files name is pooled, as with layer=, which overrides it."""
    folder = tiny_model(tmp_path)
    config = {"max_seq_length": 64, "modality_config": {"text": TEXT | {"method_output_name": ["hidden_states", number]}}}
    write_json(folder / MAIN, config)
    with Embedder.load(folder, threads=1, truncate="right") as e, Embedder.load(folder, layer=1, threads=1) as other:
        for text in TEXTS:
            expected = reference.normalize(states_of(folder, text, layer=number).mean(0))
            assert difference(e.embed([text])[0], expected) <= 1e-5
        expected = reference.normalize(states_of(folder, "dog", layer=1).mean(0))
        assert difference(other.embed(["dog"])[0], expected) <= 1e-5
        assert e.recipe.origin["layer"] == (MAIN if number != -1 else "default")


def test_a_vector_of_the_graphs_own(tmp_path):
    """A pooler_output that the files name is used if the graph has it; else the error names it."""
    folder = tiny_model(tmp_path)
    list_modules(folder, ("Transformer", ""))
    text = TEXT | {"method_output_name": "pooler_output"}
    write_json(folder / MAIN, {"modality_config": {"text": text}, "module_output_name": "sentence_embedding"})
    with pytest.raises(ValueError, match=r"name the output 'pooler_output'; .* has the outputs last_hidden_state\. Export"):
        Embedder.load(folder)
    graph = bert()
    graph.graph.initializer.append(helper.make_tensor("second", TensorProto.INT64, [], [0]))
    graph.graph.node.append(helper.make_node("Gather", ["last_hidden_state", "second"], ["first_token"], axis=1))
    graph.graph.node.append(helper.make_node("Tanh", ["first_token"], ["pooler_output"]))
    graph.graph.output.append(helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, ["batch", 32]))
    replace_graph(folder, graph)
    with Embedder.load(folder, threads=1, truncate="right") as e:
        expected = np.stack([np.tanh(states_of(folder, text)[0]) for text in TEXTS])
        assert difference(e.embed(TEXTS), expected) <= 1e-5
        assert (e.recipe.output, e.gives_tokens()) == ("pooler_output", False)


def test_a_clip_model_gives_its_projection(tmp_path):
    """A CLIPModel without another setting uses the graph's text_embeds."""
    write_json(tmp_path / "modules.json", [{"type": f"{PACKAGE}CLIPModel", "path": "0_CLIPModel"}])
    assert read(tmp_path, Overrides()).output == "text_embeds"


# --- junk

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
INNER = {
    "processing_kwargs": ["common", "text"],
    "modality_config": ["text", "image"],
    "model_args": ["torch_dtype", "revision"],
    "config_args": ["use_cache"],
}
DEEPER = {
    "processing_kwargs": ["max_length", "truncation", "truncation_side", "add_special_tokens", "padding"],
    "modality_config": ["method", "method_output_name", "format"],
}
KEYS = (
    "max_seq_length", "do_lower_case", "query_length", "document_length", "query_expansion", "processing_kwargs",
    "transformer_task", "modality_config", "module_output_name", "tokenizer_args", "processor_kwargs",
    "model_args", "model_kwargs", "config_args", "config_kwargs", "unpad_inputs", "tokenizer_name_or_path", "backend",
)  # fmt: skip


@st.composite
def configurations(draw):
    """Draw a file with some of its keys; nested ones are partly valid."""
    content = {}
    for key in draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=4)):
        deeper = st.dictionaries(st.sampled_from(DEEPER.get(key, ["x"])), json_values, max_size=3)
        nested = st.dictionaries(st.sampled_from(INNER.get(key, ["x"])), json_values | deeper, max_size=2)
        content[key] = draw(json_values | nested)
    return content


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One folder for all examples."""
    return tmp_path_factory.mktemp("junk")


@settings(deadline=None, max_examples=150)
@given(configurations() | json_values)
def test_any_content(place, content):
    """Whatever the file contains: it is read, with numbers as lengths, or one error names the file."""
    write_json(place / MAIN, content)
    try:
        actual = read(place, Overrides())
    except ValueError as error:
        assert MAIN in str(error) or "tokenizer settings" in str(error)  # noqa: PT017 - an error is one of the outcomes
    else:
        assert all(1 <= actual.longest(role) <= 1_000_000 for role in ("document", "query"))
