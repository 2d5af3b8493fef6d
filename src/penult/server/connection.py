"""uvicorn's HTTP connection with limits on request headers and unread answers, and a shutdown that resets no client.

uvicorn's own connection waits indefinitely for the end of the headers and for a client to read. On SIGTERM it closes
connections on which a request may be in transit.
"""

import asyncio
from asyncio import TimerHandle

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_SECONDS = 30.0  # from the first byte of a request, or from the opening of the connection, to the end of the headers
_MAX_HEAD_BYTES = 65_536  # as in h11; also the limit of trailers and of chunk extensions
# Minimum that a client has to read per interval, unless it reads the whole answer. Bytes in the OS buffers count as read.
_UNREAD_SECONDS, _UNREAD_BYTES = 60.0, 262_144
_CLOSE = (b"connection", b"close")
STOP_OPENING = "stop_opening"
"""Key of the application's state: the function to call on shutdown."""
_LAST_SECONDS = 0.5  # after SIGTERM, in which idle connections still accept a request


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    _head_timer: TimerHandle | None = None
    _head_bytes = 0  # received since the last end of headers, part of a body, or end of a body
    _unread_timer: TimerHandle | None = None
    _ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout for the first headers."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Pass received bytes to the parser; close the connection if the headers are too large."""
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes <= _MAX_HEAD_BYTES or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(f"The request headers exceed the limit of {_MAX_HEAD_BYTES} bytes.")
        else:  # an earlier request is not answered yet, and a 400 would interrupt its answer
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        """Process a part of a body."""
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Process the end of a request."""
        self._head_bytes = 0
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        """Stop the timeout of the headers, and start the request."""
        self._head_bytes = 0
        self._forget_head()
        super().on_headers_complete()
        if self._ending:
            self._answer_last()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self._forget_head()
        self._forget_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the timeout for a client that does not read."""
        super().pause_writing()
        self._watch_unread()

    def resume_writing(self) -> None:
        """Cancel the timeout: the client has read nearly everything."""
        self._forget_unread()
        super().resume_writing()

    def shutdown(self) -> None:
        """Close the connection after its last answer; an idle one after a delay, as a request may be in transit."""
        self._ending = True
        if (stop := self.app_state.get(STOP_OPENING)) is not None:
            stop()
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LAST_SECONDS, self._close_idle)
        else:
            self._answer_last()

    def _answer_last(self) -> None:
        """Close after the answer to this request.

        Older versions of uvicorn send `Connection: close` only if the request has it.
        """
        self.cycle.keep_alive = False
        self.cycle.scope["headers"] = [*self.cycle.scope["headers"], _CLOSE]

    def _close_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._close_headless)

    def _close_headless(self) -> None:
        self._head_timer = None
        self.transport.close()

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _watch_unread(self) -> None:
        self._forget_unread()
        unread = self.transport.get_write_buffer_size()
        self._unread_timer = self.loop.call_later(_UNREAD_SECONDS, self._check_unread, unread)

    def _check_unread(self, before: int) -> None:
        if self.transport.get_write_buffer_size() > before - _UNREAD_BYTES:
            self.transport.abort()  # `close` would wait for the client to read
        else:
            self._watch_unread()

    def _forget_unread(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
