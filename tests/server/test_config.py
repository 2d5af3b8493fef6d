"""The configuration file and the command line, and their error messages."""

import logging
import re
import sys

import pytest
import typer
from models import tiny_model
from pydantic import ValidationError
from server_kit import parse, serving

from penult import Embedder
from penult.deepsparse import config_file, routes
from penult.deepsparse.arguments import TASK
from penult.deepsparse.command import main
from penult.deepsparse.config_file import DeepSparseEndpoint, Kwargs
from penult.server import ConfigError, EndpointConfig, Limits, ServerConfig, command
from penult.server.app import create_app
from penult.server.config_file import load
from penult.server.service import Service

PAGE = """\
num_cores: 2
endpoints:
  - task: transformers_embedding_extraction
    model: some/model
    kwargs:
      sequence_length: 64
      extraction_strategy: reduce_mean
"""


def read(tmp_path, text: str) -> ServerConfig:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return config_file.read(file)


def read_own(tmp_path, text: str) -> ServerConfig:
    """Read a file with penult's own keys only, without the DeepSparse interface."""
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return load(file, ServerConfig)[0]


def test_the_file_of_deepsparses_documentation(tmp_path):
    """The configuration file of DeepSparse's documentation is read unchanged."""
    config = read(tmp_path, PAGE)
    (endpoint,) = config.endpoints
    assert (endpoint.model, endpoint.sequence_length, endpoint.extraction_strategy) == ("some/model", 64, "reduce_mean")
    assert endpoint.emb_extraction_layer == -1
    assert (config.host, config.port, config.threads) == ("0.0.0.0", 5543, 2)


