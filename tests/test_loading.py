"""From a folder to an Embedder: layouts, lengths, prompts, dimensions, tasks, positions, fingerprints and cache entries."""

import copy
import json
import pickle
import re
import shutil
import warnings
from dataclasses import replace

import numpy as np
import onnx
import pytest
import reference
from folder_kit import (
    TEXTS,
    add_dense,
    bert,
    change,
    difference,
    list_modules,
    replace_graph,
    states_of,
    static_model,
    vector_of,
    with_position_ids,
    with_task_id,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from models import VOCABULARY, Size, bert_graph, bert_weights, tiny_model, tokenizer, write_json
from onnx import TensorProto, helper, numpy_helper

from penult import Embedder
from penult.core import export, loading, prepare
from penult.core.model_tokenizer import tokenizer_of
from penult.core.recipe import Overrides, Recipe
from penult.core.recipe import read as read_recipe

QUIET = {"threads": 1, "truncate": "right"}


def fingerprint(folder, **options):
    """Load a model and return its fingerprint."""
    with Embedder.load(folder, **{"threads": 1} | options) as e:
        return e.fingerprint


@pytest.fixture
def folder(tmp_path):
    """A complete model."""
    return tiny_model(tmp_path / "model")


# --- layouts


def in_a_module(folder, name="0_Transformer", graph="0_Transformer/onnx/model.onnx"):
    """Move the transformer of a model into a module's folder, and its graph to `graph`."""
    (folder / name).mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json", "sentence_bert_config.json"):
        shutil.move(folder / file, folder / name / file)
    (folder / graph).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder / "onnx" / "model.onnx", folder / graph)
    list_modules(folder, ("Transformer", name), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))


@pytest.mark.parametrize("name", ["0_Transformer", "0_BERT", "transformer"])
@pytest.mark.parametrize(
    "place", ["{}/onnx/model.onnx", "{}/model.onnx", "onnx/model.onnx", "model.onnx", "onnx/model_O2.onnx"]
)
def test_a_transformer_in_a_folder_of_its_own(folder, embedder, name, place):
    """The graph is beside the transformer's configuration or in the root; prompts and modules are read from the root."""
    graph = place.format(name)
    in_a_module(folder, name, graph)
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: "}})
    for model in (folder, folder / graph):
        with Embedder.load(model, **QUIET) as e:
            assert difference(e.embed(TEXTS), embedder.embed(TEXTS)) <= 1e-6
            assert (e.recipe.max_length, e.recipe.prompts["query"]) == (64, "query: ")


def test_the_graph_of_the_module_takes_precedence(folder, embedder):
    """A graph beside the transformer takes precedence over one in the root."""
    in_a_module(folder)
    (folder / "onnx").mkdir(exist_ok=True)
    onnx.save(bert(seed=9), folder / "onnx" / "model.onnx")
    with Embedder.load(folder, **QUIET) as e:
        assert difference(e.embed(TEXTS), embedder.embed(TEXTS)) <= 1e-6


def test_a_second_tokenizer_beside_the_graph(folder, embedder):
    """A graph given by its path uses the tokenizer, lengths and prompts of the folder above."""
    shutil.copy(folder / "tokenizer.json", folder / "onnx" / "tokenizer.json")
    write_json(folder / "onnx" / "tokenizer_config.json", {"model_max_length": 7})
    write_json(folder / "onnx" / "config.json", {"max_position_embeddings": 9})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"document": "passage: "}})
    shutil.copy(folder / "onnx" / "model.onnx", folder / "onnx" / "model_int8.onnx")
    for options in ({"model": folder / "onnx" / "model_int8.onnx"}, {"model": folder, "model_file": "onnx/model_int8.onnx"}):
        with Embedder.load(**options, **QUIET) as e:
            assert (e.recipe.max_length, e.recipe.pooling, e.recipe.prompts["document"]) == (64, "mean", "passage: ")
            assert difference(e.embed(["cat"]), embedder.embed(["passage: cat"])) <= 1e-6


@pytest.mark.parametrize(
    "name", ["onnx/model_int8.onnx", "model_int8.onnx", "./onnx/model_int8.onnx", "onnx/./model_int8.onnx"]
)
def test_spellings_of_model_file(folder, name):
    """A graph of the folder may be given with or without its path."""
    onnx.save(bert(seed=9), folder / "onnx" / "model_int8.onnx")
    with Embedder.load(folder, model_file=name, **QUIET) as e:
        assert difference(e.embed(["dog"])[0], oracle_of(bert_weights(seed=9), folder, "dog")) <= 1e-5


def oracle_of(weights, folder, text):
    """Return the normalized mean of a BERT of these weights."""
    states = reference.bert(weights, reference.read_ids(folder, text, 64), 4)[-1]
    return reference.normalize(states.mean(0))


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("model_O9.onnx", FileNotFoundError, r"has no 'model_O9\.onnx'; it has onnx/model\.onnx"),
        ("onnx/../onnx/model.onnx", FileNotFoundError, r"has no 'onnx/\.\./onnx/model\.onnx'"),
        ("/etc/model.onnx", FileNotFoundError, r"has no '/etc/model\.onnx'"),
        ("onnx", ValueError, r"model_file is 'onnx'; pass an \.onnx file"),
        ("", ValueError, r"model_file is ''; pass an \.onnx file"),
        ("onnx/model.safetensors", ValueError, r"pass an \.onnx file of the model"),
    ],
)
def test_a_missing_model_file(folder, name, error, said):
    """A graph that is missing or outside the folder is an error that lists the existing graphs."""
    with pytest.raises(error, match=said):
        Embedder.load(folder, model_file=name)


def test_a_graph_and_a_model_file(folder):
    """A path of a graph with another model_file is an error."""
    with pytest.raises(ValueError, match=r"names a graph, but model_file='model\.onnx' names another"):
        Embedder.load(folder / "onnx" / "model.onnx", model_file="model.onnx")


