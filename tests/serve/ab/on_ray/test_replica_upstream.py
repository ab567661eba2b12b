"""The client for arms whose engines are replicas. Parts come out of generators here, and out of Ray in `make ray`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from serve.ab.on_ray.engine_replica import Part
from serve.ab.on_ray.replica_upstream import ReplicaUpstream
from serve.ab.wire.headers import RawHeaders
from serve.ab.wire.upstream import UpstreamError


class Parts:
    """What Ray returns of a generator, as far as the client uses it."""

    def __init__(self, parts: AsyncGenerator[Part, None]) -> None:
        self._parts = parts
        self.cancelled = False

    async def __anext__(self) -> Part:
        return await anext(self._parts)

    def cancel(self) -> None:
        self.cancelled = True


class Replicas:
    """Replicas of an arm, asked one after the other. steps: what each does, a part or an error at a time."""

    def __init__(self, *steps: list[Part | Exception]) -> None:
        self.steps = list(steps)
        self.asked: list[Parts] = []

    def __call__(self, method: str, path: str, headers: RawHeaders, body: bytes | None) -> Parts:
        async def parts(steps: list[Part | Exception]) -> AsyncGenerator[Part, None]:
            for step in steps:
                if isinstance(step, Exception):
                    raise step
                yield step

        self.asked.append(Parts(parts(self.steps[len(self.asked)])))
        return self.asked[-1]


HEAD: Part = (200, [(b"content-type", b"text/plain")])


def answer_of(replicas: Replicas, count: int = 1) -> tuple[int, bytes]:
    async def ask() -> tuple[int, bytes]:
        upstream = ReplicaUpstream(1.0, {"Dense": replicas})
        upstream.replicas = count
        answer = await upstream.send("POST", f"{upstream.urls['Dense']}/v1/completions", [], b"{}")
        body = b""
        try:
            while part := await answer.read():
                body += part
        finally:
            answer.close()
        return answer.status, body

    return asyncio.run(ask())


def test_an_answer_is_read_part_by_part() -> None:
    replicas = Replicas([HEAD, b"ab", b"c"])
    assert answer_of(replicas) == (200, b"abc")
    assert replicas.asked[0].cancelled  # `close`, which Ray takes of one that has ended too


def lost() -> RuntimeError:
    return RuntimeError("The actor died\nwith a stack trace of many lines")


def test_another_replica_is_asked_where_the_first_had_not_begun() -> None:
    replicas = Replicas([lost()], [HEAD, b"ab"])
    assert answer_of(replicas, count=3) == (200, b"ab")
    assert replicas.asked[0].cancelled


@pytest.mark.parametrize(
    ("steps", "count", "asked", "said"),
    [
        ([[lost()], [HEAD]], 1, 1, r"its replica was lost \(RuntimeError\)"),
        ([[lost()], [lost()], [HEAD]], 3, 2, r"its replica was lost"),
        ([[UpstreamError("it cannot be reached")]], 1, 1, "it cannot be reached"),
        ([[HEAD, b"ab", lost()], [HEAD]], 2, 1, r"its replica was lost"),
    ],
)
def test_what_becomes_of_a_replica_is_the_arms_failure(
    steps: list[list[Any]], count: int, asked: int, said: str
) -> None:
    """Two replicas at most, then the next arm's turn; and none once the answer has begun."""
    replicas = Replicas(*steps)
    with pytest.raises(UpstreamError, match=said) as failed:
        answer_of(replicas, count)
    assert "\n" not in str(failed.value)
    assert len(replicas.asked) == asked


def test_who_stops_waiting_cancels_the_replicas_work() -> None:
    async def forever() -> AsyncGenerator[Part, None]:
        await asyncio.sleep(60)
        yield HEAD

    parts = Parts(forever())
    ask: Callable[..., Parts] = lambda method, path, headers, body: parts  # noqa: E731

    async def give_up() -> None:
        upstream = ReplicaUpstream(1.0, {"dense": ask})
        async with asyncio.timeout(0.05):
            await upstream.send("GET", f"{upstream.urls['dense']}/health", [])

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert parts.cancelled


def test_any_other_url_is_asked_over_http() -> None:
    async def ask() -> None:
        await ReplicaUpstream(1.0, {}).send("GET", "http://127.0.0.1:9/health", [])

    with pytest.raises(UpstreamError, match="it cannot be reached"):
        asyncio.run(ask())