def test_every_key_of_deepsparse(tmp_path, caplog):
    """DeepSparse's other keys are accepted; those without an effect are logged once each, with line and key."""
    text = """\
num_cores: null
num_workers: 2
integration: local
engine_thread_pinning: core
pytorch_num_threads: 1
loggers: {prometheus: {port: 6100}}
system_logging: {enable: true}
endpoints:
  - task: Transformers-Embedding-Extraction
    model: m
    name: n
    route: /r
    batch_size: 4
    logging_config: {enable: true}
    data_logging: null
    bucketing: {sequence_lengths: [16, 64]}
    middlewares: null
    kwargs: {emb_extraction_layer: 3, engine_type: onnxruntime, return_numpy: true, num_cores: 1}
"""
    with caplog.at_level(logging.INFO, "penult"):
        (endpoint,) = read(tmp_path, text).endpoints
    assert (endpoint.sequence_length, endpoint.emb_extraction_layer, endpoint.route) == ((16, 64), 3, "/r")
    messages = [record.getMessage() for record in caplog.records]
    for line, key in (
        (2, "num_workers"),
        (6, "loggers"),
        (13, "endpoints[0].batch_size"),
        (18, "endpoints[0].kwargs.return_numpy"),
    ):
        assert len([one for one in messages if f"line {line}: {key} is ignored: it has no effect in penult" in one]) == 1
    assert not [one for one in messages if "data_logging" in one]  # null counts as not set


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("reduce_mean", "mean", 7, "endpoints[0].kwargs.extraction_strategy is 'mean'; it must be 'per_token', 'reduce_mean'"),
        ("64", "[16, 0]", 6, "endpoints[0].kwargs.sequence_length is [16, 0]"),
        ("64", "many", 6, "sequence_length is 'many'; it must be an integer"),
        ("64", "true", 6, "sequence_length is True"),
        (
            "extraction_strategy",
            "strategy",
            7,
            "endpoints[0].kwargs.strategy is not a known key. Did you mean extraction_strategy? Known keys: alias",
        ),
        ("    model: some/model\n", "", 3, "endpoints[0].model is missing"),
        ("model: some/model", "model: 5", 4, "endpoints[0].model is 5; it must be a valid string"),
        (
            "task: transformers_embedding_extraction",
            "task: question_answering",
            3,
            "endpoints[0].task is 'question_answering'; it must be transformers_",
        ),
        ("num_cores: 2", "num_cores: -1", 1, "num_cores is -1; it must be greater than or equal to 0"),
        ("num_cores: 2", "num_core: 2", 1, "num_core is not a known key. Did you mean num_cores? Known keys: "),
        ("num_cores: 2", "api_key: x", 1, "api_key is a secret"),
        ("num_cores: 2", "integration: azure", 1, "integration is 'azure'; it must be 'local', 'sagemaker' or 'openai'"),
        ("num_cores: 2", "limits: {max_body_bytes: 0}", 1, "limits.max_body_bytes is 0"),
        (
            "num_cores: 2",
            "limits: {max_bodies: 1}",
            1,
            "limits.max_bodies is not a known key. Did you mean max_body_bytes? Known keys: max_answer_values",
        ),
        ("num_cores: 2", "num_cores: 2\nnum_cores: 3", 2, "num_cores is a duplicate key"),
        ("num_cores: 2", "num_cores: [2", 2, "not valid YAML"),
        ("num_cores: 2", "num_cores: !!python/object:os.system 2", 1, "not valid YAML"),
        ("num_cores: 2", "port: 2020-99-01", 1, "port is '2020-99-01', which cannot be parsed (month must be in 1..12"),
        ("num_cores: 2", "num_cores: !!int x", 1, "num_cores is 'x', which cannot be parsed"),
        ("num_cores: 2", "<<: [{num_cores: -1}]", 1, "num_cores is -1"),
        ("num_cores: 2", "<<: 5", 1, "<< must merge a mapping or a list of mappings"),
        (
            "sequence_length: 64",
            "emb_extraction_layer: [1]",
            6,
            "emb_extraction_layer is [1]; it must be an integer, a string or null",
        ),
        ("    kwargs:", "    middlewares: [a]\n    kwargs:", 5, "middlewares is ['a']; it refers to code of DeepSparse"),
        (
            "    kwargs:",
            "    bucketing: {lengths: [1]}\n    kwargs:",
            5,
            "lengths is not a known key. Did you mean sequence_lengths?",
        ),
        (
            "    kwargs:",
            "    bucketing: {sequence_lengths: 16}\n    kwargs:",
            5,
            "bucketing.sequence_lengths is 16; it must be a list",
        ),
        ("    kwargs:", "    pooling: median\n    kwargs:", 5, "pooling is 'median'; it must be one of mean, max, cls, last"),
        ("    kwargs:", "    pooling: [mean, median]\n    kwargs:", 5, "pooling is ['mean', 'median']; it must be one of mean"),
        ("    kwargs:", "    pooling: []\n    kwargs:", 5, "pooling is []; it must be one of mean"),
        (
            "    kwargs:",
            "    prompts: {passage: p}\n    kwargs:",
            5,
            "prompts.passage is not a known key. Known keys: document, query",
        ),
        ("    kwargs:", "    prompts: {query: 5}\n    kwargs:", 5, "prompts.query is 5; it must be a valid string"),
        ("    kwargs:", "    prompts: 'query: '\n    kwargs:", 5, "prompts is 'query: '; it must be a mapping"),
        ("    kwargs:", "    model_file: 5\n    kwargs:", 5, "model_file is 5; it must be a valid string"),
        ("    kwargs:", "    model_task: 1.5\n    kwargs:", 5, "model_task is 1.5; it must be an integer, a string or null"),
    ],
)
def test_an_error_states_line_and_key(tmp_path, old, new, line, words):
    """An error in a file states the file, the line, the key and the allowed values."""
    assert old in PAGE
    with pytest.raises(ConfigError, match=r"config\.yaml") as error:
        read(tmp_path, PAGE.replace(old, new))
    assert f"line {line}:" in str(error.value)
    assert words in str(error.value)


