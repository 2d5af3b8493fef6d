"""POST /embed and /embed_all, GET /info and /metrics, as clients of Text Embeddings Inference use them."""

import numpy as np
import pytest
from conftest import data_file
from models import write_json
from prometheus_client.parser import text_string_to_metric_families
from server_kit import serving

from penult import Embedder
from penult.server import EndpointConfig

TEXTS = ["the cat sat", "a dog on the mat", ""]


def test_embed(client, embedder):
    """/embed returns a list of vectors."""
    answer = client.post("/embed", json={"inputs": TEXTS, "truncate": True})
    np.testing.assert_array_equal(np.array(answer.json(), np.float32), embedder.embed(TEXTS))
    assert answer.headers["x-penult-fingerprint"] == embedder.fingerprint
    one = client.post("/embed", json={"inputs": "the cat sat"}).json()
    np.testing.assert_array_equal(np.array(one, np.float32), embedder.embed(["the cat sat"]))


def test_the_final_normalization_can_be_skipped(client, tiny):
    """With `normalize: false`, the final normalization of a model is skipped."""
    result = np.array(client.post("/embed", json={"inputs": TEXTS, "normalize": False}).json(), np.float32)
    with Embedder.load(tiny, normalize=False, threads=1) as raw:
        np.testing.assert_array_equal(result, raw.embed(TEXTS))


def test_embed_all(client, embedder):
    """/embed_all returns the vectors of all tokens, without padding."""
    content = client.post("/embed_all", json={"inputs": TEXTS}).json()
    for ours, local in zip(content, embedder.embed_tokens(TEXTS), strict=True):
        np.testing.assert_array_equal(np.array(ours, np.float32), local)


def test_a_model_without_token_vectors():
    """Static embeddings and graphs that include pooling are refused on /embed_all."""
    with serving(EndpointConfig(model=str(data_file("gallery/potion")))) as running:
        assert running.post("/embed", {"inputs": TEXTS}).status_code == 200
        answer = running.post("/embed_all", {"inputs": TEXTS})
        assert (answer.status_code, answer.json()["error_type"]) == (424, "Backend")
        assert "one vector per text" in answer.json()["error"]


