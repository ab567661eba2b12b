"""The HTTP client that arms are asked by: no redirects, no proxies of the environment, no cookies, nothing unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import aiohttp

# vLLM's server closes a connection that is idle for 5 s: ours goes first, so that no request meets one that is closing.
KEEP_ALIVE_S = 3.0
READ_BYTES = 2**16

Headers = Sequence[tuple[str, str]]


class UpstreamError(Exception):
    """The arm could not be reached, or its answer ended before it was whole."""


class Answer:
    """Its body is read as it comes; `close` ends the connection where the body was not read to its end."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Sequence[tuple[bytes, bytes]] = response.raw_headers

    async def read(self) -> bytes:
        """What has come, at least a byte; b"" at the end. Raises UpstreamError."""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(_said(error)) from error

    def close(self) -> None:
        self._response.close()


class Upstream:
    """`async with Upstream(connect_s) as upstream`; one for all arms."""

    def __init__(self, connect_s: float) -> None:
        self._connect_s = connect_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=60),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, method: str, url: str, headers: Headers, body: bytes | None = None) -> Answer:
        """Until the status and headers are here. Raises UpstreamError; a redirect is one."""
        if self._session is None:
            raise RuntimeError("used outside of its `async with`")
        try:
            response = await self._session.request(method, url, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(_said(error)) from error
        if 300 <= response.status < 400:
            response.close()
            raise UpstreamError(f"it answered with a redirect ({response.status}), which is not followed")
        return Answer(response)


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
