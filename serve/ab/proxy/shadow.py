"""A share of the requests, mirrored to another arm; what came of it is compared, and never touches the answer."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serve.ab.arms.arm import Arm
from serve.ab.config import Shadow as ShadowConfig
from serve.ab.proxy.agreement import logprob_difference_nats, token_agreement
from serve.ab.proxy.completion_text import Spoken, read_answer
from serve.ab.proxy.parsed_request import ParsedRequest, RefusalError
from serve.ab.verdict.event import Event, ShadowComparison
from serve.ab.wire.headers import is_event_stream
from serve.ab.wire.upstream import Upstream, UpstreamError

logger = logging.getLogger("mi_prun_ab")

Headers = list[tuple[bytes, bytes]]


class NoComparisonError(Exception):
    """Said in a word or two: it is what the counter counts by."""


@dataclass(frozen=True)
class Heard:
    body: bytes
    streamed: bool
    ttft_s: float
    e2e_s: float


class Mirror:
    """One mirrored request. `keep` what the client is sent, then say how that ended."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept = bytearray()
        self._ended: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

    def keep(self, part: bytes) -> None:
        if len(self._kept) <= self._limit:
            self._kept += part

    def primary_ended(self, told: Event) -> None:
        if not self._ended.done():
            self._ended.set_result(told)

    async def primary(self, streamed: bool) -> Spoken:
        """Raises NoComparisonError."""
        told = await self._ended
        if told.outcome != "ok":
            raise NoComparisonError("primary_failed")
        if len(self._kept) > self._limit:
            raise NoComparisonError("too_long")
        return _spoken(bytes(self._kept), streamed, "primary_unreadable")


class Shadow:
    """counts: of mirrored requests, by what became of them. `tell` gets a comparison of each, failed ones too."""

    def __init__(
        self,
        config: ShadowConfig,
        arms: Mapping[str, Arm],
        upstream: Upstream,
        tell: Callable[[ShadowComparison], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._config = config
        self._arms = arms
        self._upstream = upstream
        self._tell = tell
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(
        self,
        share: float,
        request: ParsedRequest,
        primary: str,
        body_for: Callable[[Arm], tuple[Headers, bytes]],
        sequence: int,
    ) -> Mirror | None:
        """Mirror the request by the throw of a die; None where it is not.

        body_for: what the arm is to be sent. sequence: the request's.
        """
        if share <= 0.0 or random.random() >= share:
            return None
        others = [arm for arm in self._arms.values() if arm.name != primary and arm.available]
        if not others:
            self.counts["no_arm"] += 1
            return None
        if len(self._tasks) >= self._config.in_flight:
            self.counts["left_out"] += 1
            return None
        arm = random.choice(others)
        try:
            headers, body = body_for(arm)
        except RefusalError:
            self.counts["not_sent"] += 1
            return None
        mirror = Mirror(self._config.answer_bytes)
        task = asyncio.create_task(self._run(mirror, request, primary, arm, headers, body, sequence))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return mirror

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(
        self,
        mirror: Mirror,
        request: ParsedRequest,
        primary: str,
        arm: Arm,
        headers: Headers,
        body: bytes,
        sequence: int,
    ) -> None:
        found: dict[str, Any] = {}
        error: str | None = None
        try:
            async with asyncio.timeout(self._config.timeout_s):
                await self._compare(mirror, request, arm, headers, body, found)
        except NoComparisonError as failure:
            error = str(failure)
        except TimeoutError:
            error = "timeout"
        except UpstreamError:
            error = "unreachable"
        except Exception:
            logger.exception("a mirrored request failed in a way that was not foreseen")
            error = "internal"
        self.counts[error or "compared"] += 1
        fields = ("agreement", "same_tokens", "compared_tokens", "logprob_difference_nats", "shadow_ttft_s")
        self._tell(
            ShadowComparison(
                time=time.time(),
                primary_arm=primary,
                shadow_arm=arm.name,
                streamed=request.streamed,
                shadow_e2e_s=found.get("shadow_e2e_s"),
                error=error,
                sequence=sequence,
                **{name: found.get(name) for name in fields},
            )
        )

    async def _compare(
        self,
        mirror: Mirror,
        request: ParsedRequest,
        arm: Arm,
        headers: Headers,
        body: bytes,
        found: dict[str, Any],
    ) -> None:
        heard = await self._hear(arm, request.path, headers, body)
        found.update(shadow_ttft_s=heard.ttft_s, shadow_e2e_s=heard.e2e_s)
        primary = await mirror.primary(request.streamed)
        shadow = _spoken(heard.body, heard.streamed, "shadow_unreadable")

        async def ask(path: str, fields: Mapping[str, Any]) -> Any:
            model = arm.config.upstream_model or request.fields.get("model")
            sent = json.dumps({**({"model": model} if model else {}), **fields}).encode()
            try:
                return json.loads((await self._hear(arm, path, headers, sent)).body)
            except (NoComparisonError, ValueError):
                return None

        agreed = await token_agreement(primary, shadow, ask)
        found.update(agreement=agreed.share, same_tokens=agreed.same, compared_tokens=agreed.compared)
        if (difference := await logprob_difference_nats(request.fields, primary, shadow, ask)) is not None:
            found["logprob_difference_nats"] = difference[0]

    async def _hear(self, arm: Arm, path: str, headers: Headers, body: bytes) -> Heard:
        """The whole answer, if it is not too long and its status 200."""
        started = time.monotonic()
        answer = await self._upstream.send("POST", f"{arm.base_url}{path}", headers, body)
        try:
            if answer.status != 200:
                raise NoComparisonError(f"status_{answer.status}")
            parts: list[bytes] = []
            ttft_s = 0.0
            size = 0
            while part := await answer.read():
                ttft_s = ttft_s or time.monotonic() - started
                parts.append(part)
                if (size := size + len(part)) > self._config.answer_bytes:
                    raise NoComparisonError("too_long")
        finally:
            answer.close()
        return Heard(b"".join(parts), is_event_stream(answer.headers), ttft_s, time.monotonic() - started)


def _spoken(body: bytes, streamed: bool, otherwise: str) -> Spoken:
    try:
        return read_answer(body, streamed)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NoComparisonError(otherwise) from error
