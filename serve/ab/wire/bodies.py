"""Bounds on the request bodies of all routes but the proxied ones, which have their own."""

from __future__ import annotations

import asyncio
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LIMIT_BYTES = 2**16


class BoundedBodies:
    """An ASGI layer that reads a body whole before its route is called.

    It answers 413 where the body is too large, and 408 where it does not come in request_s. spared: paths it leaves
    alone.
    """

    def __init__(
        self, app: ASGIApp, *, request_s: float, spared: frozenset[str], limit_bytes: int = LIMIT_BYTES
    ) -> None:
        self.app = app
        self.request_s = request_s
        self.spared = spared
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.spared or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        body = b""
        try:
            async with asyncio.timeout(self.request_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message["body"]
                    more = message["more_body"]
                    if len(body) > self.limit_bytes:
                        await _refuse(send, 413, f"the body is larger than {self.limit_bytes:,} bytes")
                        return
        except TimeoutError:
            await _refuse(send, 408, "the request took too long to come")
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


async def _refuse(send: Send, status: int, message: str) -> None:
    """Refuse in FastAPI's own form, as the other refusals of these routes are."""
    body = json.dumps({"detail": message}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