OWN = """\
threads: 2
endpoints:
  - model: some/model
    layer: 0
    aliases: [text-embedding-3-small]
    pooling: cls
    fallback_pooling: mean
    open_at_start: false
    prompts:
      query: "query: "
"""


def test_penults_own_file(tmp_path):
    """A file with penult's own keys is read equally with and without the DeepSparse interface; `layer` is as in `Embedder.load`."""
    for config in (read_own(tmp_path, OWN), read(tmp_path, OWN)):
        (endpoint,) = config.endpoints
        assert (config.threads, endpoint.model, endpoint.layer, endpoint.aliases) == (
            2,
            "some/model",
            0,
            ("text-embedding-3-small",),
        )
        assert (endpoint.pooling, endpoint.fallback_pooling, endpoint.open_at_start) == ("cls", "mean", False)
        assert endpoint.prompts == {"query": "query: "}
        assert re.search(r"config\.yaml, line 3: endpoints\[0\]$", endpoint.place)
    with pytest.raises(ConfigError, match=r"line 3: endpoints\[0\].task is not a known key"):
        read_own(tmp_path, PAGE.replace("num_cores", "threads"))


@pytest.mark.parametrize("reader", [read_own, read])
@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("threads: 2", "thread: 2", 1, "thread is not a known key. Did you mean threads? Known keys: allow_endpoints"),
        ("layer: 0", "layers: 0", 4, "endpoints[0].layers is not a known key. Did you mean layer? Known keys: aliases"),
        ("layer: 0", "place: x", 4, "endpoints[0].place is not a known key"),
        ("threads: 2", "threads: two", 1, "threads is 'two'; it must be a valid integer"),
        ("threads: 2", "threads: 0", 1, "threads is 0; it must be greater than or equal to 1"),
        ("threads: 2", "port: 70000", 1, "port is 70000; it must be less than or equal to 65535"),
        ("threads: 2", "log_json: 1", 1, "log_json is 1; it must be a valid boolean"),
        ("threads: 2", "api_key: s3cret", 1, "api_key is a secret, which this file must not contain"),
        ("layer: 0", "layer: 1.5", 4, "endpoints[0].layer is 1.5; it must be an integer, a string or null"),
        ("layer: 0", "layer: 0\n    layer: 1", 5, "endpoints[0].layer is a duplicate key"),
        ("layer: 0", "max_length: true", 4, "endpoints[0].max_length is True; it must be a valid integer"),
        ("cls", "avg", 6, "endpoints[0].pooling is 'avg'; it must be one of mean, max, cls"),
        (
            "fallback_pooling: mean",
            "fallback_pooling: avg",
            7,
            "endpoints[0].fallback_pooling is 'avg'; it must be 'mean', 'max'",
        ),
        ("[text-embedding-3-small]", "text-embedding-3-small", 5, "aliases is 'text-embedding-3-small'; it must be a list"),
        ('query: "', 'search: "', 10, "endpoints[0].prompts.search is not a known key. Known keys: document, query"),
        ('\n      query: "query: "', " [a]", 9, "endpoints[0].prompts is ['a']; it must be a mapping"),
        ("model: some/model", "model:", 3, "endpoints[0].model is missing"),
        ("\n    prompts", "\n  - model\n  - prompts", 9, "endpoints[1] is 'model'; it must be a mapping"),
        (
            "\n    prompts",
            "\n  - {model: m, name: text-embedding-3-small}\n  - prompts",
            9,
            "as in endpoints[0]; it must be unique",
        ),
    ],
)
def test_an_error_in_penults_own_file(tmp_path, reader, old, new, line, words):
    """Errors in penult's own keys are equal with and without the DeepSparse interface."""
    assert old in OWN
    with pytest.raises(ConfigError, match=r"config\.yaml") as error:
        reader(tmp_path, OWN.replace(old, new, 1).replace("  - prompts", "  - model: x\n    prompts"))
    assert f"line {line}:" in str(error.value)
    assert words in str(error.value)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"poolings": "mean"}, "poolings is not a known key. Did you mean pooling"),
        ({"pooling": "avg"}, "pooling\n  Value error, it must be one of mean"),
        ({"precision": "fp16"}, "precision\n  Input should be 'fp32' or 'int8'"),
        ({"layer": True}, "it must be an integer, a string or null"),
        ({"max_length": "9"}, "max_length\n  Input should be a valid integer"),
        ({"prompts": {"passage": "p"}}, "is not a known key. Known keys: document, query"),
        ({"prompts": "p"}, "prompts\n  Input should be a valid dictionary"),
        ({"name": None, "model": None}, "model\n  Input should be a valid string"),
    ],
)
def test_an_invalid_endpoint_in_code(options, words):
    """An EndpointConfig created in code is validated as in a file, and is immutable."""
    with pytest.raises(ValidationError) as error:
        EndpointConfig(**{"model": "m", **options})
    assert words in str(error.value)
    with pytest.raises(ValidationError, match="Instance is frozen"):
        EndpointConfig(model="m").model = "n"


