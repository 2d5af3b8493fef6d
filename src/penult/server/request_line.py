"""Methods and paths as clients send them, made into those that the routes know.

Load balancers and uptime probes send `HEAD`; it is answered as `GET`, without a body. `//v1/embeddings` is what a client makes
of a base URL that ends in a slash.
"""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_BEFORE_NAME = re.compile(r"/+v1/+models/")  # a model's name follows, which may be a path with slashes of its own


class RequestLineMiddleware:
    """Passes each request on with the method and the path that the routes know; the server drops the body of a HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application."""
        if scope["type"] == "http":
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            scope = {**scope, "method": method, "path": normalized(scope["path"])}
        await self._app(scope, receive, send)


def normalized(path: str) -> str:
    """Return a path without empty segments, but for those in the name of a model."""
    if "//" not in path:
        return path
    if before := _BEFORE_NAME.match(path):
        return "/v1/models/" + path[before.end() :]
    return re.sub("/{2,}", "/", path)
