"""The configuration file, the command line, and what each says of a mistake."""

import logging
from dataclasses import replace

import pytest
from models import tiny_model
from server_kit import serving

from penult import Embedder
from penult.deepsparse import config_file as configfile
from penult.deepsparse.command import parse
from penult.server import ConfigError, EndpointConfig, Limits, ServerConfig, main
from penult.server.app import create_app
from penult.server.config import TASK
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
    return configfile.read(file)


def test_the_pages_file(tmp_path):
    """The file of the page that DeepSparse's users followed is read as it stands."""
    config = read(tmp_path, PAGE)
    (endpoint,) = config.endpoints
    assert (endpoint.model, endpoint.sequence_length, endpoint.extraction_strategy) == ("some/model", 64, "reduce_mean")
    assert endpoint.emb_extraction_layer == -1
    assert (config.host, config.port, config.threads) == ("0.0.0.0", 5543, 2)


def test_every_key_of_deepsparse(tmp_path, caplog):
    """DeepSparse's other keys are accepted; those without a meaning here are said, each once, with line and key."""
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
    said = [record.getMessage() for record in caplog.records]
    for line, key in (
        (2, "num_workers"),
        (6, "loggers"),
        (13, "endpoints[0].batch_size"),
        (18, "endpoints[0].kwargs.return_numpy"),
    ):
        assert len([one for one in said if f"line {line}: {key} has no meaning here" in one]) == 1
    assert not [one for one in said if "data_logging" in one]  # null says nothing


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("reduce_mean", "mean", 7, "endpoints[0].kwargs.extraction_strategy is 'mean'; it must be one of per_token"),
        ("64", "[16, 0]", 6, "endpoints[0].kwargs.sequence_length is [16, 0]"),
        ("64", "many", 6, "sequence_length is 'many'; it must be a whole number"),
        ("64", "true", 6, "sequence_length is True"),
        ("extraction_strategy", "strategy", 7, "endpoints[0].kwargs.strategy is not known here; known are"),
        ("    model: some/model\n", "", 3, "endpoints[0] lacks model"),
        ("model: some/model", "model: 5", 4, "endpoints[0].model is 5; it must be a text"),
        ("task: transformers_embedding_extraction", "task: question_answering", 3, "endpoints[0].task is refused"),
        ("num_cores: 2", "num_cores: -1", 1, "num_cores is -1; it must be a whole number of at least 0"),
        ("num_cores: 2", "num_core: 2", 1, "num_core is not known here"),
        ("num_cores: 2", "api_key: x", 1, "api_key is a secret"),
        ("num_cores: 2", "integration: azure", 1, "integration is 'azure'; it must be one of local, sagemaker"),
        ("num_cores: 2", "limits: {max_body_bytes: 0}", 1, "limits.max_body_bytes is 0"),
        ("num_cores: 2", "limits: {max_bodies: 1}", 1, "limits.max_bodies is not known here; known are max_answer_values"),
        ("num_cores: 2", "num_cores: 2\nnum_cores: 3", 2, "num_cores stands there twice"),
        ("num_cores: 2", "num_cores: [2", 2, "no YAML"),
        ("num_cores: 2", "num_cores: !!python/object:os.system 2", 1, "no YAML"),
        ("num_cores: 2", "port: 2020-99-01", 1, "port is '2020-99-01', which cannot be read (month must be in 1..12"),
        ("num_cores: 2", "num_cores: !!int x", 1, "num_cores is 'x', which cannot be read"),
        ("num_cores: 2", "<<: [{num_cores: -1}]", 1, "num_cores is -1"),
        ("num_cores: 2", "<<: 5", 1, "merges by `<<` what is no mapping"),
        ("sequence_length: 64", "emb_extraction_layer: [1]", 6, "emb_extraction_layer is [1]; it must be a whole number"),
        ("    kwargs:", "    middlewares: [a]\n    kwargs:", 5, "middlewares names code"),
        ("    kwargs:", "    bucketing: {lengths: [1]}\n    kwargs:", 5, "lengths is not known here"),
        ("    kwargs:", "    bucketing: {sequence_lengths: 16}\n    kwargs:", 5, "needs a list `sequence_lengths:`"),
        ("    kwargs:", "    pooling: median\n    kwargs:", 5, "pooling is 'median'; it must be one of mean, max, cls, last"),
        ("    kwargs:", "    pooling: [mean, median]\n    kwargs:", 5, "pooling is ['mean', 'median']; it must be one of mean"),
        ("    kwargs:", "    pooling: []\n    kwargs:", 5, "pooling is []; it must be one of mean"),
        (
            "    kwargs:",
            "    prompts: {passage: p}\n    kwargs:",
            5,
            "prompts.passage is not known here; known are document, query",
        ),
        ("    kwargs:", "    prompts: {query: 5}\n    kwargs:", 5, "prompts.query is 5; it must be a text"),
        ("    kwargs:", "    prompts: 'query: '\n    kwargs:", 5, "prompts is 'query: '; it must be a mapping"),
        ("    kwargs:", "    model_file: 5\n    kwargs:", 5, "model_file is 5; it must be a text"),
        ("    kwargs:", "    model_task: 1.5\n    kwargs:", 5, "model_task is 1.5; it must be a text or a whole number"),
    ],
)
def test_a_mistake_names_line_and_key(tmp_path, old, new, line, words):
    """An error of a file names the file, the line and the key, and what is allowed."""
    assert old in PAGE
    with pytest.raises(ConfigError, match=r"config\.yaml") as error:
        read(tmp_path, PAGE.replace(old, new))
    assert f"line {line}:" in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("text", ["", "endpoints: []", "endpoints: x", "- a", "a: &x [*x]", "5", "\x00"])
