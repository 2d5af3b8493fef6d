"""OpenAI's routes: POST /v1/embeddings and GET /v1/models, also without the /v1.

Requests are OpenAI's JSON with `input_type` (the role of the texts, in Cohere's terms), TEI's `prompt_name` and penult's
`prompt`. Vectors can be sent as base64 of little-endian float32, which penult's own client uses.
"""

from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

from penult.server.requests import (
    Base64,
    Dimensions,
    Prompted,
    Texts,
    body_of,
    check,
    headers_of,
    purpose_of,
    read,
    respond,
    shorten,
    tokenize,
    while_there,
)
from penult.server.service import Endpoint, Service


class EmbeddingsRequest(Prompted):
    """Request body."""

    input: Texts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions | None = None
    user: Any = None


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Numbers, or base64 of little-endian float32.")


class Usage(BaseModel):
    """Token counts of the texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """Response body."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class OpenAIErrorBody(BaseModel):
    """Details of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error."""

    error: OpenAIErrorBody


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"]
    data: list[ModelCard]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIError, "description": words}
    for status, words in (
        (400, "The body is not valid JSON, or does not match the schema."),
        (401, "The API key is missing or wrong."),
        (404, "The model is not served."),
        (413, "The body is too large."),
        (422, "A text is too long, or there are too many texts."),
        (429, "The queue is full; see Retry-After."),
        (501, "The model cannot be used for this route."),
    )
}


def add(app: FastAPI, service: Service) -> None:
    """Add the routes to an application."""

    async def embeddings(request: Request) -> Response:
        body = await read(request, EmbeddingsRequest)
        endpoint = service.find(body.model)
        check(body.input, service.config.limits, "input")
        return await while_there(request, _answer(request, service, endpoint, body))

    async def models() -> ModelList:
        return ModelList(object="list", data=[_card(endpoint) for endpoint in service.endpoints])

    async def model(name: str) -> ModelCard:
        return _card(next((e for e in service.endpoints if e.model_id == name), None) or service.find(name))

    for path in ("/v1/embeddings", "/embeddings"):  # the second: for clients with a base URL without /v1
        app.add_api_route(
            path,
            embeddings,
            methods=["POST"],
            tags=["OpenAI"],
            summary="Embed texts",
            include_in_schema=path.startswith("/v1"),
            responses={200: {"model": EmbeddingsResponse}, **ERRORS},
            openapi_extra=body_of(
                EmbeddingsRequest,
                {"input": ["The cat sat on the mat."], "model": _example(service)},
                dimension=service.dimension,
                prompt_names=service.prompt_names,
            ),
        )
    known: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 404)}
    for base in ("/v1/models", "/models"):
        shown = base.startswith("/v1")
        app.add_api_route(
            base, models, tags=["OpenAI"], summary="List the models", include_in_schema=shown, responses={401: ERRORS[401]}
        )
        app.add_api_route(
            base + "/{name:path}", model, tags=["OpenAI"], summary="Describe a model", include_in_schema=shown, responses=known
        )


async def _answer(request: Request, service: Service, endpoint: Endpoint, body: EmbeddingsRequest) -> Response:
    model = await service.models.embedder_for(endpoint.config)
    purpose = purpose_of(body, model.embedder.recipe)
    tokenized = await tokenize(request, body.input, model.tokenize(body.input, purpose))
    vectors = await model.vectors(tokenized)
    own = body.dimensions is None
    if not own:  # the same as `dimensions=` of `Embedder.load`
        vectors = shorten(vectors, body.dimensions, normalize=model.recipe(purpose.role).ends_normalized)
    as_text = body.encoding_format == "base64"
    items = [Base64(row) for row in vectors] if as_text else vectors
    data = [{"object": "embedding", "index": i, "embedding": item} for i, item in enumerate(items)]
    tokens = int(tokenized.counts.sum())
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    content = {"object": "list", "data": data, "model": endpoint.model_id, "usage": usage}
    return await respond(content, vectors.size, headers_of(model, tokenized, own=own))


def _card(endpoint: Endpoint) -> ModelCard:
    return ModelCard(id=endpoint.model_id, object="model", created=0, owned_by="penult")


def _example(service: Service) -> str:
    return service.endpoints[0].model_id if service.endpoints else "model"