def test_deepsparses_keys_are_translated(tmp_path):
    """DeepSparse counts layers from the first, penult from the embedding output; a strategy is a fallback for pooling."""
    for layer, own in ((0, 1), (3, 4), (-1, -1), ("node", "node"), ("null", None)):
        (endpoint,) = read(tmp_path, PAGE.replace("sequence_length: 64", f"emb_extraction_layer: {layer}")).endpoints
        assert (endpoint.layer, endpoint.emb_extraction_layer) == (own, None if layer == "null" else layer)
    for strategy, pooling in (("per_token", None), ("reduce_mean", "mean"), ("reduce_max", "max"), ("cls_token", "cls")):
        (endpoint,) = read(tmp_path, PAGE.replace("reduce_mean", strategy)).endpoints
        assert (endpoint.pooling, endpoint.fallback_pooling, endpoint.open_at_start) == (None, pooling, False)
    assert read(tmp_path, PAGE.replace("    kwargs:", "    model_file: f\n    kwargs:")).endpoints[0].open_at_start
    assert DeepSparseEndpoint(model="m", kwargs=Kwargs(emb_extraction_layer=0)).layer == 1
    differ = PAGE.replace("    kwargs:", "    layer: 2\n    kwargs:").replace("sequence_length: 64", "emb_extraction_layer: 2")
    with pytest.raises(
        ConfigError, match=r"line 3: endpoints\[0\] has layer and kwargs.emb_extraction_layer, which differ; remove"
    ):
        read(tmp_path, differ)
    (endpoint,) = read(tmp_path, differ.replace("layer: 2", "layer: 0", 1).replace("emb_extraction_layer: 2", "")).endpoints
    with pytest.raises(ValueError, match=r"layer 0, the embedding output, is not available on DeepSparse's routes"):
        endpoint.emb_extraction_layer  # noqa: B018


def test_aliases_select_their_endpoint(tiny):
    """Clients may send an alias as `model`; aliases are not listed."""
    one, other = (
        EndpointConfig(model=str(tiny), name="a"),
        EndpointConfig(model=str(tiny), name="b", layer=1, aliases=("c", "d")),
    )
    with serving(one, other) as running:
        a, b, d = (running.post("/v1/embeddings", {"input": "cat", "model": name}).json()["data"][0] for name in "abd")
        assert [card["id"] for card in running.get("/v1/models").json()["data"]] == ["a", "b"]
    assert b == d != a


@pytest.mark.parametrize("text", ["", "endpoints: []", "endpoints: x", "- a", "a: &x [*x]", "5", "\x00"])
def test_files_without_a_configuration(tmp_path, text):
    """A file without a configuration raises an error with its name."""
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read(tmp_path, text)


