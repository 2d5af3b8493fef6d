"""Large responses are serialized in parts, so that other requests are answered meanwhile, without a change of the bytes."""

import base64
import json

import numpy as np
import orjson
import pytest
from server_kit import serving

from penult.server import EndpointConfig, requests
from penult.server.requests import Base64, respond

DRAW = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "content",
    [
        [],
        numbers(0),
        numbers(0, 3),
        numbers(3, 0),
        numbers(5, 7),
        [numbers(3, 4), numbers(1, 4)],
        {"data": [{"index": 0, "embedding": numbers(65_536)}, {"embedding": numbers(65_537)}], "x": "é", "n": None},
        numbers(2, 3, 4),
        np.array([0.1, -0.0, 1e-38, 3e38, 16777216, 1 / 3], np.float32),
        numbers(200_001),
    ],
)
async def test_response_bytes(content):
    """A response serialized in parts has the bytes that orjson writes at once."""
    answer = await respond(content, 1_000_000)
    assert answer.body == orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


async def test_each_part_is_small(monkeypatch):
    """Each step serializes few numbers, whatever the size of the response."""
    steps = []
    dumps = orjson.dumps

    def recorded(value, **options):
        if isinstance(value, np.ndarray):
            steps.append(value.size)
        return dumps(value, **options)

    monkeypatch.setattr(requests.orjson, "dumps", recorded)
    await respond([numbers(300, 1024), numbers(400_000)], 1_000_000)
    assert max(steps) <= 65_536
    assert sum(steps) == 300 * 1024 + 400_000


async def test_base64():
    """A vector can be serialized as base64 of its little-endian bytes."""
    vector = numbers(384)
    answer = await respond([Base64(vector)], 384)
    (text,) = json.loads(answer.body)
    assert base64.b64decode(text) == vector.tobytes()


async def test_objects_that_are_not_json():
    """Any other object in a response raises TypeError."""
    with pytest.raises(TypeError):
        await respond({"x": object()}, 0)


def test_large_response(tiny):
    """A large response has the same vectors as small ones, as numbers and as base64."""
    texts = [f"the cat sat on mat {i}" for i in range(200)] * 20
    with serving(EndpointConfig(model=str(tiny)), limits={"max_client_batch_size": 5000}) as running:
        small = [running.post("/v1/embeddings", {"input": texts[i : i + 100]}).json()["data"] for i in (0, 100)]
        large = running.post("/v1/embeddings", {"input": texts}).json()["data"]
        assert [one["embedding"] for one in large[:200]] == [one["embedding"] for part in small for one in part]
        coded = running.post("/v1/embeddings", {"input": texts, "encoding_format": "base64"}).json()["data"]
        vectors = np.array([one["embedding"] for one in large], np.float32)
        assert [base64.b64decode(one["embedding"]) for one in coded] == [row.tobytes() for row in vectors]
