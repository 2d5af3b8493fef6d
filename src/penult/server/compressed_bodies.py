"""Compressed bodies of requests: gzip and deflate are decompressed as they come, and what they unpack to is limited.

A few kilobytes can unpack to gigabytes, so that no more is unpacked at a time than the limit leaves, plus one byte.
"""

import asyncio
import zlib
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penult.server.errors import Refusal

_PIECE = 1 << 20  # bytes that are unpacked in one step: some 5 ms, in which no other request is answered
_GZIP = 16 + zlib.MAX_WBITS  # zlib's name of the format


class CompressedBodyMiddleware:
    """Decompresses the bodies of requests.

    Args:
        app: the application.
        max_body_bytes: maximum bytes that a body unpacks to.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, its body decompressed.

        Raises:
            Refusal: the encoding is not known.
        """
        if scope["type"] == "http":
            encoding = _encoding(scope)
            if encoding not in ("", "identity"):
                # Whoever counts the bytes of all requests together counts what this one unpacks to as well.
                count = getattr(scope.get("penult.body"), "count", None)
                receive = _Unpacked(receive, encoding, self._max_body_bytes, count)
                # What follows sees a plain body of a length that nobody has announced.
                kept = [pair for pair in scope["headers"] if pair[0] not in (b"content-encoding", b"content-length")]
                scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


def _encoding(scope: Scope) -> str:
    """Return the encoding of the body in lower case, "" where none is stated.

    Raises:
        Refusal: the encoding is not known, or there are several.
    """
    stated = b",".join(value for name, value in scope["headers"] if name == b"content-encoding")
    encoding = stated.decode("latin-1").strip().lower()
    if encoding in ("", "identity", "gzip", "x-gzip", "deflate"):
        return encoding
    raise Refusal(
        "media",
        f"The body's Content-Encoding is {encoding[:50]!r}; it must be gzip or deflate, or the body must not be compressed.",
        headers={"Accept-Encoding": "gzip, deflate"},
    )


class _Unpacked:
    """The messages of a request, with the body decompressed; each holds at most `_PIECE` bytes of it."""

    def __init__(self, receive: Receive, encoding: str, limit: int, count: Callable[[int], None] | None) -> None:
        self._receive = receive
        self._encoding = encoding
        self._limit = limit
        self._count = count
        self._size = 0
        self._packed = b""
        self._more = True  # the client has not sent all
        self._pending = False  # the decompressor has not given all of what it read
        self._whole = False
        self._begun = False
        self._decompressor = zlib.decompressobj(_GZIP)

    async def __call__(self) -> Message:
        """Return the next message.

        Raises:
            Refusal: the body is damaged, or unpacks to more than the limit.
        """
        if self._whole:  # what comes now is that the client leaves
            return await self._receive()
        if self._packed or self._pending:
            await asyncio.sleep(0)  # other requests are answered between two pieces
        elif self._more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._open(message.get("body", b""))
            self._more = message.get("more_body", False)
        data = self._unpack()
        self._size += len(data)
        if self._size > self._limit:
            raise Refusal("body", f"The body unpacks to more than {self._limit} bytes, that is the most; send fewer texts.")
        if self._count is not None:
            self._count(len(data))
        self._whole = not (self._packed or self._pending or self._more)
        if self._whole and not self._decompressor.eof:
            raise Refusal("invalid", f"The body's {self._encoding} stream ends early; send it again.")
        return {"type": "http.request", "body": data, "more_body": not self._whole}

    def _open(self, packed: bytes) -> None:
        """Take a piece of what the client sends; the first byte tells the two formats of `deflate` apart."""
        if packed and not self._begun:
            self._begun = True
            if self._encoding == "deflate":  # zlib's format, or of some clients the bare stream
                is_zlib = packed[0] & 0x0F == zlib.DEFLATED
                self._decompressor = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        self._packed = packed

    def _unpack(self) -> bytes:
        """Unpack one piece of what has come."""
        most = min(_PIECE, self._limit - self._size + 1)
        try:
            data = self._decompressor.decompress(self._packed, most)
        except zlib.error as error:
            raise Refusal("invalid", f"The body is not valid {self._encoding} ({error}).") from error
        if self._decompressor.unused_data:
            raise Refusal("invalid", f"The body has bytes after the end of its {self._encoding} stream.")
        self._packed = self._decompressor.unconsumed_tail
        self._pending = len(data) == most and not self._decompressor.eof
        return data
