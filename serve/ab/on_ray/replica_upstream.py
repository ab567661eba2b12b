"""The client that asks arms whose engines are replicas of a cluster, in place of connections to one address."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit

from serve.ab.on_ray.engine_replica import Part
from serve.ab.wire.upstream import Answer, Headers, Upstream, UpstreamError


class Parts(Protocol):
    """The parts of a replica's answer as they come: its status and headers, then its body."""

    async def __anext__(self) -> Part: ...

    def cancel(self) -> object: ...


class Ask(Protocol):
    """Asks a replica of an arm, whichever the cluster chooses."""

    def __call__(self, method: str, path: str, headers: Headers, body: bytes | None) -> Parts: ...


class ReplicaAnswer(Answer):
    """The answer of a replica, whose head is here."""

    def __init__(self, status: int, headers: Headers, parts: Parts) -> None:
        self.status = status
        self.headers = headers
        self._parts = parts

    async def read(self) -> bytes:
        """Return the next part of the body; b"" at the end. Raises UpstreamError."""
        try:
            part = await anext(self._parts)
        except StopAsyncIteration:
            return b""
        except Exception as error:
            raise UpstreamError(_said(error)) from error
        assert isinstance(part, bytes)
        return part

    def close(self) -> None:
        with contextlib.suppress(Exception):  # one that has ended is past cancelling
            self._parts.cancel()


class ReplicaUpstream(Upstream):
    """A client for arms by name: the host of their URL. Any other URL is asked over HTTP.

    replicas: of each arm. Where there are several, one more is asked if the first fails before it begins to answer.
    """

    def __init__(self, connect_s: float, arms: Mapping[str, Ask]) -> None:
        super().__init__(connect_s)
        self.replicas = 1
        self._arms = {url_of(number): ask for number, ask in enumerate(arms.values())}
        self.urls = dict(zip(arms, self._arms, strict=True))

    async def send(self, method: str, url: str, headers: Headers, body: bytes | None = None) -> Answer:
        parts = urlsplit(url)
        ask = self._arms.get(f"{parts.scheme}://{parts.netloc}")
        if ask is None:
            return await super().send(method, url, headers, body)
        tries = 2 if self.replicas > 1 else 1
        while True:
            tries -= 1
            try:
                return await _begin(ask(method, parts.path or "/", list(headers), body))
            except UpstreamError:
                if not tries:
                    raise


def url_of(number: int) -> str:
    """Return the URL by which the proxy knows an arm whose engines are replicas. No such scheme is spoken anywhere."""
    return f"replica://{number}"


async def _begin(parts: Parts) -> Answer:
    """Wait for the head of an answer. Raises UpstreamError for whatever becomes of the replica."""
    begun = False
    try:
        head = await anext(parts)
        begun = True
    except Exception as error:
        raise UpstreamError(_said(error)) from error
    finally:
        if not begun:
            with contextlib.suppress(Exception):
                parts.cancel()
    assert isinstance(head, tuple)
    return ReplicaAnswer(*head, parts)


def _said(error: Exception) -> str:
    """Return what is wrong in one line; a cluster's own errors bring a stack trace along."""
    if isinstance(error, UpstreamError):
        return str(error.args[0]) if error.args else type(error).__name__
    return f"its replica was lost ({type(error).__name__})"
