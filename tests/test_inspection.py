"""The output of `penult inspect`: modules, lengths, prompts and their sources, and why a model cannot be loaded."""

import json
import shutil

import numpy as np
import pytest
from folder_kit import (
    add_dense,
    bert,
    change,
    command,
    list_modules,
    replace_graph,
    static_model,
    two_routes,
    with_task_id,
    without_mask,
)
from models import tiny_model, write_json

from penult import Embedder, inspection
from penult.cli_words import in_options


@pytest.fixture
def inspect(capsys):
    """Run `penult inspect` in this process."""
    return lambda *arguments: command(capsys, "inspect", *arguments)


def lines(ended):
    """Return the printed lines, with single spaces between words."""
    return [" ".join(line.split()) for line in ended.out.splitlines()]


@pytest.fixture
def folder(tmp_path):
    """A complete model."""
    return tiny_model(tmp_path / "model")


# --- what is shown


def test_modules_are_listed_in_order(folder, inspect):
    """Every module is shown with its folder, in the order of the file."""
    list_modules(
        folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Dropout", "3_D"), ("Normalize", "4_N")
    )
    add_dense(folder / "2_Dense", 32, 8)
    shown = lines(inspect(folder))
    at = shown.index("modules")
    assert shown[at + 1 : at + 6] == ["Transformer .", "Pooling 1_Pooling", "Dense 2_Dense", "Dropout 3_D", "Normalize 4_N"]
    assert "dimension 8" in shown
    values = json.loads(inspect(folder, "--json").out)
    assert [module["kind"] for module in values["modules"]["document"]] == [
        "Transformer",
        "Pooling",
        "Dense",
        "Dropout",
        "Normalize",
    ]
    assert values["recipe"]["steps"] == [{"folder": "2_Dense", "activation": "Tanh"}, "normalize"]


def test_no_modules(tmp_path, inspect):
    """Without modules.json, the output states this, and the source of the pooling."""
    folder = tiny_model(tmp_path, pooling=None)
    result = inspect(folder, "--pooling", "mean,max")
    assert result.status == 0
    assert "modules none: the model has no modules.json" in lines(result)
    assert "pooling ['mean', 'max'] argument" in lines(result)


def test_text_and_json_match_the_loaded_model(folder, inspect):
    """Dimension, fingerprint and recipe are those of the loaded model, in text and in JSON."""
    with Embedder.load(folder, threads=1) as e:
        text, values = inspect(folder), json.loads(inspect(folder, "--json").out)
        assert f"fingerprint {e.fingerprint}" in lines(text)
        assert (values["fingerprint"], values["dimension"], values["error"]) == (e.fingerprint, 32, None)
        assert values["recipe"] == json.loads(json.dumps(e.recipe.as_dict()))
    assert text.status == 0
    assert text.err == ""


@pytest.mark.parametrize(
    ("stated", "default", "document", "query"),
    [
        ({"query": "q ", "document": "d "}, None, "prompt document 'd ' config_sentence_transformers.json", "'q '"),
        ({"passage": "p "}, None, "prompt document 'p ' config_sentence_transformers.json", "''"),
        ({"sts": "s "}, "sts", "prompt document 's ' config_sentence_transformers.json", "''"),
    ],
)
def test_prompts_and_their_origin(folder, stated, default, document, query, inspect):
    """The prompt of each role has the file that states it; other prompts are in JSON by their names."""
    write_json(folder / "config_sentence_transformers.json", {"prompts": stated, "default_prompt_name": default})
    shown = lines(inspect(folder))
    assert document in shown
    assert f"prompt query {query} config_sentence_transformers.json" in shown
    values = json.loads(inspect(folder, "--json").out)["recipe"]
    assert values["named_prompts"] == stated
    for name in set(stated) - {"query", "document"}:
        assert f"prompt by name {name}: {stated[name]!r} prompt_name={name} over HTTP" in shown
    assert values["origin"]["prompts"] == "config_sentence_transformers.json"


def test_no_prompt_is_stated(folder, inspect):
    """If no file states a prompt, the line refers to the model card."""
    shown = lines(inspect(folder))
    for role in ("document", "query"):
        assert (
            f"prompt {role} '' not stated by any file; if the model card lists prompts, pass --query-prompt or --document-prompt"
            in shown
        )


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"max_seq_length": 33}, ["max_length 33 sentence_bert_config.json"]),
        ({"max_seq_length": 999}, ["max_length 128 the graph's table of positions", "999 as stated by the files"]),
        (
            {"query_length": 8, "document_length": 24},
            ["max_length 24 sentence_bert_config.json", "lengths {'document': 24, 'query': 8} sentence_bert_config.json"],
        ),
    ],
)
def test_lengths_and_their_origin(folder, config, shown, inspect):
    """The maximum length has the file, or the graph, that it comes from."""
    write_json(folder / "sentence_bert_config.json", config)
    found = lines(inspect(folder))
    assert all(line in found for line in shown), found
    assert ("999 as stated by the files" in found) == ("999 as stated by the files" in shown)


def test_settings_from_the_graph(folder, inspect):
    """Disabled padding, and the adapter of each role, have their reason."""
    replace_graph(folder, without_mask(bert()))
    assert (
        "padding False padding changes the vectors of real tokens in this graph: a batch has only texts of one length"
        in lines(inspect(folder))
    )
    replace_graph(folder, with_task_id(bert(), np.eye(2, 32)))
    change(folder / "config.json", lora_adaptations=["retrieval.query", "retrieval.passage"])
    assert "tasks {'query': 0, 'document': 1} config.json" in lines(inspect(folder))


