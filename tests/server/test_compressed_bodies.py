"""Compressed bodies: decompression, limit on the decompressed size, unsupported encodings."""

import gzip
import json
import tracemalloc
import zlib

import pytest

from penult.server.compressed_bodies import CompressedBodyMiddleware
from penult.server.errors import Refusal

BODY = json.dumps({"input": ["the cat", "a dog"], "model": "m"}).encode()
P = "/v1/embeddings"
PACKED = gzip.compress(BODY, mtime=0)  # the same bytes in every process that collects the tests


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
        ("", bytes),
    ],
)
def test_known_encodings(client, encoding, pack):
    """The response equals that of the uncompressed body."""
    answer = client.post(P, content=pack(BODY), headers={"content-encoding": encoding})
    assert (answer.status_code, answer.content) == (200, client.post(P, content=BODY).content)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress", "gzip;q=1"])
def test_unknown_encodings(client, encoding):
    """The 415 response lists the supported encodings, also in its header."""
    answer = client.post(P, content=gzip.compress(BODY), headers={"content-encoding": encoding})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")
    assert "with gzip, with deflate or uncompressed" in answer.json()["error"]["message"]
    assert client.post("/embed", content=BODY, headers={"content-encoding": encoding}).json()["error_type"] == "Validation"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (BODY, "not valid gzip"),
        (b"", "is incomplete"),
        (PACKED[:-9], "is incomplete"),
        (PACKED[:12], "is incomplete"),
        (PACKED[:-8] + b"12345678", "not valid gzip"),
        (PACKED + b"x", "bytes after the end"),
    ],
)
def test_damaged_bodies(client, body, words):
    """A damaged body is refused with a message."""
    answer = client.post(P, content=body, headers={"content-encoding": "gzip"})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_the_limit_applies_to_the_decompressed_size(client, encoding):
    """A small body that decompresses to more than the limit gets 413."""
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    small = json.dumps({"input": ["cat " * 1000] * 40, "model": "m"}).encode()
    assert len(small) < 200_000
    assert client.post(P, content=pack(small), headers={"content-encoding": encoding}).status_code == 200
    large = json.dumps({"input": ["cat " * 1000] * 60, "model": "m"}).encode()
    packed = pack(large)
    assert len(packed) < 5000
    answer = client.post(P, content=packed, headers={"content-encoding": encoding})
    assert answer.status_code == 413
    assert "200000" in answer.json()["error"]["message"]


async def test_decompression_bomb():
    """A body of 250 kB that decompresses to 256 MB takes the memory of one piece."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    assert len(bomb) < 300_000
    tracemalloc.start()
    with pytest.raises(Refusal) as refused:
        await unpacked(bomb, 1 << 16, limit=32 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.reason == "body"
    assert peak < 8 << 20


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3_000_000])
async def test_pieces_of_any_size(piece, size):
    """A body that arrives in pieces of any size decompresses to the same bytes."""
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert await unpacked(gzip.compress(data), piece, limit=4_000_000) == data


async def unpacked(body: bytes, piece: int, *, limit: int) -> bytes:
    """Send a body in pieces, and return the bytes that the application reads."""
    pieces = [body[start : start + piece] for start in range(0, len(body), piece)]
    received, size = [], 0

    async def receive():
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def application(scope, receive, send):
        nonlocal size
        assert scope["headers"] == [(b"host", b"x")]
        while True:
            message = await receive()
            size += len(message["body"])
            received.append(message["body"] if limit <= 4_000_000 else b"")
            assert len(message["body"]) <= 1 << 20
            if not message["more_body"]:
                return

    scope = {"type": "http", "headers": [(b"host", b"x"), (b"content-encoding", b"gzip"), (b"content-length", b"5")]}
    await CompressedBodyMiddleware(application, max_body_bytes=limit)(scope, receive, None)
    return b"".join(received)