def test_prompts_and_files_of_an_endpoint(tmp_path):
    """An endpoint can set prompts, poolings, model_file and files_from; null counts as not set."""
    text = """\
endpoints:
  - task: transformers_embedding_extraction
    model: m
    pooling: [mean, max]
    prompts: {query: "query: ", document: null}
    files_from: org/name
    model_file: onnx/model_int8.onnx
    model_task: retrieval.query
  - {task: transformers_embedding_extraction, model: n, prompts: null, pooling: cls, model_task: 2}
"""
    first, second = read(tmp_path, text).endpoints
    assert (first.pooling, first.prompts) == (("mean", "max"), {"query": "query: "})
    assert (first.files_from, first.model_file, first.model_task) == ("org/name", "onnx/model_int8.onnx", "retrieval.query")
    assert (second.pooling, second.prompts, second.files_from, second.model_task) == ("cls", None, None, 2)


def test_options_are_passed_to_the_model(monkeypatch, tiny):
    """The options of an endpoint are passed to `Embedder.load`; endpoints with different prompts have separate models."""
    calls, load = [], Embedder.load

    def recorded_load(model, **options):
        calls.append(
            {"model": model} | {key: options[key] for key in ("prompts", "files_from", "model_file", "task", "pooling")}
        )
        return load(model, threads=1)

    monkeypatch.setattr(Embedder, "load", recorded_load)
    own = {"prompts": {"query": "q"}, "files_from": "f", "model_file": "m", "pooling": ("mean", "max")}
    one = EndpointConfig(model=str(tiny), model_task="t", **own)
    service = Service(
        ServerConfig(endpoints=(one, one.model_copy(update={"prompts": {"query": "p"}, "name": "other"})), threads=1)
    )
    service.models.close()
    assert calls == [{"model": str(tiny), "task": "t", **own, "prompts": {"query": prompt}} for prompt in ("q", "p")]


def test_the_log_states_missing_prompts(tiny, tmp_path, caplog):
    """The log states the source of the prompts, and how to set them if the model's files do not state any."""
    folder = tiny_model(tmp_path / "named", prompts={"query": "query: "})
    for endpoint, words, advice in (
        (EndpointConfig(model=str(tiny)), "prompts not stated by any file", True),
        (EndpointConfig(model=str(folder)), "prompts config_sentence_transformers.json", False),
        (EndpointConfig(model=str(tiny), prompts={"query": "q"}), "prompts from the endpoint", False),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, "penult"):
            Service(ServerConfig(endpoints=(endpoint,), threads=1)).models.close()
        assert words in caplog.text
        assert ("set prompts: in the endpoint" in caplog.text) == advice


def test_deepsparses_routes_refuse_model_file(tiny):
    """An endpoint with model_file works on the other routes; the DeepSparse routes refuse it, instead of using another graph."""
    endpoint = DeepSparseEndpoint(model=str(tiny), task=TASK, name="one", model_file="onnx/model.onnx")
    with serving(endpoint) as running:
        assert running.post("/v1/embeddings", {"input": "a"}).status_code == 200
        answer = running.post("/predict", {"inputs": "a"})
        assert answer.status_code == 501
        assert "model_file and files_from have no effect on the DeepSparse routes" in answer.json()["detail"]


def test_names_must_differ(tmp_path):
    """Two endpoints with the same name or route are refused."""
    twice = PAGE.replace("kwargs:", "name: a\n    kwargs:")
    twice += twice.split("endpoints:\n")[1]
    with pytest.raises(ConfigError, match=r"line 11: endpoints\[1\].name is 'a', as in endpoints\[0\]; it must be unique"):
        read(tmp_path, twice)
    with pytest.raises(ConfigError, match=r"line 11: endpoints\[1\].route is 'a', as in endpoints\[0\]; it must"):
        read(tmp_path, twice.replace("name: a", "route: a"))
    with pytest.raises(ValidationError, match=r"endpoints\n  1.name is 'a', as in endpoints\[0\]; it must be unique"):
        ServerConfig(endpoints=(EndpointConfig(model="m", name="a"), EndpointConfig(model="n", name="a")))


