"""The HTTP protocol before a transport in the tests' hands, and what of uvicorn's own it rests on."""

from __future__ import annotations

import asyncio
import inspect
import tomllib
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from packaging.requirements import Requirement
from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from serve.ab.config import Limits
from serve.ab.wire.protocol import (
    CYCLE_ATTRIBUTES,
    MOST_PIPELINED,
    UVICORN_ATTRIBUTES,
    UVICORN_METHODS,
    bounded_protocol,
)

PYPROJECT = Path(__file__).parents[4] / "pyproject.toml"
BODY = b'{"model": "m"}'
HEAD = b"POST /x HTTP/1.1\r\nhost: h\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBA\r\nUpgrade: h2c\r\n"


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self.aborted = False
        self.ended = False  # by the server's own doing

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Seen:
    """What the application behind it is asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes, dict[bytes, bytes]]] = []
        self.parts = [b""]  # what it answers
        self.headers: list[tuple[bytes, bytes]] = [(b"content-length", b"0")]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        self.requests.append((scope["method"], scope["path"], body, dict(scope["headers"])))
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        for place, part in enumerate(self.parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": place < len(self.parts)})


def say(*parts: bytes, seen: Seen | None = None, **limits: Any) -> tuple[Seen, Transport]:
    """A connection on which so much comes."""
    seen, transport = seen or Seen(), Transport()

    async def run() -> None:
        config = uvicorn.Config(seen, ws="none", log_config=None)
        config.load()
        protocol = bounded_protocol(Limits(**limits))(config, ServerState(), {})
        protocol.connection_made(transport)
        for part in parts:
            protocol.data_received(part)
            await asyncio.sleep(0)
        for _ in range(3):  # an answer may start the next one
            while not transport.aborted and (
                protocol.pipeline or (protocol.tasks and protocol.cycle.more_body is False)
            ):
                await asyncio.sleep(0)
        transport.ended = transport.closed
        protocol.connection_lost(None)
        await asyncio.gather(*protocol.tasks)

    asyncio.run(asyncio.wait_for(run(), 20))
    return seen, transport


def test_uvicorn_has_what_is_overridden() -> None:
    """Where this fails, a new release of uvicorn needs a look at wire/protocol.py before pyproject.toml allows it."""
    missing = [name for name in UVICORN_METHODS if not callable(getattr(HttpToolsProtocol, name, None))]
    assert not missing, f"uvicorn {uvicorn.__version__} has no HttpToolsProtocol.{missing}"
    source = inspect.getsource(HttpToolsProtocol)
    missing = [name for name in UVICORN_ATTRIBUTES if f"self.{name}" not in source]
    assert not missing, f"uvicorn {uvicorn.__version__}: HttpToolsProtocol sets no {missing}"
    source = inspect.getsource(RequestResponseCycle)
    missing = [name for name in CYCLE_ATTRIBUTES if f"self.{name}" not in source]
    assert not missing, f"uvicorn {uvicorn.__version__}: RequestResponseCycle sets no {missing}"


def test_the_release_of_uvicorn_is_bounded_and_this_one_is_within() -> None:
    lines = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    (wanted,) = [line for line in map(Requirement, lines) if line.name == "uvicorn"]
    assert "<" in str(wanted.specifier)
    assert wanted.specifier.contains(uvicorn.__version__)


@pytest.mark.parametrize("offer", [b"", H2C, b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"])
@pytest.mark.parametrize(
    "framed",
    [
        LENGTH + b"\r\n" + BODY,
        b"transfer-encoding: chunked\r\n\r\n" + CHUNKS,
        b"expect: 100-continue\r\n" + LENGTH + b"\r\n" + BODY,
    ],
)
@pytest.mark.parametrize("cut", [1, 30, 200, 10_000])
def test_an_offer_of_another_protocol_is_ignored(offer: bytes, framed: bytes, cut: int) -> None:
    """The body comes with the head or behind it, in any parts; the next request is one too."""
    request = HEAD + offer + framed
    parts = [request[at : at + cut] for at in range(0, len(request), cut)]
    seen, transport = say(*parts, request)
    assert [(method, path, body) for method, path, body, _ in seen.requests] == [("POST", "/x", BODY)] * 2
    assert transport.written.count(b"HTTP/1.1 200") == 2
    for *_, headers in seen.requests:
        assert not {b"upgrade", b"http2-settings"} & set(headers)
        assert b"pgrade" not in headers.get(b"connection", b"")


LONG_LINES = [b"x: %b\r\n" % (b"a" * 1_000)] * 100


@pytest.mark.parametrize(
    "before",
    [
        HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",  # trailers without end
        HEAD + LENGTH + b"\r\n{GET / HTTP/1.1\r\n",  # what is behind a body that is not whole is that body
    ],
)
def test_what_is_no_body_is_bounded_behind_the_head_too(before: bytes) -> None:
    _, transport = say(before, *LONG_LINES)
    assert transport.aborted or b"HTTP/1.1 4" in transport.written


def test_a_head_that_comes_while_an_answer_is_under_way_is_bounded() -> None:
    class Waiting(Seen):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

    _, transport = say(b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n", *LONG_LINES, seen=Waiting())
    assert transport.aborted


def test_a_body_in_many_small_chunks_is_not_bounded_so() -> None:
    chunks = [b"1;" + b"e" * 500 + b"\r\n \r\n"] * 200
    seen, _ = say(HEAD + b"transfer-encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n")
    assert [len(body) for _, _, body, _ in seen.requests] == [200]


@pytest.mark.parametrize("offer", [b"", H2C])
def test_many_requests_at_once_get_as_many_answers(offer: bytes) -> None:
    request = b"GET /x HTTP/1.1\r\n" + offer + b"\r\n"
    seen, transport = say(request * MOST_PIPELINED, *[request] * 300)
    assert (len(seen.requests), transport.aborted) == (MOST_PIPELINED + 300, False)


def test_too_many_requests_at_once_end_the_connection() -> None:
    seen, transport = say(b"GET /x HTTP/1.1\r\n\r\n" * 10_000)
    assert (transport.aborted, len(seen.requests)) == (True, 1)


def test_trailers_are_no_headers() -> None:
    trailers = b"0\r\nauthorization: Bearer another\r\nx-mi-prun-arm: pruned\r\n\r\n"
    request = HEAD + b"transfer-encoding: chunked\r\n\r\n" + CHUNKS.replace(b"0\r\n\r\n", trailers)
    seen, _ = say(request, request)
    assert [(body, set(headers)) for _, _, body, headers in seen.requests] == [
        (BODY, {b"host", b"transfer-encoding"})
    ] * 2


@pytest.mark.parametrize(
    "smuggled",
    [LENGTH + b"Content-Length: 0\r\n\r\n" + BODY, LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
)
def test_an_offer_smuggles_nothing(smuggled: bytes) -> None:
    seen, transport = say(HEAD + H2C + smuggled)
    assert seen.requests == []
    assert transport.written.startswith(b"HTTP/1.1 400")
    assert transport.closed


@pytest.mark.parametrize("offer", [b"", H2C])
def test_a_head_that_is_too_large(offer: bytes) -> None:
    seen, transport = say(HEAD + offer + b"x-a: " + b"x" * 3000 + b"\r\n\r\n", header_bytes=2000)
    assert (seen.requests, transport.closed) == ([], True)
    assert transport.written.startswith(b"HTTP/1.1 431")
    seen, transport = say(HEAD + b"x-a: ", *[b"x" * 900] * 3, header_bytes=2000)
    assert transport.written.startswith(b"HTTP/1.1 431")


def test_connect_is_no_offer() -> None:
    seen, transport = say(b"CONNECT h:443 HTTP/1.1\r\nhost: h\r\n\r\n")
    assert (seen.requests, transport.closed) == ([], True)
    assert transport.written.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("length", [[], [(b"content-length", b"4")]])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_http_1_0_gets_no_chunks(version: bytes, length: list[tuple[bytes, bytes]]) -> None:
    """An answer without a length ends where the connection does; each part is sent as it comes."""
    seen = Seen()
    seen.parts, seen.headers = [b"ab", b"cd", b""], length
    _, transport = say(b"GET /x HTTP/" + version + b"\r\nconnection: keep-alive\r\n\r\n", seen=seen)
    head, _, body = transport.written.partition(b"\r\n\r\n")
    chunked = version == b"1.1" and not length
    assert (b"chunked" in head, body) == (chunked, b"2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n" if chunked else b"abcd")
    assert transport.ended == (version == b"1.0")


def test_head_gets_no_body() -> None:
    seen = Seen()
    seen.parts, seen.headers = [b"ab"], [(b"content-length", b"2")]
    for version in (b"1.0", b"1.1"):
        _, transport = say(b"HEAD /x HTTP/" + version + b"\r\n\r\n", seen=seen)
        assert b"content-length: 2\r\n" in transport.written
        assert transport.written.endswith(b"\r\n\r\n")
