"""A server's answers: a recognized server, vectors, or one clear error, for any content."""

import json

import numpy as np
from draw import Draw, altered

from penult.protocols import Reply, at, embed, find, prompted

PENULT = {
    "server": "penult", "fingerprint": "f", "dimension": 2, "served_model_name": "m", "max_client_batch_size": 9,
    "max_body_bytes": 999,
}  # fmt: skip
TEI = {"model_id": "m", "model_sha": None, "model_type": {"embedding": {"pooling": "mean"}}, "max_client_batch_size": 32}
PATHS = {"paths": {"/v2/models/a/infer": {"post": {}}, "/predict": {"post": {}}, "/invocations/b/infer": {"post": {}}}}
CONFIG = {"endpoints": [{"name": "a", "route": "/predict", "task": "t", "model": "m", "kwargs": {}}]}
VECTORS = [{"data": [{"embedding": "AACAPwAAgD8="}] * 2}, [[1.0, 2.0]] * 2, {"embeddings": [[1.0, 2.0]] * 2}]
REFUSED = [{"error": "no", "error_type": "x"}, {"error": {"message": "no"}}, {"detail": [{"msg": "no"}]}]
BODIES = [PENULT, TEI, PATHS, CONFIG, *VECTORS, *REFUSED]
STATUSES = [200, 200, 200, 404, 401, 405, 413, 422, 424, 429, 500]
SEEDS = [
    bytes([0, kind, 0, *second, *third])
    for kind in (0, 1, 2)
    for second in ([0, 4, 0], [3, 8, 0])
    for third in ([0] * 9, [1, 5] * 9)
]


def one(data: bytes) -> None:
    """Find a server and embed two texts with it, each answer drawn from the bytes."""
    draw = Draw(data)
    try:
        server = _through(at("/predict") if draw.whole(3) == 3 else find(draw.of([None, None, "a", "m"])), draw)
        for role in ("query", "document"):
            server = _through(prompted(server, role), draw)
            vectors, cut = _through(embed(server, ["a b", "c"], role), draw)
            assert vectors.shape[0] == 2
            assert vectors.dtype == np.float32
            assert np.isfinite(vectors).all()
            assert cut >= 0
    except (ValueError, PermissionError, ConnectionError) as error:
        assert not isinstance(error, UnicodeError)
        assert len(str(error)) < 20_000


def _through(talk, draw):
    """Run a conversation to its end."""
    try:
        next(talk)
        for _ in range(100):
            talk.send(_reply(draw))
    except StopIteration as end:
        return end.value
    raise AssertionError("the conversation does not end")


def _reply(draw: Draw) -> Reply:
    status, headers = draw.of(STATUSES), {}
    kind = draw.whole(len(BODIES) + 2)
    if kind < len(BODIES):
        body = json.dumps(altered(draw, BODIES[kind])).encode()
    else:
        body = b"[" * 100_000 if kind == len(BODIES) else draw.take(draw.whole(40))
    if draw.whole(4) == 4:
        headers = {"x-penult-truncated": draw.text(), "x-penult-fingerprint": draw.of(["f", draw.text()])}
    return Reply(status, headers, body)
