"""The values of a JSON body are counted before it is parsed."""

import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_kit import serving

from penult.server import EndpointConfig, Limits
from penult.server.json_size import has_more_values

TEXTS = st.text(alphabet='\\",{}[]:a é\n', max_size=8)
DOCUMENTS = st.recursive(
    TEXTS | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=40,
)


def commas(value) -> int:
    parts = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return max(0, len(parts) - 1) + sum(map(commas, parts))


def strings(value) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(strings, value.values()))
    return sum(map(strings, value)) if isinstance(value, list) else isinstance(value, str)


@given(DOCUMENTS, st.booleans())
def test_counts_equal_those_of_a_parser(value, ascii_only):
    """The counts of strings and of commas outside of strings are exact."""
    document = json.dumps(value, ensure_ascii=ascii_only).encode()
    exact = max(commas(value), strings(value))
    assert not has_more_values(document, exact)
    assert exact == 0 or has_more_values(document, exact - 1)


@pytest.mark.parametrize("document", [b"", b'"', b'"\\', b'\\"', b'["a', b'"\\"', b"\\\\\\", b'{"a":"b\\\\"'])
def test_truncated_documents(document):
    """Truncated documents are counted, too."""
    assert not has_more_values(document, 2)


@pytest.fixture(scope="module")
def running(tiny):
    with serving(EndpointConfig(model=str(tiny)), limits=Limits(max_client_batch_size=300)) as server:
        yield server


@pytest.mark.parametrize("value", [b"1", b'"a"', b"{}", b"[]", b"1.5", b"null", b'{"a":1}', b'["a"]', b'"\\""'])
def test_bodies_with_too_many_values(running, value):
    """A body with too many values is refused before it is parsed, in the error format of the protocol."""
    body = b'{"input":[' + b",".join([value] * 70_000) + b'],"inputs":"a"}'
    for path, status in (("/v1/embeddings", 422), ("/embed", 413), ("/predict", 422)):
        answer = httpx.post(running.url + path, content=body, timeout=30)
        assert answer.status_code == status
        assert "the limit is 300 texts" in answer.text


def test_large_valid_bodies(running):
    """Long texts with many quotes, backslashes and commas are accepted up to the limit."""
    texts = ['a "quoted, [text]" \\ with \\" all, {of: it} ' * 40] * 300
    assert running.post("/embed", {"inputs": texts}).status_code == 200
    assert running.post("/embed", {"inputs": '",' * 300_000}).status_code == 200
    ids = running.post("/v1/embeddings", {"input": [[7] * 20_000] * 2})
    assert (ids.status_code, "token ids" in ids.text) == (400, True)
    assert "has 301 texts; the limit is 300" in running.post("/embed", {"inputs": ["the cat " * 40] * 301}).text
