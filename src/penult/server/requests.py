"""Steps shared by all routes: parse the body, check the limits, tokenize, cancel on disconnect, respond.

This module does not depend on a protocol. Errors are raised as `Refusal`.
"""

import asyncio
import base64
from collections.abc import Awaitable, Coroutine, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
import orjson
from fastapi import Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, FailFast, Field, ValidationError, WithJsonSchema

from penult.core.recipe import Recipe
from penult.core.tokenized import Tokenized
from penult.server.body_text import broken_text, without_mark
from penult.server.config import Limits
from penult.server.errors import Gone, Refusal
from penult.server.json_size import has_more_values
from penult.server.queued_models import Purpose, QueuedEmbedder
from penult.server.request_log import log_of
from penult.types import Role, Vectors

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")
_LARGE_BODY = 65_536  # bytes; a smaller body is parsed in less than 1 ms
_OTHER_VALUES = 65_536  # JSON values besides the texts; so that token ids get the message that they are not texts
_LARGE_ANSWER = 100_000  # numbers; fewer are serialized in less than 2 ms
_PART = 65_536  # numbers that are serialized at a time
RoleName = Literal["query", "search_query", "web_search_query", "document", "passage", "corpus", "search_document"]
"""Names of the two roles in models and APIs."""
ROLE_NAMES: tuple[str, ...] = get_args(RoleName)
_QUERIES = ("query", "search_query", "web_search_query")
_DOCUMENTS = tuple(name for name in ROLE_NAMES if name not in _QUERIES)
MAX_PROMPT_CHARS = 4096
"""Maximum characters of a request's prompt, which is the prefix of each text; instructions have a few hundred."""


def _listed(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of strings")  # noqa: TRY004 - pydantic reports ValueErrors
    first = value[0] if value else None
    first = first[0] if isinstance(first, list) and first else first
    if isinstance(first, int) and not isinstance(first, bool):
        raise ValueError(  # noqa: TRY004 - pydantic reports ValueErrors
            "has token ids, which depend on the tokenizer of a model. Send texts. In LangChain's OpenAIEmbeddings, set "
            "check_embedding_ctx_length=False"
        )
    return value


def _check_integer(value: object) -> object:
    if isinstance(value, bool | str) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("must be an integer")
    return value


Dimensions = Annotated[int, Field(ge=1), BeforeValidator(_check_integer)]
"""Number of leading values of a vector to return; 2.0 is an integer, as in JSON Schema."""

TokenId = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_check_integer)]

