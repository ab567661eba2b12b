"""Mirrored requests: a share of them is sent to another arm too, and both answers are compared.

Nothing of it touches the client's answer.
"""

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
from serve.ab.config import ShadowSettings
from serve.ab.proxy.admitted_request import AdmittedRequest
from serve.ab.proxy.agreement import Agreement, logprob_difference_nats, token_agreement
from serve.ab.proxy.completion_text import CompletionText, read_completion
from serve.ab.proxy.parsed_request import ParsedRequest, RefusalError
from serve.ab.verdict.event import Event, ShadowComparison
from serve.ab.wire.headers import is_event_stream
from serve.ab.wire.upstream import Upstream, UpstreamError

logger = logging.getLogger("mi_prun_ab")

Headers = list[tuple[bytes, bytes]]


class NoComparisonError(Exception):
    """Two answers cannot be compared. It is said in a word or two, which the counter counts by."""


@dataclass(frozen=True)
class ShadowAnswer:
    """What the shadow arm answered, whole. ttft_s, e2e_s: since it was asked."""

    body: bytes
    streamed: bool
    ttft_s: float
    e2e_s: float


class Mirror:
    """One mirrored request. `keep` what the client is sent, then say how that ended."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept = bytearray()
        self._ended: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

    def keep(self, part: bytes) -> None:
        """Keep a part of the primary's answer, up to a little more than the limit."""
        if len(self._kept) <= self._limit_bytes:
            self._kept += part

    def primary_ended(self, event: Event) -> None:
        """Let the comparison go on: the primary's answer is here, or failed."""
        if not self._ended.done():
            self._ended.set_result(event)

    async def primary(self, streamed: bool) -> CompletionText:
        """Wait for the primary's answer. Raises NoComparisonError."""
        event = await self._ended
        if event.outcome != "ok":
            raise NoComparisonError("primary_failed")
        if len(self._kept) > self._limit_bytes:
            raise NoComparisonError("too_long")
        return _completion_text(bytes(self._kept), streamed, "primary_unreadable")


@dataclass
class MirroredRequest:
    """A request on its way to the shadow arm, and what is known of it so far."""

    parsed: ParsedRequest
    primary_arm: str
    shadow_arm: Arm
    headers: Headers
    body: bytes
    mirror: Mirror
    sequence: int
    answer: ShadowAnswer | None = None
    agreement: Agreement | None = None
    logprob_difference_nats: float | None = None

    def comparison(self, error: str | None) -> ShadowComparison:
        """Return what came of it. error: why there is no comparison."""
        return ShadowComparison(
            time=time.time(),
            primary_arm=self.primary_arm,
            shadow_arm=self.shadow_arm.name,
            streamed=self.parsed.streamed,
            agreement=self.agreement.share if self.agreement else None,
            same_tokens=self.agreement.same if self.agreement else None,
            compared_tokens=self.agreement.compared if self.agreement else None,
            logprob_difference_nats=self.logprob_difference_nats,
            shadow_ttft_s=self.answer.ttft_s if self.answer else None,
            shadow_e2e_s=self.answer.e2e_s if self.answer else None,
            error=error,
            sequence=self.sequence,
        )


class ShadowTraffic:
    """The mirrored requests of a service.

    counts: of mirrored requests, by what became of them. tell: is called with a comparison of each, failed ones too.
    """

    def __init__(
        self,
        settings: ShadowSettings,
        arms: Mapping[str, Arm],
        upstream: Upstream,
        tell: Callable[[ShadowComparison], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._settings = settings
        self._arms = arms
        self._upstream = upstream
        self._tell = tell
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, share: float, request: AdmittedRequest, primary: Arm) -> Mirror | None:
        """Mirror this share of the requests, drawn at random; None where this request is not mirrored."""
        if share <= 0.0 or random.random() >= share:
            return None
        others = [arm for arm in self._arms.values() if arm is not primary and arm.available]
        if not others:
            self.counts["no_arm"] += 1
            return None
        if len(self._tasks) >= self._settings.in_flight:
            self.counts["left_out"] += 1
            return None
        arm = random.choice(others)
        try:
            headers, body = request.for_arm(arm)
        except RefusalError:
            self.counts["not_sent"] += 1
            return None
        mirror = Mirror(self._settings.answer_bytes)
        mirrored = MirroredRequest(request.parsed, primary.name, arm, headers, body, mirror, request.sequence)
        task = asyncio.create_task(self._run(mirrored))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return mirror

    async def close(self) -> None:
        """Leave what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, mirrored: MirroredRequest) -> None:
        error: str | None = None
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._compare(mirrored)
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
        self._tell(mirrored.comparison(error))

    async def _compare(self, mirrored: MirroredRequest) -> None:
        parsed, arm, headers = mirrored.parsed, mirrored.shadow_arm, mirrored.headers
        mirrored.answer = answer = await self._ask(arm, parsed.path, headers, mirrored.body)
        primary = await mirrored.mirror.primary(parsed.streamed)
        shadow = _completion_text(answer.body, answer.streamed, "shadow_unreadable")

        async def ask(path: str, fields: Mapping[str, Any]) -> Any:
            model = arm.config.upstream_model or parsed.model
            sent = json.dumps({**({"model": model} if model else {}), **fields}).encode()
            try:
                return json.loads((await self._ask(arm, path, headers, sent)).body)
            except (NoComparisonError, ValueError):
                return None

        mirrored.agreement = await token_agreement(primary, shadow, ask)
        difference = await logprob_difference_nats(parsed.fields, primary, shadow, ask)
        if difference is not None:
            mirrored.logprob_difference_nats = difference[0]

    async def _ask(self, arm: Arm, path: str, headers: Headers, body: bytes) -> ShadowAnswer:
        """Return the whole answer. Raises NoComparisonError where it is too long or its status is not 200."""
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
                if (size := size + len(part)) > self._settings.answer_bytes:
                    raise NoComparisonError("too_long")
        finally:
            answer.close()
        return ShadowAnswer(b"".join(parts), is_event_stream(answer.headers), ttft_s, time.monotonic() - started)


def _completion_text(body: bytes, streamed: bool, otherwise: str) -> CompletionText:
    try:
        return read_completion(body, streamed)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NoComparisonError(otherwise) from error
