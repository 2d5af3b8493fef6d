"""POST /v1/embeddings and GET /v1/models, as OpenAI's clients use them."""

import base64
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from server_kit import serving

from penult import Embedder
from penult.deepsparse.arguments import TASK
from penult.deepsparse.config_file import DeepSparseEndpoint
from penult.server import EndpointConfig

TEXTS = ["the cat sat", "a dog on the mat", ""]


def vectors(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]], np.float32)


def test_vectors_equal_the_embedders(client, embedder, tiny):
    """The vectors equal the local Embedder's bit for bit, in order, with the token count."""
    answer = client.post("/v1/embeddings", json={"input": TEXTS, "model": "any name"})
    np.testing.assert_array_equal(vectors(answer), embedder.embed(TEXTS))
    content = answer.json()
    tokens = int(embedder.count_tokens(TEXTS).sum())
    assert content["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (content["object"], content["model"]) == ("list", tiny.name)
    assert [(item["object"], item["index"]) for item in content["data"]] == [("embedding", i) for i in range(3)]
    assert answer.headers["x-penult-fingerprint"] == embedder.fingerprint


def test_one_text(client, embedder):
    """A single text can be sent without a list."""
    np.testing.assert_array_equal(
        vectors(client.post("/v1/embeddings", json={"input": "the cat"})), embedder.embed(["the cat"])
    )


def test_base64_is_little_endian_float32(client, embedder):
    """encoding_format base64 returns identical float32 values."""
    content = client.post("/v1/embeddings", json={"input": TEXTS, "encoding_format": "base64"}).json()
    read = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in content["data"]]
    np.testing.assert_array_equal(np.stack(read), embedder.embed(TEXTS))


def test_dimensions_are_truncated_and_normalized(client, embedder):
    """`dimensions` keeps the leading values and normalizes them again; the response then has no fingerprint."""
    answer = client.post("/v1/embeddings", json={"input": TEXTS, "dimensions": 8})
    short = embedder.embed(TEXTS)[:, :8]
    np.testing.assert_allclose(vectors(answer), short / np.linalg.norm(short, axis=1, keepdims=True), rtol=1e-6)
    assert "x-penult-fingerprint" not in answer.headers


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"input": [1, 2]}, 400, "input", "check_embedding_ctx_length=False"),
        ({"input": [[1], [2]]}, 400, "input", "check_embedding_ctx_length=False"),
        ({"input": [["a"]]}, 400, "input", "valid string"),
        ({"input": None}, 400, "input", "a string or a list of strings"),
        ({"input": []}, 400, "input", "at least one"),
        ({}, 400, "input", "required"),
        ({"input": ["a", None]}, 400, "input", "valid string"),
        ({"input": "a", "dimensions": 33}, 400, "dimensions", "at most 32"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions", "1"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format", "base64"),
        ({"input": "a", "input_type": "poem"}, 400, "input_type", "query"),
        ({"input": ["a"] * 101}, 422, "input", "100"),
        ({"input": "a" * 5001}, 413, "input", "5000"),
    ],
)
def test_invalid_input_has_openais_error_format(client, body, status, param, words):
    """Invalid input is refused with the key and the reason, in OpenAI's error format."""
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'{"input": "\\ud800"}', b"\xff", b'{"input": NaN}'])
def test_invalid_json_is_400(client, body):
    """A body that is not a JSON object is refused, without a traceback."""
    answer = client.post("/v1/embeddings", content=body)
    assert answer.status_code == 400
    assert "Traceback" not in answer.text


def test_truncated_texts_are_counted(client, embedder):
    """Texts over the model's maximum length are truncated, and a response header has their number."""
    exact = "cat " * 62  # 64 with the special tokens: the model's maximum
    answer = client.post("/v1/embeddings", json={"input": ["cat " * 63, exact, "cat"]})
    assert answer.headers["x-penult-truncated"] == "1"
    assert answer.json()["usage"]["total_tokens"] == 64 + 64 + 3
    assert "x-penult-truncated" not in client.post("/v1/embeddings", json={"input": exact}).headers


def test_models(client, tiny):
    """The model is listed, and described by its name."""
    (card,) = client.get("/v1/models").json()["data"]
    assert card == {"id": tiny.name, "object": "model", "created": 0, "owned_by": "penult"}
    assert client.get(f"/v1/models/{tiny}").json() == card