@pytest.mark.parametrize("value", [0, -1, True, "9", 1.5, None])
def test_a_limit_is_an_integer(value):
    """Limits set in code are validated as in a file, with the key in the message."""
    with pytest.raises(
        ValidationError, match=r"max_text_chars\n  Input should be (a valid integer|greater than or equal to 1)"
    ):
        Limits(max_text_chars=value)


def test_a_server_needs_a_model():
    """A configuration in code without an endpoint is refused; the error does not contain the API key."""
    with pytest.raises(ValidationError, match=r"endpoints\n  is empty; add at least one endpoint") as error:
        ServerConfig(endpoints=(), api_key="s3cret")
    assert "s3cret" not in str(error.value)


def test_anchors_and_merges_are_read(tmp_path):
    """YAML anchors, aliases and merge keys work, as in DeepSparse."""
    text = """\
endpoints:
  - &first
    task: transformers_embedding_extraction
    model: some/model
    name: a
    kwargs: &kwargs {sequence_length: 32, extraction_strategy: cls_token}
  - <<: *first
    name: b
    kwargs:
      <<: [{extraction_strategy: reduce_max}, *kwargs]
      emb_extraction_layer: 0
  - {<<: *first, name: c, kwargs: }
"""
    a, b, c = read(tmp_path, text).endpoints
    assert [one.name for one in (a, b, c)] == ["a", "b", "c"]
    assert {one.model for one in (a, b, c)} == {"some/model"}
    assert (a.sequence_length, a.extraction_strategy, a.emb_extraction_layer) == (32, "cls_token", -1)
    assert (b.sequence_length, b.extraction_strategy, b.emb_extraction_layer) == (32, "reduce_max", 0)
    assert (c.sequence_length, c.extraction_strategy, c.emb_extraction_layer) == (128, "per_token", -1)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("MODEL", "/no/such/model", "No model at '/no/such/model'"),
        ("sequence_length: 64", "sequence_length: 5000", "sequence_length=5000 exceeds the model's"),
        ("sequence_length: 64", "emb_extraction_layer: 7", "emb_extraction_layer is 7; the model has 2 layers"),
        ("kwargs:", "route: /v1/embeddings\n    kwargs:", "The route /v1/embeddings is already in use"),
        ("kwargs:", "name: a?b\n    kwargs:", "cannot be part of a URL path"),
    ],
)
def test_errors_of_the_model_state_the_line(tmp_path, tiny, old, new, words):
    """The error of an endpoint whose model cannot be loaded with its settings states the line."""
    text = PAGE.replace("some/model", "MODEL").replace(old, new).replace("MODEL", str(tiny))
    with pytest.raises(ConfigError, match=r"config\.yaml, line 3: endpoints\[0\]: ") as error:
        create_app(read(tmp_path, text), routes.add)
    assert words in str(error.value)


def test_endpoints_of_one_recipe_share_a_session(tiny):
    """Endpoints with the same model and settings share one session."""
    endpoints = (EndpointConfig(model=str(tiny), name="a"), EndpointConfig(model=str(tiny), name="b"))
    service = Service(ServerConfig(endpoints=endpoints, threads=1))
    first, second = (service.models.embedder(endpoint) for endpoint in endpoints)
    assert first is second
    service.models.close()


