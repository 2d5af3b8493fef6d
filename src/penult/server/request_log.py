"""The numbers of one request for log and metrics, which its route fills in."""

from dataclasses import dataclass

from fastapi import Request

from penult.server.errors import Reason


@dataclass(slots=True)
class RequestLog:
    """The numbers of one request; never a text, never a key."""

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    reason: Reason | None = None


def log_of(request: Request) -> RequestLog:
    """Return the numbers of a request, which the middleware logs after its answer."""
    log: RequestLog = request.scope["penult"]
    return log
