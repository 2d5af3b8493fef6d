"""DeepSparse's routes, of both generations, with DeepSparse's numbers.

Up to 1.5: POST /predict, or the endpoint's own `route`. From 1.6: POST /v2/models/NAME/infer, GET /v2/models/NAME and
/v2/models/NAME/ready, GET /v2 and /config, POST and DELETE /endpoints. It knows DeepSparse's JSON; where DeepSparse answered
500 to bad input, this answers 422 and says why.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError

from penult.deepsparse.arguments import TASK
from penult.deepsparse.config_file import DeepSparseEndpoint, read_endpoint
from penult.server.config import ConfigError
from penult.server.errors import Refusal
from penult.server.health import Ready
from penult.server.queued_models import PipelineFace
from penult.server.request_log import facts
from penult.server.requests import Texts, body_of, check, read, respond, while_there
from penult.server.service import Endpoint, Service

_MOST_ENDPOINTS = 16
_OWN = ("pooling", "prompts", "files_from", "model_file", "model_task")  # penult's keys, shown where an endpoint has them
_OFF: dict[str, Any] = {"enable": False, "target_loggers": []}
_LOGGING = {
    "enable": True,
    "inference_details": {"enable": False, "target_loggers": []},
    "prediction_latency": {"enable": True, "target_loggers": []},
}


class EmbeddingExtractionInput(BaseModel):
    """What a client sends."""

    inputs: Texts


class EmbeddingExtractionOutput(BaseModel):
    """What a client gets: one flat list of numbers a text."""

    embeddings: list[list[float]]


class ModelMeta(BaseModel):
    """Where a model came from."""

    model_config = ConfigDict(protected_namespaces=())

    model_path: str


class EndpointBody(BaseModel):
    """An endpoint of a configuration file."""

    model_config = ConfigDict(extra="allow")

    task: str
    model: str


class Trouble(BaseModel):
    """What went wrong."""

    detail: Any


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Trouble, "description": words}
    for status, words in (
        (401, "The key is missing or wrong."),
        (413, "The body is too large."),
        (422, "The body is not what the route takes, a text is too long, or there are too many."),
        (429, "Too many requests wait; see Retry-After."),
        (501, "The model cannot be used for this route."),
    )
}


def add(app: FastAPI, service: Service) -> None:
    """Give an application the routes."""
    for endpoint in service.endpoints:
        add_endpoint(app, service, endpoint)

    async def config() -> JSONResponse:
        return JSONResponse(_config(service))

    async def hello() -> str:
        return "This is the deepsparse server. Hello!"  # clients tell the generation by this very sentence

    async def add_one(request: Request) -> JSONResponse:
        _may_change(request, service)
        return await _add(app, service, await request.body())

    async def delete_one(request: Request) -> bool:
        _may_change(request, service)
        return _delete(app, service, await request.body())

    app.add_api_route("/config", config, tags=["DeepSparse"], summary="The configuration", responses={401: ERRORS[401]})
    app.add_api_route("/v2", hello, tags=["DeepSparse"], summary="Say hello", responses={401: ERRORS[401]})
    # Not in the document: they are for who runs the server.
    app.add_api_route("/endpoints", add_one, methods=["POST"], include_in_schema=False)
    app.add_api_route("/endpoints", delete_one, methods=["DELETE"], include_in_schema=False)


def add_endpoint(app: FastAPI, service: Service, endpoint: Endpoint) -> None:
    """Add the routes of one endpoint."""
    base = _base(service)
    infer = _infer(service, endpoint)

    async def meta() -> ModelMeta:
        return ModelMeta(model_path=endpoint.config.model)

    async def ready() -> Ready:
        return Ready(status="OK")

    key: dict[int | str, dict[str, Any]] = {401: ERRORS[401]}
    paths = {f"{base}/{name}": name for name in (endpoint.name, *endpoint.aliases)}
    for path, name in paths.items():
        shown = name == endpoint.name
        _check_free(app, f"{path}/infer", endpoint.config)
        _add_infer(app, f"{path}/infer", infer, shown=shown)
        app.add_api_route(
            path, meta, tags=["DeepSparse"], summary="Where the model came from", include_in_schema=shown, responses=key
        )
        app.add_api_route(
            f"{path}/ready", ready, tags=["DeepSparse"], summary="Check health", include_in_schema=shown, responses=key
        )
        app.add_api_route(f"/v2/models/{name}/benchmark", _benchmark, methods=["POST"], include_in_schema=False)
    for path in _old_paths(service, endpoint.config):
        _check_free(app, path, endpoint.config)
        _add_infer(app, path, infer, shown=True)


def _base(service: Service) -> str:
    return "/invocations" if service.config.integration == "sagemaker" else "/v2/models"


async def _benchmark() -> None:
    raise Refusal("invalid", "A server in use is no place to measure; `penult bench` measures the model.")  # DeepSparse: 500


def _old_paths(service: Service, endpoint: DeepSparseEndpoint) -> list[str]:
    """List where DeepSparse up to 1.5 served an endpoint: at its route, or at /predict where no other has that."""
    if endpoint.route is not None:
        return ["/" + endpoint.route.strip("/")]
    without = [one for one in service.config.endpoints if one.route is None]
    taken = any((one.route or "").strip("/") == "predict" for one in service.config.endpoints)
    if len(without) > 1 or taken or endpoint not in without:
        return []
    return ["/predict", "/invocations"] if service.config.integration == "sagemaker" else ["/predict"]


def _add_infer(app: FastAPI, path: str, infer: Callable[[Request], Awaitable[Response]], *, shown: bool) -> None:
    app.add_api_route(
        path,
        infer,
        methods=["POST"],
        tags=["DeepSparse"],
        summary="Embed texts",
        include_in_schema=shown,
        responses={200: {"model": EmbeddingExtractionOutput}, **ERRORS},
        openapi_extra=body_of(EmbeddingExtractionInput, {"inputs": ["The cat sat on the mat."]}),
    )


def _check_free(app: FastAPI, path: str, config: DeepSparseEndpoint) -> None:
    if any(getattr(route, "path", None) == path for route in app.routes):
        place = f"{config.place}: " if config.place else ""
        raise ConfigError(f"{place}The route {path} is taken already; give the endpoint another.")


def _infer(service: Service, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def infer(request: Request) -> Response:
        asked = await read(request, EmbeddingExtractionInput)
        check(asked.inputs, service.config.limits, "inputs")
        face = await service.models.pipeline_for(endpoint.config)
        return await while_there(request, _answer(request, face, asked.inputs))

    return infer


async def _answer(request: Request, face: PipelineFace, texts: list[str]) -> Response:
    facts(request).texts = len(texts)
    found = await face.embeddings(texts)
    return await respond({"embeddings": list(found.rows)}, sum(row.size for row in found.rows))


def _config(service: Service) -> dict[str, Any]:
    """Give the configuration under DeepSparse's keys."""
    written = service.config.model_dump(exclude_unset=True)
    loggers: Any = written.get("loggers") or {}
    logging_of: Any = written.get("system_logging") or {}
    parts = {name: {**_OFF, **(logging_of.get(name) or {})} for name in ("request_details", "resource_utilization")}
    return {
        "num_cores": written.get("num_cores"),
        "num_workers": written.get("num_workers"),
        "integration": service.config.integration,
        "engine_thread_pinning": written.get("engine_thread_pinning", "core"),
        "pytorch_num_threads": written.get("pytorch_num_threads", 1),
        "endpoints": [_endpoint_config(number, endpoint) for number, endpoint in enumerate(service.endpoints)],
        "loggers": loggers,
        "system_logging": {"enable": logging_of.get("enable", True), **parts},
    }


