"""What the routes have in common: reading a body, checking texts against the limits, waiting while the client is there.

It knows requests and refusals; it knows no contract's words.
"""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import orjson
from fastapi import Request, Response
from pydantic import BaseModel, BeforeValidator, FailFast, Field, ValidationError, WithJsonSchema

from penult.server.config import Limits
from penult.server.errors import Gone, Refusal
from penult.server.faces import Answer, EmbedderFace
from penult.server.facts import facts
from penult.types import Role, Vectors

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")
_LARGE_BODY = 65_536  # bytes; a smaller body is parsed in less than a millisecond
_LARGE_ANSWER = 100_000  # numbers; fewer are written in less than two
RoleName = Literal["query", "search_query", "web_search_query", "document", "passage", "corpus", "search_document"]
"""The names that models and APIs give to the two roles."""
_QUERIES = ("query", "search_query", "web_search_query")


def _listed(given: object) -> object:
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        raise ValueError("must be a text or a list of texts")  # noqa: TRY004 - pydantic takes a ValueError for a refusal
    first = given[0] if given else None
    first = first[0] if isinstance(first, list) and first else first
    if isinstance(first, int) and not isinstance(first, bool):
        raise ValueError(  # noqa: TRY004 - pydantic takes a ValueError for a refusal
            "holds token ids, which belong to the tokenizer of another model; send texts. In LangChain's OpenAIEmbeddings "
            "set check_embedding_ctx_length=False"
        )
    return given


def _whole(given: object) -> object:
    if isinstance(given, bool | str) or (isinstance(given, float) and not given.is_integer()):
        raise ValueError("must be a whole number")
    return given


Dimensions = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
"""How many leading values of a vector are wanted; 2.0 is a whole number too, as in JSON's own schemas."""

Texts = Annotated[
    list[str],
    FailFast(),
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
"""A text, or a list of texts, as a list."""


async def read(request: Request, kind: type[Body]) -> Body:
    """Read the body, whatever its content type says: DeepSparse did not look at it either.

    Raises:
        Refusal: it is no JSON, or not what the route takes.
    """
    body = await request.body()
    try:
        if len(body) > _LARGE_BODY:
            return await asyncio.to_thread(kind.model_validate_json, body)
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from error


def body_of(kind: type[BaseModel], example: dict[str, Any], dimension: int | None = None) -> dict[str, Any]:
    """Describe a body for the OpenAPI document, as `read` takes it; `dimension` is the most that `dimensions` may be."""
    schema = kind.model_json_schema()
    if dimension is not None and "dimensions" in schema["properties"]:
        schema["properties"]["dimensions"]["anyOf"][0]["maximum"] = dimension
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def check(texts: list[str], limits: Limits, param: str) -> None:
    """Refuse no texts, too many, or too long ones.

    Raises:
        Refusal: with the limit.
    """
    if not texts:
        raise Refusal("empty", f"`{param}` is an empty list; send at least one text.", param=param)
    if len(texts) > limits.max_client_batch_size:
        raise Refusal(
            "batch",
            f"`{param}` has {len(texts)} texts, the limit is {limits.max_client_batch_size}; send several requests.",
            param=param,
        )
    for row, text in enumerate(texts):
        if len(text) > limits.max_text_chars:
            raise Refusal(
                "text",
                f"Text {row} of `{param}` has {len(text)} characters, the limit is {limits.max_text_chars}; split it.",
                param=param,
            )


def role_of(name: RoleName | None) -> Role:
    """Read a text's role; None is a document."""
    return "query" if name in _QUERIES else "document"


async def while_there(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work for as long as the client waits for it.

    Raises:
        Gone: it left; the work is cancelled.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()


async def embed(request: Request, face: EmbedderFace, texts: list[str], role: Role) -> Answer[Vectors]:
    """Turn N texts into (N, D) vectors, and note their numbers for the log."""
    noted = facts(request)
    noted.texts = len(texts)
    measured = await face.measure(texts, role)
    noted.tokens, noted.truncated = sum(measured.sizes), len(measured.cut)
    return await face.vectors(texts, role, measured)


def headers_of(face: EmbedderFace, found: Answer[Any], *, own: bool) -> dict[str, str]:
    """Say how many texts were cut, and by its fingerprint whose vectors these are, where they are the recipe's own."""
    headers = {"x-penult-truncated": str(found.truncated)} if found.truncated else {}
    return headers | ({"x-penult-fingerprint": face.fingerprint} if own else {})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def respond(content: Any, numbers: int, headers: dict[str, str] | None = None) -> Response:  # noqa: ANN401 - JSON
    """Write an answer of so many numbers; a large one in a thread, so that others are not kept waiting."""
    body = await asyncio.to_thread(_dump, content) if numbers > _LARGE_ANSWER else _dump(content)
    return Response(body, media_type="application/json", headers=headers)


def _dump(content: Any) -> bytes:  # noqa: ANN401 - JSON
    # 25 times as fast as json for 384,000 float32, half as long, and each still reads as the very same float32.
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def shorten(vectors: Vectors, dimensions: int | None, *, normalize: bool) -> Vectors:
    """Keep the leading values, (N, D) -> (N, `dimensions`), and give each vector length 1 where that is asked.

    Raises:
        Refusal: the vectors have not so many values.
    """
    if dimensions is not None and dimensions > vectors.shape[1]:
        raise Refusal(
            "invalid", f"`dimensions` is {dimensions}; the model's vectors have {vectors.shape[1]} values.", param="dimensions"
        )
    short = vectors[:, :dimensions]  # (N, D) -> (N, dimensions)
    if normalize:
        lengths = np.linalg.norm(short, axis=1, keepdims=True)
        short = short / np.maximum(lengths, 1e-12)
    return np.ascontiguousarray(short, dtype="<f4")


def _refusal(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = [str(part) for part in first["loc"]]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return Refusal("invalid", f"The body is no JSON: {message}.")
    if not where:
        return Refusal("invalid", f"The body must be a JSON object: {message}.")
    return Refusal("invalid", f"`{'.'.join(where)}`: {message}.", param=where[0])