def test_both_routes_are_shown(tmp_path, inspect):
    """A model with two transformers shows the modules and the recipe of both."""
    folder = two_routes(tmp_path, lengths=(40, 12), prompts={"query": "search "})
    shown = lines(inspect(folder))
    at = shown.index("modules of a document")
    assert shown[at + 1] == "Transformer document_0_Transformer"
    assert shown[shown.index("modules of a query") + 1] == "Transformer query_0_Transformer"
    first, second = shown.index("recipe"), shown.index("recipe of queries")
    assert "max_length 40 sentence_bert_config.json" in shown[first:second]
    assert "max_length 12 sentence_bert_config.json" in shown[second:]
    assert "prompt query 'search ' config_sentence_transformers.json" in shown[second:]
    values = json.loads(inspect(folder, "--json").out)
    assert (values["recipe"]["max_length"], values["recipe"]["query"]["max_length"]) == (40, 12)
    assert [values["modules"][role][0]["folder"] for role in ("document", "query")] == [
        "document_0_Transformer",
        "query_0_Transformer",
    ]


def test_a_static_embedding_is_shown(tmp_path, inspect):
    """A model without layers has its module, its table's size and a fingerprint."""
    static_model(tmp_path / "static")
    result = inspect(tmp_path / "static")
    assert result.status == 0, result.err
    assert "StaticEmbedding 0_StaticEmbedding" in lines(result)
    values = json.loads(inspect(tmp_path / "static", "--json").out)
    assert (values["layers"], values["dimension"], values["error"]) == ([], 8, None)


@pytest.mark.parametrize("options", [(), ("--model-file", "model_O2.onnx"), ("--model-file", "onnx/model_O2.onnx")])
def test_which_graph_is_shown(folder, options, inspect):
    """--model-file selects the graph, as in a load."""
    shutil.copy(folder / "onnx" / "model.onnx", folder / "onnx" / "model_O2.onnx")
    name = "model_O2.onnx" if options else "model.onnx"
    assert inspect(folder, *options).out.splitlines()[0] == str(folder / "onnx" / name)


def test_files_of_another_folder(folder, tmp_path, inspect):
    """--files-from uses the modules and the recipe of another folder."""
    mirror = tmp_path / "mirror.onnx"
    shutil.copy(folder / "onnx" / "model.onnx", mirror)
    result = inspect(mirror, "--files-from", folder)
    assert result.status == 0, result.err
    assert "Pooling 1_Pooling" in lines(result)


# --- models that cannot be loaded


def without_tokenizer(folder):
    """Remove the tokenizer."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def with_a_wrong_width(folder):
    """State another width than the graph's."""
    change(folder / "1_Pooling" / "config.json", embedding_dimension=48)


def without_pooling(folder):
    """Remove every file that states a pooling."""
    shutil.rmtree(folder / "1_Pooling")
    (folder / "modules.json").unlink()


def that_needs_a_task(folder):
    """Add an input that no file defines."""
    replace_graph(folder, with_task_id(bert(), np.eye(2, 32)))


BROKEN = {
    without_tokenizer: "has no tokenizer",
    with_a_wrong_width: "expect token embeddings of 48 values",
    without_pooling: "pooling='mean', 'cls', 'max' or 'last'",
    that_needs_a_task: "needs `task_id`, but no file states a task",
}


@pytest.mark.parametrize("spoil", BROKEN)
def test_inspect_fails_if_loading_fails(folder, spoil, inspect):
    """The graph and the recipe are printed, the error goes to standard error, and the exit status is 1."""
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=BROKEN[spoil]) as caught:
        Embedder.load(folder)
    text, as_json = inspect(folder), inspect(folder, "--json")
    for result in (text, as_json):
        assert result.status == 1
        assert result.err == f"penult: {in_options(str(caught.value))}\n"
    assert "input_ids" in text.out
    assert "recipe" in lines(text)
    assert not [line for line in lines(text) if line.startswith(("fingerprint", "dimension 3"))]
    values = json.loads(as_json.out)
    assert (values["error"], values["fingerprint"], values["dimension"]) == (str(caught.value), None, None)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("modules.json", [{"type": "x.SpladePooling", "path": ""}], "a sparse encoder"),
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "a reranker"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "temperature": 1}, "states 'temperature'"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 8}}, "a late-interaction model"),
        ("modules.json", "x", "modules.json contains a str"),
    ],
)
def test_files_that_cannot_be_read(folder, name, content, said, inspect):
    """If the files are invalid, there is one line, also as JSON on request, and the exit status is 1."""
    write_json(folder / name, content)
    for options in ((), ("--json",)):
        result = inspect(folder, *options)
        assert result.status == 1
        assert result.err.startswith("penult: ")
        if options:
            assert json.loads(result.out) == {"error": result.err.removeprefix("penult: ").rstrip("\n")}
        else:
            assert result.out == ""
        assert said in result.err
        assert result.err.count("\n") == 1


def test_a_wrong_layer(folder, inspect):
    """A layer that does not exist gives one line and exit status 1."""
    for layer in ("9", "no_such_tensor"):
        result = inspect(folder, "--layer", layer)
        assert result.status == 1
        assert result.err.startswith("penult: ")
        assert "Traceback" not in result.err


def test_json_values_are_plain(folder):
    """as_json returns JSON values for every recipe."""
    change(folder / "sentence_bert_config.json", tokenizer_args={"do_lower_case": True}, query_length=9)
    shown = inspection.inspect(folder, pooling=["mean", "max"])
    values = json.loads(json.dumps(inspection.as_json(shown)))
    assert (values["recipe"]["pooling"], values["recipe"]["lengths"]) == (["mean", "max"], {"document": 64, "query": 9})
    assert (values["recipe"]["tokenizer"], values["dimension"]) == ({"do_lower_case": True}, 64)
