"""Normalize the method and the path of a request before routing.

Load balancers and uptime probes send `HEAD`, which is answered like `GET` without a body. Clients with a base URL that ends in
a slash send `//v1/embeddings`.
"""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_BEFORE_NAME = re.compile(r"/+v1/+models/")  # a model name follows, which may contain slashes


class RequestLineMiddleware:
    """ASGI middleware that normalizes method and path; uvicorn drops the body of a HEAD response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application."""
        if scope["type"] == "http":
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            scope = {**scope, "method": method, "path": normalized(scope["path"])}
        await self._app(scope, receive, send)


def normalized(path: str) -> str:
    """Return a path without empty segments, except those in the name of a model."""
    if "//" not in path:
        return path
    if before := _BEFORE_NAME.match(path):
        return "/v1/models/" + path[before.end() :]
    return re.sub("/{2,}", "/", path)
