"""The routes of Text Embeddings Inference: POST /embed (also as /), /embed_all and /similarity, GET /info and /metrics.

Requests and responses are TEI's JSON. TEI serves one model; here it is the first endpoint, or the one that `model` states.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, FailFast, Field, StrictBool

from penult._version import __version__
from penult.core.tokenized import Tokenized
from penult.server import metrics, tei_tokens
from penult.server.errors import Refusal
from penult.server.queued_models import Purpose, QueuedEmbedder
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
    tokenize,
    while_there,
)
from penult.server.service import Endpoint, Service


class Truncated(BaseModel):
    """Handling of texts that are too long."""

    truncate: StrictBool | None = Field(None, description="false: a text that is too long is rejected instead of truncated.")
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = Field(
        None, description="Side on which such a text is truncated. Default: from the model's files."
    )


class EmbedAllRequest(Prompted, Truncated):
    """Request body of /embed_all."""

    inputs: Texts
    model: str | None = Field(None, description="Name of the model. Default: the first model.")


class EmbedRequest(EmbedAllRequest):
    """Request body of /embed."""

    normalize: StrictBool | None = Field(None, description="Whether vectors are L2-normalized. Default: true.")
    dimensions: Dimensions | None = None


class SimilarityInputs(BaseModel):
    """A text, and the texts that it is compared with."""

    source_sentence: str
    sentences: Annotated[list[str], FailFast(), Field(json_schema_extra={"minItems": 1})]


class SimilarityParameters(Truncated):
    """Prompt and truncation of the texts."""

    prompt_name: str | None = None


class SimilarityRequest(BaseModel):
    """Request body of /similarity."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None
    model: str | None = Field(None, description="Name of the model. Default: the first model.")


class TEIError(BaseModel):
    """An error."""

    error: str
    error_type: str


class Info(BaseModel):
    """The served model and its limits; the keys from `server` on are penult's own."""

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
    served_models: list[str]
    max_prompt_chars: int
    max_body_bytes: int
    max_text_chars: int


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": TEIError, "description": words}
    for status, words in (
        (400, "The list of texts is empty."),
        (401, "The API key is missing or wrong."),
        (404, "The model is not served."),
        (413, "The body, a text or the number of texts exceeds a limit."),
        (422, "The body is not valid JSON, or does not match the schema."),
        (424, "The model cannot be used for this route."),
        (429, "The queue is full; see Retry-After."),
    )
}


def add(app: FastAPI, service: Service) -> None:
    """Add the routes to an application."""

    async def embed_route(request: Request) -> Response:
        body = await read(request, EmbedRequest)
        return await while_there(request, _embed(request, service, body))

    async def embed_all(request: Request) -> Response:
        body = await read(request, EmbedAllRequest)
        return await while_there(request, _embed_all(request, service, body))

    async def similarity(request: Request) -> Response:
        body = await read(request, SimilarityRequest)
        return await while_there(request, _similarity(request, service, body))

    async def info(model: str | None = None) -> Info:
        endpoint = _endpoint(service, model)
        return _info(service, endpoint, await service.models.embedder_for(endpoint.config))

    async def scrape() -> Response:
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)

    for path, route, kind, answers in (
        ("/embed", embed_route, EmbedRequest, list[list[float]]),
        ("/", embed_route, EmbedRequest, list[list[float]]),  # the path that Hugging Face's own clients use
        ("/embed_all", embed_all, EmbedAllRequest, list[list[list[float]]]),
    ):
        app.add_api_route(
            path,
            route,
            methods=["POST"],
            tags=["TEI"],
            summary="Embed every token of the texts" if path == "/embed_all" else "Embed texts",
            include_in_schema=path != "/",
            responses={200: {"model": answers}, **ERRORS},
            openapi_extra=body_of(
                kind,
                {"inputs": ["The cat sat on the mat."]},
                dimension=service.dimension,
                prompt_names=service.prompt_names,
            ),
        )
    app.add_api_route(
        "/similarity",
        similarity,
        methods=["POST"],
        tags=["TEI"],
        summary="Compute the cosine similarity of a text to others",
        responses={200: {"model": list[float]}, **ERRORS},
        openapi_extra=body_of(
            SimilarityRequest,
            {"inputs": {"source_sentence": "A cat sat.", "sentences": ["A cat was sitting.", "The moon."]}},
            prompt_names=service.prompt_names,
        ),
    )
    tei_tokens.add(app, service, ERRORS)
    known: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 404, 422, 424)}
    app.add_api_route("/info", info, tags=["TEI"], summary="Describe the served model", responses=known)
    app.add_api_route(
        "/metrics",
        scrape,
        tags=["health"],
        summary="Prometheus metrics",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
    )


