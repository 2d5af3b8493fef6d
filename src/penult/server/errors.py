"""Error responses, in the format of the protocol of the request's path.

There are three formats: OpenAI's, TEI's and FastAPI's. No response contains a stack trace.
"""

from collections.abc import Mapping
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

Reason = Literal["invalid", "empty", "batch", "text", "body", "slow", "media", "auth", "closed", "missing", "nowhere", "method",
                 "full", "unable", "bug"]  # fmt: skip

_TEI_PATHS = ("/", "/embed", "/embed_all", "/info", "/similarity", "/tokenize", "/decode")
_OPENAI_PATHS = ("/embeddings", "/models")
# Per reason: the status code of DeepSparse's, OpenAI's and TEI's routes, then TEI's error_type.
_STATUS: Mapping[Reason, tuple[int, int, int, str]] = {
    "invalid": (422, 400, 422, "Tokenizer"),
    "empty": (422, 400, 400, "Empty"),
    "batch": (422, 422, 413, "Validation"),
    "text": (422, 422, 413, "Validation"),
    "body": (413, 413, 413, "Validation"),
    "auth": (401, 401, 401, "Validation"),
    "missing": (404, 404, 404, "Validation"),
    "nowhere": (404, 404, 404, "Validation"),
    "method": (405, 405, 405, "Validation"),
    "full": (429, 429, 429, "Overloaded"),
    "media": (415, 415, 415, "Validation"),
    "slow": (408, 408, 408, "Validation"),
    "closed": (403, 403, 403, "Validation"),
    "unable": (501, 501, 424, "Backend"),
    "bug": (500, 500, 424, "Backend"),
}
_OPENAI_TYPES: Mapping[Reason, str] = {"full": "rate_limit_error", "unable": "server_error", "bug": "server_error"}
_OPENAI_CODES: Mapping[Reason, str] = {
    "auth": "invalid_api_key",
    "missing": "model_not_found",
    "nowhere": "unknown_url",
    "full": "rate_limit_exceeded",
}


class Refusal(Exception):  # noqa: N818 - a response
    """A refused request, answered with an error response.

    Args:
        reason: kind of error; it decides the status code.
        message: one sentence for the client.
        param: the invalid key of the body. None: not about a key.
        headers: further headers of the response.
    """

    def __init__(
        self, reason: Reason, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message
        self.param = param
        self.headers = dict(headers or {})


class Gone(Exception):  # noqa: N818 - not an error
    """The client has disconnected, so no response is needed."""


def contract(path: str) -> Literal["openai", "tei", "deepsparse"]:
    """Return the protocol of a path."""
    if path.startswith(("/v1/", "/models/")) or path in _OPENAI_PATHS:
        return "openai"
    return "tei" if path in _TEI_PATHS else "deepsparse"


def answer(path: str, refusal: Refusal) -> JSONResponse:
    """Return the error response, in the format of the path's protocol."""
    deepsparse, openai, tei, tei_type = _STATUS[refusal.reason]
    protocol = contract(path)
    if protocol == "openai":
        error = {
            "message": refusal.message,
            "type": _OPENAI_TYPES.get(refusal.reason, "invalid_request_error"),
            "param": refusal.param,
            "code": _OPENAI_CODES.get(refusal.reason),
        }
        return JSONResponse({"error": error}, openai, refusal.headers)
    if protocol == "tei":
        return JSONResponse({"error": refusal.message, "error_type": tei_type}, tei, refusal.headers)
    detail: Any = refusal.message
    if deepsparse == 422:
        location = ["body"] if refusal.param is None else ["body", refusal.param]
        detail = [{"type": refusal.reason, "loc": location, "msg": refusal.message}]
    return JSONResponse({"detail": detail}, deepsparse, refusal.headers)


async def no_route(request: Request, error: Exception) -> JSONResponse:
    """Answer 404 and 405 in the format of the path's protocol; DeepSparse's paths keep DeepSparse's message."""
    assert isinstance(error, HTTPException)  # noqa: S101 - the handler is registered for this class only
    path = request.scope["path"]
    if contract(path) == "deepsparse" or error.status_code not in (404, 405):
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
    request_line = f"{request.method} {path[:100]}"
    if error.status_code == 405:
        return answer(
            path,
            Refusal(
                "method",
                f"{request_line}: the path does not support this method. GET /docs lists the routes.",
                headers=error.headers,
            ),
        )
    return answer(path, Refusal("nowhere", f"{request_line} is not a route of this server. GET /docs lists the routes."))