def test_files_of_another_folder(folder, tmp_path, embedder):
    """files_from reads modules, prompts and lengths from another folder; the tokenizer beside the graph is used."""
    mirror = tmp_path / "mirror"
    (mirror / "onnx").mkdir(parents=True)
    shutil.copy(folder / "onnx" / "model.onnx", mirror / "onnx" / "model.onnx")
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: "}})
    for own in (False, True):
        if own:
            tokenizer().save(str(mirror / "tokenizer.json"))
        for place in (folder, str(folder)):
            with Embedder.load(mirror, files_from=place, **QUIET) as e:
                assert difference(e.embed(TEXTS), embedder.embed(TEXTS)) <= 1e-6
                assert (e.recipe.prompts["query"], e.recipe.max_length) == ("query: ", 64)
    with pytest.raises(ValueError, match=r"does not state a pooling"):
        Embedder.load(mirror)
    with pytest.raises(ValueError, match="files_from is empty"):
        Embedder.load(mirror, files_from="")
    with pytest.raises(FileNotFoundError, match="files_from='no/such/folder/at/all' is not a local folder or a Hub id"):
        Embedder.load(mirror, files_from="no/such/folder/at/all")


@pytest.mark.parametrize(
    ("card", "named"),
    [
        ("---\nbase_model: BAAI/bge-small-en-v1.5\n---\n# A mirror", "BAAI/bge-small-en-v1.5"),
        ("---\ntags: [x]\nbase_model:\n- intfloat/e5-small\n---\n", "intfloat/e5-small"),
        ("# A mirror\nbase_model: not/this\n", None),
        ("---\ntags: [x]\n---\nbase_model: not/this\n", None),
    ],
)
def test_the_card_names_the_base_model(tmp_path, card, named):
    """If no file states a pooling, the error suggests the base model on the card."""
    mirror = tiny_model(tmp_path, pooling=None)
    (mirror / "README.md").write_text(card)
    with pytest.raises(ValueError, match=f"files_from={named!r}" if named else "files_from=") as caught:
        Embedder.load(mirror)
    assert "not/this" not in str(caught.value)


@pytest.mark.parametrize(
    ("inside", "name"),
    [
        (".", "."),
        (".", "onnx/model.onnx"),
        (".", "./onnx/model.onnx"),
        ("1_Pooling", ".."),
        ("1_Pooling", "../onnx/model.onnx"),
        *[
            (inside, name)
            for inside, name in (("onnx", "model.onnx"), ("onnx", "./model.onnx"))
        ],
    ],
)  # fmt: skip
def test_relative_paths(folder, monkeypatch, embedder, inside, name):
    """A model loads from any working directory, including its own folder, with its prompts and modules."""
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"document": "passage: "}})
    shutil.copy(folder / "tokenizer.json", folder / "onnx" / "tokenizer.json")
    monkeypatch.chdir(folder / inside)
    with Embedder.load(name, pooling="mean", normalize=True, **QUIET) as e:
        assert difference(e.embed(["cat"]), embedder.embed(["passage: cat"])) <= 1e-6
        assert e.recipe.max_length == 64


def test_a_graph_that_is_a_dangling_link(folder):
    """A dangling link is an error; no other graph is used instead."""
    (folder / "onnx" / "model.onnx").unlink()
    (folder / "onnx" / "model.onnx").symlink_to(folder / "gone.onnx")
    onnx.save(bert(), folder / "onnx" / "model_O2.onnx")
    with pytest.raises(ValueError, match=r"onnx/model\.onnx is not a file"):
        Embedder.load(folder)


@pytest.mark.parametrize(
    "name", ["modules.json", "1_Pooling/config.json", "config.json", "tokenizer.json", "sentence_bert_config.json"]
)
def test_a_file_that_is_a_dangling_link(folder, name):
    """A dangling link in place of a configuration is an error that names it; it does not count as a missing file."""
    (folder / name).unlink()
    (folder / name).symlink_to(folder / "gone")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(name)):
        Embedder.load(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 90\n"


@pytest.mark.parametrize(
    "name",
    ["onnx/model.onnx", "onnx/weights.data", "modules.json", "1_Pooling/config.json", "config.json", "tokenizer.json",
     "tokenizer_config.json", "sentence_bert_config.json", "config_sentence_transformers.json", "2_Dense/model.safetensors"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER.encode(), r"is a Git LFS pointer, not the .*\. Run `git lfs pull` in its repository"),
        (b"\n<!DOCTYPE html>\n<html><body>Not Found</body></html>", r"is an HTML page, not the .*\. Download it again"),
        (b"", "is (empty|not a complete safetensors file) ?.*Download it again"),
    ],
    ids=["pointer", "page", "empty"],
)
def test_another_file_in_place_of_a_file(folder, name, content, said):
    """A Git LFS pointer, an HTML page or an empty file in place of any file that decides a vector is an error that names it."""
    list_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    add_dense(folder / "2_Dense", 32, 8)
    graph = folder / "onnx" / "model.onnx"
    onnx.save_model(onnx.load(graph), graph, save_as_external_data=True, location="weights.data", size_threshold=100)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / name))} {said}"):
        Embedder.load(folder)


@pytest.mark.parametrize("name", ["modules.json", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_a_file_in_another_encoding(folder, name, encoding):
    """A file in an encoding other than UTF-8 is an error that names it."""
    whole = (folder / name).read_text() if (folder / name).exists() else "{}"
    (folder / name).write_text(whole.replace("}", ', "é": 1}', 1) if "{" in whole else "é", encoding=encoding)
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / name))} is not"):
        Embedder.load(folder)


def test_hidden_files_are_not_graphs(folder, embedder):
    """A name that begins with a dot, as macOS writes beside every file, is never a graph."""
    (folder / "onnx" / "._model.onnx").write_bytes(b"\0\5\x16\7")
    (folder / "onnx" / "model.onnx").rename(folder / "onnx" / "other.onnx")
    (folder / "._other.onnx").write_bytes(b"\0\5\x16\7")
    with Embedder.load(folder, **QUIET) as e:
        assert difference(e.embed(TEXTS), embedder.embed(TEXTS)) == 0
    (folder / "onnx" / "other.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no \.onnx file"):
        Embedder.load(folder)


def test_weights_and_no_graph(folder, monkeypatch):
    """For a folder that SentenceTransformer.save wrote, the error names the extra for an export, and an alternative."""
    (folder / "onnx" / "model.onnx").unlink()
    (folder / "model.safetensors").write_bytes(b"weights")
    change(folder / "config.json", model_type="bert")
    monkeypatch.setattr(export, "torch_available", lambda: False)
    with pytest.raises(
        FileNotFoundError,
        match=r"torch, which is not installed.*the extra penult\[export\] \(pip install .*penult export MODEL OUT",
    ) as caught:
        Embedder.load(folder)
    assert str(folder) in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_static_table_without_a_list(tmp_path, monkeypatch):
    """For a model2vec folder without modules.json, the error names static embeddings, not torch."""
    static_model(tmp_path / "static")
    home = tmp_path / "static" / "0_StaticEmbedding"
    write_json(home / "config.json", {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True})
    monkeypatch.setattr(export, "torch_available", lambda: False)
    with pytest.raises((ValueError, FileNotFoundError), match=r"static embedding.*modules\.json") as caught:
        Embedder.load(home)
    assert "torch" not in str(caught.value)


