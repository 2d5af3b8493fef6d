"""What goes wrong, in the words of whichever contract the client speaks.

It knows the three shapes of an error (OpenAI's, TEI's, FastAPI's) and which path has which; it never shows a stack.
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
# By reason: the status for DeepSparse's routes, OpenAI's and TEI's, then TEI's error_type.
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


class Refusal(Exception):  # noqa: N818 - an answer
    """A request that is not answered with vectors, and why.

    Args:
        reason: what kind of trouble it is; it decides the status.
        message: one sentence for the client.
        param: the key of the body that is wrong.
        headers: of the answer.
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
    """The client has left; nobody reads the answer."""


def contract(path: str) -> Literal["openai", "tei", "deepsparse"]:
    """Say whose words a path speaks."""
    if path.startswith(("/v1/", "/models/")) or path in _OPENAI_PATHS:
        return "openai"
    return "tei" if path in _TEI_PATHS else "deepsparse"


def answer(path: str, refusal: Refusal) -> JSONResponse:
    """Make the answer that says no, in the shape of the path's contract."""
    deepsparse, openai, tei, tei_type = _STATUS[refusal.reason]
    words = contract(path)
    if words == "openai":
        error = {
            "message": refusal.message,
            "type": _OPENAI_TYPES.get(refusal.reason, "invalid_request_error"),
            "param": refusal.param,
            "code": _OPENAI_CODES.get(refusal.reason),
        }
        return JSONResponse({"error": error}, openai, refusal.headers)
    if words == "tei":
        return JSONResponse({"error": refusal.message, "error_type": tei_type}, tei, refusal.headers)
    detail: Any = refusal.message
    if deepsparse == 422:
        where = ["body"] if refusal.param is None else ["body", refusal.param]
        detail = [{"type": refusal.reason, "loc": where, "msg": refusal.message}]
    return JSONResponse({"detail": detail}, deepsparse, refusal.headers)


async def no_route(request: Request, error: Exception) -> JSONResponse:
    """Answer what no route takes (404, 405) in the shape of the path's contract, with DeepSparse's very words on its own."""
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    path = request.scope["path"]
    if contract(path) == "deepsparse" or error.status_code not in (404, 405):
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
    asked = f"{request.method} {path[:100]}"
    if error.status_code == 405:
        return answer(path, Refusal("method", f"{asked} is no route; the path takes another method.", headers=error.headers))
    return answer(path, Refusal("nowhere", f"{asked} is no route of this server; GET /docs lists them."))
