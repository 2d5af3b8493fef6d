"""The middleware of every request: API key, limits on bodies, access log, metrics, and the last-resort exception handler.

Only `request_line` and CORS are outside of it, so that it sees requests and responses as the client does. It never logs a text,
a header or a query string.
"""

import hmac
import logging
import time
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penult.server.bodies import Answer, Answers, Bodies, Body
from penult.server.browsers import BrowserCheck
from penult.server.errors import Gone, Refusal, answer, contract
from penult.server.metrics import Metrics
from penult.server.request_log import RequestLog

_ACCESS = logging.getLogger("penult.server.access")
_LOGGER = logging.getLogger(__name__)
_OPEN = frozenset({"/health", "/ping", "/healthcheck", "/status", "/v2/health/ready", "/v2/health/live"})
_GONE = 499  # as nginx logs a disconnected client


class RequestMiddleware:
    """ASGI middleware that checks, counts and logs requests.

    Args:
        app: the application.
        metrics: metrics of the server.
        api_key: key that clients must send. None: no key is needed.
        max_body_bytes: maximum bytes of a request's body.
        bodies: byte counter of the bodies of all requests.
        answers: byte counter of the answers that clients have not read yet.
        browsers: check of requests from web pages.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        api_key: str | None,
        max_body_bytes: int,
        bodies: Bodies,
        answers: Answers,
        browsers: BrowserCheck,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._key = None if api_key is None else api_key.strip().encode()  # header values have no leading or trailing spaces
        self._max_body_bytes = max_body_bytes
        self._bodies = bodies
        self._answers = answers
        self._browsers = browsers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["penult"] = log = RequestLog()
        started, status, recorded = time.monotonic(), 0, False

        def record() -> None:
            nonlocal recorded
            if not recorded:
                recorded = True
                self._record(scope, log, status or _GONE, time.monotonic() - started)

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.body" and not message.get("more_body"):
                record()  # before sending: the time a client takes to read does not count
            await reply.send(message)
            if message["type"] == "http.response.start":
                status = message["status"]

        reply = Answer(send, self._answers)
        scope["penult.body"] = body = Body(scope, receive, self._bodies, self._max_body_bytes)
        try:
            self._browsers.check(scope)
            self._check_key(scope)
            body.check_announced()
            await self._app(scope, body.receive, watched_send)
        except (Gone, ClientDisconnect):  # while the request was queued, or during its body
            pass
        except Refusal as refusal:
            log.reason = refusal.reason
            if not status:
                await _refuse(scope, body, refusal, watched_send)
        except Exception:
            _LOGGER.exception("%s %s failed", scope["method"], _path(scope))
            log.reason = "bug"
            if not status:
                trouble = Refusal("bug", "Internal server error. The server's log states the reason.")
                await _refuse(scope, body, trouble, watched_send)
        finally:
            body.release()
            reply.release()
            record()

    def _check_key(self, scope: Scope) -> None:
        if self._key is None or scope["path"] in _OPEN:
            return
        header = b"".join(value for name, value in scope["headers"] if name == b"authorization")
        scheme, _, key = header.partition(b" ")  # RFC 9110: case-insensitive scheme, any number of spaces
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            raise Refusal(
                "auth",
                "The API key is missing or wrong. Send the header `Authorization: Bearer KEY`.",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _record(self, scope: Scope, log: RequestLog, status: int, seconds: float) -> None:
        if log.texts:
            self._metrics.asked(log.texts)
        if log.reason:
            self._metrics.refused(log.reason)
        elif status == _GONE:
            self._metrics.left()
        elif log.texts and status < 300:
            self._metrics.answered(log.texts, seconds)
        self._metrics.responded(contract(scope["path"]), status)
        line = {
            "method": scope["method"],
            "path": _path(scope),
            "status": status,
            "ms": round(seconds * 1000, 1),
            "texts": log.texts,
            "tokens": log.tokens,
            "truncated": log.truncated,
            "reason": log.reason,
            "client": (scope.get("client") or ("",))[0],
        }
        _ACCESS.info("%s", line, extra={"request": line})


async def _refuse(scope: Scope, body: Body, refusal: Refusal, send: Send) -> None:
    """Send a refusal, then drain the body, so that a client that sends everything before it reads gets the refusal."""
    linger = body.unread and "Connection" not in refusal.headers
    response = answer(scope["path"], refusal)

    async def send_and_drain(message: Message) -> None:
        if message["type"] == "http.response.body":
            await send({**message, "more_body": True})
            await body.drain()
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    if linger:
        response.headers["connection"] = "close"
    await response(scope, body.receive, send_and_drain if linger else send)


def _path(scope: Scope) -> str:
    """Return the path, percent-encoded so that it cannot break a log line, and cut to 200 characters."""
    return quote(scope["path"], safe="/-._~:@")[:200]