def test_a_graph_for_openvino_alone(folder):
    """For a folder with only an OpenVINO graph, the error says so."""
    (folder / "onnx" / "model.onnx").unlink()
    (folder / "openvino").mkdir()
    (folder / "openvino" / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(FileNotFoundError, match=r"has no \.onnx file \(only a graph for OpenVINO\)"):
        Embedder.load(folder)


@pytest.mark.parametrize("place", [".", "onnx"])
def test_settings_beside_the_tokenizer_that_is_used(folder, place):
    """If the transformer's folder has no tokenizer, length and side are read beside the tokenizer that is used."""
    list_modules(folder, ("Transformer", "0_T"), ("Pooling", "1_Pooling"))
    (folder / "0_T").mkdir()
    shutil.move(folder / "config.json", folder / "0_T" / "config.json")
    (folder / "sentence_bert_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    shutil.move(folder / "tokenizer.json", folder / place / "tokenizer.json")
    write_json(folder / place / "tokenizer_config.json", {"truncation_side": "left", "model_max_length": 20})
    with Embedder.load(folder, threads=1) as e:
        assert (e.recipe.max_length, e.recipe.side) == (20, "left")


@pytest.mark.parametrize(
    ("architecture", "taken"), [("T5EncoderModel", True), ("T5ForConditionalGeneration", False), ("BartModel", False)]
)
def test_the_encoder_of_a_pair(folder, embedder, architecture, taken):
    """The encoder of an encoder-decoder model is used if its class or the caller says so; else the error gives both options."""
    (folder / "onnx" / "model.onnx").rename(folder / "onnx" / "encoder_model.onnx")
    change(folder / "config.json", is_encoder_decoder=True, architectures=[architecture])
    for options in ({"model_file": "onnx/encoder_model.onnx"}, {"model_file": "encoder_model.onnx"}, *[{}] * taken):
        with Embedder.load(folder, **options, **QUIET) as e:
            assert difference(e.embed(TEXTS), embedder.embed(TEXTS)) <= 1e-6
    if not taken:
        with pytest.raises(ValueError, match=r"an encoder-decoder model, .* pass model_file='onnx/encoder_model\.onnx'"):
            Embedder.load(folder)


def test_the_encoder_of_a_pair_above_its_module(folder):
    """The error is the same if the transformer has its own folder and the graph is above it."""
    in_a_module(folder, graph="onnx/encoder_model.onnx")
    change(folder / "0_Transformer" / "config.json", is_encoder_decoder=True, architectures=["T5ForConditionalGeneration"])
    with pytest.raises(ValueError, match=r"an encoder-decoder model, .* pass model_file='onnx/encoder_model\.onnx'"):
        Embedder.load(folder)


# --- lengths


@pytest.mark.parametrize(
    ("config", "length"), [({"max_seq_length": 500}, 128), ({"query_length": 500, "document_length": 20}, 128)]
)
def test_the_table_of_positions_caps_what_files_state(folder, config, length):
    """A stated length beyond the graph's positions is limited to them, and the origin says so."""
    write_json(folder / "sentence_bert_config.json", config)
    with Embedder.load(folder, threads=1, truncate="right") as e:
        assert (e.recipe.max_length, e.recipe.origin["max_length"]) == (length, "the graph's table of positions")
        assert e.count_tokens(["cat " * 600], "query").tolist() == [128]
        assert e.count_tokens(["cat " * 600]).tolist() == [20 if "query_length" in config else 128]


def test_the_positions_of_a_configuration_do_not_limit_the_length(tmp_path):
    """config.json's positions only limit the tokenizer's length: with a larger table, a stated length is used."""
    folder = tiny_model(tmp_path, max_length=100)
    change(folder / "config.json", max_position_embeddings=40)
    with Embedder.load(folder, **QUIET) as e:
        assert e.recipe.max_length == 100
    (folder / "sentence_bert_config.json").unlink()
    with Embedder.load(folder, **QUIET) as e:
        assert (e.recipe.max_length, e.recipe.origin["max_length"]) == (40, "tokenizer_config.json")


def test_an_argument_beyond_the_positions(folder):
    """A max_length argument is never reduced silently."""
    with pytest.raises(ValueError, match=r"max_length=200 exceeds the model's 128 positions\. Pass max_length<=128"):
        Embedder.load(folder, max_length=200)


def test_a_length_without_room(folder):
    """A length that special tokens or a prompt fill is an error at load, whether from an argument, a file or a call."""
    for length in (1, 2):
        with pytest.raises(ValueError, match=f"max_length is {length}, but every text has 2 special tokens"):
            Embedder.load(folder, max_length=length)
    filling = "fish " * 70
    with pytest.raises(ValueError, match=r"The prompt .* has 72 tokens .* maximum is 64, which leaves no room for the text"):
        Embedder.load(folder, prompts={"query": filling}, **QUIET)
    with Embedder.load(folder, **QUIET) as e, pytest.raises(ValueError, match="has 72 tokens"):
        e.embed(["cat"], prompt=filling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 2})
    with pytest.raises(ValueError, match="max_length is 2, but every text has 2 special tokens"):
        Embedder.load(folder)


# --- prompts


def test_prompts_as_a_setting(folder, embedder):
    """prompts= is put before the texts of its role, is in the fingerprint, and does not change the other role."""
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "search ", "document": "document "}})
    with Embedder.load(folder, **QUIET) as plain, Embedder.load(folder, prompts={"query": "fish "}, **QUIET) as asked:
        assert plain.recipe.origin["prompts"] == "config_sentence_transformers.json"
        assert asked.recipe.origin["prompts"] == "argument"
        assert difference(asked.embed(["cat"], "query"), embedder.embed(["fish cat"])) <= 1e-6
        assert difference(asked.embed(["cat"]), embedder.embed(["document cat"])) <= 1e-6
        assert asked.fingerprint != plain.fingerprint
    same = {"query": "search ", "document": "document "}
    assert fingerprint(folder, prompts=same) == fingerprint(folder)
    assert fingerprint(folder, prompts={}) == fingerprint(folder)
    assert fingerprint(folder, prompts={"query": ""}) != fingerprint(folder)