def test_several_models_are_selected_by_name(tiny, embedder, models_folder):
    """With several endpoints, `model` selects one; an unknown name gets 404 with a list of the names."""
    other = models_folder("max", pooling="max", normalize=False)
    with serving(EndpointConfig(model=str(tiny), name="a"), EndpointConfig(model=str(other), name="b")) as running:
        ask = running.post
        first, second = (vectors(ask("/v1/embeddings", {"input": TEXTS, "model": name})) for name in ("a", "b"))
        np.testing.assert_array_equal(first, embedder.embed(TEXTS))
        with Embedder.load(other, threads=1) as max_embedder:
            np.testing.assert_array_equal(second, max_embedder.embed(TEXTS))
        for body in ({"input": "a", "model": "c"}, {"input": "a"}):
            answer = ask("/v1/embeddings", body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
            assert "a, b" in answer.json()["error"]["message"]


def test_a_model_served_twice_has_two_names(tiny):
    """Each listed id selects its own endpoint, also if one model is served with two layers."""
    named = DeepSparseEndpoint(model=str(tiny), task=TASK, name="last")
    first, again = (DeepSparseEndpoint(model=str(tiny), task=TASK, kwargs={"emb_extraction_layer": 0}) for _ in range(2))
    with serving(named, first, again) as running:
        ids = [card["id"] for card in running.get("/v1/models").json()["data"]]
        assert ids == ["last", tiny.name, f"{TASK}-2"]
        last, lower, same = (
            running.post("/v1/embeddings", {"input": "cat", "model": name}).json()["data"][0]["embedding"] for name in ids
        )
    for layer, result in ((-1, last), (1, lower)):
        with Embedder.load(tiny, layer=layer) as local:
            np.testing.assert_allclose(result, local.embed(["cat"])[0], atol=1e-6)
    assert lower == same
    assert np.abs(np.array(last) - lower).max() > 0.01


def test_roles_select_the_models_prompts(models_folder):
    """`input_type` and `prompt_name` select the model's prompt, under all common names."""
    folder = models_folder("prompts", prompts={"query": "query: ", "passage": "passage: "})
    with serving(EndpointConfig(model=str(folder))) as running, Embedder.load(folder, threads=1) as local:
        for key, name, role in (
            ("input_type", "query", "query"),
            ("input_type", "search_document", "document"),
            ("prompt_name", "passage", "document"),
        ):
            result = vectors(running.post("/v1/embeddings", {"input": "the cat", key: name}))
            np.testing.assert_array_equal(result, local.embed(["the cat"], role))
        assert not np.array_equal(local.embed(["the cat"], "query"), local.embed(["the cat"]))


PROMPTS = {"query": "query: ", "passage": "passage: ", "STS": "the river ", "search_query": "search "}


@pytest.fixture(scope="module")
def prompted(models_folder):
    """Serve a model with named prompts, and load the same model locally."""
    folder = models_folder("named", prompts=PROMPTS)
    with serving(EndpointConfig(model=str(folder))) as running, Embedder.load(folder, threads=1) as local:
        yield running, local


@pytest.mark.parametrize(
    ("body", "role", "prompt"),
    [
        ({"prompt_name": "STS"}, "document", "the river "),
        ({"prompt_name": "STS", "input_type": "query"}, "query", "the river "),
        ({"prompt_name": "search_query"}, "query", "search "),
        ({"prompt_name": "web_search_query"}, "query", "query: "),
        ({"prompt_name": "query", "input_type": "web_search_query"}, "query", "query: "),
        ({"prompt_name": "corpus"}, "document", "passage: "),
        ({"prompt": "fish "}, "document", "fish "),
        ({"prompt": "fish ", "input_type": "query"}, "query", "fish "),
        ({"prompt": ""}, "document", ""),
        ({"prompt": None, "prompt_name": "query"}, "query", "query: "),
    ],
)
def test_prompts_by_name_and_of_the_request(prompted, body, role, prompt):
    """A request can select a prompt by name, a role by any of its names, or send its own prompt."""
    running, local = prompted
    answer = running.post("/v1/embeddings", {"input": TEXTS, **body})
    np.testing.assert_array_equal(vectors(answer), local.embed(TEXTS, role, prompt=prompt))
    assert answer.json()["usage"]["total_tokens"] == local.count_tokens(TEXTS, role, prompt=prompt).sum()
    assert answer.headers["x-penult-fingerprint"] == local.fingerprint


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (
            {"prompt_name": "poem"},
            "prompt_name",
            "is 'poem'; it must be one of query, search_query, web_search_query, document",
        ),
        ({"prompt_name": "poem"}, "prompt_name", "search_document, STS."),
        ({"prompt_name": "x" * 5000}, "prompt_name", f"is '{'x' * 100}'; it must be"),
        ({"prompt_name": 5}, "prompt_name", "valid string"),
        ({"prompt": "STS"}, "prompt", "is 'STS', which is the name of a prompt. Send it as `prompt_name`."),
        ({"prompt_name": "STS", "prompt": ""}, "prompt", "mutually exclusive"),
        ({"prompt_name": "passage", "input_type": "query"}, "prompt_name", "which are different roles"),
        ({"prompt": "x" * 4097}, "prompt", "at most 4096 characters"),
        ({"prompt": ["a"]}, "prompt", "valid string"),
        ({"prompt": "fish " * 70}, "prompt", "has 72 tokens with the special tokens; the maximum is 64"),
    ],
)
def test_invalid_prompts_are_refused(prompted, body, param, words):
    """An unknown prompt name, contradicting keys and a prompt over the limit are refused with the reason."""
    answer = prompted[0].post("/v1/embeddings", {"input": "a", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


def test_texts_of_different_prompts_are_never_merged(prompted):
    """Concurrent requests with different prompts get the vectors of their own prompts."""
    running, local = prompted
    bodies = [{"prompt": f"cat {'the ' * (i % 5)}"} for i in range(40)] + [{"input_type": "query"}, {}] * 5
    texts = [f"the moon {'river ' * (i % 3)}" for i in range(20)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: running.post("/v1/embeddings", {"input": texts, **body}), bodies))
    for body, answer in zip(bodies, answers, strict=True):
        expected = local.embed(texts, body.get("input_type", "document"), prompt=body.get("prompt"))
        np.testing.assert_allclose(vectors(answer), expected, atol=1e-6)


def test_prompts_of_the_endpoint_override_the_files(models_folder):
    """Prompts of an endpoint override the model's files; a role without an entry keeps the prompt of the files."""
    folder, prompts = models_folder("named", prompts=PROMPTS), {"query": "bright "}
    with (
        serving(EndpointConfig(model=str(folder), prompts=prompts)) as running,
        Embedder.load(folder, threads=1, prompts=prompts) as local,
    ):
        for role in ("query", "document"):
            answer = running.post("/v1/embeddings", {"input": TEXTS, "input_type": role})
            np.testing.assert_array_equal(vectors(answer), local.embed(TEXTS, role))
            assert answer.headers["x-penult-fingerprint"] == local.fingerprint
        assert running.get("/info").json()["prompts"] == {"query": "bright ", "document": "passage: "}
        assert running.get("/config").json()["endpoints"][0]["prompts"] == prompts


def test_the_openapi_document_lists_the_prompts(prompted):
    """The OpenAPI document lists the allowed values of `prompt_name`, including the model's own names."""
    body = prompted[0].get("/openapi.json").json()["paths"]["/v1/embeddings"]["post"]["requestBody"]
    listed = body["content"]["application/json"]["schema"]["properties"]["prompt_name"]["anyOf"][0]["enum"]
    assert {*PROMPTS, "document", "web_search_query"} <= {*listed}


def test_a_model_without_a_stated_pooling(models_folder):
    """If neither the files nor the endpoint state the pooling, the OpenAI route names the missing key, and the DeepSparse routes work."""
    folder = models_folder("unsaid", pooling=None)
    with serving(DeepSparseEndpoint(model=str(folder), task=TASK)) as running:
        answer = running.post("/v1/embeddings", {"input": "a"})
        assert answer.status_code == 501
        assert "pooling" in answer.json()["error"]["message"]
        assert running.post("/predict", {"inputs": "a"}).status_code == 200
    endpoint = DeepSparseEndpoint(model=str(folder), kwargs={"extraction_strategy": "cls_token"})
    with serving(endpoint) as running, Embedder.load(folder, pooling="cls", threads=1) as local:
        np.testing.assert_array_equal(vectors(running.post("/v1/embeddings", {"input": "a cat"})), local.embed(["a cat"]))
