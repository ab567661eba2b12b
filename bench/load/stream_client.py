"""Run clients that ask for one streamed answer after another, and time each answer. They are as light as can be."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import httptools

from mi_prun.errors import UserError

PAUSE_S = 0.02


@dataclass
class Timings:
    """Seconds, one entry for each answer that was whole. failed: answers that were not, or that had another status."""

    ttft_s: list[float] = field(default_factory=list)
    e2e_s: list[float] = field(default_factory=list)
    failed: int = 0


class Client(asyncio.Protocol):
    """A connection that is kept. A lost one counts as a failed answer, and a new one is made."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._done: asyncio.Future[bool] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.first_s = 0.0
        self.body_end = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._finish(False)

    def on_body(self, body: bytes) -> None:
        if self.first_s == 0.0:
            self.first_s = time.perf_counter()
        self.body_end = body

    def on_message_complete(self) -> None:
        whole = self._parser.get_status_code() == 200 and self.body_end.rstrip().endswith(b"data: [DONE]")
        self._parser = httptools.HttpResponseParser(self)
        self._finish(whole)

    def _finish(self, whole: bool) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(whole)

    async def ask(self, request: bytes) -> bool:
        """Send a request, wait for its answer, and tell whether that was whole."""
        if self._transport is None:
            return False
        self.first_s, self.body_end = 0.0, b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._done

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


def request_bytes(port: int, body: bytes) -> bytes:
    """Return a chat request as bytes."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
    return (head % port).encode() + b"authorization: Bearer sk-bench\r\ncontent-length: %d\r\n\r\n" % len(body) + body


async def load(port: int, body: bytes, clients: int, seconds: float) -> Timings:
    """Have clients ask for `seconds`, and time their answers. Raises UserError where no answer was whole.

    The clients begin at random within the first second, whose answers do not count.
    """
    timings = Timings()
    request = request_bytes(port, body)
    loop = asyncio.get_running_loop()
    start = time.perf_counter()

    async def client() -> None:
        await asyncio.sleep(random.random())
        connection: Client | None = None
        while time.perf_counter() - start < seconds + 1.0:
            if connection is None:
                _, connection = await loop.create_connection(Client, "127.0.0.1", port)
            # An event loop's timers tick in milliseconds: for clients in step with the engine's, a delay of 0.1 ms
            # would show as one of 1 ms, or of none. After a random pause it shows as what it is.
            await asyncio.sleep(PAUSE_S * random.random())
            asked = time.perf_counter()
            whole = await connection.ask(request)
            now = time.perf_counter()
            if not whole:
                timings.failed += 1
                connection.close()
                connection = None
                await asyncio.sleep(0.05)
            elif asked - start >= 1.0:
                timings.ttft_s.append(connection.first_s - asked)
                timings.e2e_s.append(now - asked)
        if connection is not None:
            connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    if not timings.e2e_s:
        raise UserError(f"none of {timings.failed} answers on port {port} was whole")
    return timings
