"""Serve an engine that costs next to nothing: it answers every POST with a stream of chat chunks, at a pace.

    python -m bench.engines.fast_engine --port N --tokens 32 --token-ms 20

What stands before it can then be measured. With `--aligned` all streams get their tokens at the same moments, as the
steps of a real engine have it.
"""

from __future__ import annotations

import argparse
import asyncio

import httptools

CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"fast","choices":[{"index":0,'
    b'"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
LAST = CHUNK.replace(b'"finish_reason":null', b'"finish_reason":"stop"') + b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


def framed(data: bytes) -> bytes:
    """Return data as a chunk of HTTP's chunked encoding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class FastEngine(asyncio.Protocol):
    """A connection to the engine."""

    def __init__(self, tokens: int, token_s: float, aligned: bool) -> None:
        self._tokens = tokens
        self._token_s = token_s
        self._aligned = aligned
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._transport is None:
            return
        if self._parser.get_method() != b"POST":
            self._transport.write(EMPTY)
            return
        start = self._loop.time()
        if self._aligned and self._token_s:
            start -= start % self._token_s
        self._loop.call_at(start + self._token_s, self._send, start, 1)

    def _send(self, start: float, place: int) -> None:
        if self._transport is None:
            return
        head = HEAD if place == 1 else b""
        if place >= self._tokens:
            self._transport.write(head + framed(LAST) + b"0\r\n\r\n")
            return
        self._transport.write(head + framed(CHUNK))
        self._loop.call_at(start + (place + 1) * self._token_s, self._send, start, place + 1)


async def serve(port: int, tokens: int, token_s: float, aligned: bool) -> None:
    """Serve on a local port until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: FastEngine(tokens, token_s, aligned), "127.0.0.1", port, backlog=2048)
    async with server:
        await server.serve_forever()


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--token-ms", type=float, default=20.0)
    parser.add_argument("--aligned", action="store_true")
    given = parser.parse_args()
    uvloop.run(serve(given.port, given.tokens, given.token_ms / 1e3, given.aligned))


if __name__ == "__main__":
    main()
