"""The options of `penult serve` that describe the model, and their effect on the vectors."""

import numpy as np
import pytest
from server_kit import parse, serving

from penult import Embedder
from penult.deepsparse import config_file
from penult.server import ConfigError, EndpointConfig

OPTIONS = [
    (["--pooling", "max"], {"pooling": "max"}),
    (["--pooling", "mean,cls"], {"pooling": ("mean", "cls")}),
    (["--layer", "0"], {"layer": 0}),
    (["--layer", "-2"], {"layer": -2}),
    (["--layer", "none"], {"layer": None}),
    (["--layer", "some/tensor"], {"layer": "some/tensor"}),
    (["--precision", "int8"], {"precision": "int8"}),
    (["--max-length", "12"], {"max_length": 12}),
    (["--max_length", "12"], {"max_length": 12}),
    (["--truncate", "left"], {"truncate": "left"}),
    (["--dimensions", "8"], {"dimensions": 8}),
    (["--normalize"], {"normalize": True}),
    (["--no-normalize"], {"normalize": False}),
    (["--layer-norm"], {"layer_norm": True}),
    (["--query-prompt", "q: ", "--document-prompt", "d: "], {"prompts": {"query": "q: ", "document": "d: "}}),
    (["--prompt-query", "q: "], {"prompts": {"query": "q: "}}),
    (["--prompt_document", ""], {"prompts": {"document": ""}}),
    (["--served-model-name", "minilm"], {"served_model_name": "minilm"}),
    (["--files-from", "org/name"], {"files_from": "org/name"}),
    (["--model-file", "onnx/model.onnx"], {"model_file": "onnx/model.onnx"}),
]


def read(tmp_path, text: str):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return config_file.read(file)


@pytest.mark.parametrize(("words", "fields"), OPTIONS)
def test_options_of_the_model(words, fields):
    """Each option sets its field of the endpoint, and nothing else."""
    (endpoint,) = parse(["some/model", *words]).endpoints
    (plain,) = parse(["some/model"]).endpoints
    assert {name: getattr(endpoint, name) for name in fields} == fields
    others = set(type(endpoint).model_fields) - set(fields)
    assert {name: getattr(endpoint, name) for name in others} == {name: getattr(plain, name) for name in others}


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--workers", "3"], "workers", 3),
        (["--keep-alive", "90"], "keep_alive", 90),
        (["--strict-model-name"], "strict_model_name", True),
        ([], "keep_alive", 60),
        ([], "workers", 1),
    ],
)
def test_options_of_the_server(tmp_path, words, field, value):
    """Server options apply to a model on the command line, and override a file."""
    assert getattr(parse(["some/model", *words]), field) == value
    file = tmp_path / "config.yaml"
    file.write_text("endpoints: [{model: some/model}]\nworkers: 2\nkeep_alive: 5\n")
    if words:
        assert getattr(parse(["--config", str(file), *words]), field) == value


def test_the_file_has_every_field(tmp_path):
    """The keys of a file have the names of the options."""
    lines = ["precision: int8", "max_length: 12", "truncate: left", "dimensions: 8", "normalize: false", "layer_norm: true",
             "served_model_name: minilm", "layer: none-such", "prompts: {query: 'q: '}", "files_from: org/name"]  # fmt: skip
    (endpoint,) = read(tmp_path, "endpoints:\n  - model: some/model\n" + "".join(f"    {line}\n" for line in lines)).endpoints
    assert (endpoint.precision, endpoint.max_length, endpoint.truncate, endpoint.dimensions) == ("int8", 12, "left", 8)
    assert (endpoint.normalize, endpoint.layer_norm, endpoint.model_id) == (False, True, "minilm")


def test_vectors_follow_the_options(tiny):
    """Served vectors equal those of `Embedder.load` with the same options."""
    options = {"pooling": "max", "layer": 1, "max_length": 6, "truncate": "left", "dimensions": 8, "normalize": True}
    texts = ["the cat sat on the mat and the dog on the floor", "cat"]
    with serving(EndpointConfig(model=str(tiny), **options)) as running, Embedder.load(tiny, threads=1, **options) as local:
        answer = running.post("/v1/embeddings", {"input": texts})
        result = np.array([item["embedding"] for item in answer.json()["data"]], np.float32)
        np.testing.assert_array_equal(result, local.embed(texts))
        assert answer.headers["x-penult-fingerprint"] == local.fingerprint
        assert answer.headers["x-penult-truncated"] == "1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("endpoints:\n  - modell: a/b\n", "line 2: endpoints\\[0\\].modell is not a known key. Did you mean model\\?"),
        ("endpoints:\n  - model: a/b\n    truncat: left\n", "Did you mean truncate\\?"),
        ("endpoints:\n  - model: a/b\nworker: 2\n", "Did you mean workers\\?"),
        ("endpoints:\n  - model: a/b\nkeepalive: 2\n", "Did you mean keep_alive\\?"),
        ("endpoints:\n  - model: a/b\n    truncate: up\n", "endpoints\\[0\\].truncate is 'up'; it must be 'error', 'warn'"),
        ("endpoints:\n  - model: a/b\n  name: x\n", "line 3: not valid YAML: .* Check the indentation"),
    ],
)
def test_errors_in_the_file(tmp_path, text, words):
    """An unknown key is reported with the most similar known key."""
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, text)


def test_no_such_file(tmp_path):
    """A missing file and a folder have their own messages."""
    with pytest.raises(FileNotFoundError, match=r"The file .* does not exist"):
        config_file.read(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(is a directory\)\. Pass a YAML file"):
        config_file.read(tmp_path)
