"""HTTP bodies: vectors or a JSON error on every route, and never an internal server error."""

import asyncio
import json
import tempfile
import warnings
from pathlib import Path

import httpx
from draw import Draw, altered
from models import tiny_model

from penult.deepsparse import routes
from penult.deepsparse.config_file import DeepSparseEndpoint, DeepSparseServer
from penult.server import Limits
from penult.server.app import create_app
from penult.types import TruncationWarning

ROUTES = {
    "/v1/embeddings": {"input": ["the cat"], "model": "m", "encoding_format": "base64", "dimensions": 4, "input_type": "query"},
    "/embed": {"inputs": ["the cat"], "truncate": True, "normalize": False, "dimensions": 3, "prompt_name": "query"},
    "/embed_all": {"inputs": "the cat", "truncate": False, "truncation_direction": "Left"},
    "/predict": {"inputs": ["the cat", "a"]},
    "/v2/models/transformers_embedding_extraction-0/infer": {"inputs": "the cat"},
    "/endpoints": {"task": "embeddings", "model": "no such folder", "kwargs": {}},
}
SEEDS = [bytes([0, i, *range(i, 40)]) for i in range(len(ROUTES))] + [bytes([1, i]) + b'{"inputs": ["a"]}' for i in range(5)]
warnings.simplefilter("ignore", TruncationWarning)
LOOP = asyncio.new_event_loop()
MODEL = tiny_model(Path(tempfile.mkdtemp()) / "tiny")
APP = create_app(
    DeepSparseServer(
        endpoints=(DeepSparseEndpoint(model=str(MODEL), kwargs={"extraction_strategy": "reduce_mean"}),),
        threads=1,
        limits=Limits(max_body_bytes=10_000, max_client_batch_size=20, max_text_chars=1000),
    ),
    routes.add,
)
LIFE = APP.router.lifespan_context(APP)
LOOP.run_until_complete(LIFE.__aenter__())
CLIENT = httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://x")


def one(data: bytes) -> None:
    """Send a body with changed values, or the bytes themselves, to a route."""
    draw = Draw(data)
    plain, route = draw.whole(1), draw.of(list(ROUTES))
    body = draw.take(20_000) if plain else json.dumps(altered(draw, ROUTES[route])).encode()
    reply = LOOP.run_until_complete(CLIENT.post(route, content=body))
    assert reply.status_code < 500, (reply.status_code, reply.text)
    said = reply.json()
    assert reply.status_code == 200 or said
