"""DeepSparse's routes, of both generations, with DeepSparse's numbers.

Up to 1.5: POST /predict, or the endpoint's own `route`. From 1.6: POST /v2/models/NAME/infer, GET /v2/models/NAME and
/v2/models/NAME/ready, GET /v2 and /config, POST and DELETE /endpoints. Bad input for which DeepSparse answered 500 gets 422
with a reason.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.routing import BaseRoute

from penult.deepsparse.arguments import TASK
from penult.deepsparse.config_file import DeepSparseEndpoint, DeepSparseServer, read_endpoint
from penult.deepsparse.load_probe import probe_endpoint
from penult.deepsparse.served_pipeline import QueuedPipeline, model_keys, pipeline, pipeline_for
from penult.server.bodies import SMALL
from penult.server.config import ConfigError
from penult.server.errors import Refusal
from penult.server.health import Ready, health_response
from penult.server.requests import Texts, body_of, check, read, respond, tokenize, while_there
from penult.server.service import Endpoint, Service

_ABOUT = "The DeepSparse routes (`/predict`, `/v2/models/NAME/infer`) return DeepSparse's numbers."
_MAX_ENDPOINTS = 16
_OWN = ("served_model_name", "pooling", "prompts", "files_from", "model_file", "model_task")  # shown if an endpoint has them
# Paths of other protocols that an endpoint's own `route` overrides: configuration files may predate these paths.
_YIELDING = ("/embeddings", "/models", "/similarity", "/tokenize", "/decode")
_OFF: dict[str, Any] = {"enable": False, "target_loggers": []}
_LOGGING = {
    "enable": True,
    "inference_details": {"enable": False, "target_loggers": []},
    "prediction_latency": {"enable": True, "target_loggers": []},
}


class EmbeddingExtractionInput(BaseModel):
    """Request body."""

    inputs: Texts


class EmbeddingExtractionOutput(BaseModel):
    """Response body: one flat list of numbers per text."""

    embeddings: list[list[float]]


class ModelMeta(BaseModel):
    """The reference of a model."""

    model_config = ConfigDict(protected_namespaces=())

    model_path: str


class EndpointBody(BaseModel):
    """An endpoint of a configuration file."""

    model_config = ConfigDict(extra="allow")

    task: str
    model: str


class Trouble(BaseModel):
    """Details of an error."""

    detail: Any


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Trouble, "description": words}
    for status, words in (
        (401, "The API key is missing or wrong."),
        (413, "The body is too large."),
        (422, "The body does not match the schema, a text is too long, or there are too many texts."),
        (429, "The queue is full; see Retry-After."),
        (501, "The model cannot be used for this route."),
    )
}


def add(app: FastAPI, service: Service) -> None:
    """Add the routes to an application, and open the pipelines of endpoints whose embedders open at the first request.

    Raises:
        ConfigError: two endpoints have the same path, or a model does not support the settings of its endpoint.
    """
    app.description += f" {_ABOUT}"
    app.state.overridden = {}  # overridden routes of other protocols, by path; restored when the endpoint is removed
    for endpoint in service.endpoints:
        _open(service, _endpoint_of(endpoint))
        add_endpoint(app, service, endpoint)
    if _config_of(service).integration == "sagemaker":
        _add_ping(app, service)

    async def config() -> JSONResponse:
        return JSONResponse(_config(service))

    async def hello() -> str:
        return "This is the deepsparse server. Hello!"  # clients detect the DeepSparse version by this exact sentence

    async def add_one(request: Request) -> JSONResponse:
        _check_may_change(request, service)
        return await while_there(request, _add(app, service, await request.body()))

    async def delete_one(request: Request) -> bool:
        _check_may_change(request, service)
        return await _delete(app, service, await request.body())

    app.add_api_route("/config", config, tags=["DeepSparse"], summary="The configuration", responses={401: ERRORS[401]})
    app.add_api_route("/v2", hello, tags=["DeepSparse"], summary="Greeting of DeepSparse", responses={401: ERRORS[401]})
    # Not in the OpenAPI document: they are for the operator of the server.
    app.add_api_route("/endpoints", add_one, methods=["POST"], include_in_schema=False)
    app.add_api_route("/endpoints", delete_one, methods=["DELETE"], include_in_schema=False)


def _open(service: Service, config: DeepSparseEndpoint) -> None:
    """Open an endpoint's pipeline now, if its embedder opens at the first request."""
    if config.open_at_start:
        return
    try:
        pipeline(service.models, config)
    except (OSError, TypeError, ValueError) as error:
        if not config.place:
            raise
        raise ConfigError(f"{config.place}: {error}") from error


def _add_ping(app: FastAPI, service: Service) -> None:
    """Add SageMaker's health route, with the answer of DeepSparse from 1.6 on."""

    async def ping() -> JSONResponse:
        return health_response(service, content={"status": "OK"})

    responses: dict[int | str, dict[str, Any]] = {503: {"description": "A model no longer responds."}}
    app.add_api_route("/ping", ping, tags=["health"], summary="Check health", response_model=Ready, responses=responses)