def refused(words: list[str], capsys) -> str:
    """Return the error line of a command line that cannot be served."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parse(words)
    return capsys.readouterr().err.strip().removeprefix("penult.server: ")


def test_command_line(tmp_path, monkeypatch, capsys):
    """DeepSparse's options are parsed with dashes and with underscores, together with penult's own."""
    words = ["--task", "transformers-embedding-extraction", "--model-path", "m", "--port", "1", "--max-text-chars", "9"]
    config = parse([*words, "--api-key", "k", "--log-json", "--host=::1"])
    (endpoint,) = config.endpoints
    assert (endpoint.model, endpoint.task) == ("m", "transformers_embedding_extraction")
    assert (config.host, config.port, config.api_key, config.log_json) == ("::1", 1, "k", True)
    assert config.limits == Limits(max_text_chars=9)
    monkeypatch.setenv("PENULT_API_KEY", "from the environment")
    assert parse(["--model_path", "some-model_x"]).api_key == "from the environment"
    assert (
        refused(["m", "--api-key", ""], capsys)
        == "api_key is ''; it is empty, which would disable the API key; set a key, or omit it."
    )
    assert "it is empty" in refused(["m", "--api-key", "  "], capsys)
    monkeypatch.setenv("PENULT_API_KEY", "")  # an empty secret
    assert "it is empty" in refused(["m"], capsys)
    monkeypatch.delenv("PENULT_API_KEY")
    assert parse(["some-model_x"]).endpoints[0].model == "some-model_x"
    config = parse(["m", "--allowed-hosts", "Box.example, *.lan", "--allow-origin", "https://A.example:1", "--allow-endpoints"])
    assert (config.allowed_hosts, config.allow_origin, config.allow_endpoints) == (
        ("box.example", "*.lan"),
        ("https://a.example:1",),
        True,
    )
    for words in (
        "--allow-origin=https://a.example/",
        "--allow-origin=a.example",
        "--allowed-hosts=http://box",
        "--allowed-hosts=box:80",
    ):
        assert "'; it must be " in refused(["m", words], capsys)
    assert "k" not in repr(parse(["m", "--api-key", "kkk"])).replace("api_key", "").split("endpoints")[0]
    assert parse(["m", "--integration", "openai"]).integration == "local"  # the OpenAI routes always exist
    assert parse(["m", "--batch-size", "4", "--hot-reload-config"]).endpoints[0].model == "m"
    assert capsys.readouterr().err.count("is ignored: it has no effect in penult") == 2
    own = "--prompt-query=q: --prompt-document d --model-file f.onnx --files-from x --model-task 3 --pooling mean,max".split()
    (endpoint,) = parse(["m", *own]).endpoints
    assert (endpoint.prompts, endpoint.pooling) == ({"query": "q:", "document": "d"}, ("mean", "max"))
    assert (endpoint.model_file, endpoint.files_from, endpoint.model_task) == ("f.onnx", "x", 3)
    assert parse(["m", "--prompt-query", ""]).endpoints[0].prompts == {"query": ""}
    assert parse(["m", "--pooling", "cls", "--model-task", "t"]).endpoints[0].prompts is None
    (tmp_path / "config.yaml").write_text(PAGE)
    config = parse(["--config-file", str(tmp_path / "config.yaml"), "--port", "7"])
    assert (config.port, config.endpoints[0].sequence_length, config.threads) == (7, 64, 2)


def test_penults_own_command_line(tmp_path, capsys):
    """Without the DeepSparse interface, `penult serve` has only penult's own options."""
    app = typer.Typer(rich_markup_mode=None)
    command.add(app)
    (tmp_path / "config.yaml").write_text(OWN)
    configs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penult.server.run.run", lambda config, _: configs.append(config))
        for words in (["m", "--threads", "3", "--max_text_chars=9"], ["--config", str(tmp_path / "config.yaml"), "--log_json"]):
            app(words, standalone_mode=False)
    one, other = configs
    assert (type(one), type(one.endpoints[0])) == (ServerConfig, EndpointConfig)
    assert (one.endpoints[0].model, one.threads, one.limits) == ("m", 3, Limits(max_text_chars=9))
    assert (other.endpoints[0].layer, other.threads, other.log_json, other.limits) == (0, 2, True, Limits())
    with pytest.raises(SystemExit):
        app(["m", "--task", TASK])
    assert "No such option" in capsys.readouterr().err