def test_a_prompt_of_one_call(folder, embedder):
    """prompt= replaces the role's prompt for one call and is not in the fingerprint; an empty prompt removes it."""
    with Embedder.load(folder, prompts={"query": "search "}, **QUIET) as e:
        before = e.fingerprint
        assert difference(e.embed(["cat"], "query", prompt="fish "), embedder.embed(["fish cat"])) <= 1e-6
        assert difference(e.embed(["cat"], "query", prompt=""), embedder.embed(["cat"])) <= 1e-6
        assert difference(e.embed(["cat"], "query"), embedder.embed(["search cat"])) <= 1e-6
        assert e.count_tokens(["cat"], "query", prompt="a a a ").tolist() == [6]
        assert e.tokenize(["cat"], prompt="a ").counts.tolist() == [4]
        assert e.tokenize(["cat"], prompt="a a ").counts.tolist() == [5]
        assert e.embed_tokens(["cat"], "query", prompt="")[0].shape == (3, 32)
        assert e.embed_padded(["cat"], "query", prompt="a ").shape == (1, 4, 32)
        assert difference(next(e.embed_stream(["cat"], prompt="fish ")), embedder.embed(["fish cat"])) <= 1e-6
        assert e.fingerprint == before
        for wrong in (7, b"x", ["x"], "\ud800"):
            with pytest.raises(TypeError, match=r"^prompt is (a|not) "):
                e.embed(["cat"], prompt=wrong)


def test_prompts_that_the_files_name(folder):
    """named_prompts has all prompts of the files, and is not in the fingerprint; an unknown default prompt is an error."""
    config = folder / "config_sentence_transformers.json"
    write_json(config, {"prompts": {"query": "q ", "document": ""}})
    before = fingerprint(folder)
    write_json(config, {"prompts": {"query": "q ", "document": "", "clustering": "c ", "passage": "p "}})
    with Embedder.load(folder, **QUIET) as e:
        assert e.recipe.named_prompts == {"query": "q ", "document": "", "clustering": "c ", "passage": "p "}
        assert e.recipe.prompts == {"query": "q ", "document": ""}
        assert e.fingerprint == before
    write_json(config, {"prompts": {"query": "q "}, "default_prompt_name": "passage"})
    with pytest.raises(ValueError, match="default_prompt_name one of their names; invalid: 'passage'"):
        Embedder.load(folder)
    write_json(config, {"prompts": {"query": ["q"]}})
    with pytest.raises(ValueError, match="prompts must be strings"):
        Embedder.load(folder)


@pytest.mark.parametrize("prompts", [{"passage": "p"}, {"query": None}, {"document": 3}, {3: "x"}])
def test_invalid_prompts(folder, prompts):
    """Keys are the two roles, values are texts."""
    (role,) = prompts
    with pytest.raises((ValueError, TypeError), match=rf"prompt.*'{role}'"):
        Embedder.load(folder, prompts=prompts)


def test_no_prompt_is_stated(folder, caplog):
    """If no file states a prompt, this is logged once at load, and not if a prompt is stated or passed."""
    with caplog.at_level("INFO", logger="penult"):
        Embedder.load(folder, threads=1).close()
        assert [r.message for r in caplog.records if "no file states a prompt" in r.message]
        caplog.clear()
        Embedder.load(folder, threads=1, prompts={"query": "q"}).close()
        write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": ""}})
        Embedder.load(folder, threads=1).close()
        assert not [r.message for r in caplog.records if "no file states a prompt" in r.message]


# --- dimensions and layer_norm


def cut(vectors, size, *, unit):
    """Return the leading values, normalized again on request."""
    head = np.asarray(vectors)[:, :size]
    return head / np.linalg.norm(head, axis=1, keepdims=True) if unit else head


def test_truncate_dim_does_not_normalize(folder, embedder):
    """truncate_dim cuts after the last module and does not normalize again; dimensions= does, and takes precedence."""
    write_json(folder / "config_sentence_transformers.json", {"truncate_dim": 8})
    whole = embedder.embed(TEXTS)
    with Embedder.load(folder, **QUIET) as e:
        assert difference(e.embed(TEXTS), cut(whole, 8, unit=False)) <= 1e-6
        assert (e.dimension, e.recipe.unit_length) == (8, False)
        assert e.recipe.origin["dimensions"] == "config_sentence_transformers.json"
    with Embedder.load(folder, normalize=True, **QUIET) as e:
        assert difference(e.embed(TEXTS), cut(whole, 8, unit=True)) <= 1e-6
        assert e.recipe.unit_length
    with Embedder.load(folder, dimensions=16, **QUIET) as e:
        assert difference(e.embed(TEXTS), cut(whole, 16, unit=True)) <= 1e-6
        assert e.recipe.origin["dimensions"] == "argument, over truncate_dim of config_sentence_transformers.json"
    with Embedder.load(folder, dimensions=16, normalize=False, **QUIET) as e:
        assert difference(e.embed(TEXTS), [states_of(folder, text).mean(0)[:16] for text in TEXTS]) <= 2e-5
        assert not e.recipe.unit_length


def test_truncate_dim_beyond_the_vector(folder, embedder):
    """A file that states more values than there are changes no vector and no fingerprint; an argument is an error."""
    write_json(folder / "config_sentence_transformers.json", {"truncate_dim": 33})
    with Embedder.load(folder, **QUIET) as e:
        assert (e.dimension, e.recipe.dimensions, e.recipe.unit_length) == (32, None, True)
        assert e.fingerprint == embedder.fingerprint
        assert difference(e.embed(TEXTS), embedder.embed(TEXTS)) == 0
        assert pickle.loads(pickle.dumps(e)).fingerprint == e.fingerprint
    with pytest.raises(ValueError, match=r"dimensions.*33.* 32"):
        Embedder.load(folder, dimensions=33)


@pytest.mark.parametrize("value", [0, -1, 10**9, "8", 8.0, True, [8]])
def test_values_of_truncate_dim(folder, value):
    """An invalid truncate_dim is an error that names it."""
    write_json(folder / "config_sentence_transformers.json", {"truncate_dim": value})
    with pytest.raises(ValueError, match=r"config_sentence_transformers\.json: truncate_dim is"):
        Embedder.load(folder)