def _config_of(service: Service) -> DeepSparseServer:
    """Return the configuration. These routes are added only for a `DeepSparseServer`."""
    return cast("DeepSparseServer", service.config)


def _endpoint_of(endpoint: Endpoint) -> DeepSparseEndpoint:
    return cast("DeepSparseEndpoint", endpoint.config)


def add_endpoint(app: FastAPI, service: Service, endpoint: Endpoint) -> None:
    """Add the routes of one endpoint."""
    base = _base(service)
    infer = _infer(service, endpoint)

    async def meta() -> ModelMeta:
        return ModelMeta(model_path=endpoint.config.model)

    async def ready() -> Ready:
        return Ready(status="OK")

    key: dict[int | str, dict[str, Any]] = {401: ERRORS[401]}
    paths = {f"{base}/{name}": name for name in endpoint.names}
    for path, name in paths.items():
        shown = name == endpoint.names[0]
        _check_free(app, f"{path}/infer", _endpoint_of(endpoint))
        _add_infer(app, f"{path}/infer", infer, shown=shown)
        app.add_api_route(path, meta, tags=["DeepSparse"], summary="Describe the model", include_in_schema=shown, responses=key)
        app.add_api_route(
            f"{path}/ready", ready, tags=["DeepSparse"], summary="Check health", include_in_schema=shown, responses=key
        )
        app.add_api_route(f"/v2/models/{name}/benchmark", _benchmark, methods=["POST"], include_in_schema=False)
    for path in _old_paths(service, _endpoint_of(endpoint)):
        _check_free(app, path, _endpoint_of(endpoint))
        app.state.overridden[path] = _remove_routes(app, {path})
        _add_infer(app, path, infer, shown=True)


def _base(service: Service) -> str:
    return "/invocations" if _config_of(service).integration == "sagemaker" else "/v2/models"


async def _benchmark() -> None:
    raise Refusal("invalid", "This server does not run benchmarks. Run `penult bench` to measure the model.")  # DeepSparse: 500


def _old_paths(service: Service, endpoint: DeepSparseEndpoint) -> list[str]:
    """Return the paths of an endpoint in DeepSparse up to 1.5: its route, or /predict if no other endpoint has it."""
    if endpoint.route is not None:
        return ["/" + endpoint.route.strip("/")]
    without = [one for one in _config_of(service).endpoints if one.route is None]
    taken = any((one.route or "").strip("/") == "predict" for one in _config_of(service).endpoints)
    if len(without) > 1 or taken or endpoint not in without:
        return []
    return ["/predict", "/invocations"] if _config_of(service).integration == "sagemaker" else ["/predict"]


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
    if any(getattr(route, "path", None) == path and not _yields(route) for route in app.routes):
        place = f"{config.place}: " if config.place else ""
        raise ConfigError(f"{place}The route {path} is already in use. Set another route.")


def _yields(route: BaseRoute) -> bool:
    return getattr(route, "path", None) in _YIELDING and "DeepSparse" not in getattr(route, "tags", ())


def _remove_routes(app: FastAPI, paths: set[str]) -> list[BaseRoute]:
    """Remove the routes of some paths, and return them."""
    removed = [route for route in app.router.routes if getattr(route, "path", None) in paths]
    app.router.routes[:] = [route for route in app.router.routes if route not in removed]
    return removed


