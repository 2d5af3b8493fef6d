"""The middleware of every request: API key, limit of the body, access log, metrics, and the handler of all exceptions.

It is the outermost ASGI application but for `request_line`, so that it sees what the client sends and gets. It never logs a
text, a header or a query.
"""

import asyncio
import hmac
import json
import logging
import time
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penult.server.errors import Gone, Refusal, answer, contract
from penult.server.metrics import Metrics
from penult.server.request_log import RequestLog

_ACCESS = logging.getLogger("penult.server.access")
_LOGGER = logging.getLogger(__name__)
_OPEN = frozenset({"/health", "/ping", "/healthcheck", "/status", "/v2/health/ready", "/v2/health/live"})
_GONE = 499  # as nginx logs a client that left
_STALL_SECONDS = 30.0  # without a byte of the body; a client that stalls for ever must not hold up the end of the server


class RequestMiddleware:
    """Checks, counts and logs requests.

    Args:
        app: the application.
        metrics: counters of the server.
        api_key: key that clients must send. None: no key is needed.
        max_body_bytes: maximum bytes of a request's body.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, api_key: str | None, max_body_bytes: int) -> None:
        self._app = app
        self._metrics = metrics
        self._key = None if api_key is None else api_key.encode()
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["penult"] = log = RequestLog()
        started, status = time.monotonic(), 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_key(scope)
            await self._app(scope, self._limited(scope, receive), watched_send)
        except (Gone, ClientDisconnect):  # while it waited, or in the middle of its body
            pass
        except Refusal as refusal:
            log.reason = refusal.reason
            if not status:
                await answer(scope["path"], refusal)(scope, receive, watched_send)
        except Exception:
            _LOGGER.exception("%s %s failed", scope["method"], _path(scope))
            log.reason = "bug"
            if not status:
                trouble = Refusal("bug", "The server failed to answer; its log says why.")
                await answer(scope["path"], trouble)(scope, receive, watched_send)
        finally:
            self._record(scope, log, status or _GONE, time.monotonic() - started)

    def _check_key(self, scope: Scope) -> None:
        if self._key is None or scope["path"] in _OPEN:
            return
        given = b"".join(value for name, value in scope["headers"] if name == b"authorization")
        scheme, _, key = given.partition(b" ")  # RFC 9110: the scheme's case has no meaning, and spaces may be several
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            raise Refusal(
                "auth", "The key is missing or wrong; send `Authorization: Bearer KEY`.", headers={"WWW-Authenticate": "Bearer"}
            )

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Count the body as it comes, whatever its head says."""
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        read, whole = 0, False
        too_large = Refusal("body", f"The body has more than {self._max_body_bytes} bytes, that is the most; send fewer texts.")
        if announced.isdigit() and int(announced) > self._max_body_bytes:
            raise too_large

        async def limited() -> Message:
            nonlocal read, whole
            if whole:  # what comes now is that the client leaves, whenever that is
                return await receive()
            try:
                async with asyncio.timeout(_STALL_SECONDS):
                    message = await receive()
            except TimeoutError:
                raise Refusal(
                    "slow",
                    f"{_STALL_SECONDS:g} s went by without a byte of the body; send it again.",
                    headers={"Connection": "close"},
                ) from None
            read, whole = read + len(message.get("body", b"")), not message.get("more_body", False)
            if read > self._max_body_bytes:
                raise too_large
            return message

        return limited

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


class Plain(logging.Formatter):
    """One line an event, for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line = getattr(record, "request", None)
        if line is not None:
            head = f"{line['method']} {line['path']} {line['status']} {line['ms']} ms"
            rest = "".join(
                f" {name}={line[name]}" for name in ("texts", "tokens", "truncated", "reason", "client") if line[name]
            )
            record = logging.makeLogRecord({**record.__dict__, "msg": head + rest, "args": None})
        return super().format(record)


class Json(logging.Formatter):
    """One JSON object an event."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower()}
        line |= getattr(record, "request", None) or {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _path(scope: Scope) -> str:
    """Return the path as the client sent it, at most 200 characters, quoted so that it cannot break a line of the log."""
    return quote(scope["path"], safe="/-._~:@")[:200]
