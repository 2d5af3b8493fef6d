"""The configuration of a model's folder, and the arguments that override it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import write_json

from penult import Embedder
from penult.core.recipe import Overrides, read


def modules(folder, *kinds):
    write_json(
        folder / "modules.json", [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
    )


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("max", "mean")),
        ({"pooling_mode": ["mean", "max"]}, ("mean", "max")),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "cls"),
        ({"pooling_mode_mean_tokens": False, "word_embedding_dimension": 8}, "mean"),
    ],
)
def test_pooling_is_read(tmp_path, config, pooling):
    """The older flags are read in their order, the newer name overrides them, and without any flag the pooling is the mean."""
    write_json(tmp_path / "1_Pooling" / "config.json", config)
    actual = read(tmp_path, Overrides())
    assert (actual.pooling, actual.origin["pooling"]) == (pooling, "1_Pooling/config.json")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"pooling_mode": "attention"}, "the pooling 'attention'"),
        ({"pooling_mode": ["mean", "attention"]}, "the pooling 'attention'"),
        ({"pooling_mode": "mean", "temperature": 2}, "states 'temperature'"),
    ],
)
def test_an_unknown_pooling(tmp_path, config, named):
    """A pooling or a key that penult does not support is an error, never replaced or ignored."""
    write_json(tmp_path / "1_Pooling" / "config.json", config)
    with pytest.raises(ValueError, match=named):
        read(tmp_path, Overrides())
    assert read(tmp_path, Overrides(pooling="mean")).origin["pooling"] == "argument"


def test_an_unknown_module(tmp_path):
    """A module that would be ignored silently is an error."""
    modules(tmp_path, ("Transformer", ""), ("Pooling", "1_Pooling"), ("LSTM", "2_LSTM"))
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    with pytest.raises(ValueError, match="module 'LSTM'"):
        read(tmp_path, Overrides())


def test_normalization_follows_the_modules(tmp_path):
    """Normalize is read; the caller can add or remove it."""
    modules(tmp_path, ("Transformer", ""), ("Normalize", "2_Normalize"))
    assert read(tmp_path, Overrides()).normalized
    assert not read(tmp_path, Overrides(normalize=False)).normalized
    modules(tmp_path, ("Transformer", ""))
    assert not read(tmp_path, Overrides()).normalized
    assert read(tmp_path, Overrides(normalize=True)).steps == ("normalize",)


@pytest.mark.parametrize(
    ("files", "given", "length", "origin"),
    [
        (
            {"sentence_bert_config": {"max_seq_length": 256}, "tokenizer_config": {"model_max_length": 512}},
            None,
            256,
            "sentence_bert_config.json",
        ),
        (
            {"sentence_bert_config": {"max_seq_length": None}, "tokenizer_config": {"model_max_length": 384}},
            None,
            384,
            "tokenizer_config.json",
        ),
        (
            {"tokenizer_config": {"model_max_length": 1e30}, "config": {"max_position_embeddings": 512}},
            None,
            512,
            "config.json",
        ),
        ({"config": {"max_position_embeddings": 514, "pad_token_id": 1}}, None, 514, "config.json"),  # capped as well
        (
            {"sentence_bert_config": {"max_seq_length": 514}, "config": {"max_position_embeddings": 514, "pad_token_id": 1}},
            None,
            514,  # the graph's table of positions caps it
            "sentence_bert_config.json",
        ),
        (
            {"sentence_bert_config": {"max_seq_length": 8192}, "config": {"max_position_embeddings": 2048}},
            None,
            8192,
            "sentence_bert_config.json",
        ),
        ({"sentence_xlnet_config": {"max_seq_length": 77}}, None, 77, "sentence_xlnet_config.json"),
        ({"config": {"max_position_embeddings": 130, "pad_token_id": 0}}, None, 130, "config.json"),
        ({"config": {"max_position_embeddings": 77}}, None, 77, "config.json"),
        ({"config": {"n_positions": 1024}}, None, 1024, "config.json"),
        ({"tokenizer": {"truncation": {"max_length": 128}}}, None, 128, "tokenizer.json"),
        ({"tokenizer": {"truncation": None}}, None, 8192, "default"),
        ({"config": {"max_position_embeddings": 512}}, 100, 100, "argument"),
    ],
)
def test_the_longest_text(tmp_path, files, given, length, origin):
    """max_length is the argument, else what the files state; positions of config.json only limit the tokenizer's length."""
    for name, content in files.items():
        write_json(tmp_path / f"{name}.json", content)
    actual = read(tmp_path, Overrides(max_length=given))
    assert (actual.max_length, actual.origin["max_length"]) == (length, origin)


def test_more_than_the_positions(tiny):
    """A length without positions is an error at load, not during a job."""
    with pytest.raises(ValueError, match=r"max_length=129 exceeds the model's 128 positions\. Pass max_length<=128"):
        Embedder.load(tiny, max_length=129)


def test_prompts_by_role(tmp_path):
    """A role's prompt is the first of its usual names; the default prompt only serves documents, and arguments override."""
    config = tmp_path / "config_sentence_transformers.json"
    write_json(config, {"prompts": {"query": "q: ", "passage": "p: "}})
    assert read(tmp_path, Overrides()).prompts == {"query": "q: ", "document": "p: "}
    write_json(config, {"prompts": {"query": "", "document": "", "sts": "s: "}, "default_prompt_name": "sts"})
    assert read(tmp_path, Overrides()).prompts == {"query": "", "document": ""}
    write_json(config, {"prompts": {"sts": "s: "}, "default_prompt_name": "sts"})
    assert read(tmp_path, Overrides()).prompts == {"query": "", "document": "s: "}
    actual = read(tmp_path, Overrides(prompts={"query": "mine: "}))
    assert (actual.prompts, actual.origin["prompts"]) == ({"query": "mine: ", "document": "s: "}, "argument")


@pytest.mark.parametrize(
    "wish",
    [
        {"pooling": "sum"},
        {"prompts": {"passage": "p"}},
        {"precision": "int4"},
        {"truncate": "both"},
        {"max_length": 0},
        {"dimensions": -1},
    ],
)
def test_invalid_arguments(tmp_path, wish):
    """An invalid argument is an error that states its name and value."""
    (name, value), *_ = wish.items()
    message = "prompts has the role 'passage'" if name == "prompts" else f"{name} is {value!r}"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, Overrides(**wish))


@given(st.binary(max_size=40))
def test_broken_json_is_one_clear_error(tmp_path_factory, content):
    """Whatever bytes a configuration file has: it is read, or one ValueError names it."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "modules.json").write_bytes(content)
    try:
        json.loads(content.decode())
    except ValueError:
        with pytest.raises(ValueError, match=r"modules\.json is (not (JSON|UTF-8)|a Git LFS pointer|an HTML page|empty)"):
            read(folder, Overrides())


def test_the_fingerprint_leaves_out_the_origin(tmp_path):
    """The same values from another file are the same recipe."""
    stated = read(tmp_path, Overrides(pooling="mean", max_length=64))
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 64})
    actual = read(tmp_path, Overrides())
    assert actual.origin != stated.origin
    assert actual.fingerprint == stated.fingerprint
    assert len(actual.fingerprint) == 32
