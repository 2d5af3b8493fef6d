"""The routes of Text Embeddings Inference: POST /embed and /embed_all, GET /info and /metrics.

It knows TEI's JSON. TEI serves one model; here that is the first endpoint, or the one that `model` names.
"""

from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field, StrictBool

from penult._version import __version__
from penult.server import metrics
from penult.server.errors import Refusal
from penult.server.queued_models import EmbedderFace, Measured, Purpose
from penult.server.request_log import facts
from penult.server.requests import (
    MAX_PROMPT_CHARS,
    Dimensions,
    Prompted,
    Texts,
    body_of,
    check,
    headers_of,
    prompt_names,
    purpose_of,
    read,
    respond,
    shorten,
    while_there,
)
from penult.server.service import Endpoint, Service


class EmbedAllRequest(Prompted):
    """What a client sends to /embed_all."""

    inputs: Texts
    truncate: StrictBool | None = Field(None, description="false: a text that is too long is refused instead of cut.")
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    model: str | None = Field(None, description="Which of several models; the first, where it is left out.")


class EmbedRequest(EmbedAllRequest):
    """What a client sends to /embed."""

    normalize: StrictBool | None = Field(None, description="true, the default: each vector has length 1.")
    dimensions: Dimensions | None = None


class TEIError(BaseModel):
    """An error."""

    error: str
    error_type: str


class Info(BaseModel):
    """What is served; the last nine keys are penult's own."""

    model_config = {"protected_namespaces": ()}

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None
    server: Literal["penult"]
    fingerprint: str
    dimension: int
    normalized: bool
    prompts: dict[str, str]
    prompt_names: list[str]
    max_prompt_chars: int
    max_body_bytes: int
    max_text_chars: int


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": TEIError, "description": words}
    for status, words in (
        (400, "No texts."),
        (401, "The key is missing or wrong."),
        (404, "No such model."),
        (413, "The body, a text or the number of texts is over a limit."),
        (422, "The body is not what the route takes."),
        (424, "The model cannot be used for this route."),
        (429, "Too many requests wait; see Retry-After."),
    )
}


def add(app: FastAPI, service: Service) -> None:
    """Give an application the routes."""

    async def embed_route(request: Request) -> Response:
        asked = await read(request, EmbedRequest)
        return await while_there(request, _embed(request, service, asked))

    async def embed_all(request: Request) -> Response:
        asked = await read(request, EmbedAllRequest)
        return await while_there(request, _embed_all(request, service, asked))

    async def info(model: str | None = None) -> Info:
        endpoint = _endpoint(service, model)
        return _info(service, endpoint, await service.models.embedder_for(endpoint.config))

    async def scrape() -> Response:
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)

    for path, route, kind, answers in (
        ("/embed", embed_route, EmbedRequest, list[list[float]]),
        ("/embed_all", embed_all, EmbedAllRequest, list[list[list[float]]]),
    ):
        app.add_api_route(
            path,
            route,
            methods=["POST"],
            tags=["TEI"],
            summary="Embed texts" if path == "/embed" else "Embed every token of texts",
            responses={200: {"model": answers}, **ERRORS},
            openapi_extra=body_of(
                kind,
                {"inputs": ["The cat sat on the mat."]},
                dimension=service.dimension,
                prompt_names=service.prompt_names,
            ),
        )
    known: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 404, 422, 424)}
    app.add_api_route("/info", info, tags=["TEI"], summary="Say what is served", responses=known)
    app.add_api_route(
        "/metrics",
        scrape,
        tags=["health"],
        summary="Prometheus metrics",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
    )


async def _embed(request: Request, service: Service, asked: EmbedRequest) -> Response:
    face, purpose = await _open(service, asked)
    if asked.normalize is False and face.recipe(purpose.role).unit_length:  # the same model without its last step
        face = await service.models.embedder_for(_endpoint(service, asked.model).config.model_copy(update={"normalize": False}))
    measured = await _measured(request, face, asked, purpose)
    found = await face.vectors(asked.inputs, purpose, measured)
    lengthen = asked.normalize is not False and not face.recipe(purpose.role).unit_length
    own = asked.dimensions is None and not lengthen
    vectors = found.rows if own else shorten(found.rows, asked.dimensions, normalize=asked.normalize is not False)
    return await respond(vectors, vectors.size, headers_of(face, found, own=own))


async def _embed_all(request: Request, service: Service, asked: EmbedAllRequest) -> Response:
    face, purpose = await _open(service, asked)
    found = await face.tokens(asked.inputs, purpose, await _measured(request, face, asked, purpose))
    return await respond(list(found.rows), found.tokens * face.embedder.dimension, headers_of(face, found, own=False))


async def _open(service: Service, asked: EmbedAllRequest) -> tuple[EmbedderFace, Purpose]:
    endpoint = _endpoint(service, asked.model)
    check(asked.inputs, service.config.limits, "inputs")
    face = await service.models.embedder_for(endpoint.config)
    return face, purpose_of(asked, face.embedder.recipe)


async def _measured(request: Request, face: EmbedderFace, asked: EmbedAllRequest, purpose: Purpose) -> Measured:
    noted = facts(request)
    noted.texts = len(asked.inputs)
    measured = await face.measure(asked.inputs, purpose)
    noted.tokens, noted.truncated = sum(measured.sizes), len(measured.cut)
    recipe = face.recipe(purpose.role)
    longest = face.embedder.recipe.longest(purpose.role)
    if measured.cut and asked.truncate is False:
        raise Refusal(
            "text",
            f"`inputs` must have at most {longest} tokens; text {measured.cut[0]} has more, and `truncate` is false.",
            param="inputs",
        )
    if measured.cut and (asked.truncation_direction or recipe.side).lower() != recipe.side:
        raise Refusal(
            "invalid",
            f"`truncation_direction` is {asked.truncation_direction!r}, text {measured.cut[0]} is too long, and this server "
            f"cuts on the {recipe.side}; cut it before.",
            param="truncation_direction",
        )
    return measured


def _endpoint(service: Service, model: str | None) -> Endpoint:
    return service.first if model is None else service.find(model)


def _info(service: Service, endpoint: Endpoint, face: EmbedderFace) -> Info:
    recipe, limits = face.embedder.recipe, service.config.limits
    return Info(
        model_id=endpoint.config.model,
        model_sha=recipe.graph_sha256,
        model_dtype="float32" if recipe.precision == "fp32" else recipe.precision,
        served_model_name=endpoint.model_id,
        model_type={"embedding": {"pooling": "+".join(recipe.poolings) or "none"}},
        max_concurrent_requests=limits.max_concurrent_requests,
        max_input_length=recipe.max_length,
        max_batch_tokens=limits.max_tick_tokens,
        max_batch_requests=None,
        max_client_batch_size=limits.max_client_batch_size,
        auto_truncate=True,
        tokenization_workers=1,
        version=__version__,
        sha=None,
        docker_label=None,
        server="penult",
        fingerprint=face.fingerprint,
        dimension=face.embedder.dimension,
        normalized=recipe.unit_length,
        prompts={str(role): prompt for role, prompt in recipe.prompts.items()},
        prompt_names=prompt_names(recipe),
        max_prompt_chars=MAX_PROMPT_CHARS,
        max_body_bytes=limits.max_body_bytes,
        max_text_chars=limits.max_text_chars,
    )
