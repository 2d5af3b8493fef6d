"""The health routes of every protocol; they need no key.

DeepSparse up to 1.5 answered `true`, from 1.6 on `{"status": "OK"}`. TEI's clients check only the status code.
"""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from penult.server.service import Service


class Ready(BaseModel):
    """The server is healthy."""

    status: Literal["OK"]


def add(app: FastAPI, service: Service) -> None:
    """Add the health routes to an application."""
    unhealthy: dict[int | str, dict[str, Any]] = {503: {"description": "A model no longer responds."}}

    async def old() -> JSONResponse:
        return health_response(service, content=True)

    async def new() -> JSONResponse:
        return health_response(service, content={"status": "OK"})

    existing = {getattr(route, "path", None) for route in app.routes}  # an extension may have its own route
    for path in [path for path in ("/ping", "/health", "/healthcheck", "/status") if path not in existing]:
        app.add_api_route(path, old, tags=["health"], summary="Check health", response_model=bool, responses=unhealthy)
    for path in ("/v2/health/live", "/v2/health/ready"):
        app.add_api_route(path, new, tags=["health"], summary="Check health", response_model=Ready, responses=unhealthy)


def health_response(service: Service, *, content: object) -> JSONResponse:
    """Return 200 with `content` if the queue thread of every model runs, else 503."""
    if service.models.alive:
        return JSONResponse(content)
    return JSONResponse({"detail": "A model no longer responds. Restart the server."}, 503)