def _infer(service: Service, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def infer(request: Request) -> Response:
        body = await read(request, EmbeddingExtractionInput)
        check(body.inputs, service.config.limits, "inputs")
        model = await pipeline_for(service.models, _endpoint_of(endpoint))
        return await while_there(request, _answer(request, model, body.inputs))

    return infer


async def _answer(request: Request, model: QueuedPipeline, texts: list[str]) -> Response:
    tokenized = await tokenize(request, texts, model.tokenize(texts))
    items = await model.items(tokenized)
    return await respond({"embeddings": items}, sum(item.size for item in items))


def _config(service: Service) -> dict[str, Any]:
    """Return the configuration under DeepSparse's keys."""
    stated = service.config.model_dump(exclude_unset=True)
    loggers: Any = stated.get("loggers") or {}
    logging_of: Any = stated.get("system_logging") or {}
    parts = {name: {**_OFF, **(logging_of.get(name) or {})} for name in ("request_details", "resource_utilization")}
    return {
        "num_cores": stated.get("num_cores"),
        "num_workers": stated.get("num_workers"),
        "integration": _config_of(service).integration,
        "engine_thread_pinning": stated.get("engine_thread_pinning", "core"),
        "pytorch_num_threads": stated.get("pytorch_num_threads", 1),
        "endpoints": [_endpoint_config(number, endpoint) for number, endpoint in enumerate(service.endpoints)],
        "loggers": loggers,
        "system_logging": {"enable": logging_of.get("enable", True), **parts},
    }


def _endpoint_config(number: int, endpoint: Endpoint) -> dict[str, Any]:
    config = _endpoint_of(endpoint)
    stated = config.model_dump(exclude_unset=True)
    return {
        "name": config.name or (endpoint.names[0] if config.route is None else f"{TASK}-{number}"),
        "route": config.route,
        "task": config.task or TASK,
        "model": config.model,
        "batch_size": stated.get("batch_size", 1),
        "logging_config": stated.get("logging_config") or _LOGGING,
        "data_logging": stated.get("data_logging"),
        "bucketing": stated.get("bucketing"),
        "middlewares": stated.get("middlewares"),
        "kwargs": stated.get("kwargs") or {},
        **{key: value for key in _OWN if (value := getattr(config, key)) is not None},
        **(
            {"layer": config.layer}
            if "emb_extraction_layer" not in config.kwargs.model_fields_set and "layer" in stated
            else {}
        ),
    }


def _check_may_change(request: Request, service: Service) -> None:
    """Refuse changes of endpoints on a server without a key, unless it allows them and listens on a loopback address.

    In DeepSparse, everyone on the network could load any file of the server.
    """
    config = service.config
    if config.workers > 1:
        raise Refusal(
            "closed", f"Endpoints cannot be changed on a server with {config.workers} workers. Set them in the "
            "configuration file, or start the server with --workers 1."
        )  # fmt: skip
    if config.api_key is None and not config.on_loopback:
        raise Refusal(
            "closed", f"Endpoints cannot be changed on a server that listens on {config.host} without an API key. Start "
            "the server with --api-key, or with --host 127.0.0.1 --allow-endpoints."
        )  # fmt: skip
    if config.api_key is None and not config.allow_endpoints:
        raise Refusal(
            "closed", "Endpoints cannot be changed on a server without an API key. Start the server with --api-key or "
            "--allow-endpoints."
        )  # fmt: skip
    # A browser sends this content type to another site only after a preflight request, which fails.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refusal("media", "The Content-Type is not application/json. Send the endpoint as application/json.")


async def _add(app: FastAPI, service: Service, body: bytes) -> JSONResponse:
    _check_size(body)
    try:
        endpoint_body = EndpointBody.model_validate_json(body.decode(errors="replace"))  # the response quotes the body
    except ValidationError as error:
        details = [{**one, "loc": ["body", *one["loc"]]} for one in error.errors(include_url=False, include_context=False)]
        return JSONResponse({"detail": details}, 422)
    try:
        config = read_endpoint(endpoint_body.model_dump())
        _check_addable(app, service, config)
        await probe_endpoint(endpoint_body.model_dump(), service.models)
        await (service.models.embedder_for(config) if config.open_at_start else pipeline_for(service.models, config))
        _check_addable(app, service, config)  # another request may have added an endpoint meanwhile
        add_endpoint(app, service, service.add(config))
    except (OSError, TypeError, ValueError) as error:
        raise Refusal("invalid", f"The endpoint cannot be added: {error}") from error
    app.openapi_schema = None  # the next request generates it again
    return JSONResponse(content=True)


def _check_addable(app: FastAPI, service: Service, config: DeepSparseEndpoint) -> None:
    """Check that the server can have another endpoint, and that its names and paths are free.

    Raises:
        Refusal: the server has the maximum number of endpoints.
        ConfigError: a name or a path is taken.
    """
    if len(service.endpoints) >= _MAX_ENDPOINTS:
        raise Refusal("invalid", f"The limit of {_MAX_ENDPOINTS} endpoints is reached. Remove one.")
    service.named(config)
    for path in _old_paths(service, config):
        _check_free(app, path, config)


def _check_size(body: bytes) -> None:
    if len(body) > SMALL:
        raise Refusal("body", f"The endpoint exceeds the limit of {SMALL} bytes. Send fewer keys.")


async def _delete(app: FastAPI, service: Service, body: bytes) -> bool:
    """Remove the endpoints of a name, route or path, and free their models. It is not an error if there are none."""
    _check_size(body)
    try:
        endpoint_body = EndpointBody.model_validate_json(body)
        config = read_endpoint(endpoint_body.model_dump())
    except ValueError as error:
        raise Refusal("invalid", f"The body is not a valid endpoint: {error}") from error
    named = (config.route or config.name or "").strip("/")
    named = named.removeprefix("v2/models/").removesuffix("/infer")
    for endpoint in [one for one in service.endpoints if named in one.names]:
        service.endpoints.remove(endpoint)
        base = _base(service)
        names = endpoint.names
        paths = {f"{base}/{name}{end}" for name in names for end in ("", "/ready", "/infer")}
        paths |= {f"/v2/models/{name}/benchmark" for name in names} | set(_old_paths(service, _endpoint_of(endpoint)))
        _remove_routes(app, paths)
        for path in paths:
            app.router.routes += app.state.overridden.pop(path, [])
        app.openapi_schema = None
    keys = [key for endpoint in service.endpoints for key in model_keys(_endpoint_of(endpoint))]
    await asyncio.to_thread(service.models.close_unused, keys)  # after their queued requests
    return True
