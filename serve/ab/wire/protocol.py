"""uvicorn's HTTP protocol, with the bounds that it lacks: on the size of a request's head and on the time it takes.

Its parser (llhttp) refuses what smuggling is made of: two lengths, a length beside chunks, bare line ends in a head.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.ab.config import Limits


def bounded_protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """A class for `uvicorn.Config(http=...)`: 431 for a head that is too large, and an end to a connection whose first
    request, or next one once it has begun, does not come in time, or whose client takes nothing of what it is sent. The
    body has bounds of its own (`Proxy`, `BoundedBodies`).
    """

    class BoundedProtocol(HttpToolsProtocol):
        _head_bytes = 0
        _head_timer: asyncio.TimerHandle | None = None
        _look_timer: asyncio.TimerHandle | None = None
        _stuck = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head_timer = self.loop.call_later(limits.request_s, self._too_slow)
            self._look_timer = self.loop.call_later(limits.send_s, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            if self._look_timer is not None:
                self._look_timer.cancel()
            super().connection_lost(exc)

        def resume_writing(self) -> None:
            self._stuck = False
            super().resume_writing()

        def data_received(self, data: bytes) -> None:
            if self._head_timer is None and self._head_bytes == 0 and self._idle():
                self._head_timer = self.loop.call_later(limits.request_s, self._too_slow)
            if self._head_timer is not None:
                self._head_bytes += len(data)
            super().data_received(data)
            # All that came before the head was whole counts, but not a body that came with its last part.
            if self._head_timer is not None and self._head_bytes > limits.header_bytes:
                self._refuse_head()

        def on_headers_complete(self) -> None:
            if self.transport.is_closing():
                return  # what came behind a refused one
            self._stop_timer()
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limits.header_bytes:
                self._refuse_head()
                return
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if self.cycle is not None and not self.transport.is_closing():
                super().on_body(body)

        def on_message_complete(self) -> None:
            if self.cycle is not None and not self.transport.is_closing():
                super().on_message_complete()

        def _look(self) -> None:
            """Every send_s. `close` waits until all is taken, for ever where the client takes nothing: whoever is
            found waiting twice is cut off, on whatever route.
            """
            waits = self.transport.is_closing() or self.flow.write_paused
            if waits and self._stuck:
                self.transport.abort()
                return
            self._stuck = waits
            self._look_timer = self.loop.call_later(limits.send_s, self._look)

        def _idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
            self._head_bytes = 0

        def _refuse_head(self) -> None:
            self._stop_timer()
            self._end(b"431 Request Header Fields Too Large")

        def _too_slow(self) -> None:
            self._head_timer = None
            self._end(b"408 Request Timeout")

        def _end(self, status: bytes) -> None:
            if not self.transport.is_closing():
                self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                self.transport.close()

    return BoundedProtocol
