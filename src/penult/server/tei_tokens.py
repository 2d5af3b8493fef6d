"""TEI's tokenizer routes: POST /tokenize and /decode.

They do not run the model and therefore bypass its request queue. One request is answered at a time.
"""

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, BeforeValidator, FailFast, StrictBool, WithJsonSchema

from penult.core.tokenizer import Tokenizer
from penult.server.errors import Refusal
from penult.server.requests import Prompted, Texts, TokenId, body_of, check, purpose_of, read, respond
from penult.server.service import Service

MAX_CHARS = 250_000
"""Maximum characters of a request to /tokenize: the answer has about a hundred bytes per token."""
MAX_IDS = 50_000
"""Maximum ids of a request to /decode."""
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**31}}


class TokenizeRequest(Prompted):
    """Request body of /tokenize."""

    inputs: Texts
    add_special_tokens: StrictBool = True
    model: str | None = None


class Token(BaseModel):
    """A token; `start` and `stop` count characters of the prompt and the text, and are null for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


def _listed(value: object) -> object:
    return [value] if isinstance(value, list) and not any(isinstance(one, list) for one in value) else value


Ids = Annotated[
    list[Annotated[list[TokenId], FailFast()]],
    FailFast(),
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [_IDS, {"type": "array", "items": _IDS}]}),
]
"""The token ids of one or several texts, parsed as a list of lists."""


class DecodeRequest(BaseModel):
    """Request body of /decode."""

    ids: Ids
    skip_special_tokens: StrictBool = True
    model: str | None = None


def add(app: FastAPI, service: Service, errors: dict[int | str, dict[str, Any]]) -> None:
    """Add the routes to an application.

    Args:
        app: the application.
        service: the endpoints.
        errors: the error responses of TEI's routes, for the OpenAPI document.
    """
    turn = asyncio.Lock()

    async def tokenize(request: Request) -> Response:
        body = await read(request, TokenizeRequest)
        tokenizer, prompt = await _tokenizer(service, body)
        check(body.inputs, service.config.limits, "inputs")
        if (size := sum(map(len, body.inputs)) + len(body.inputs) * len(prompt)) > MAX_CHARS:
            subject = "`inputs` has" if not prompt else "`inputs` and the prompt before each text have"
            raise Refusal("text", f"{subject} {size} characters; the limit is {MAX_CHARS}. Send fewer texts.", param="inputs")
        async with turn:
            rows = await asyncio.to_thread(_pieces, tokenizer, [prompt + text for text in body.inputs], body.add_special_tokens)
            return await respond(rows, 5 * sum(map(len, rows)))

    async def decode(request: Request) -> Response:
        body = await read(request, DecodeRequest)
        tokenizer, _ = await _tokenizer(service, Prompted.model_validate({}), body.model)
        if (size := sum(map(len, body.ids)) + len(body.ids)) > MAX_IDS:
            raise Refusal("text", f"`ids` has {size} ids; the limit is {MAX_IDS}. Send fewer ids.", param="ids")
        async with turn:
            texts = await asyncio.to_thread(_texts, tokenizer, body.ids, body.skip_special_tokens)
        return await respond(texts, 0)

    for path, route, kind, example, answers in (
        ("/tokenize", tokenize, TokenizeRequest, {"inputs": ["The cat sat on the mat."]}, list[list[Token]]),
        ("/decode", decode, DecodeRequest, {"ids": [101, 1996, 4937, 102]}, list[str]),
    ):
        app.add_api_route(
            path,
            route,
            methods=["POST"],
            tags=["TEI"],
            summary="Tokenize texts" if kind is TokenizeRequest else "Decode token ids",
            responses={200: {"model": answers}, **errors},
            openapi_extra=body_of(kind, example, prompt_names=service.prompt_names),
        )


async def _tokenizer(service: Service, body: Prompted, name: str | None = None) -> tuple[Tokenizer, str]:
    """Return the tokenizer of a request's model, and the prompt of its texts."""
    name = body.model if isinstance(body, TokenizeRequest) else name
    endpoint = service.first if name is None else service.find(name)
    embedder = (await service.models.embedder_for(endpoint.config)).embedder
    purpose = purpose_of(body, embedder.recipe)
    prompt = embedder.recipe.prompts.get(purpose.role, "") if purpose.prompt is None else purpose.prompt
    return embedder.model.runner.tokenizer, prompt


def _pieces(tokenizer: Tokenizer, texts: list[str], special_tokens: bool) -> list[list[dict[str, Any]]]:  # noqa: FBT001
    return [
        [
            {"id": one.id, "text": one.text, "special": one.special, "start": one.start, "stop": one.stop}
            for one in tokenizer.pieces(text, special_tokens=special_tokens)
        ]
        for text in texts
    ]


def _texts(tokenizer: Tokenizer, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:  # noqa: FBT001
    return [tokenizer.decode(ids, skip_special_tokens=skip_special_tokens) for ids in rows]