async def _embed(request: Request, service: Service, body: EmbedRequest) -> Response:
    check(body.inputs, service.config.limits, "inputs")
    model, purpose = await _open(service, body, body.model)
    if body.normalize is False and model.recipe(purpose.role).unit_length:  # the same model without the final normalization
        model = await service.models.embedder_for(_endpoint(service, body.model).config.model_copy(update={"normalize": False}))
    tokenized = await _tokenize(request, model, body, body.inputs, purpose)
    vectors = await model.vectors(tokenized)
    normalize, recipe = body.normalize is not False, model.recipe(purpose.role)
    own = body.dimensions is None and (not normalize or recipe.unit_length)
    vectors = vectors if own else shorten(vectors, body.dimensions, normalize=normalize)
    other_side = (body.truncation_direction or recipe.side).lower() != recipe.side and len(tokenized.truncated) > 0
    return await respond(vectors, vectors.size, headers_of(model, tokenized, own=own and not other_side))


async def _embed_all(request: Request, service: Service, body: EmbedAllRequest) -> Response:
    check(body.inputs, service.config.limits, "inputs")
    model, purpose = await _open(service, body, body.model)
    tokenized = await _tokenize(request, model, body, body.inputs, purpose)
    rows = await model.tokens(tokenized)
    return await respond(list(rows), sum(row.size for row in rows), headers_of(model, tokenized, own=False))


async def _similarity(request: Request, service: Service, body: SimilarityRequest) -> Response:
    source, sentences = body.inputs.source_sentence, body.inputs.sentences
    check(sentences, service.config.limits, "inputs.sentences")
    check([source], service.config.limits, "inputs.source_sentence")
    parameters = body.parameters or SimilarityParameters.model_validate({})
    model, purpose = await _open(service, Prompted.model_validate({"prompt_name": parameters.prompt_name}), body.model)
    tokenized = await _tokenize(request, model, parameters, [source, *sentences], purpose)
    vectors = shorten(await model.vectors(tokenized), None, normalize=True)
    return await respond(vectors[1:] @ vectors[0], len(sentences), headers_of(model, tokenized, own=False))


async def _open(service: Service, body: Prompted, name: str | None) -> tuple[QueuedEmbedder, Purpose]:
    model = await service.models.embedder_for(_endpoint(service, name).config)
    return model, purpose_of(body, model.embedder.recipe)


async def _tokenize(request: Request, model: QueuedEmbedder, body: Truncated, texts: list[str], purpose: Purpose) -> Tokenized:
    side = body.truncation_direction
    if side is None and body.truncate is not None:
        side = "left" if model.recipe(purpose.role).side == "left" else "right"
    if side is not None:
        purpose = replace(purpose, truncate="left" if side.lower() == "left" else "right")
    tokenized = await tokenize(request, texts, model.tokenize(texts, purpose))
    if body.truncate is False and len(tokenized.truncated):
        longest = model.embedder.recipe.longest(purpose.role)
        raise Refusal(
            "text",
            f"`inputs` must have at most {longest} tokens. Text {tokenized.truncated[0]} has more, and `truncate` is false.",
            param="inputs",
        )
    return tokenized


def _endpoint(service: Service, model: str | None) -> Endpoint:
    return service.first if model is None else service.find(model)


def _info(service: Service, endpoint: Endpoint, model: QueuedEmbedder) -> Info:
    recipe, limits = model.embedder.recipe, service.config.limits
    return Info(
        model_id=endpoint.model_id,
        model_sha=recipe.graph_sha256,
        model_dtype="float32" if recipe.precision == "fp32" else recipe.precision,
        served_model_name=endpoint.model_id,
        model_type={"embedding": {"pooling": "+".join(recipe.poolings) or "none"}},
        max_concurrent_requests=limits.max_concurrent_requests,
        max_input_length=recipe.max_length,
        max_batch_tokens=limits.max_tick_tokens,
        max_batch_requests=None,
        max_client_batch_size=limits.max_client_batch_size,
        auto_truncate=endpoint.config.truncate != "error",
        tokenization_workers=1,
        version=__version__,
        sha=None,
        docker_label=None,
        server="penult",
        fingerprint=model.embedder.fingerprint,
        dimension=model.embedder.dimension,
        normalized=recipe.unit_length,
        prompts={str(role): prompt for role, prompt in recipe.prompts.items()},
        prompt_names=prompt_names(recipe),
        served_models=[each.model_id for each in service.endpoints],
        max_prompt_chars=MAX_PROMPT_CHARS,
        max_body_bytes=limits.max_body_bytes,
        max_text_chars=limits.max_text_chars,
    )