def _endpoint_config(number: int, endpoint: Endpoint) -> dict[str, Any]:
    config = endpoint.config
    written = config.model_dump(exclude_unset=True)
    return {
        "name": config.name or (endpoint.name if config.route is None else f"{TASK}-{number}"),
        "route": config.route,
        "task": config.task or TASK,
        "model": config.model,
        "batch_size": written.get("batch_size", 1),
        "logging_config": written.get("logging_config") or _LOGGING,
        "data_logging": written.get("data_logging"),
        "bucketing": written.get("bucketing"),
        "middlewares": written.get("middlewares"),
        "kwargs": written.get("kwargs") or {},
        **{key: value for key in _OWN if (value := getattr(config, key)) is not None},
        **(
            {"layer": config.layer}
            if "emb_extraction_layer" not in config.kwargs.model_fields_set and "layer" in written
            else {}
        ),
    }


def _may_change(request: Request, service: Service) -> None:
    """Let endpoints be changed by who has the key; without one, only where none but this machine can ask.

    DeepSparse let everybody on the network load any file of the server.
    """
    config = service.config
    if config.api_key is None and config.host not in ("127.0.0.1", "::1", "localhost"):
        raise Refusal(
            "closed", f"This server listens on {config.host} and has no key: its endpoints cannot be changed. Start it with "
            "--api-key, or with --host 127.0.0.1."
        )  # fmt: skip
    # A page in somebody's browser cannot send this content type here without being asked for leave first.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refusal("media", "Send the endpoint as application/json.")


async def _add(app: FastAPI, service: Service, body: bytes) -> JSONResponse:
    try:
        given = EndpointBody.model_validate_json(body)
    except ValidationError as error:
        wrong = [{**one, "loc": ["body", *one["loc"]]} for one in error.errors(include_url=False, include_context=False)]
        return JSONResponse({"detail": wrong}, 422)
    if len(service.endpoints) >= _MOST_ENDPOINTS:
        raise Refusal("invalid", f"There are {_MOST_ENDPOINTS} endpoints already, that is the most; remove one.")
    try:
        config = read_endpoint(given.model_dump())
        for path in _old_paths(service, config):
            _check_free(app, path, config)
        add_endpoint(app, service, await asyncio.to_thread(service.add, config))
    except (OSError, TypeError, ValueError) as error:
        raise Refusal("invalid", f"The endpoint cannot be added: {error}") from error
    app.openapi_schema = None  # it is made anew when it is next asked for
    return JSONResponse(content=True)


def _delete(app: FastAPI, service: Service, body: bytes) -> bool:
    """Remove an endpoint by its name, its route or a path of its; where none is left of that name, that is well too."""
    try:
        given = EndpointBody.model_validate_json(body)
        config = read_endpoint(given.model_dump())
    except ValueError as error:
        raise Refusal("invalid", f"This is no endpoint: {error}") from error
    named = (config.route or config.name or "").strip("/")
    named = named.removeprefix("v2/models/").removesuffix("/infer")
    for endpoint in [one for one in service.endpoints if named in (one.name, *one.aliases)]:
        service.endpoints.remove(endpoint)
        base = _base(service)
        names = (endpoint.name, *endpoint.aliases)
        paths = {f"{base}/{name}{end}" for name in names for end in ("", "/ready", "/infer")}
        paths |= {f"/v2/models/{name}/benchmark" for name in names} | set(_old_paths(service, endpoint.config))
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) not in paths]
        app.openapi_schema = None
    return True