def test_what_is_no_configuration(tmp_path, text):
    """A file that holds none is an error that names it."""
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read(tmp_path, text)


def test_prompts_and_files_of_an_endpoint(tmp_path):
    """Prompts, poolings, the graph's file and where the other files come from stand in the endpoint; null says nothing."""
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


def test_options_of_a_model_reach_it(monkeypatch, tiny):
    """What an endpoint says of its model is what `Embedder.load` is asked for; another prompt is another model in memory."""
    asked, load = [], Embedder.load

    def loaded(model, **options):
        asked.append(
            {"model": model} | {key: options[key] for key in ("prompts", "files_from", "model_file", "task", "pooling")}
        )
        return load(model, threads=1)

    monkeypatch.setattr(Embedder, "load", loaded)
    own = {"prompts": {"query": "q"}, "files_from": "f", "model_file": "m", "pooling": ("mean", "max")}
    one = EndpointConfig(model=str(tiny), model_task="t", **own)
    service = Service(ServerConfig(endpoints=(one, replace(one, prompts={"query": "p"}, name="other")), threads=1))
    service.models.close()
    assert asked == [{"model": str(tiny), "task": "t", **own, "prompts": {"query": prompt}} for prompt in ("q", "p")]


def test_prompts_that_no_file_states_are_said(tiny, tmp_path, caplog):
    """The log says where the prompts are from, and how to set them where no file states any."""
    folder = tiny_model(tmp_path / "named", prompts={"query": "query: "})
    for endpoint, words, said in (
        (EndpointConfig(model=str(tiny)), "prompts not stated by any file", True),
        (EndpointConfig(model=str(folder)), "prompts config_sentence_transformers.json", False),
        (EndpointConfig(model=str(tiny), prompts={"query": "q"}), "prompts of the endpoint", False),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, "penult"):
            Service(ServerConfig(endpoints=(endpoint,), threads=1)).models.close()
        assert words in caplog.text
        assert ("set them with prompts: in the endpoint" in caplog.text) == said


