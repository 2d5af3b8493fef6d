"""Counts of one request for the access log and the metrics; its route sets them."""

from dataclasses import dataclass

from fastapi import Request

from penult.server.errors import Reason


@dataclass(slots=True)
class RequestLog:
    """Counts of one request. It never contains a text or a key."""

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    reason: Reason | None = None


def log_of(request: Request) -> RequestLog:
    """Return the counts of a request, which the middleware logs after the answer."""
    log: RequestLog = request.scope["penult"]
    return log