def test_dimensions_of_vectors_that_are_not_normalized(tmp_path):
    """Leading values of vectors that are not normalized are not changed, with a warning that names both options."""
    folder = tiny_model(tmp_path, normalize=False)
    whole = np.stack([states_of(folder, text).mean(0) for text in TEXTS])
    with (
        pytest.warns(UserWarning, match=r"dimensions=8: .* normalize=True, or layer_norm=True"),
        Embedder.load(folder, dimensions=8, **QUIET) as e,
    ):
        assert difference(e.embed(TEXTS), cut(whole, 8, unit=False)) <= 2e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Embedder.load(folder, dimensions=8, normalize=True, **QUIET) as e:
            assert difference(e.embed(TEXTS), cut(whole, 8, unit=True)) <= 2e-5
        Embedder.load(folder, dimensions=8, normalize=False, **QUIET).close()


@pytest.mark.parametrize("value", [0, -1, 10**7])
def test_values_of_dimensions(folder, value):
    """A number of values out of range is an error."""
    with pytest.raises(ValueError, match=f"dimensions is {value}; it must be from 1 to"):
        Embedder.load(folder, dimensions=value)
    for wrong in (True, 8.0, "8"):
        with pytest.raises(TypeError, match=r"dimensions is .*; it must be an integer"):
            Embedder.load(folder, dimensions=wrong)


@pytest.mark.parametrize("normalized", [True, False])
def test_a_layer_norm_without_weights(tmp_path, normalized):
    """layer_norm= is applied to the pooled vector before the cut; then the vector is normalized, unless normalize=False."""
    folder = tiny_model(tmp_path, normalize=normalized)

    def expected(text):
        pooled = states_of(folder, text).mean(0)
        return reference.layer_norm(pooled, np.ones(32), np.zeros(32))

    rows = np.stack([expected(text) for text in TEXTS])
    with Embedder.load(folder, layer_norm=True, **QUIET) as e:
        assert difference(e.embed(TEXTS), cut(rows, 32, unit=True)) <= 2e-5
        assert e.recipe.origin["layer_norm"] == e.recipe.origin["normalize"] == "argument"
        asked = e.fingerprint
    with Embedder.load(folder, layer_norm=True, dimensions=8, **QUIET) as e:
        assert difference(e.embed(TEXTS), cut(rows, 8, unit=True)) <= 2e-5
    with Embedder.load(folder, layer_norm=True, normalize=False, **QUIET) as e:
        assert difference(e.embed(TEXTS), rows) <= 2e-4
    assert len({asked, fingerprint(folder), fingerprint(folder, layer_norm=True, normalize=False)}) == 3


def pooled_inside(*, normalize):
    """Return a BERT that outputs the mean of its tokens as a vector, optionally normalized."""
    graph = bert()
    name = "summed" if normalize else "sentence_embedding"
    nodes = [
        helper.make_node("Unsqueeze", ["attention_mask", "last_axis"], ["mask_rows"]),
        helper.make_node("Cast", ["mask_rows"], ["mask_values"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["last_hidden_state", "mask_values"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "second_axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask_values", "second_axis"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], [name]),
    ]
    if normalize:
        nodes += [
            helper.make_node("ReduceL2", [name], ["norm"], axes=[1], keepdims=1),
            helper.make_node("Clip", ["norm", "least"], ["clipped"]),
            helper.make_node("Div", [name, "clipped"], ["sentence_embedding"]),
        ]
        graph.graph.initializer.append(numpy_helper.from_array(np.array(1e-12, np.float32), "least"))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last_axis"))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1]), "second_axis"))
    graph.graph.node.extend(nodes)
    graph.graph.output.append(helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 32]))
    return graph


@pytest.mark.parametrize("normalize", [True, False])
def test_a_vector_that_the_graph_outputs(folder, normalize):
    """The vector of a graph that pools, and may normalize, is cut and normalized again as for other models."""
    list_modules(folder, ("Transformer", ""))
    write_json(folder / "modules.json", [])
    replace_graph(folder, pooled_inside(normalize=normalize))
    shutil.rmtree(folder / "1_Pooling")
    mean = np.stack([states_of(folder, text).mean(0) for text in TEXTS])
    whole = cut(mean, 32, unit=normalize)
    with Embedder.load(folder, **QUIET) as e:
        assert difference(e.embed(TEXTS), whole) <= 2e-5
        assert (e.recipe.made_unit, e.recipe.unit_length) == (normalize, normalize)
        plain = e.fingerprint
    with Embedder.load(folder, dimensions=8, normalize=None if normalize else True, **QUIET) as e:
        assert difference(e.embed(TEXTS), cut(whole, 8, unit=True)) <= 2e-5
        assert e.fingerprint != plain
    change(folder / "config_sentence_transformers.json", truncate_dim=8)
    with Embedder.load(folder, **QUIET) as e:
        assert difference(e.embed(TEXTS), cut(whole, 8, unit=False)) <= 2e-5
        assert not e.recipe.unit_length
    if normalize:
        with pytest.raises(ValueError, match="normalize=False was passed, but the graph itself normalizes its vectors"):
            Embedder.load(folder, normalize=False)


def test_a_stated_pooling_over_the_graphs_own_vector(folder):
    """If the files state a pooling, the token embeddings are pooled accordingly, whatever else the graph outputs."""
    change(folder / "1_Pooling" / "config.json", pooling_mode="max")
    replace_graph(folder, pooled_inside(normalize=True))
    with Embedder.load(folder, **QUIET) as e:
        assert difference(e.embed(TEXTS), [vector_of(folder, text, pooling="max") for text in TEXTS]) <= 1e-5
        assert (e.recipe.made_unit, e.gives_tokens()) == (False, True)


# --- tasks


TASKS = np.random.default_rng(6).standard_normal((4, 32)) * 2
NAMES = ["retrieval.query", "retrieval.passage", "separation", "classification"]


def with_task(number):
    """Return the weights of a BERT whose word embeddings include the row of a task."""
    weights = bert_weights()
    name = "embeddings.word_embeddings.weight"
    return weights | {name: weights[name] + TASKS[number].astype(np.float32)}