def test_deepsparses_routes_take_no_chosen_file(tiny):
    """An endpoint that chooses its graph is served on the other routes; DeepSparse's say so instead of another graph's numbers."""
    endpoint = EndpointConfig(model=str(tiny), task=TASK, name="one", model_file="onnx/model.onnx")
    with serving(endpoint) as running:
        assert running.post("/v1/embeddings", {"input": "a"}).status_code == 200
        answer = running.post("/predict", {"inputs": "a"})
        assert answer.status_code == 501
        assert "model_file and files_from are for the routes of OpenAI and TEI" in answer.json()["detail"]


def test_names_must_differ(tmp_path):
    """Two endpoints of one name, or of one route, are refused."""
    twice = PAGE.replace("kwargs:", "name: a\n    kwargs:")
    twice += twice.split("endpoints:\n")[1]
    with pytest.raises(ConfigError, match=r"line 11: endpoints\[1\].name is 'a', as in line 5; each endpoint needs its own"):
        read(tmp_path, twice)
    with pytest.raises(ConfigError, match="Two endpoints have the name 'a'"):
        ServerConfig(endpoints=(EndpointConfig(model="m", name="a"), EndpointConfig(model="n", name="a")))


@pytest.mark.parametrize("value", [0, -1, True, "9", 1.5, None])
def test_a_limit_is_a_whole_number(value):
    """Limits that a program gives are held to the same as those of a file, and named."""
    with pytest.raises(ConfigError, match=rf"^max_text_chars is {value!r}; it must be a whole number of at least 1\.$"):
        Limits(max_text_chars=value)


def test_a_server_needs_a_model():
    """A configuration that a program makes without an endpoint says how to name a model."""
    with pytest.raises(ConfigError, match=r"^No model is named; give --model_path or --config_file\.$"):
        ServerConfig(endpoints=())


def test_anchors_and_merges_are_read(tmp_path):
    """What several endpoints share may be written once, as DeepSparse's own reader allowed: `&`, `*` and `<<`."""
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
        ("kwargs:", "route: /v1/embeddings\n    kwargs:", "The route /v1/embeddings is taken already"),
        ("kwargs:", "name: a?b\n    kwargs:", "cannot stand in a path"),
    ],
)
def test_what_only_the_model_shows_names_the_line_too(tmp_path, tiny, old, new, words):
    """An endpoint whose model cannot be opened as it says is named with its line."""
    text = PAGE.replace("some/model", "MODEL").replace(old, new).replace("MODEL", str(tiny))
    with pytest.raises(ConfigError, match=r"config\.yaml, line 3: endpoints\[0\]: ") as error:
        create_app(read(tmp_path, text))
    assert words in str(error.value)


def test_endpoints_of_one_recipe_share_a_session(tiny):
    """Endpoints that ask for the same model in the same way are served by one engine."""
    endpoints = (EndpointConfig(model=str(tiny), name="a"), EndpointConfig(model=str(tiny), name="b"))
    service = Service(ServerConfig(endpoints=endpoints, threads=1))
    first, second = (service.models.embedder(endpoint) for endpoint in endpoints)
    assert first is second
    service.models.close()