def test_the_error_names_the_missing_extra(monkeypatch, capsys):
    """Without the server's packages, the error states how to install them."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.delitem(sys.modules, "penult.server.config_file")
    monkeypatch.delattr("penult.server.config_file")
    with pytest.raises(SystemExit) as end:
        main(["m"])
    assert end.value.code == 2
    assert re.fullmatch(
        r"penult\.server: .*yaml.*\. Install the extra penult\[server\] \(pip install .*\)\.\n",
        capsys.readouterr().err,
    )


def test_a_file_is_overridden(tmp_path):
    """Options override the file; everything else is as in the file."""
    (tmp_path / "config.yaml").write_text(PAGE + "integration: sagemaker\nlimits: {max_text_chars: 5, max_tick_tokens: 6}\n")
    file = ["--config", str(tmp_path / "config.yaml")]
    assert parse([*file, "--integration", "openai"]).integration == "sagemaker"
    config = parse([*file, "--num_cores", "3", "--integration", "local", "--max-text-chars", "7"])
    assert (config.threads, config.integration, config.limits) == (3, "local", Limits(max_text_chars=7, max_tick_tokens=6))
    assert config.endpoints[0].place.endswith("line 3: endpoints[0]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No model is set. Pass MODEL or --config FILE."),
        (["--task", "transformers_embedding_extraction"], "No model is set"),
        (["--task", "qa", "--model_path", "m"], "task is 'qa'"),
        (["--config_file", "/nowhere/c.yaml"], "/nowhere/c.yaml"),
        (["--config_file", "c.yaml", "--model_path", "m"], "options of a model (model) are mutually exclusive"),
        (
            ["--config_file", "c.yaml", "--pooling", "cls", "--prompt-query", "q"],
            "--config and options of a model (pooling, prompts) are mutually exclusive",
        ),
        (["m", "--pooling", "mean,median"], "pooling is ['mean', 'median']; it must be one of mean, max, cls"),
        (["--model_path", "/nowhere/model"], "/nowhere/model"),
        (["--model_path", "m", "--port", "70000"], "port is 70000; it must be less than"),
        (["m", "--max-tick-tokens", "0"], "max_tick_tokens is 0; it must be greater"),
        (["m", "--num-cores", "-1"], "threads is -1; it must be greater"),
        (["m", "--integration", "azure"], "azure"),
        (["m", "--sequence_length", "5"], "No such option: --sequence-length"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, message, capsys, monkeypatch):
    """An invalid command line ends with status 2 and one line, without a traceback."""
    monkeypatch.setattr("penult.server.run.start_log", lambda *, as_json: None)  # this process's log is pytest's
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert not [line for line in lines if "Traceback" in line]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("!!bool y", "'y', which cannot be parsed"),
        ("!!timestamp 2", "'2', which cannot be parsed"),
        ('!!int ""', "'', which cannot be parsed"),
        ("!!float e", "'e', which cannot be parsed"),
        ("2001-13-40", "'2001-13-40', which cannot be parsed"),
        ("0x" + "f" * 5000, "an integer of 20000 bits"),
        ("1" * 5000, "'1{199}, which cannot be parsed"),
    ],
)
def test_values_that_a_fuzzer_found(tmp_path, value, words):
    """Values that do not fit their YAML tag, and integers that are too long to print, are refused as a value and as a key."""
    with pytest.raises(ConfigError, match=rf"config\.yaml, line 2: port is {words}"):
        read(tmp_path, f"host: x\nport: {value}\n")
    with pytest.raises(ConfigError, match=rf"config\.yaml, line 2 is {words}"):
        read(tmp_path, f"host: x\n? {value}\n: 1\n")


def test_aliases_that_expand_to_billions(tmp_path):
    """Nested aliases that would expand to billions of values are refused, and so is endless nesting."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match=r"has more than 100,000 values, counting every use of an alias"):
        read(tmp_path, "\n".join(lines))
    for text in ("[" * 50_000, "a: &a\n  b: *a\n"):
        with pytest.raises(ConfigError, match=r"config\.yaml is nested too deeply, or an alias contains itself"):
            read(tmp_path, text)
