"""The client for arms, against servers that behave in every way that HTTP/1.1 allows, and some that it does not."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

import pytest

from serve.ab.wire.upstream import HEAD_BYTES, HELD_BYTES, Upstream, UpstreamError, _why

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def run(handler: Handler, client: Callable[[Upstream, str], Awaitable[None]]) -> int:
    """A server for a client of it; gives how many connections were made."""
    connections = 0

    async def main() -> None:
        async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            try:
                await handler(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(counted, "127.0.0.1", 0)
        async with Upstream(2.0) as upstream, asyncio.timeout(20):
            await client(upstream, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        server.close()

    asyncio.run(main())
    return connections


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def always(answer: bytes, *, keep: bool = True) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head_of(reader)
            writer.write(answer)
            await writer.drain()
            if not keep:
                return

    return handler


async def body_of(upstream: Upstream, url: str) -> bytes:
    answer = await upstream.send("GET", f"{url}/x", [])
    try:
        return b"".join([part async for part in parts(answer)])
    finally:
        answer.close()


async def parts(answer: object):  # type: ignore[no-untyped-def]
    while part := await answer.read():  # type: ignore[attr-defined]
        yield part


@pytest.mark.parametrize(
    ("answer", "keep", "body", "connections"),
    [
        (OK, True, b"ok", 1),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", True, b"ok", 1),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, True, b"ok", 1),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True, b"", 1),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", False, b"until the end", 3),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", True, b"ok", 3),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", False, b"ok", 3),
    ],
)
def test_bodies_and_how_they_end(answer: bytes, keep: bool, body: bytes, connections: int) -> None:
    async def client(upstream: Upstream, url: str) -> None:
        for _ in range(3):
            assert await body_of(upstream, url) == body

    assert run(always(answer, keep=keep), client) == connections


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "the connection was lost"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", "the connection was lost"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", "the connection was lost"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok", "no HTTP"),
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n", "redirect (302)"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"x" * (HEAD_BYTES + 9), "the head of its answer is larger"),
    ],
)
def test_what_is_no_answer(answer: bytes, said: str) -> None:
    async def client(upstream: Upstream, url: str) -> None:
        with pytest.raises(UpstreamError) as error:
            await body_of(upstream, url)
        assert said in str(error.value)

    run(always(answer, keep=False), client)


@pytest.mark.parametrize(("age_s", "connections"), [(30.0, 1), (0.0, 3)])
def test_a_connection_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch, age_s: float, connections: int) -> None:
    """Else a Service's new pods would get nothing, and a name that moved would not be looked up."""
    monkeypatch.setattr("serve.ab.wire.upstream.MOST_AGE_S", age_s)

    async def client(upstream: Upstream, url: str) -> None:
        for _ in range(3):
            assert await body_of(upstream, url) == b"ok"

    assert run(always(OK), client) == connections


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    """Its age, not the arm's failure: nothing is said of it."""

    async def client(upstream: Upstream, url: str) -> None:
        for _ in range(5):
            assert await body_of(upstream, url) == b"ok"
            await asyncio.sleep(0)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(OK)  # it may be kept, says the head; and then it is closed at the next request
        await head_of(reader)

    assert run(handler, client) == 5


def test_an_answer_that_is_left_ends_its_connection() -> None:
    async def client(upstream: Upstream, url: str) -> None:
        for _ in range(3):
            answer = await upstream.send("GET", f"{url}/x", [])
            answer.close()

    assert run(always(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"), client) == 3


def test_nothing_more_is_read_than_is_taken() -> None:
    sent = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    async def client(upstream: Upstream, url: str) -> None:
        answer = await upstream.send("GET", f"{url}/x", [])
        await asyncio.sleep(0.3)
        held, before = len(await answer.read()), sent
        assert held < 4 * HELD_BYTES
        assert before < 20e6  # what the kernel holds between the two
        received = held
        while received < 50e6:
            received += len(await answer.read())
        assert sent > before
        answer.close()

    run(handler, client)


def test_a_large_body_is_sent_whole_and_a_head_without_line_ends() -> None:
    body = b"x" * 3_000_000

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        assert head.startswith(b"POST /x HTTP/1.1\r\nhost: 127.0.0.1:")
        assert b"\r\na: b\r\ncontent-length: 3000000\r\n" in head
        assert await reader.readexactly(len(body)) == body
        writer.write(OK)

    async def client(upstream: Upstream, url: str) -> None:
        answer = await upstream.send("POST", f"{url}/x", [(b"a", b"b")], body)
        assert answer.status == 200
        with pytest.raises(UpstreamError, match="line end"):
            await upstream.send("POST", f"{url}/x", [(b"a", b"b\r\nc: d")], b"")

    run(handler, client)


def test_a_connection_whose_answer_was_left_unread_is_not_asked_again() -> None:
    """It reads no more: who asked on it next would wait for ever."""
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 80000\r\n\r\n"

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head_of(reader)
            writer.write(head + b"x" * 1_000)
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(b"x" * 79_000)
            await writer.drain()

    async def client(upstream: Upstream, url: str) -> None:
        for _ in range(2):
            async with asyncio.timeout(2):
                answer = await upstream.send("GET", f"{url}/x", [])
            await answer.read()
            await asyncio.sleep(0.2)
            answer.close()

    assert run(handler, client) == 2


@pytest.mark.parametrize("cut", [1, 10_000])
def test_trailers_are_no_headers(cut: int) -> None:
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ncontent-encoding: gzip\r\n\r\n"

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        for at in range(0, len(answer), cut):
            writer.write(answer[at : at + cut])
            await writer.drain()
            await asyncio.sleep(0)

    async def client(upstream: Upstream, url: str) -> None:
        got = await upstream.send("GET", f"{url}/x", [])
        assert await got.read()
        assert [name for name, _ in got.headers] == [b"transfer-encoding"]
        got.close()

    run(handler, client)


def test_nobody_listens() -> None:
    async def main() -> None:
        async with Upstream(2.0) as upstream:
            with pytest.raises(UpstreamError, match=r"^it cannot be reached: Connection refused$"):  # no address
                await upstream.send("GET", "http://127.0.0.1:9/x", [])

    asyncio.run(main())


def test_a_query_is_asked_with_its_path() -> None:
    """A health path of one's own may have one."""
    heads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await head_of(reader))
        writer.write(OK)
        await writer.drain()

    async def client(upstream: Upstream, url: str) -> None:
        for path in ("/live?a=1&b=%20", "/live", "", "?a"):
            (await upstream.send("GET", f"{url}{path}", [])).close()

    run(handler, client)
    assert [head.split(b" ")[1] for head in heads] == [b"/live?a=1&b=%20", b"/live", b"/", b"/?a"]


def test_a_certificate_that_does_not_fit_names_no_host() -> None:
    """Python's own words name the arm's host, which no client is told."""
    error = ssl.SSLCertVerificationError(
        1, "certificate verify failed: Hostname mismatch, not valid for 'inside.local'"
    )
    error.verify_code = 62
    assert _why(error) == "its certificate is not accepted (OpenSSL's code 62)"