@pytest.fixture
def adapters(folder):
    """A model that takes the index of an adapter."""
    return replace_graph(folder, with_task_id(bert(), TASKS))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_task_of_a_role(adapters, rank):
    """The names in config.json select the adapter of each role; task= selects one for both, by name or number."""
    replace_graph(adapters, with_task_id(bert(), TASKS, rank=rank))
    change(adapters / "config.json", lora_adaptations=NAMES)
    with Embedder.load(adapters, **QUIET) as e:
        assert e.recipe.tasks == {"query": 0, "document": 1}
        assert e.recipe.origin["tasks"] == "config.json"
        for role, number in (("query", 0), ("document", 1)):
            expected = np.stack([oracle_of(with_task(number), adapters, text) for text in TEXTS])
            assert difference(e.embed(TEXTS, role), expected) <= 1e-5
            assert difference(e.embed_tokens(["dog"], role)[0].mean(0), oracle_mean(number, adapters)) <= 2e-5
        by_role = e.fingerprint
    marks = {by_role}
    for task in ("separation", 2):
        with Embedder.load(adapters, task=task, **QUIET) as e:
            assert e.recipe.tasks == {"query": 2, "document": 2}
            assert difference(e.embed(["dog"])[0], oracle_of(with_task(2), adapters, "dog")) <= 1e-5
            assert difference(e.embed(["dog"]), e.embed(["dog"], "query")) == 0
            marks.add(e.fingerprint)
    assert len(marks) == 2


def oracle_mean(number, folder):
    """Return the mean of the hidden states of "dog" for a task."""
    return reference.bert(with_task(number), reference.read_ids(folder, "dog", 64), 4)[-1].mean(0)


def test_a_task_by_its_number_without_names(adapters):
    """Without names in config.json, a task is a number, and without a task the error names the graph's input."""
    with pytest.raises(ValueError, match=r"needs `task_id`, but no file states a task\. Pass task="):
        Embedder.load(adapters)
    with Embedder.load(adapters, task=3, **QUIET) as e:
        assert difference(e.embed(["dog"])[0], oracle_of(with_task(3), adapters, "dog")) <= 1e-5
    with pytest.raises(ValueError, match=r"task is 'separation'; the tasks in .*config\.json are none \(pass its number\)"):
        Embedder.load(adapters, task="separation")


@pytest.mark.parametrize(
    ("task", "error", "said"),
    [
        (4, ValueError, "task is 4; it must be from 0 to 3"),
        (-1, ValueError, "task is -1; it must be from 0 to 3"),
        ("clustering", ValueError, "task is 'clustering'; the tasks in .* are 'retrieval.query', 'retrieval.passage'"),
        ("", ValueError, "task is ''"),
        (True, TypeError, "task is True; it must be a name or an integer"),
        (1.0, TypeError, "task is 1.0; it must be a name or an integer"),
    ],
)
def test_unknown_tasks(adapters, task, error, said):
    """A task out of range or with another name is an error that lists the tasks."""
    change(adapters / "config.json", lora_adaptations=NAMES)
    with pytest.raises(error, match=said):
        Embedder.load(adapters, task=task)


def test_a_task_that_no_input_takes(folder, embedder):
    """task= for a graph without such an input is an error; names in config.json alone change nothing."""
    with pytest.raises(ValueError, match=r"task was passed, but the graph has no input for it; its inputs are .*input_ids"):
        Embedder.load(folder, task=0)
    change(folder / "config.json", lora_adaptations=NAMES)
    with Embedder.load(folder, **QUIET) as e:
        assert (e.recipe.tasks, "tasks" in e.recipe.origin) == ({}, False)
        assert e.fingerprint == embedder.fingerprint


# --- positions as an input


def test_positions_of_a_bert(folder, embedder):
    """For a graph with a positions input whose table begins with the first token, positions start at 0 in every batch."""
    replace_graph(folder, with_position_ids(bert()))
    with Embedder.load(folder, **QUIET) as e:
        assert e.recipe.position_offset == 0
        assert difference(e.embed(TEXTS), embedder.embed(TEXTS)) <= 1e-6


@pytest.mark.parametrize("pad_id", [1, 0])
def test_positions_of_a_roberta(folder, pad_id):
    """If the padding row is zero, positions start after it, and the maximum length is that much smaller."""
    weights = bert_weights()
    table = weights["embeddings.position_embeddings.weight"][: 66 + pad_id]
    table[: pad_id + 1] = [[7.0]] * pad_id + [[0.0]]
    change(folder / "config.json", max_position_embeddings=len(table), pad_token_id=pad_id)
    change(folder / "sentence_bert_config.json", max_seq_length=512)
    replace_graph(folder, with_position_ids(bert(), table=table))
    shifted = weights | {"embeddings.position_embeddings.weight": table[pad_id + 1 :]}
    with Embedder.load(folder, **QUIET) as e:
        assert (e.recipe.position_offset, e.recipe.max_length) == (pad_id + 1, 65)
        expected = np.stack([oracle_of(shifted, folder, text) for text in TEXTS])
        assert difference(e.embed(TEXTS), expected) <= 1e-5
        longest = [2, *[VOCABULARY.index("cat")] * 63, 3]
        expected = reference.normalize(reference.bert(shifted, longest, 4)[-1].mean(0))
        assert difference(e.embed(["cat " * 99])[0], expected) <= 1e-5


def test_unknown_positions(folder):
    """If neither the table nor the files determine the first position, the graph is rejected with what is known."""
    table = bert_weights()["embeddings.position_embeddings.weight"][:66]
    change(folder / "config.json", max_position_embeddings=66, pad_token_id=1)
    change(folder / "sentence_bert_config.json", max_seq_length=66)
    replace_graph(folder, with_position_ids(bert(), table=table))
    with pytest.raises(
        ValueError, match=r"has the input position_ids, and the position of the first token is unknown: .* the padding id is 1"
    ):
        Embedder.load(folder)


def test_cache_entries_of_other_padding_ids(folder):
    """The padding id in config.json decides the positions, so each id has its own cache entry."""
    replace_graph(folder, with_position_ids(bert()))
    places = set()
    for pad_id in (0, None, 5):
        change(folder / "config.json", pad_token_id=pad_id)
        actual, read = loading.read(folder, Overrides())
        places.add(prepare.prepare(actual, read).graph.parent)
    assert len(places) == 3
    change(folder / "config.json", pad_token_id=0, hidden_dropout_prob=0.5)
    assert prepare.prepare(*loading.read(folder, Overrides())).graph.parent in places


# --- fingerprints


def test_equal_fingerprints(folder, tmp_path, embedder):
    """Settings that change no vector change no fingerprint: path, harmless keys, threads, batches, cards."""
    assert fingerprint(folder) == embedder.fingerprint
    copied = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    assert fingerprint(copied) == embedder.fingerprint
    (copied / "README.md").write_text("# A card")
    change(copied / "config_sentence_transformers.json", similarity_fn_name="cosine", prompts={"query": "", "document": ""})
    change(copied / "sentence_bert_config.json", model_args={"torch_dtype": "float16"})
    change(copied / "1_Pooling" / "config.json", word_embedding_dimension=32)
    change(copied / "config.json", transformers_version="4.2", pad_token_id=None)
    write_json(copied / "special_tokens_map.json", {"pad_token": "[PAD]"})
    (copied / "model.safetensors").write_bytes(b"weights for torch")
    for options in ({}, {"max_batch_tokens": 7}, {"truncate": "error"}, {"buckets": [64]}, {"batch_invariant": True}, {"pooling": "mean"},
                    {"max_length": 64}, {"normalize": True}, {"pooling": ["mean"]}):  # fmt: skip
        assert fingerprint(copied, **options) == embedder.fingerprint, options


