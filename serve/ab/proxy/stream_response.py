"""An arm's answer on its way to the client: each part is sent before the next one is read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass

from serve.ab.proxy.admitted_request import Blame
from serve.ab.proxy.attempt import Begun
from serve.ab.proxy.deadline import Abort, AbortedError, Phase
from serve.ab.proxy.parsed_request import MESSAGES
from serve.ab.proxy.service import Service
from serve.ab.proxy.shadow import Mirror
from serve.ab.proxy.stream_dialect import dialect_of
from serve.ab.proxy.stream_meter import StreamMeter
from serve.ab.verdict.event import Outcome
from serve.ab.wire import headers as header
from serve.ab.wire.upstream import UpstreamError

NO_CONTENT = 204
BUFFERING = b"x-accel-buffering"  # nginx in front would hold tokens back


@dataclass(frozen=True)
class Ending:
    """How an answer ended. failure: what the client of a stream is told; None where there is nothing to say."""

    outcome: Outcome
    failure: str | None = None


class StreamResponse:
    """An answer that is passed on to its end, whatever that is.

    An event stream that cannot be ended well ends with an error event. Any other body can only be cut off, which its
    client sees by the length or the missing last chunk.
    """

    def __init__(self, service: Service, begun: Begun) -> None:
        self.service = service
        self.begun = begun
        self.request = begun.attempt.request
        reason = self.request.reason_at(begun.arm)
        self.headers = header.for_client(begun.answer.headers, begun.arm.name, reason)
        packed = header.is_packed(self.headers)
        streamed = header.is_event_stream(self.headers) and not packed
        if streamed:  # an event may be said at its end, of a failure: it has no length that is known now
            self.headers = [(name, value) for name, value in self.headers if name != b"content-length"]
            if header.value_of(self.headers, BUFFERING) is None:
                self.headers.append((BUFFERING, b"no"))
        self.meter = StreamMeter(streamed, packed=packed, dialect=dialect_of(self.request.parsed.path))
        self._mirror: Mirror | None = None

    async def run(self) -> None:
        """Send the answer, and tell the service how that ended."""
        ending = Ending(self._outcome())
        try:
            self._mirror = self._begin_mirror()
            try:
                ending = await self._send_all()
            except asyncio.CancelledError:
                ending = Ending("client_gone")
                await self._send_failure("the server is shutting down")
                raise
            if ending.failure is not None:
                await self._send_failure(ending.failure)
        finally:
            self.begun.answer.close()
            event = self.service.ended(self.begun.attempt, ending.outcome, self.begun.status, self.meter)
            if self._mirror is not None:
                self._mirror.primary_ended(event)

    async def _send_all(self) -> Ending:
        """Send the answer, and return how that ended."""
        try:
            with self.request.deadline.interruptible():
                await self._send_parts()
            ending = Ending(self._outcome())
        except UpstreamError as error:
            ending = Ending("disconnected", str(error))
        except AbortedError as aborted:
            if aborted.why in (Abort.CLIENT_GONE, Abort.SEND_TIMEOUT):
                ending = Ending("client_gone")
            else:
                ending = Ending("timeout", aborted.why.value)
        if self.meter.done and not self.meter.failed and self.begun.status == 200:
            # All of it was sent. OpenAI's client closes its connection at the last mark, before the end of the body.
            return Ending("ok")
        if self._failed_inside() and ending.outcome == "client_gone":
            return Ending("upstream_error")  # the client left because the engine said that it failed
        return ending

    async def _send_parts(self) -> None:
        deadline, send = self.request.deadline, self.request.send
        deadline.wait_for(Phase.SEND)
        await send({"type": "http.response.start", "status": self.begun.status, "headers": self.headers})
        part = self.begun.first_part
        while part:
            if self._mirror is not None:
                self._mirror.keep(part)
            onward = self.meter.feed(part, time.monotonic() - self.begun.attempt.started_s)
            if onward:
                deadline.wait_for(Phase.SEND)
                await send({"type": "http.response.body", "body": onward, "more_body": True})
            deadline.wait_for(Phase.IDLE)
            part = await self.begun.answer.read()
        deadline.wait_for(Phase.SEND)
        await send({"type": "http.response.body", "body": self.meter.end()})

    def _outcome(self) -> Outcome:
        """Return the outcome of an answer that ends as it should."""
        if self.begun.blame is Blame.ARM or self._failed_inside():
            return "upstream_error"
        return "ok" if self.begun.status < 400 else "client_error"

    def _failed_inside(self) -> bool:
        """Return whether this is no answer although its status is that of one. A page is a gateway's answer."""
        if self.begun.status >= 400 or self.begun.status == NO_CONTENT:
            return False
        return self.meter.failed or header.media_type(self.headers) == b"text/html"

    async def _send_failure(self, failure: str) -> None:
        if not self.meter.streamed:
            return
        event = failure_event(self.request.parsed.path, f"arm {self.begun.arm.name} failed: {failure}")
        deadline = self.request.deadline
        with contextlib.suppress(AbortedError), deadline.interruptible():
            deadline.wait_for(Phase.SEND)
            await self.request.send({"type": "http.response.body", "body": event})

    def _begin_mirror(self) -> Mirror | None:
        """Mirror what is in the figures, and nothing else: the verdict is about both arms' answers to it."""
        share = self.service.experiment.state.shadow_share
        counted = self.request.counted_at(self.begun.arm) and not self.meter.packed
        if share <= 0.0 or self.begun.status != 200 or not counted or not self.request.parsed.comparable:
            return None
        mirror = self.service.shadow.begin(share, self.request, self.begun.arm)
        if mirror is not None:
            self.service.collector.mirrored(self.request.sequence)
        return mirror


def failure_event(path: str, message: str) -> bytes:
    """Return the event that ends a stream whose arm failed, as clients of that path raise it."""
    if path == MESSAGES:
        said = {"type": "error", "error": {"type": "api_error", "message": message}}
        return b"event: error\ndata: " + json.dumps(said).encode() + b"\n\n"
    error = {"message": message, "type": "upstream_error", "code": "arm_failed", "param": None}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