def test_vectors_are_normalized_by_default(models_folder):
    """TEI normalizes unless `normalize` is false, whatever the model does."""
    folder = models_folder("raw", normalize=False)
    with serving(EndpointConfig(model=str(folder))) as running, Embedder.load(folder, threads=1) as local:
        raw = local.embed(TEXTS)
        result = np.array(running.post("/embed", {"inputs": TEXTS}).json())
        np.testing.assert_allclose(result, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-5)
        result = np.array(running.post("/embed", {"inputs": TEXTS, "normalize": False}).json(), np.float32)
        np.testing.assert_array_equal(result, raw)
        result = np.array(running.post("/embed", {"inputs": TEXTS, "normalize": False, "dimensions": 5}).json(), np.float32)
        np.testing.assert_array_equal(result, raw[:, :5])


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        ({"inputs": []}, 400, "Empty", "at least one"),
        ({"inputs": ["a"] * 101}, 413, "Validation", "100"),
        ({"inputs": "a" * 5001}, 413, "Validation", "5000"),
        ({"inputs": "cat " * 63, "truncate": False}, 413, "Validation", "64 tokens"),
        ({"inputs": "cat " * 63, "truncation_direction": "Up"}, 422, "Tokenizer", "truncation_direction"),
        ({"inputs": "cat " * 63, "truncate": False, "truncation_direction": "Left"}, 413, "Validation", "64 tokens"),
        ({"inputs": "a", "dimensions": 1.5}, 422, "Tokenizer", "must be an integer"),
        ({"inputs": [[1, 2]]}, 422, "Tokenizer", "token ids"),
        ({"inputs": 5}, 422, "Tokenizer", "inputs"),
        ({"inputs": "a", "prompt_name": "poem"}, 422, "Tokenizer", "prompt_name"),
        ({"inputs": "a", "dimensions": 33}, 422, "Tokenizer", "at most 32"),
    ],
)
def test_invalid_input_has_teis_error_format(client, body, status, kind, words):
    """Invalid input is refused with TEI's status and error_type."""
    answer = client.post("/embed", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert words in answer.json()["error"]


def test_a_text_of_exactly_the_maximum_length(client):
    """`truncate: false` accepts a text of exactly the maximum length."""
    assert client.post("/embed", json={"inputs": "cat " * 62, "truncate": False}).status_code == 200


def test_info(client, embedder, tiny):
    """/info has the model and the limits under TEI's keys, and the fingerprint."""
    content = client.get("/info").json()
    assert (content["model_id"], content["served_model_name"]) == (tiny.name, tiny.name)  # never a path of the server
    assert content["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (content["max_input_length"], content["max_client_batch_size"], content["max_body_bytes"]) == (64, 100, 200_000)
    assert (content["server"], content["fingerprint"], content["dimension"]) == ("penult", embedder.fingerprint, 32)
    assert content["auto_truncate"] is True


def test_prompts(models_folder):
    """`prompt_name` accepts the names in the model's files, as in TEI, and `prompt` an own prompt."""
    folder = models_folder(
        "named too", prompts={"query": "query: ", "passage": "passage: ", "STS": "the river ", "search_query": "x"}
    )
    with serving(EndpointConfig(model=str(folder))) as running, Embedder.load(folder, threads=1) as local:
        for body, role, prompt in (
            ({"prompt_name": "STS"}, "document", "the river "),
            ({"prompt_name": "query"}, "query", "query: "),
            ({"prompt_name": None}, "document", "passage: "),
            ({"prompt": "fish ", "input_type": "query"}, "query", "fish "),
        ):
            result = np.array(running.post("/embed", {"inputs": TEXTS, **body}).json(), np.float32)
            np.testing.assert_array_equal(result, local.embed(TEXTS, role, prompt=prompt))
            content = running.post("/embed_all", {"inputs": TEXTS, **body}).json()
            for ours, tokens in zip(content, local.embed_tokens(TEXTS, role, prompt=prompt), strict=True):
                np.testing.assert_array_equal(np.array(ours, np.float32), tokens)
        answer = running.post("/embed", {"inputs": "a", "prompt_name": "poem"})
        assert (answer.status_code, answer.json()["error_type"]) == (422, "Tokenizer")
        assert "it must be one of query," in answer.json()["error"]
        assert answer.json()["error"].endswith("STS.")
        content = running.get("/info").json()
        assert content["prompts"] == {"query": "query: ", "document": "passage: "}
        assert {"STS", "search_query", "document"} <= {*content["prompt_names"]}
        assert content["max_prompt_chars"] == 4096


def test_a_maximum_length_per_role(models_folder):
    """`truncate: false` checks queries against the maximum length for queries in the model's files."""
    folder = models_folder("lengths")
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 64, "query_length": 8})
    with serving(EndpointConfig(model=str(folder))) as running:
        ask = {"inputs": "cat " * 20, "truncate": False}
        assert running.post("/embed", ask).status_code == 200
        answer = running.post("/embed", {**ask, "prompt_name": "query"})
        assert (answer.status_code, "at most 8 tokens" in answer.text) == (413, True)
        cut = running.post("/v1/embeddings", {"input": ["cat " * 20, "cat"], "input_type": "query"})
        assert cut.headers["x-penult-truncated"] == "1"
        assert running.get("/info").json()["max_input_length"] == 64


SERIES = {
    "te_request_count", "te_request_success", "te_request_failure", "te_request_duration", "te_request_input_length",
    "te_embed_duration", "te_embed_tokenization_duration", "te_embed_queue_duration", "te_embed_inference_duration",
    "te_queue_size", "te_batch_next_size", "te_batch_next_tokens", "penult_truncated_texts", "penult_disconnects", "penult_http_responses",
}  # fmt: skip


def samples(text: str) -> dict:
    result = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            result[name] = float(value)
    return result


def test_metrics_are_all_there_from_the_first_scrape(tiny):
    """The first scrape has all series and labels, and later scrapes have no others."""
    with serving(EndpointConfig(model=str(tiny))) as running:
        first = running.get("/metrics")
        assert first.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {family.name for family in text_string_to_metric_families(first.text)}
        assert families >= SERIES
        running.post("/embed", {"inputs": "a"})
        running.post("/embed", {"inputs": ["a", "cat " * 63]})
        for bad in ({"inputs": []}, {"inputs": 5}, {"inputs": "a" * 2_000_000}):
            running.post("/embed", bad)
        running.post("/v1/embeddings", {"input": [1]})
        running.get("/nowhere")
        before, after = samples(first.text), samples(running.get("/metrics").text)
    assert {name for name in after if not name.startswith("process")} == {
        name for name in before if not name.startswith("process")
    }
    assert after['te_request_count{method="single"}'] - before['te_request_count{method="single"}'] == 1
    assert after['te_request_success{method="batch"}'] == 1
    assert after['te_request_failure{err="empty"}'] == 1
    assert after['te_request_failure{err="validation"}'] == 3
    assert after["penult_truncated_texts_total"] == 1
    assert after["te_queue_size"] == 0
    assert after["te_embed_duration_count"] == 2
    assert after["te_batch_next_tokens_sum"] == 3 + 3 + 64