Texts = Annotated[
    list[str],
    FailFast(),
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
"""A text or a list of texts, parsed as a list."""


class Prompted(BaseModel):
    """Role and prompt of the texts; `input_type` and `prompt` are penult's own keys."""

    input_type: RoleName | None = Field(
        None, description="Role of the texts, `query` or `document`; selects the model's prompt."
    )
    prompt_name: str | None = Field(None, description="A role, or the name of another prompt in the model's files.")
    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None = Field(
        None, description="Prefix of each text, instead of the model's prompt. Mutually exclusive with `prompt_name`."
    )


# Mutually exclusive fields of Prompted, for the OpenAPI document; `purpose_of` checks them.
_EXCLUSIVE: tuple[dict[str, Any], ...] = (
    {"prompt": {"type": "string"}, "prompt_name": {"type": "string"}},
    {"input_type": {"enum": [*_QUERIES]}, "prompt_name": {"enum": [*_DOCUMENTS]}},
    {"input_type": {"enum": [*_DOCUMENTS]}, "prompt_name": {"enum": [*_QUERIES]}},
)


async def read(request: Request, kind: type[Body]) -> Body:
    """Parse the body. Its content type is ignored, as in DeepSparse.

    Raises:
        Refusal: it is not valid JSON, or does not match the schema of the route.
    """
    body = without_mark(await request.body())
    try:
        if len(body) > _LARGE_BODY:
            limits = request.app.state.service.config.limits
            return await asyncio.to_thread(_parse_large, body, kind, limits.max_client_batch_size)
        return kind.model_validate_json(body)
    except ValidationError as error:
        refusal = _refusal(error)
        raise (await asyncio.to_thread(broken_text, body) if refusal.param is None else None) or refusal from error


def _parse_large(body: bytes, kind: type[Body], max_texts: int) -> Body:
    """Parse a large body.

    Raises:
        Refusal: it has more JSON values than any valid request.
    """
    if has_more_values(body, max_texts + _OTHER_VALUES):
        raise Refusal(
            "batch",
            f"The body has more than {max_texts + _OTHER_VALUES} JSON values; the limit is {max_texts} texts per request "
            "(max_client_batch_size), each as one string. Send several requests.",
        )
    return kind.model_validate_json(body)


def body_of(
    kind: type[BaseModel], example: dict[str, Any], *, dimension: int | None = None, prompt_names: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the description of a body for the OpenAPI document.

    Args:
        kind: model of the body.
        example: a valid body.
        dimension: maximum of `dimensions`. None: unknown, as no model is open.
        prompt_names: allowed values of `prompt_name`.
    """
    schema = kind.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    if dimension is not None and "dimensions" in schema["properties"]:
        schema["properties"]["dimensions"]["anyOf"][0]["maximum"] = dimension
    for names in _properties(schema, "prompt_name"):
        names["anyOf"][0]["enum"] = [*prompt_names]
    if issubclass(kind, Prompted):
        schema["allOf"] = [{"not": {"properties": both, "required": [*both]}} for both in _EXCLUSIVE]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def _properties(schema: Any, name: str) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - JSON
    """Yield the schema of every property with this name, at any depth."""
    for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ():
        if key == "properties" and name in value:
            yield value[name]
        yield from _properties(value, name)


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """Return a schema with its references inlined; they would not resolve in the OpenAPI document."""
    if isinstance(schema, list):
        return [_inlined(one, parts) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(reference := schema.get("$ref"), str):
        return _inlined(parts[reference.rpartition("/")[2]], parts)
    return {key: _inlined(value, parts) for key, value in schema.items()}


def check(texts: list[str], limits: Limits, param: str) -> None:
    """Check the number of texts and their lengths.

    Raises:
        Refusal: there are no texts or too many, or one is too long; the message states the limit.
    """
    if not texts:
        raise Refusal("empty", f"`{param}` is an empty list. Send at least one text.", param=param)
    if len(texts) > limits.max_client_batch_size:
        raise Refusal(
            "batch",
            f"`{param}` has {len(texts)} texts; the limit is {limits.max_client_batch_size} (max_client_batch_size). Send "
            "several requests.",
            param=param,
        )
    for row, text in enumerate(texts):
        if len(text) > limits.max_text_chars:
            raise Refusal(
                "body",
                f"Text {row} of `{param}` has {len(text)} characters; the limit is {limits.max_text_chars} "
                "(max_text_chars). Split the text.",
                param=param,
            )


def purpose_of(body: Prompted, recipe: Recipe) -> Purpose:
    """Return the role of the texts and their prompt; texts without a role are documents.

    1. `prompt` is the prefix of the texts as it is; `input_type` states the role.
    2. `prompt_name` is "query" or "document": the prompt of that role, from the endpoint or the model's files.
    3. `prompt_name` is the name of another prompt in the model's files: that prompt.
    4. `prompt_name` is another name of a role: the prompt of that role.

    Raises:
        Refusal: the model does not have a prompt of that name, or two of the keys contradict each other.
    """
    name = body.prompt_name
    if body.prompt and recipe.named_prompts.get(body.prompt):
        raise Refusal(
            "invalid", f"`prompt` is {body.prompt!r}, which is the name of a prompt. Send it as `prompt_name`.", param="prompt"
        )
    if name is None:
        return Purpose(_role_of(body.input_type), body.prompt)
    if body.prompt is not None:
        raise Refusal("invalid", "`prompt` and `prompt_name` are mutually exclusive. Send one of them.", param="prompt")
    if name not in ROLE_NAMES and name not in recipe.named_prompts:
        names = ", ".join(prompt_names(recipe))
        raise Refusal("invalid", f"`prompt_name` is {name[:100]!r}; it must be one of {names}.", param="prompt_name")
    role = _role_of(name if body.input_type is None else body.input_type)
    if name in ROLE_NAMES and role != _role_of(name):
        raise Refusal(
            "invalid",
            f"`input_type` is {body.input_type!r} and `prompt_name` is {name!r}, which are different roles. Send one of them.",
            param="prompt_name",
        )
    return Purpose(role, None if name in ("query", "document") else recipe.named_prompts.get(name))


def prompt_names(*recipes: Recipe) -> list[str]:
    """Return the allowed values of `prompt_name`: the names of the roles, and of the prompts in the models' files."""
    named = {name for recipe in recipes for name in recipe.named_prompts}
    return [*ROLE_NAMES, *sorted(named - {*ROLE_NAMES})]


def _role_of(name: str | None) -> Role:
    """Return the role of a name; 'document' for None and for names of other prompts."""
    return "query" if name in _QUERIES else "document"


async def while_there(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await a coroutine, and cancel it if the client disconnects.

    Raises:
        Gone: the client has disconnected.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        task.cancel()
        disconnect.cancel()


async def tokenize(request: Request, texts: list[str], tokenizing: Awaitable[Tokenized]) -> Tokenized:
    """Return N texts as token ids, and set the counts in the request's log.

    Args:
        request: the request.
        texts: N texts.
        tokenizing: coroutine that tokenizes them.
    """
    log = log_of(request)
    log.texts = len(texts)
    tokenized = await tokenizing
    log.tokens, log.truncated = int(tokenized.counts.sum()), len(tokenized.truncated)
    return tokenized


def headers_of(model: QueuedEmbedder, tokenized: Tokenized, *, own: bool) -> dict[str, str]:
    """Return the response headers: the number of truncated texts, and the fingerprint if the vectors are `own`.

    Args:
        model: the model.
        tokenized: the texts.
        own: whether the vectors follow the recipe, without shortening or normalization for this request.
    """
    truncated = len(tokenized.truncated)
    headers = {"x-penult-truncated": str(truncated)} if truncated else {}
    return headers | ({"x-penult-fingerprint": model.embedder.fingerprint} if own else {})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def respond(content: Any, numbers: int, headers: dict[str, str] | None = None) -> Response:  # noqa: ANN401 - JSON
    """Return a response with `numbers` numbers; a large one is serialized in a thread, to not block the event loop."""
    body = await asyncio.to_thread(_dump, content) if numbers > _LARGE_ANSWER else _dump(content)
    return Response(body, media_type="application/json", headers=headers)


class Base64:
    """An array that is serialized as base64 of its little-endian bytes."""

    __slots__ = ("values",)

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values


def _dump(content: Any) -> bytes:  # noqa: ANN401 - JSON
    # For 384,000 float32, orjson is 25 times as fast as json, with half the output; each number parses as the same float32.
    return orjson.dumps(content, default=_dump_part)


def _dump_part(value: object) -> Any:  # noqa: ANN401 - JSON
    """Serialize one part of an answer. orjson holds the GIL during a part; other threads run between two parts."""
    if isinstance(value, Base64):
        return base64.b64encode(value.values.tobytes()).decode()
    if not isinstance(value, np.ndarray):
        raise TypeError
    if value.ndim > 1:
        return list(value)
    parts = range(0, max(1, len(value)), _PART)
    serialized = [orjson.dumps(value[start : start + _PART], option=orjson.OPT_SERIALIZE_NUMPY) for start in parts]
    return orjson.Fragment(b"[%b]" % b",".join(part[1:-1] for part in serialized))


def shorten(vectors: Vectors, dimensions: int | None, *, normalize: bool) -> Vectors:
    """Truncate vectors, (N, D) -> (N, `dimensions`), and L2-normalize them if `normalize`.

    Raises:
        Refusal: the vectors have fewer than `dimensions` values.
    """
    if dimensions is not None and dimensions > vectors.shape[1]:
        raise Refusal(
            "invalid",
            f"`dimensions` is {dimensions}; it must be at most {vectors.shape[1]}, the size of the model's vectors.",
            param="dimensions",
        )
    short = vectors[:, :dimensions]  # (N, D) -> (N, dimensions)
    if normalize:
        lengths = np.linalg.norm(short, axis=1, keepdims=True)
        short = short / np.maximum(lengths, 1e-12)
    return np.ascontiguousarray(short, dtype="<f4")


def _refusal(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = [str(part) for part in first["loc"]]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return Refusal("invalid", f"The body is not valid JSON: {message}.")
    if not location:
        return Refusal("invalid", f"The body must be a JSON object: {message}.")
    return Refusal("invalid", f"`{'.'.join(location)}`: {message}.", param=location[0])
