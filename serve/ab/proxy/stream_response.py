"""An answer is passed on as it comes: each part is sent before the next one is read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

from serve.ab.proxy.admitted_request import Attempt, Call
from serve.ab.proxy.deadline import GONE, AbortedError
from serve.ab.proxy.service import Service
from serve.ab.proxy.shadow import Mirror
from serve.ab.proxy.stream_meter import Reading
from serve.ab.verdict.event import Outcome
from serve.ab.wire import headers as header
from serve.ab.wire.upstream import UpstreamError


async def relay(service: Service, call: Call, attempt: Attempt) -> None:
    """To its end, whatever that is. An event stream that cannot be ended well ends with an error event; any other body
    can only be cut off, which its client sees by the length or the missing last chunk.
    """
    headers = header.for_client(attempt.answer.headers, attempt.arm.name, call.reason_at(attempt.arm))
    reading = Reading(header.is_event_stream(headers))
    mirror: Mirror | None = None
    status = attempt.answer.status
    outcome: Outcome = "ok" if status < 400 else "client_error"
    if call.blame(attempt.arm, status) == "arm":
        outcome = "upstream_error"
    failure: str | None = None
    try:
        mirror = _mirror(service, call, attempt)
        try:
            with call.exchange.interruptible():
                await _pass_on(call, attempt, headers, reading, mirror)
            if reading.failed:
                outcome = "upstream_error"
        except UpstreamError as error:
            outcome, failure = "disconnected", str(error)
        except AbortedError as aborted:
            if aborted.why in (GONE, "send_timeout"):
                outcome = "client_gone"
            else:
                outcome, failure = "timeout", aborted.why
        except asyncio.CancelledError:
            outcome = "client_gone"
            await _say_failure(call, attempt, reading, "the server is shutting down")
            raise
        if reading.done and not reading.failed and status == 200:
            # All of it was sent. OpenAI's client closes its connection at the last mark, before the end of the body.
            outcome, failure = "ok", None
        if failure is not None:
            await _say_failure(call, attempt, reading, failure)
    finally:
        attempt.answer.close()
        told = service.ended(call, attempt.arm, attempt.started, status, outcome, reading)
        if mirror is not None:
            mirror.primary_ended(told)


async def _pass_on(
    call: Call, attempt: Attempt, headers: list[tuple[bytes, bytes]], reading: Reading, mirror: Mirror | None
) -> None:
    exchange, send = call.exchange, call.send
    exchange.wait_for("send")
    await send({"type": "http.response.start", "status": attempt.answer.status, "headers": headers})
    part = attempt.first
    while part:
        if mirror is not None:
            mirror.keep(part)
        onward = reading.feed(part, time.monotonic() - attempt.started)
        if onward:
            exchange.wait_for("send")
            await send({"type": "http.response.body", "body": onward, "more_body": True})
        exchange.wait_for("idle")
        part = await attempt.answer.read()
    exchange.wait_for("send")
    await send({"type": "http.response.body", "body": reading.left()})


async def _say_failure(call: Call, attempt: Attempt, reading: Reading, failure: str) -> None:
    if not reading.streamed:
        return
    error = {"message": f"arm {attempt.arm.name} failed: {failure}", "type": "upstream_error", "code": "arm_failed"}
    event = b"data: " + json.dumps({"error": {**error, "param": None}}).encode() + b"\n\n"
    with contextlib.suppress(AbortedError), call.exchange.interruptible():
        call.exchange.wait_for("send")
        await call.send({"type": "http.response.body", "body": event})


def _mirror(service: Service, call: Call, attempt: Attempt) -> Mirror | None:
    """Only what is in the figures is mirrored: both arms' answers to it are what the verdict is about."""
    share = service.experiment.state.shadow_share
    if share <= 0.0 or attempt.answer.status != 200 or not call.counted_at(attempt.arm):
        return None
    mirror = service.shadow.begin(
        share, call.request, attempt.arm.name, lambda arm: call.for_arm(arm, service.config.model_name), call.sequence
    )
    if mirror is not None:
        service.collector.mirrored(call.sequence)
    return mirror
