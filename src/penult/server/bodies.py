"""Limits on request bodies while they are received: size of one, bytes of all together, and time.

Bytes of large answers are counted until the clients have read them.

This module handles ASGI messages and raises refusals. It does not parse bodies.
"""

import asyncio
import time

from starlette.types import Message, Receive, Scope, Send

from penult.server.errors import Refusal

SMALL = 65_536  # bytes; a body up to this size is received, or left unread, without extra limits
_STALL_SECONDS = 30.0  # without a byte of the body; a stalled client must not delay shutdown indefinitely
_PIECE = 1 << 20  # bytes of an answer per ASGI message
_SLOWEST = 65_536  # minimum bytes per second of a body after its first 30 s
# Some clients read nothing before they have sent the whole body. They still get a refusal if the rest of the body has at most
# `_DRAIN_TIMES` times the limit and arrives within `_DRAIN_SECONDS`.
_DRAIN_TIMES, _DRAIN_SECONDS = 4, 10.0


class Bodies:
    """Byte counter of the bodies of all requests that are not answered yet.

    Args:
        most: maximum bytes. Small bodies may use an eighth more, so that large ones do not block them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0

    def take(self, size: int, *, small: bool = False) -> None:
        """Add bytes.

        Raises:
            Refusal: there would be too many.
        """
        self.check(size, small=small)
        self._used += size

    def check(self, size: int, *, small: bool = False) -> None:
        """Check that the bytes fit within the limit.

        Raises:
            Refusal: they do not.
        """
        if self._used + size > self._limit + (self._limit // 8 if small else 0):
            raise Refusal(
                "full",
                f"The bodies of the requests in progress have {self._used} bytes; the limit is {self._limit}. Retry in 1 s.",
                headers={"Retry-After": "1"},
            )

    def release(self, size: int) -> None:
        """Remove bytes."""
        self._used -= size


class Answers:
    """Byte counter of the large answers that clients have not read yet.

    Args:
        most: maximum bytes. A single answer may have more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0

    def take(self, size: int) -> None:
        """Add bytes.

        Raises:
            Refusal: there would be too many.
        """
        if self._used and self._used + size > self._limit:
            raise Refusal(
                "full",
                f"The responses that clients have not read yet have {self._used} bytes; the limit is {self._limit}. Retry "
                "in 1 s.",
                headers={"Retry-After": "1"},
            )
        self._used += size

    def release(self, size: int) -> None:
        """Remove bytes."""
        self._used -= size


class Answer:
    """The answer to one request. Its `send` returns when the client has read nearly all of a large body.

    Args:
        send: the ASGI send callable. It waits before each message until the client has read the previous one.
        answers: byte counter of all answers.
    """

    def __init__(self, send: Send, answers: Answers) -> None:
        self._send = send
        self._answers = answers
        self._counted = 0

    async def send(self, message: Message) -> None:
        """Send a message; a large body is sent in pieces.

        Raises:
            Refusal: there would be too many unread bytes; raised before anything is sent.
        """
        if message["type"] == "http.response.start":
            size = int(next((value for name, value in message.get("headers", ()) if name == b"content-length"), 0))
            if size > SMALL:
                self._answers.take(size)
                self._counted = size
        body = message.get("body", b"")
        for start in range(0, len(body) - _PIECE, _PIECE):
            await self._send({**message, "body": body[start : start + _PIECE], "more_body": True})
        sent = max(0, -(-len(body) // _PIECE) - 1) * _PIECE
        await self._send({**message, "body": body[sent:]} if sent else message)

    def release(self) -> None:
        """Release the bytes: the client has read the answer, or has disconnected."""
        self._answers.release(self._counted)
        self._counted = 0


class Body:
    """The body of one request. Its `receive` enforces the limits.

    Args:
        scope: ASGI scope of the request.
        receive: the ASGI receive callable.
        bodies: byte counter of all requests.
        max_bytes: maximum bytes of this body.
    """

    def __init__(self, scope: Scope, receive: Receive, bodies: Bodies, max_bytes: int) -> None:
        self._receive = receive
        self._bodies = bodies
        self._max_bytes = max_bytes
        self._read, self._counted, self._complete = 0, 0, False
        self._started = time.monotonic()
        lengths = {name: value for name, value in scope["headers"] if name in (b"content-length", b"transfer-encoding")}
        length = lengths.get(b"content-length", b"0")
        self._announced = None if b"transfer-encoding" in lengths or not length.isdigit() else int(length)

    @property
    def unread(self) -> bool:
        """Whether more than a small rest of the body may still arrive."""
        return not self._complete and (self._announced is None or self._announced > SMALL)

    def check_announced(self) -> None:
        """Check the size that the request headers announce.

        Raises:
            Refusal: the body is too large, or does not fit within the limit of all requests.
        """
        if self._announced is None:
            return
        if self._announced > self._max_bytes:
            raise self._too_large()
        self._bodies.check(self._announced, small=self._announced <= SMALL)

    async def receive(self) -> Message:
        """Receive a message, and count its bytes whatever the headers announced.

        Raises:
            Refusal: the body is too large, too slow, or does not fit within the limit of all requests.
        """
        if self._complete:  # the next message is the disconnect, which has no time limit
            return await self._receive()
        left = self._started + _STALL_SECONDS + self._read / _SLOWEST - time.monotonic()
        try:
            async with asyncio.timeout(min(_STALL_SECONDS, max(left, 0.0))):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(
                "slow",
                f"The body arrived too slowly: no byte for {_STALL_SECONDS:g} s, or less than {_SLOWEST // 1024} KiB/s. "
                "Send it again.",
                headers={"Connection": "close"},
            ) from None
        size = len(message.get("body", b""))
        self._read, self._complete = self._read + size, not message.get("more_body", False)
        if self._read > self._max_bytes:
            raise self._too_large()
        self.count(size)
        return message

    def count(self, size: int) -> None:
        """Add bytes, including decompressed ones, to the counter of all requests.

        Raises:
            Refusal: they do not fit within the limit.
        """
        self._bodies.take(size, small=self._counted + size <= SMALL)
        self._counted += size

    async def drain(self) -> None:
        """Receive and discard the rest, within limits: closing earlier resets the connection of a client that still sends."""
        self.release()
        left = _DRAIN_TIMES * self._max_bytes
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._complete and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._complete = not message.get("more_body", False)
        except TimeoutError:
            return

    def release(self) -> None:
        """Release the bytes: the body is not needed any more."""
        self._bodies.release(self._counted)
        self._counted = 0

    def _too_large(self) -> Refusal:
        return Refusal(
            "body", f"The body exceeds the limit of {self._max_bytes} bytes (max_body_bytes). Send fewer texts per request."
        )