def test_other_fingerprints(folder, embedder):
    """Each setting and each file that decides a vector changes the fingerprint."""
    marks = [embedder.fingerprint]
    arguments = (
        {"pooling": "max"}, {"pooling": ["mean", "max"]}, {"pooling": ["max", "mean"]}, {"layer": 1}, {"layer": 0}, {"max_length": 63},
        {"dimensions": 8}, {"normalize": False}, {"layer_norm": True}, {"prompts": {"query": "q"}}, {"prompts": {"document": "q"}},
        {"truncate": "left"}, {"dimensions": 8, "layer_norm": True}, {"dimensions": 8, "normalize": False},
    )  # fmt: skip
    marks += [fingerprint(folder, **options) for options in arguments]
    files = {
        "sentence_bert_config.json": [{"query_length": 9}, {"document_length": 9}, {"do_lower_case": True},
                                      {"processing_kwargs": {"text": {"add_special_tokens": False}}}],
        "config_sentence_transformers.json": [{"truncate_dim": 8}, {"prompts": {"query": "x"}}],
        "1_Pooling/config.json": [{"include_prompt": False}],
        "tokenizer_config.json": [{"truncation_side": "left"}, {"tokenizer_class": "BertTokenizer", "do_lower_case": False}],
    }  # fmt: skip
    for name, changes in files.items():
        for values in changes:
            before = (folder / name).read_text() if (folder / name).exists() else None
            change(folder / name, **values)
            marks.append(fingerprint(folder))
            (folder / name).unlink() if before is None else (folder / name).write_text(before)
    replace_graph(folder, bert(seed=1))
    marks.append(fingerprint(folder))
    assert len(set(marks)) == len(marks)


def test_rules_of_the_tokenizer(folder):
    """The class that decides how tokenizer_config.json changes tokenizer.json is in the fingerprint only if it does."""
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    with Embedder.load(folder, **QUIET) as e:
        assert e.recipe.tokenizer_rules == ""
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": False})
    with Embedder.load(folder, **QUIET) as e:
        assert e.recipe.tokenizer_rules == "BertTokenizer None"
        first = e.fingerprint
    change(folder / "config.json", vocab_size=200)
    with Embedder.load(folder, **QUIET) as e:
        assert e.recipe.tokenizer_rules == "BertTokenizer 200"
        assert e.fingerprint != first


BASE = Recipe(
    "x", "mean", ("normalize",), None, 64, "right", {"document": "", "query": ""}, include_prompt=True, precision="fp32"
)


@pytest.mark.parametrize(
    "values",
    [
        {"position_offset": 2},
        {"padding": False},
        {"own_tokens": "last_hidden_state"},
        {"tokenizer_rules": "BertTokenizer 10"},
        {"lengths": {"query": 9, "document": 64}},
        {"lowercase": True},
        {"tokenizer": {"do_lower_case": False}},
        {"special_tokens": False},
        {"tasks": {"query": 0, "document": 1}},
        {"query": replace(BASE, max_length=9)},
        {"token_steps": ("normalize",)},
        {"output": "text_embeds"},
        {"renormalize": False},
        {"batch_invariant": False},
    ],
)
def test_fields_that_decide(values):
    """Each field that decides a vector is in the hash if it is not at its default, and only then."""
    assert replace(BASE, **values).fingerprint != BASE.fingerprint
    assert "position_offset" not in BASE._hashed()


@pytest.mark.parametrize(
    "values",
    [
        {"origin": {"pooling": "argument"}},
        {"named_prompts": {"x": "y"}},
        {"width": 32},
        {"vector_width": 32},
        {"hint": "x"},
        {"static": True},
        {"stated_length": 512},
    ],
)
def test_fields_that_do_not_decide(values):
    """Fields that only explain a recipe, or are checked at its creation, are not in the hash."""
    assert replace(BASE, **values).fingerprint == BASE.fingerprint


def test_renormalizing_counts_only_where_it_matters():
    """Normalizing a shortened vector again is in the hash only if the full vector is normalized."""
    plain = replace(BASE, steps=(), dimensions=8)
    assert replace(plain, renormalize=False).fingerprint == plain.fingerprint
    unit = replace(BASE, dimensions=8)
    assert replace(unit, renormalize=False).fingerprint != unit.fingerprint
    inside = replace(plain, made_unit=True)
    assert len({plain.fingerprint, inside.fingerprint, replace(inside, renormalize=False).fingerprint}) == 3


def test_a_pinned_fingerprint(folder, embedder):
    """An equal fingerprint loads; another is an error that states both."""
    Embedder.load(folder, threads=1, fingerprint=embedder.fingerprint).close()
    with pytest.raises(ValueError, match=rf"has the fingerprint {embedder.fingerprint}, not {'0' * 32}"):
        Embedder.load(folder, threads=1, fingerprint="0" * 32)


def test_the_recipe_is_plain_json(folder):
    """as_dict returns only JSON values, including the steps."""
    list_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_N"))
    add_dense(folder / "2_Dense", 32, 8)
    values = read_recipe(folder, Overrides()).as_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["steps"] == [{"folder": "2_Dense", "activation": "Tanh"}, "normalize"]


