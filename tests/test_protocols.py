"""Answers that no server should give, many of them found by the fuzzer in fuzz/answers.py: one clear error, or no harm."""

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


def through(talk, *bodies, status=200, headers=None):
    """Lead a conversation with the given answers; what is asked beyond them is not found."""
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
def test_an_info_that_lacks_what_it_must_say(key, value):
    """A key that is missing or of another kind is named."""
    with pytest.raises(ValueError, match=rf"GET /info gives .* as '{key}' where a"):
        through(find(None), INFO | {key: value})
    with pytest.raises(ValueError, match=rf"gives None as '{key}'"):
        through(find(None), {k: v for k, v in INFO.items() if k != key})


@pytest.mark.parametrize("said", [{}, {"max_prompt_chars": None}, {"max_prompt_chars": "x", "prompts": 5}, {"prompts": None}])
def test_an_info_that_says_nothing_of_prompts(said):
    """It is that of an older penult, or of none: prompts are refused instead of sent to a server that leaves them out."""
    server = through(find(None), INFO | said)
    with pytest.raises(ValueError, match="too old to take a prompt"):
        check_prompt(server, "a")
    assert fingerprint(server, {}) == "f" != fingerprint(server, {"query": "a"}) != fingerprint(server, {"document": "a"})


@pytest.mark.parametrize("limit", ["x", [], -3, 0, float("inf"), True])
def test_a_tei_whose_limit_is_none(limit):
    """Its limit is a whole number, or it is refused."""
    with pytest.raises(ValueError, match="as 'max_client_batch_size' where a whole number"):
        through(find(None), {"model_id": "m", "max_client_batch_size": limit})
    assert through(find(None), {"model_id": "m", "max_client_batch_size": None}).max_texts == 64
    assert through(find(None), {"model_id": "m", "max_client_batch_size": 3}).max_texts == 3


@pytest.mark.parametrize("paths", [{"/predict": None}, {"/predict": 7}, {"/invocations": ["post"]}, [], "x", None, DEEP])
def test_an_openapi_document_that_is_none(paths):
    """It names no path, so the known ones are tried."""
    with pytest.raises(ValueError, match="This is no server that penult knows"):
        through(find(None), b"no JSON", paths if isinstance(paths, bytes) else {"paths": paths})


@pytest.mark.parametrize("kind", ["penult", "tei", "deepsparse"])
@pytest.mark.parametrize(
    "said",
    [DEEP, b"", b"\xff", None, 7, [7, 7], [[1, 10**400]] * 2, [[1], None], {"data": 7}, {"data": [[], []]},
     {"data": [{"embedding": "!"}] * 2}, {"data": [{"embedding": [1.0]}] * 2}, {"embeddings": {}}, {"embeddings": [[], []]},
     {"embeddings": [[1e400], [1.0]]}, {"embeddings": [[[1.0]], [[1.0]]]}, [[1.0]], [[1.0], [1.0, 2.0]]],
)  # fmt: skip
def test_vectors_that_are_none(kind, said):
    """Neither of the three contracts takes them for vectors."""
    with pytest.raises(ValueError, match=r"The server answered with .* (asked for|of 2 vectors)\."):
        through(embed(Server(kind, "/x", "f"), ["a", "b"], "document"), said)


@pytest.mark.parametrize(("counted", "cut"), [("2", 2), ("\u00b2", 0), ("9" * 5000, 0), ("", 0), ("-1", 0), ("x", 0)])
def test_a_count_of_cut_texts_that_is_none(counted, cut):
    """A header that is no number counts nothing."""
    talk = embed(Server("tei", "/embed", "f"), ["a"], "document")
    vectors, found = through(talk, [[1.0, 2.0]], headers={"x-penult-truncated": counted})
    assert np.array_equal(vectors, [[1, 2]])
    assert found == cut


def test_a_refusal_of_a_megabyte():
    """Of a server's words, as many are repeated as somebody reads."""
    talk = embed(Server("tei", "/embed", "f"), ["a"], "document")
    with pytest.raises(ValueError, match="The server refused the texts") as caught:
        through(talk, {"error": "x" * 10**6}, status=422)
    assert len(str(caught.value)) < 3000
