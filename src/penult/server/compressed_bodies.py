"""Compressed request bodies: gzip and deflate are decompressed while they arrive, up to a size limit.

A few kilobytes can decompress to gigabytes. Each step therefore decompresses at most the rest of the limit plus one byte.
"""

import asyncio
import zlib
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penult.server.errors import Refusal

_PIECE = 1 << 20  # bytes per decompression step: about 5 ms, in which the event loop is blocked
_GZIP = 16 + zlib.MAX_WBITS  # zlib's `wbits` for gzip


class CompressedBodyMiddleware:
    """Decompresses the bodies of requests.

    Args:
        app: the application.
        max_body_bytes: maximum bytes of a decompressed body.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, with its body decompressed.

        Raises:
            Refusal: the encoding is not supported.
        """
        if scope["type"] == "http":
            encoding = _encoding(scope)
            if encoding not in ("", "identity"):
                # The byte counter of all requests includes the decompressed bytes.
                count = getattr(scope.get("penult.body"), "count", None)
                receive = _DecompressedBody(receive, encoding, self._max_body_bytes, count)
                # The inner application receives an uncompressed body without an announced length.
                kept = [pair for pair in scope["headers"] if pair[0] not in (b"content-encoding", b"content-length")]
                scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


def _encoding(scope: Scope) -> str:
    """Return the content encoding of the body in lower case, "" if it has none.

    Raises:
        Refusal: the encoding is not supported, or there are several.
    """
    stated = b",".join(value for name, value in scope["headers"] if name == b"content-encoding")
    encoding = stated.decode("latin-1").strip().lower()
    if encoding in ("", "identity", "gzip", "x-gzip", "deflate"):
        return encoding
    raise Refusal(
        "media",
        f"The body's Content-Encoding is {encoding[:50]!r}. Send it with gzip, with deflate or uncompressed.",
        headers={"Accept-Encoding": "gzip, deflate"},
    )


class _DecompressedBody:
    """ASGI receive callable with a decompressed body, at most `_PIECE` bytes per message."""

    def __init__(self, receive: Receive, encoding: str, limit: int, count: Callable[[int], None] | None) -> None:
        self._receive = receive
        self._encoding = encoding
        self._limit = limit
        self._count = count
        self._size = 0
        self._compressed = b""
        self._more = True  # the client has not sent everything
        self._pending = False  # the decompressor has buffered output
        self._complete = False
        self._begun = False
        self._decompressor = zlib.decompressobj(_GZIP)

    async def __call__(self) -> Message:
        """Return the next message.

        Raises:
            Refusal: the body is damaged, or decompresses to more than the limit.
        """
        if self._complete:  # the next message is the disconnect
            return await self._receive()
        if self._compressed or self._pending:
            await asyncio.sleep(0)  # let the event loop answer other requests between two pieces
        elif self._more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._open(message.get("body", b""))
            self._more = message.get("more_body", False)
        data = self._decompress()
        self._size += len(data)
        if self._size > self._limit:
            raise Refusal(
                "body",
                f"The decompressed body exceeds the limit of {self._limit} bytes (max_body_bytes). Send fewer texts per "
                "request.",
            )
        if self._count is not None:
            self._count(len(data))
        self._complete = not (self._compressed or self._pending or self._more)
        if self._complete and not self._decompressor.eof:
            raise Refusal("invalid", f"The body's {self._encoding} stream is incomplete. Send it again.")
        return {"type": "http.request", "body": data, "more_body": not self._complete}

    def _open(self, compressed: bytes) -> None:
        """Store a piece of the compressed body; the first byte distinguishes the two formats of `deflate`."""
        if compressed and not self._begun:
            self._begun = True
            if self._encoding == "deflate":  # zlib's format, or a raw deflate stream, which some clients send
                is_zlib = compressed[0] & 0x0F == zlib.DEFLATED
                self._decompressor = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        self._compressed = compressed

    def _decompress(self) -> bytes:
        """Decompress one piece of the bytes received so far."""
        size = min(_PIECE, self._limit - self._size + 1)
        try:
            data = self._decompressor.decompress(self._compressed, size)
        except zlib.error as error:
            raise Refusal("invalid", f"The body is not valid {self._encoding} ({error}).") from error
        if self._decompressor.unused_data:
            raise Refusal("invalid", f"The body has bytes after the end of its {self._encoding} stream.")
        self._compressed = self._decompressor.unconsumed_tail
        self._pending = len(data) == size and not self._decompressor.eof
        return data
