"""uvicorn's HTTP protocol, with the bounds that it lacks: on the size of a request's head and on the time it takes.

Its parser (llhttp) refuses what smuggling is made of: two lengths, a length beside chunks, bare line ends in a head. An
offer to speak another protocol is ignored, as a server may (RFC 9110, 7.8).

The class made here overrides uvicorn's internals, which a later release may change: UVICORN_METHODS,
UVICORN_ATTRIBUTES and CYCLE_ATTRIBUTES name what it needs, and pyproject.toml bounds the release.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.ab.config import Limits

# Methods and attributes of HttpToolsProtocol that are called or overridden here.
UVICORN_METHODS = (
    *("connection_made", "connection_lost", "resume_writing", "data_received"),
    *("on_headers_complete", "on_body", "on_message_complete"),
)
UVICORN_ATTRIBUTES = ("parser", "loop", "transport", "flow", "cycle", "url", "headers", "pipeline")
OFFER = frozenset((b"upgrade", b"http2-settings"))
MOST_PIPELINED = 16  # requests that wait for the answer to an earlier one


CYCLE_ATTRIBUTES = ("chunked_encoding", "expected_content_length")


class UntilClose(int):
    """The length of a body that ends with its connection, in uvicorn's sums: any body has it."""

    def __sub__(self, other: int) -> UntilClose:
        return self

    def __lt__(self, other: int) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return False

    __eq__ = int.__eq__
    __hash__ = int.__hash__


class OfferlessParser:
    """llhttp's parser for requests, for which a request that offers another protocol is one like any other.

    By itself httptools stops behind the head of such a request, and its body is lost. Here the request is read again
    without the offer. protocol: gets the parser's callbacks; those of a request that `is_offer` have to be ignored.
    """

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol
        self._parser = self._new()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    @property
    def is_offer(self) -> bool:
        """Return whether the request that is parsed now will be read again. CONNECT is no offer: it is refused."""
        return self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        """Parse what came. Raises httptools.HttpParserError."""
        rest = memoryview(data)
        while rest:
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as offer:
                if not self.is_offer:
                    raise
                head = self._head_without_offer()
                self._parser = self._new()
                self._parser.feed_data(head)
                rest = rest[offer.args[0] :]
            else:
                return

    def _new(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self._protocol)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        return parser

    def _head_without_offer(self) -> bytes:
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self._parser.get_method(), self._protocol.url, version)]
        for name, value in self._protocol.headers:
            if name == b"connection":
                value = b", ".join(word for word in value.split(b",") if word.strip().lower() not in OFFER)
            if name not in OFFER and (value or name != b"connection"):
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join(lines) + b"\r\n\r\n"


def bounded_protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """Return a class for `uvicorn.Config(http=...)`.

    It answers 431 to a head that is too large. It ends a connection on which as much comes that is no whole head and no
    body: trailers, or the head of a next request while an answer is under way. It ends one on which MOST_PIPELINED
    requests wait. It ends one whose first request, or next one once it has begun, does not come in time (408), and one
    whose client takes nothing of what it is sent. The body has bounds of its own (`Proxy`, `BoundedBodies`).
    """

    class BoundedProtocol(HttpToolsProtocol):
        _head_bytes = 0
        _loose_bytes = 0  # since a head was whole, or a part of a body came
        _head_timer: asyncio.TimerHandle | None = None
        _look_timer: asyncio.TimerHandle | None = None
        _stuck = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.parser: Any = OfferlessParser(self)
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
            self._loose_bytes += len(data)
            super().data_received(data)
            # All that came before the head was whole counts, but not a body that came with its last part.
            if self._head_timer is not None and self._head_bytes > limits.header_bytes:
                self._refuse_head()
            elif self._loose_bytes > limits.header_bytes and not self.transport.is_closing():
                self.transport.abort()

        def on_headers_complete(self) -> None:
            self._loose_bytes = 0
            if self.transport.is_closing() or self.parser.is_offer:
                return  # what came behind a refused one, or what will be read again
            self._stop_timer()
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limits.header_bytes:
                self._refuse_head()
                return
            super().on_headers_complete()
            self.headers = []  # for trailers: the request keeps its own
            if len(self.pipeline) >= MOST_PIPELINED:
                self.transport.abort()
                return
            if self.parser.get_http_version() == "1.0" and self.cycle is not None:
                # Such a client knows no chunks (RFC 9112, 6.1): its answer ends where the connection does.
                self.cycle.chunked_encoding = False
                self.cycle.expected_content_length = UntilClose()

        def on_body(self, body: bytes) -> None:
            self._loose_bytes = 0
            if self.cycle is not None and not self.transport.is_closing():
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._loose_bytes = 0
            if self.cycle is not None and not self.transport.is_closing() and not self.parser.is_offer:
                super().on_message_complete()

        def _look(self) -> None:
            """Cut off a client that is found waiting twice, send_s apart.

            `close` waits until all is taken: for ever, where the client takes nothing.
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
