"""What the log and the metrics say of one request, and how a route writes it down."""

from dataclasses import dataclass

from fastapi import Request

from penult.server.errors import Reason


@dataclass(slots=True)
class Facts:
    """Numbers of one request; never a text, never a key."""

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    reason: Reason | None = None


def facts(request: Request) -> Facts:
    """Give the facts of a request, to be filled in."""
    found: Facts = request.scope["penult"]
    return found
