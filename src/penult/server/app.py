"""The web application: the routes of all protocols over one service, behind the middleware.

This module only composes. Each protocol's request and response formats are in its own module.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from inspect import signature
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from penult._version import __version__
from penult.server import docs, health, openai, tei
from penult.server.bodies import Answers, Bodies
from penult.server.browsers import LOOPBACK_ORIGIN, BrowserCheck
from penult.server.compressed_bodies import CompressedBodyMiddleware
from penult.server.config import ServerConfig
from penult.server.connection import STOP_OPENING
from penult.server.errors import no_route
from penult.server.middleware import RequestMiddleware
from penult.server.request_line import RequestLineMiddleware
from penult.server.service import Service

_ABOUT = """Text embeddings on the CPU. The routes of OpenAI (`/v1/embeddings`) and of Text Embeddings Inference (`/embed`)
return vectors with the pooling, prompts and normalization from the model's own files."""

# Chrome sends a preflight request before a public page may use a local server; older versions of Starlette ignore it.
_PRIVATE_NETWORK = {"allow_private_network": True} if "allow_private_network" in signature(CORSMiddleware).parameters else {}

Extend = Callable[[FastAPI, Service], None]


def create_app(config: ServerConfig, extend: Extend | None = None) -> FastAPI:
    """Load the models and return the application.

    Args:
        config: the configuration of the server.
        extend: function that adds further routes.

    Raises:
        FileNotFoundError: a model is missing.
        ValueError: the configuration cannot be served; the message says why.
    """
    service = Service(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {STOP_OPENING: service.models.stop_opening}
        service.models.close()  # every request is answered by now

    app = FastAPI(
        title="penult",
        version=__version__,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    openai.add(app, service)
    tei.add(app, service)
    if extend is not None:
        extend(app, service)
    health.add(app, service)
    docs.add(app)
    app.add_exception_handler(HTTPException, no_route)
    app.state.service = service
    app.openapi()  # cached at start: it takes 0.2 s, which would block the event loop during a request
    # The middleware added last is the outermost.
    in_flight = max(config.limits.max_bodies_in_flight, config.limits.max_body_bytes)
    app.add_middleware(CompressedBodyMiddleware, max_body_bytes=config.limits.max_body_bytes)
    app.add_middleware(
        RequestMiddleware,
        metrics=service.metrics,
        api_key=config.api_key,
        max_body_bytes=config.limits.max_body_bytes,
        bodies=Bodies(in_flight),
        answers=Answers(in_flight),
        browsers=BrowserCheck(config),
    )
    app.add_middleware(RequestLineMiddleware)
    local = config.on_loopback and config.api_key is None
    if config.allow_origin or local:  # outermost: a preflight request has no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allow_origin,
            allow_origin_regex=None if config.allow_origin else LOOPBACK_ORIGIN.pattern,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=("x-penult-truncated", "x-penult-fingerprint", "retry-after"),
            **_PRIVATE_NETWORK,
        )
    return app
