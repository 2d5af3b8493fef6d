"""TEI's /tokenize, /decode, /similarity and truncation_direction, against the tokenizer's own package and the embedder."""

import numpy as np
import pytest
from server_kit import serving
from tokenizers import Tokenizer

from penult import Embedder
from penult.server import EndpointConfig, tei_tokens

TEXTS = ["the cat sat on the mat", "", "Ünïcode naïve", "cat " * 500]


@pytest.fixture(scope="module")
def plain(tiny):
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@pytest.mark.parametrize("special", [True, False])
def test_tokenize(client, plain, special):
    """/tokenize returns all tokens of each text, without truncation, with their character offsets."""
    answer = client.post("/tokenize", json={"inputs": TEXTS, "add_special_tokens": special})
    assert answer.status_code == 200
    for text, tokens in zip(TEXTS, answer.json(), strict=True):
        encoding = plain.encode(text, add_special_tokens=special)
        assert [token["id"] for token in tokens] == encoding.ids
        assert [int(token["special"]) for token in tokens] == encoding.special_tokens_mask
        for token, (start, stop), name in zip(tokens, encoding.offsets, encoding.tokens, strict=True):
            expected = (name, None, None) if token["special"] else (text[start:stop], start, stop)
            assert (token["text"], token["start"], token["stop"]) == expected


def test_decode(client, plain):
    """/decode accepts the ids of one text or of several."""
    ids = plain.encode(TEXTS[0]).ids
    assert client.post("/decode", json={"ids": ids}).json() == [plain.decode(ids)]
    body = {"ids": [ids, ids[:3]], "skip_special_tokens": False}
    assert client.post("/decode", json=body).json() == [plain.decode(one, skip_special_tokens=False) for one in (ids, ids[:3])]
    assert client.post("/decode", json={"ids": [2_000_000_000]}).status_code == 200
    assert client.post("/decode", json={"ids": []}).json() == [""]
    words = client.post("/decode", json={"ids": ["a"] * 5000}).json()["error"]
    assert words.startswith("`ids.0.0`: ")  # only the first error


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {"inputs": []}, 400),
        ("/tokenize", {"inputs": ["a"] * 101}, 413),
        ("/tokenize", {"inputs": ["a" * 4000] * 40}, 413),
        ("/tokenize", {"inputs": 5}, 422),
        ("/tokenize", {"inputs": ["a"] * 100, "prompt": "a" * 4000}, 413),
        ("/decode", {"ids": [1] * 5001}, 413),
        ("/decode", {"ids": [1, [2]]}, 422),
        ("/decode", {"ids": [[]] * 5001}, 413),
        ("/decode", {"ids": [-1]}, 422),
        ("/decode", {"ids": [2**40]}, 422),
        ("/decode", {"ids": "a"}, 422),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["a"] * 101}}, 413),
        ("/similarity", {"inputs": {"source_sentence": "a" * 6000, "sentences": ["a"]}}, 413),
        ("/similarity", {"inputs": {"sentences": ["a"]}}, 422),
        ("/similarity", {"inputs": ["a"]}, 422),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"prompt_name": "no"}}, 422),
    ],
)
def test_limits_have_teis_error_format(client, monkeypatch, path, body, status):
    """Each limit has its status and its message."""
    monkeypatch.setattr(tei_tokens, "MAX_CHARS", 100_000)
    monkeypatch.setattr(tei_tokens, "MAX_IDS", 5000)
    answer = client.post(path, json=body)
    assert (answer.status_code, set(answer.json())) == (status, {"error", "error_type"})


def test_similarity(client, embedder):
    """/similarity returns the cosine of each sentence with the source."""
    source, *others = texts = ["the cat sat", "a cat was sitting", "the moon", "the cat sat"]
    answer = client.post("/similarity", json={"inputs": {"source_sentence": source, "sentences": others}})
    vectors = embedder.embed(texts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(answer.json(), vectors[1:] @ vectors[0], atol=1e-6)
    assert answer.json()[2] == pytest.approx(1)


def test_truncation_direction(client, tiny, embedder):
    """A request can choose the truncation side; the vector equals that of a model loaded with this side."""
    long = " ".join(f"cat dog {i}" for i in range(80))
    with Embedder.load(tiny, truncate="left", threads=1) as left:
        expected = left.embed([long, "cat"])
    for direction in ("Left", "left"):
        answer = client.post("/embed", json={"inputs": [long, "cat"], "truncation_direction": direction})
        np.testing.assert_array_equal(np.array(answer.json(), np.float32), expected)
        assert answer.headers["x-penult-truncated"] == "1"
        assert "x-penult-fingerprint" not in answer.headers  # these vectors do not follow the recipe
    answer = client.post("/embed", json={"inputs": [long, "cat"], "truncation_direction": "Right"})
    np.testing.assert_array_equal(np.array(answer.json(), np.float32), embedder.embed([long, "cat"]))
    assert answer.headers["x-penult-fingerprint"] == embedder.fingerprint
    tokens = client.post("/embed_all", json={"inputs": long, "truncation_direction": "Left"}).json()[0]
    whole = client.post("/embed_all", json={"inputs": long}).json()[0]
    assert len(tokens) == len(whole) == 64
    assert tokens != whole


def test_a_server_that_truncates_on_the_left(tiny):
    """The request's truncation direction overrides the server's."""
    long = " ".join(f"cat dog {i}" for i in range(80))
    with (
        serving(EndpointConfig(model=str(tiny), truncate="left")) as running,
        Embedder.load(tiny, threads=1) as right,
        Embedder.load(tiny, truncate="left", threads=1) as left,
    ):
        for direction, embedder in (({}, left), ({"truncate": True}, left), ({"truncation_direction": "Right"}, right)):
            answer = running.post("/embed", {"inputs": long, **direction})
            np.testing.assert_array_equal(np.array(answer.json(), np.float32), embedder.embed([long]))


def test_a_server_that_refuses_long_texts(tiny):
    """With truncate: error, long texts are refused on every route, unless the request sets TEI's `truncate`."""
    with serving(EndpointConfig(model=str(tiny), truncate="error")) as running:
        assert running.get("/info").json()["auto_truncate"] is False
        refused = running.post("/v1/embeddings", {"input": ["cat", "cat " * 90]})
        assert (refused.status_code, "texts[1] has 92 tokens" in refused.text) == (422, True)
        assert running.post("/embed", {"inputs": "cat " * 90}).status_code == 413
        assert running.post("/embed", {"inputs": "cat " * 90, "truncate": True}).status_code == 200
        assert running.post("/embed", {"inputs": "cat " * 90, "truncate": False}).status_code == 413
