"""Byte order marks and invalid characters in the body."""

import json

import pytest

BODY = json.dumps({"input": "the cat", "inputs": "the cat", "model": "m"}).encode()


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/embed_all", "/tokenize", "/predict"])
def test_a_byte_order_mark_is_skipped(client, path):
    """A UTF-8 byte order mark is skipped; UTF-16 is refused by name."""
    answer = client.post(path, content=b"\xef\xbb\xbf" + BODY)
    assert (answer.status_code, answer.content) == (200, client.post(path, content=BODY).content)
    answer = client.post(path, content=BODY.decode().encode("utf-16"))
    assert answer.status_code in (400, 422)
    assert "UTF-16" in answer.text


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/embeddings", b'{"input":["good","half \\ud83d emoji"]}', "Text 1 of `input` has a lone surrogate U+D83D at character 5"),
        ("/v1/embeddings", b'{"input":"\\uDE00 half"}', "`input` has a lone surrogate U+DE00 at character 0"),
        ("/embeddings", b'{"model":"m","input":["\\ud83d\\ude00","\\ud83d"]}', "Text 1 of `input`"),
        ("/embed", b'{"inputs":["a","b","\\ud83dx"]}', "Text 2 of `inputs`"),
        ("/predict", b'{"inputs":["\\ud83dx"]}', "Text 0 of `inputs`"),
        ("/similarity", b'{"inputs":{"source_sentence":"a","sentences":["b","\\udc00"]}}', "Text 1 of `inputs.sentences`"),
        ("/similarity", b'{"inputs":{"source_sentence":"\\udc00","sentences":["b"]}}', "Text source_sentence of `inputs`"),
        ("/embed", b'{"inputs":"a","prompt":"\\ud800"}', "`prompt` has a lone surrogate"),
        ("/v1/embeddings", b'{"input":["good","caf\xe9"]}', "Text 1 of `input` has a byte that is not UTF-8 at character 3"),
    ],
)  # fmt: skip
def test_invalid_characters(client, path, body, words):
    """A lone surrogate, and bytes that are not UTF-8, are refused with the number of the text."""
    answer = client.post(path, content=body)
    assert answer.status_code == (400 if "embeddings" in path else 422)
    assert words in answer.text.replace("\\u", "")


@pytest.mark.parametrize("body", [b'{"input":["\\ud83d"', b'{"input":["\\ud83d"],}', b"[" * 100_000, b'["\\ud83d"]'])
def test_other_invalid_json(client, body):
    """Invalid JSON for another reason keeps its message."""
    answer = client.post("/v1/embeddings", content=body)
    assert answer.status_code == 400
    assert "The body" in answer.json()["error"]["message"]