@pytest.mark.parametrize("copying", [copy.deepcopy, copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_of_an_embedder(adapters, copying):
    """A copy opens its own session with the same settings, prompts, tasks and fingerprint."""
    change(adapters / "config.json", lora_adaptations=NAMES)
    with Embedder.load(adapters, prompts={"query": "fish "}, dimensions=8, max_length=32, **QUIET) as e:
        expected = e.embed(TEXTS, "query")
        copied = copying(e)
        mark = e.fingerprint
    with copied:
        assert (copied.fingerprint, copied.dimension) == (mark, 8)
        assert difference(copied.embed(TEXTS, "query"), expected) <= 1e-6


# --- arguments of other types


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 99}, "layer=99 does not exist"),
        ({"layer": "nope"}, "No tensor or node of the graph is named 'nope'"),
        ({"pooling": []}, "pooling is 'nothing'"),
        ({"pooling": [["mean"]]}, "pooling is ['mean']"),
        ({"truncate": ["warn"]}, "truncate is ['warn']"),
        ({"precision": None}, "precision is None"),
        ({"buckets": []}, "The longest bucket is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"calibration": "text"}, "texts is a str"),
        ({"prompts": "query: "}, "prompts is 'query: '"),
        ({"prompts": ["query: "]}, "prompts is ['query: ']"),
        ({"prompts": {"query": "\ud800"}}, "prompts"),
        ({"pooling": 5}, "pooling is 5"),
        ({"layer": 1.5}, "layer is 1.5"),
        ({"normalize": "no"}, "normalize is 'no'"),
        ({"layer_norm": "no"}, "layer_norm is 'no'"),
        ({"max_batch_tokens": 0}, "max_batch_tokens is 0"),
        ({"buckets": ["a"]}, "buckets"),
        ({"threads": "2"}, "threads is '2'"),
        ({"model_file": 5}, "model_file is 5"),
        ({"files_from": 5}, "files_from is 5"),
        ({"buckets": 5}, "buckets is 5"),
        ({"providers": "CPUExecutionProvider"}, "providers is 'CPUExecutionProvider'"),
        ({"batch_invariant": "no"}, "batch_invariant is 'no'"),
    ],
)
def test_invalid_arguments(folder, options, said):
    """An argument of another type or out of range is an error at load that states its name and value."""
    with pytest.raises((ValueError, TypeError), match=re.escape(said)):
        Embedder.load(folder, **{"threads": 1} | options)


# --- static embeddings


def test_a_static_embedding(tmp_path):
    """A static embedding gives the mean of the rows of a text's tokens, without special tokens, and needs no graph."""
    table = static_model(tmp_path / "static", prompts={"query": "query: "})
    with Embedder.load(tmp_path / "static", threads=1) as e:
        for text, role in (("the cat sat", "document"), ("dog", "query"), ("cat " * 5000, "document")):
            whole = ("query: " if role == "query" else "") + text
            ids = tokenizer_ids(tmp_path / "static" / "0_StaticEmbedding", whole)
            assert difference(e.embed([text], role)[0], table[ids].astype(np.float64).mean(0)) <= 1e-5
        assert difference(e.embed([""])[0], np.zeros(8)) == 0
        assert (e.recipe.static, e.gives_tokens()) == (True, False)
        with pytest.raises(ValueError, match="no token embeddings"):
            e.embed_tokens(["cat"])


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "0_StaticEmbedding"),
    ],
)  # fmt: skip
def test_a_static_embedding_without_a_file(tmp_path, file, said):
    """The error names the missing file of a static embedding."""
    static_model(tmp_path / "static")
    (tmp_path / "static" / "0_StaticEmbedding" / file).unlink()
    with pytest.raises(FileNotFoundError, match=said) as caught:
        Embedder.load(tmp_path / "static")
    assert "onnx" not in str(caught.value)


def tokenizer_ids(home, text):
    """Tokenize as tokenizer.json states, without special tokens."""
    from tokenizers import Tokenizer

    result = Tokenizer.from_file(str(home / "tokenizer.json"))
    result.no_padding()
    return result.encode(text, add_special_tokens=False).ids


def test_sizes_of_other_models(tmp_path):
    """A wider and deeper model gives the vectors of the reference."""
    size = Size(hidden=48, layers=3, heads=6, positions=64)
    folder = tiny_model(tmp_path, size=size)
    assert bert_graph(bert_weights(size), size.heads).graph.output[0].name == "last_hidden_state"
    with Embedder.load(folder, **QUIET) as e:
        expected = reference.normalize(states_of(folder, "the cat sat", heads=6).mean(0))
        assert difference(e.embed(["the cat sat"])[0], expected) <= 1e-5
    assert difference(vector_of(tiny_model(tmp_path / "b"), "dog"), vector_of(tiny_model(tmp_path / "c"), "dog")) == 0


# --- junk

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = {
    "config.json": ["max_position_embeddings", "n_positions", "pad_token_id", "lora_adaptations", "architectures", "vocab_size",
                    "model_type", "tokenizer_class", "text_config"],
    "config_sentence_transformers.json": ["prompts", "default_prompt_name", "truncate_dim", "model_type", "similarity_fn_name"],
    "tokenizer_config.json": ["model_max_length", "truncation_side", "padding_side", "model_input_names", "do_lower_case",
                              "strip_accents", "add_prefix_space", "add_bos_token", "add_eos_token", "pad_token", "cls_token",
                              "extra_special_tokens", "added_tokens_decoder", "tokenizer_class"],
    "sentence_bert_config.json": ["max_seq_length", "query_length", "document_length", "do_lower_case", "tokenizer_args",
                                  "processing_kwargs", "modality_config"],
    "1_Pooling/config.json": ["pooling_mode", "include_prompt", "embedding_dimension"],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One model for all examples."""
    return tiny_model(tmp_path_factory.mktemp("junk"))


@pytest.mark.parametrize("name", KEYS)
def test_any_value_of_any_key(place, name):
    """Whatever the value of a known key of any file: the model loads with its tokenizer, or one error names the folder."""
    path = place / name
    whole = json.loads(path.read_text()) if path.exists() else {}
    roles = st.dictionaries(st.sampled_from(["query", "document", "passage", "sts"]), json_values, max_size=2)
    tokens = st.dictionaries(
        st.sampled_from(["content", "lstrip", "special"]) | st.sampled_from(["1", "2"]), json_values, max_size=3
    )

    @settings(deadline=None, max_examples=60)
    @given(st.dictionaries(st.sampled_from(KEYS[name]), json_values | roles | tokens, max_size=2))
    def check(changed):
        write_json(path, whole | changed)
        try:
            actual, read = loading.read(place, Overrides())
            tokenizer_of(actual, replace(read, max_length=min(read.max_length, 64))).tokenize(["a cat"])
        except (ValueError, FileNotFoundError) as error:
            assert str(place) in str(error) or "tokenizer setting" in str(error) or "special tokens" in str(error)  # noqa: PT017

    try:
        check()
    finally:
        write_json(path, whole)


def test_further_special_tokens_by_name(folder):
    """An error in the older additional_special_tokens names its file, too."""
    change(folder / "tokenizer_config.json", additional_special_tokens={"image_token": None})
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: "):
        Embedder.load(folder)