def test_command_line(tmp_path, monkeypatch, capsys):
    """DeepSparse's options are read with dashes and with underscores; those of penult stand beside them."""
    words = ["--task", "transformers-embedding-extraction", "--model-path", "m", "--port", "1", "--max-text-chars", "9"]
    config = parse([*words, "--api-key", "k", "--log-json", "--host=::1"])
    (endpoint,) = config.endpoints
    assert (endpoint.model, endpoint.task) == ("m", "transformers_embedding_extraction")
    assert (config.host, config.port, config.api_key, config.log_json) == ("::1", 1, "k", True)
    assert config.limits == Limits(max_text_chars=9)
    monkeypatch.setenv("PENULT_API_KEY", "from the environment")
    assert parse(["--model_path", "some-model_x"]).api_key == "from the environment"
    assert parse(["some-model_x"]).endpoints[0].model == "some-model_x"
    assert "k" not in repr(parse(["m", "--api-key", "kkk"])).replace("api_key", "").split("endpoints")[0]
    assert parse(["m", "--integration", "openai"]).integration == "local"  # its routes are always there
    assert parse(["m", "--batch-size", "4", "--hot-reload-config"]).endpoints[0].model == "m"
    assert capsys.readouterr().err.count("has no meaning here") == 2
    own = "--prompt-query=q: --prompt-document d --model-file f.onnx --files-from x --model-task 3 --pooling mean,max".split()
    (endpoint,) = parse(["m", *own]).endpoints
    assert (endpoint.prompts, endpoint.pooling) == ({"query": "q:", "document": "d"}, ("mean", "max"))
    assert (endpoint.model_file, endpoint.files_from, endpoint.model_task) == ("f.onnx", "x", 3)
    assert parse(["m", "--prompt-query", ""]).endpoints[0].prompts == {"query": ""}
    assert parse(["m", "--pooling", "cls", "--model-task", "t"]).endpoints[0].prompts is None
    (tmp_path / "config.yaml").write_text(PAGE)
    config = parse(["--config-file", str(tmp_path / "config.yaml"), "--port", "7"])
    assert (config.port, config.endpoints[0].sequence_length, config.threads) == (7, 64, 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--model_path"),
        (["--task", "transformers_embedding_extraction"], "--model_path"),
        (["--task", "qa", "--model_path", "m"], "task is 'qa'"),
        (["--config_file", "/nowhere/c.yaml"], "/nowhere/c.yaml"),
        (["--config_file", "c.yaml", "--model_path", "m"], "--config_file"),
        (
            ["--config_file", "c.yaml", "--pooling", "cls", "--prompt-query", "q"],
            "--pooling, --prompt_query given with --config_file",
        ),
        (["m", "--pooling", "mean,median"], "'median' is none of mean, max, cls"),
        (["--model_path", "/nowhere/model"], "/nowhere/model"),
        (["--model_path", "m", "--port", "70000"], "port is 70000"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, said, capsys, monkeypatch):
    """A command line that cannot be served ends with status 2 and one line, without a stack."""
    monkeypatch.setattr("penult.server.run.say", lambda *, json: None)  # this process's log is pytest's
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert not [line for line in lines if "Traceback" in line]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("!!bool y", "'y', which cannot be read"),
        ("!!timestamp 2", "'2', which cannot be read"),
        ('!!int ""', "'', which cannot be read"),
        ("!!float e", "'e', which cannot be read"),
        ("2001-13-40", "'2001-13-40', which cannot be read"),
        ("0x" + "f" * 5000, "a number of 20000 bits"),
        ("1" * 5000, "'1{199}, which cannot be read"),
    ],
)
def test_what_a_fuzzer_found_in_values(tmp_path, value, words):
    """A text that its tag calls something it is not, and a number that Python would not print, as a value and as a key."""
    with pytest.raises(ConfigError, match=rf"config\.yaml, line 2: port is {words}"):
        read(tmp_path, f"host: x\nport: {value}\n")
    with pytest.raises(ConfigError, match=rf"config\.yaml, line 2: the whole is {words}"):
        read(tmp_path, f"host: x\n? {value}\n: 1\n")


def test_aliases_that_unfold_to_billions(tmp_path):
    """A few lines of aliases to aliases are refused before they fill the memory; so is nesting without end."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match=r"has more than 100,000 values, aliases counted each time"):
        read(tmp_path, "\n".join(lines))
    for text in ("[" * 50_000, "a: &a\n  b: *a\n"):
        with pytest.raises(ConfigError, match=r"config\.yaml is nested too deeply or has an alias inside of itself"):
            read(tmp_path, text)
