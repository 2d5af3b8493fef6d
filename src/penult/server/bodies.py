"""The bodies of requests while they are received: their sizes, the bytes of all together, and how long a client may take.

The bodies of answers are counted until their clients have read them.

It knows ASGI's messages and refusals; it does not know what a body means.
"""

import asyncio
import time

from starlette.types import Message, Receive, Scope, Send

from penult.server.errors import Refusal

SMALL = 65_536  # bytes; such a body is received, or left unread, without further care
_STALL_SECONDS = 30.0  # without a byte of the body; a client that stalls for ever must not hold up the end of the server
_PIECE = 1 << 20  # bytes of an answer that are handed on at a time
_SLOWEST = 65_536  # bytes per second that a body has to reach after its first 30 s
# A client that reads nothing before it has sent everything gets its answer if the rest of its body is at most so many times
# the limit and comes in time.
_DRAIN_TIMES, _DRAIN_SECONDS = 4, 10.0


class Bodies:
    """The bytes of the bodies of all requests that are not answered yet.

    Args:
        most: maximum bytes. Small bodies may use an eighth more, so that large ones do not shut them out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._used = 0

    def take(self, size: int, *, small: bool = False) -> None:
        """Add bytes.

        Raises:
            Refusal: there would be too many.
        """
        self.check(size, small=small)
        self._used += size

    def check(self, size: int, *, small: bool = False) -> None:
        """Check that there is room.

        Raises:
            Refusal: there is not.
        """
        if self._used + size > self._most + (self._most // 8 if small else 0):
            raise Refusal(
                "full",
                f"The requests that are not answered yet have {self._used} bytes, the limit is {self._most}. Retry in 1 s.",
                headers={"Retry-After": "1"},
            )

    def release(self, size: int) -> None:
        """Remove bytes."""
        self._used -= size


class Answers:
    """The bytes of the large answers that clients have not read yet.

    Args:
        most: maximum bytes. A single answer may have more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._used = 0

    def take(self, size: int) -> None:
        """Add bytes.

        Raises:
            Refusal: there would be too many.
        """
        if self._used and self._used + size > self._most:
            raise Refusal(
                "full",
                f"The answers that clients have not read yet have {self._used} bytes, the limit is {self._most}. Retry in 1 s.",
                headers={"Retry-After": "1"},
            )
        self._used += size

    def release(self, size: int) -> None:
        """Remove bytes."""
        self._used -= size


class Answer:
    """The answer to one request; `send` is ASGI's, and returns when the client has read nearly all of a large body.

    Args:
        send: ASGI's own. It waits before each message until the client has read the one before.
        answers: bytes of all answers.
    """

    def __init__(self, send: Send, answers: Answers) -> None:
        self._send = send
        self._answers = answers
        self._taken = 0

    async def send(self, message: Message) -> None:
        """Pass on a message, a large body in pieces.

        Raises:
            Refusal: before anything is sent, where there would be too many bytes that are not read.
        """
        if message["type"] == "http.response.start":
            size = int(next((value for name, value in message.get("headers", ()) if name == b"content-length"), 0))
            if size > SMALL:
                self._answers.take(size)
                self._taken = size
        body = message.get("body", b"")
        for start in range(0, len(body) - _PIECE, _PIECE):
            await self._send({**message, "body": body[start : start + _PIECE], "more_body": True})
        sent = max(0, -(-len(body) // _PIECE) - 1) * _PIECE
        await self._send({**message, "body": body[sent:]} if sent else message)

    def release(self) -> None:
        """State that the client has read it, or has left."""
        self._answers.release(self._taken)
        self._taken = 0


class Body:
    """The body of one request; `receive` is ASGI's, with the limits.

    Args:
        scope: of the request.
        receive: ASGI's own.
        bodies: bytes of all requests.
        max_bytes: maximum bytes of this body.
    """

    def __init__(self, scope: Scope, receive: Receive, bodies: Bodies, max_bytes: int) -> None:
        self._receive = receive
        self._bodies = bodies
        self._max_bytes = max_bytes
        self._read, self._taken, self._whole = 0, 0, False
        self._started = time.monotonic()
        heads = {name: value for name, value in scope["headers"] if name in (b"content-length", b"transfer-encoding")}
        length = heads.get(b"content-length", b"0")
        self._announced = None if b"transfer-encoding" in heads or not length.isdigit() else int(length)

    @property
    def unread(self) -> bool:
        """Whether more of it may come than a server discards without further care."""
        return not self._whole and (self._announced is None or self._announced > SMALL)

    def check_announced(self) -> None:
        """Refuse a body that is too large, or for which there is no room, by what its head says.

        Raises:
            Refusal: it is.
        """
        if self._announced is None:
            return
        if self._announced > self._max_bytes:
            raise self._too_large()
        self._bodies.check(self._announced, small=self._announced <= SMALL)

    async def receive(self) -> Message:
        """Count the body as it comes, whatever its head says.

        Raises:
            Refusal: it is too large, too slow, or there is no room for it.
        """
        if self._whole:  # what comes now is that the client leaves, whenever that is
            return await self._receive()
        left = self._started + _STALL_SECONDS + self._read / _SLOWEST - time.monotonic()
        try:
            async with asyncio.timeout(min(_STALL_SECONDS, max(left, 0.0))):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(
                "slow",
                f"{_STALL_SECONDS:g} s went by without a byte of the body, or it came slower than {_SLOWEST // 1024} KiB/s; "
                "send it again.",
                headers={"Connection": "close"},
            ) from None
        size = len(message.get("body", b""))
        self._read, self._whole = self._read + size, not message.get("more_body", False)
        if self._read > self._max_bytes:
            raise self._too_large()
        self.count(size)
        return message

    def count(self, size: int) -> None:
        """Count bytes among those of all requests, also those that the body is decompressed to.

        Raises:
            Refusal: there is no room for them.
        """
        self._bodies.take(size, small=self._taken + size <= SMALL)
        self._taken += size

    async def drain(self) -> None:
        """Receive and drop the rest, within bounds: a connection that is closed before is a reset for who still sends."""
        self.release()
        left = _DRAIN_TIMES * self._max_bytes
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._whole and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._whole = not message.get("more_body", False)
        except TimeoutError:
            return

    def release(self) -> None:
        """State that it is needed no more."""
        self._bodies.release(self._taken)
        self._taken = 0

    def _too_large(self) -> Refusal:
        return Refusal("body", f"The body has more than {self._max_bytes} bytes, that is the most; send fewer texts.")
