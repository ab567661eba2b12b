"""One request: assigned to an arm, asked of it or of another, and its answer passed on as it comes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from serve.ab import headers as header
from serve.ab.arm import Arm
from serve.ab.exchange import GONE, AbortedError, Exchange, waiting_at
from serve.ab.experiment import Assignment
from serve.ab.observation import Observation, Outcome, Reason
from serve.ab.reading import Reading
from serve.ab.request import ParsedRequest, RefusalError, parse_request
from serve.ab.security import Caller
from serve.ab.service import Service
from serve.ab.shadow import Mirror
from serve.ab.upstream import Answer, UpstreamError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CLOSE = (b"connection", b"close")
JSON = (b"content-type", b"application/json")


class ClientGoneError(Exception):
    """Before its request was whole."""


@dataclass(frozen=True)
class Attempt:
    """An arm that began to answer. first: the first part of its body."""

    arm: Arm
    reason: Reason
    started: float
    answer: Answer
    first: bytes


class Proxy:
    """An ASGI application for the paths that arms answer."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange()
        exchanges = self.service.sweeper.exchanges
        if len(exchanges) >= self.service.config.limits.concurrency:
            busy = RefusalError(503, "too many requests at once", "overloaded_error", "concurrency_limit")
            return await self._refuse(scope, send, busy, (CLOSE, (b"retry-after", b"1")))
        exchanges.add(exchange)
        try:
            await self._answer(exchange, scope, receive, send)
        except RefusalError as refusal:
            await self._refuse(scope, send, refusal, (CLOSE,) if exchange.phase == "request" else ())
        except ClientGoneError:
            pass
        finally:
            exchanges.discard(exchange)

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        service = self.service
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        authorization = header.value_of(headers, b"authorization")
        caller = service.keys.caller(authorization)
        if caller.role == "nobody":
            raise RefusalError(401, "an API key is needed", "authentication_error", "invalid_api_key")
        body = await self._read_body(exchange, headers, receive)
        exchange.wait_for("first_byte")
        request = parse_request(scope["path"], body, service.config.model_name, service.arms)
        assignment = self._assign(request, caller, headers)
        watcher = asyncio.create_task(_watch(receive, exchange))
        try:
            passed_on = authorization if service.keys.open and caller.role != "operator" else None
            attempt = await self._attempt(exchange, request, assignment, headers, passed_on)
            if attempt is not None:
                await self._relay(exchange, request, assignment, attempt, send)
        finally:
            watcher.cancel()

    async def _read_body(self, exchange: Exchange, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
        limit = self.service.config.limits.body_bytes
        content_type = (header.value_of(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
        if content_type != b"application/json":
            raise RefusalError(415, "the content type must be application/json")
        too_large = RefusalError(413, f"the body is larger than {limit:,} bytes", code="body_limit")
        length = header.value_of(headers, b"content-length")
        if length is not None and int(length) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            with exchange.interruptible():
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    parts.append(message["body"])
                    size += len(parts[-1])
                    if size > limit:
                        raise too_large
                    if not message["more_body"]:
                        return b"".join(parts)
        except AbortedError as aborted:
            raise RefusalError(408, "the request took too long to come", code="request_timeout") from aborted

    def _assign(self, request: ParsedRequest, caller: Caller, headers: list[tuple[bytes, bytes]]) -> Assignment:
        service = self.service
        named = header.value_of(headers, header.ARM)
        explicit = request.arm
        if named is not None:
            explicit = named.decode("latin-1")
            if request.arm not in (None, explicit):
                raise RefusalError(400, f"the model names arm {request.arm}, the header {header.ARM.decode()} another")
        if explicit is not None:
            if caller.role != "operator":
                raise RefusalError(403, "only the admin key may choose an arm", "permission_error", "arm_choice")
            if explicit not in service.arms:
                raise RefusalError(400, f"no such arm; there are {', '.join(service.arms)}")
        return service.experiment.assign(self._sticky_key(request, caller, headers), explicit)

    def _sticky_key(self, request: ParsedRequest, caller: Caller, headers: list[tuple[bytes, bytes]]) -> str | None:
        """One API key says nothing of who asks: it would send everything to one arm."""
        for source in self.service.config.sticky:
            if source == "header":
                value = header.value_of(headers, self.service.config.sticky_header.encode())
                found = value.decode("latin-1") if value else None
            elif source == "user":
                found = request.user
            else:
                found = caller.identity if self.service.keys.several else None
            if found:
                return found
        return None

    def _targets(self, assignment: Assignment) -> list[Arm]:
        """In the order to be tried. Where none looks well the assigned one is asked all the same."""
        started = [arm for name in assignment.order if (arm := self.service.arms[name]).base_url is not None]
        if not started:
            raise RefusalError(503, "no engine is up yet", "overloaded_error", "no_arm")
        if assignment.reason == "explicit":
            return started
        return [arm for arm in started if arm.available] or started[:1]

    async def _attempt(
        self,
        exchange: Exchange,
        request: ParsedRequest,
        assignment: Assignment,
        headers: list[tuple[bytes, bytes]],
        passed_on: bytes | None,
    ) -> Attempt | None:
        """The first arm that begins to answer; None where the client went away. Raises RefusalError where none does."""
        targets = self._targets(assignment)
        said = ""
        for place, arm in enumerate(targets):
            others = targets[place + 1 :]
            exchange.alternative = lambda others=others: any(other.available for other in others)  # type: ignore[misc]
            reason: Reason = assignment.reason if arm.name == assignment.arm else "failover"
            body = request.body_for(arm.config.upstream_model or self.service.config.model_name)
            sent = header.for_upstream(headers, arm.key)
            if arm.key is None and passed_on is not None:
                sent.append(("authorization", passed_on.decode("latin-1")))
            exchange.wait_for("first_byte")
            started = time.monotonic()
            answer: Answer | None = None
            arm.in_flight += 1
            arm.breaker.start()
            try:
                with exchange.interruptible(), waiting_at(arm, exchange):
                    answer = await self.service.upstream.send("POST", f"{arm.base_url}{request.path}", sent, body)
                    first = await answer.read()
                if answer.status < 500 or not others:
                    return Attempt(arm, reason, started, answer, first)
                said, outcome, status = f"it answered with status {answer.status}", "upstream_error", answer.status
            except UpstreamError as error:
                said, outcome, status = str(error), "upstream_error", 0
            except AbortedError as aborted:
                said, outcome, status = aborted.why, "client_gone" if aborted.why == GONE else "timeout", 0
            except BaseException:
                arm.in_flight -= 1
                arm.breaker.undecided()
                if answer is not None:
                    answer.close()
                raise
            self._end(arm, outcome)  # type: ignore[arg-type]
            if answer is not None:
                answer.close()
            self._tell(request, assignment, arm, reason, started, status, outcome, None)  # type: ignore[arg-type]
            if outcome == "client_gone":
                return None
        status = 504 if said.endswith("_timeout") else 502
        raise RefusalError(status, f"no arm answered; the last one, {arm.name}: {said}", "upstream_error", "no_arm")

    async def _relay(
        self, exchange: Exchange, request: ParsedRequest, assignment: Assignment, attempt: Attempt, send: Send
    ) -> None:
        answer, arm = attempt.answer, attempt.arm
        sent = header.for_client(answer.headers, arm.name, attempt.reason)
        content_type = header.value_of(sent, b"content-type") or b""
        reading = Reading(content_type.startswith(b"text/event-stream"))
        mirror = self._mirror(request, assignment, attempt)
        outcome: Outcome = "ok" if answer.status < 400 else "client_error" if answer.status < 500 else "upstream_error"
        failure: str | None = None
        try:
            try:
                with exchange.interruptible():
                    exchange.wait_for("send")
                    await send({"type": "http.response.start", "status": answer.status, "headers": sent})
                    part = attempt.first
                    while part:
                        if mirror is not None:
                            mirror.keep(part)
                        onward = reading.feed(part, time.monotonic() - attempt.started)
                        if onward:
                            exchange.wait_for("send")
                            await send({"type": "http.response.body", "body": onward, "more_body": True})
                        exchange.wait_for("idle")
                        part = await answer.read()
                    await send({"type": "http.response.body", "body": reading.left()})
            except UpstreamError as error:
                outcome, failure = "disconnected", str(error)
            except AbortedError as aborted:
                if aborted.why in (GONE, "send_timeout"):
                    outcome = "client_gone"
                else:
                    outcome, failure = "timeout", aborted.why
            except asyncio.CancelledError:
                outcome = "client_gone"
                await self._say_failure(exchange, reading, send, arm, "the server is shutting down")
                raise
            if failure is not None:
                await self._say_failure(exchange, reading, send, arm, failure)
        finally:
            answer.close()
            self._end(arm, outcome)
            told = self._tell(
                request, assignment, arm, attempt.reason, attempt.started, answer.status, outcome, reading
            )
            if mirror is not None:
                mirror.primary_ended(told)

    async def _say_failure(self, exchange: Exchange, reading: Reading, send: Send, arm: Arm, failure: str) -> None:
        """An event stream ends with an error event; any other body can only be cut off."""
        if not reading.streamed:
            return
        error = {"message": f"arm {arm.name} failed: {failure}", "type": "upstream_error", "code": "arm_failed"}
        event = b"data: " + json.dumps({"error": {**error, "param": None}}).encode() + b"\n\n"
        try:
            with exchange.interruptible():
                exchange.wait_for("send")
                await send({"type": "http.response.body", "body": event})
        except AbortedError:
            pass

    def _mirror(self, request: ParsedRequest, assignment: Assignment, attempt: Attempt) -> Mirror | None:
        if attempt.reason not in ("split", "sticky") or not request.generation or attempt.answer.status != 200:
            return None
        return None

    def _end(self, arm: Arm, outcome: Outcome) -> None:
        arm.in_flight -= 1
        if outcome in ("ok", "client_error"):
            arm.breaker.succeeded()
        elif outcome == "client_gone":
            arm.breaker.undecided()
        else:
            arm.breaker.failed()

    def _tell(
        self,
        request: ParsedRequest,
        assignment: Assignment,
        arm: Arm,
        reason: Reason,
        started: float,
        status: int,
        outcome: Outcome,
        reading: Reading | None,
    ) -> Observation:
        told = Observation(
            time=time.time(),
            arm=arm.name,
            assigned_arm=assignment.arm,
            reason=reason,
            counted=request.generation and reason in ("split", "sticky"),
            key_hash=assignment.key_hash,
            path=request.path,
            streamed=request.streamed,
            status=status,
            outcome=outcome,
            ttft_s=reading.ttft_s if reading else None,
            itl_s=tuple(reading.itl_s) if reading else (),
            e2e_s=time.monotonic() - started,
            input_tokens=reading.input_tokens if reading else None,
            output_tokens=reading.output_tokens if reading else None,
            finish_reason=reading.finish_reason if reading else None,
        )
        self.service.tell(told)
        return told

    async def _refuse(
        self, scope: Scope, send: Send, refusal: RefusalError, more: tuple[tuple[bytes, bytes], ...]
    ) -> None:
        body = refusal.body()
        headers = [JSON, (b"content-length", str(len(body)).encode()), *more]
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _watch(receive: Receive, exchange: Exchange) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.abort(GONE)
