"""Invalid responses of servers, many of them found by the fuzzer in fuzz/answers.py: a clear error, or no effect."""

import json

import numpy as np
import pytest

from penult.protocols import Reply, Server, check_prompt, embed, find, fingerprint

DEEP = b"[" * 100_000
INFO = {
    "server": "penult",
    "fingerprint": "f",
    "dimension": 2,
    "served_model_name": "m",
    "max_client_batch_size": 9,
    "max_body_bytes": 999,
}


def converse(talk, *bodies, status=200, headers=None):
    """Run a conversation with these responses; further requests get 404."""
    try:
        next(talk)
        for body in bodies:
            whole = body if isinstance(body, bytes) else json.dumps(body).encode()
            talk.send(Reply(status, headers or {}, whole))
        while True:
            talk.send(Reply(404, {}, b""))
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize("key", [key for key in INFO if key != "server"])
@pytest.mark.parametrize("value", [None, [], -1, 0, True, 1.5, float("inf")])
def test_an_info_without_required_keys(key, value):
    """The error names a key that is missing or has a wrong type."""
    with pytest.raises(ValueError, match=rf"GET /info of the server has '{key}': .*; it must be a"):
        converse(find(None), INFO | {key: value})
    with pytest.raises(ValueError, match=rf"has '{key}': None"):
        converse(find(None), {k: v for k, v in INFO.items() if k != key})


@pytest.mark.parametrize(
    "content", [{}, {"max_prompt_chars": None}, {"max_prompt_chars": "x", "prompts": 5}, {"prompts": None}]
)
def test_an_info_without_prompts(content):
    """Prompts are refused for an older server, which would ignore them."""
    server = converse(find(None), INFO | content)
    with pytest.raises(ValueError, match="too old to support prompts"):
        check_prompt(server, "a")
    assert fingerprint(server, {}) == "f" != fingerprint(server, {"query": "a"}) != fingerprint(server, {"document": "a"})


@pytest.mark.parametrize("limit", ["x", [], -3, 0, float("inf"), True])
def test_an_invalid_limit_of_tei(limit):
    """The limit must be a positive integer or null."""
    with pytest.raises(ValueError, match=r"'max_client_batch_size': .*; it must be an integer"):
        converse(find(None), {"model_id": "m", "max_client_batch_size": limit})
    assert converse(find(None), {"model_id": "m", "max_client_batch_size": None}).max_texts == 64
    assert converse(find(None), {"model_id": "m", "max_client_batch_size": 3}).max_texts == 3


@pytest.mark.parametrize("paths", [{"/predict": None}, {"/predict": 7}, {"/invocations": ["post"]}, [], "x", None, DEEP])
def test_invalid_openapi_documents(paths):
    """The known paths are tried if the document has no paths."""
    with pytest.raises(ValueError, match="base_url is not a supported server"):
        converse(find(None), b"no JSON", paths if isinstance(paths, bytes) else {"paths": paths})


@pytest.mark.parametrize("kind", ["penult", "tei", "deepsparse"])
@pytest.mark.parametrize(
    "content",
    [DEEP, b"", b"\xff", None, 7, [7, 7], [[1, 10**400]] * 2, [[1], None], {"data": 7}, {"data": [[], []]},
     {"data": [{"embedding": "!"}] * 2}, {"data": [{"embedding": [1.0]}] * 2}, {"embeddings": {}}, {"embeddings": [[], []]},
     {"embeddings": [[1e400], [1.0]]}, {"embeddings": [[[1.0]], [[1.0]]]}, [[1.0]], [[1.0], [1.0, 2.0]]],
)  # fmt: skip
def test_invalid_vectors(kind, content):
    """All three protocols refuse these as vectors."""
    with pytest.raises(ValueError, match=r"The server returned .* (instead of 2 vectors|in [12] of 2 vectors)"):
        converse(embed(Server(kind, "/x", "f"), ["a", "b"], "document"), content)


@pytest.mark.parametrize(("counted", "cut"), [("2", 2), ("\u00b2", 0), ("9" * 5000, 0), ("", 0), ("-1", 0), ("x", 0)])
def test_invalid_counts_of_truncated_texts(counted, cut):
    """A header that is not a number counts as 0."""
    talk = embed(Server("tei", "/embed", "f"), ["a"], "document")
    vectors, count = converse(talk, [[1.0, 2.0]], headers={"x-penult-truncated": counted})
    assert np.array_equal(vectors, [[1, 2]])
    assert count == cut


def test_a_long_error_message_is_shortened():
    """Only the beginning of a long server message is repeated."""
    talk = embed(Server("tei", "/embed", "f"), ["a"], "document")
    with pytest.raises(ValueError, match="The server rejected the texts") as caught:
        converse(talk, {"error": "x" * 10**6}, status=422)
    assert len(str(caught.value)) < 3000
