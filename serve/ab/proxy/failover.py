"""Arms are asked one after the other, until one begins to answer as an arm that is well would."""

from __future__ import annotations

import time
from dataclasses import dataclass

from serve.ab.arms.arm import KEY_REFUSED, Arm
from serve.ab.proxy.admitted_request import Attempt, Call
from serve.ab.proxy.deadline import GONE, AbortedError, waiting_at
from serve.ab.proxy.parsed_request import RefusalError
from serve.ab.proxy.service import Service
from serve.ab.verdict.event import Outcome
from serve.ab.wire.upstream import Answer, UpstreamError


def targets(service: Service, call: Call) -> list[Arm]:
    """In the order to be tried. Where none looks well the assigned one is asked all the same. Raises RefusalError."""
    started = [arm for name in call.assignment.order if (arm := service.arms[name]).base_url is not None]
    if not started:
        raise RefusalError(503, "no engine is up yet", "overloaded_error", "no_arm")
    if call.assignment.reason == "explicit":
        return started
    return [arm for arm in started if arm.available] or started[:1]


@dataclass(frozen=True)
class Refused:
    """An arm that knows no such path, model or key: its fault only if another one does."""

    arm: Arm
    started: float
    status: int


async def attempt(service: Service, call: Call) -> Attempt | None:
    """The first arm that begins to answer, with the first part of its body: until that is here nothing was sent to the
    client, and another arm can be asked. None where the client went away; raises RefusalError where no arm answers.
    """
    refused: list[Refused] = []
    begun: Attempt | None = None
    try:
        begun = await _try_each(service, call, refused)
        return begun
    finally:
        _settle(service, call, refused, begun)


async def _try_each(service: Service, call: Call, refused: list[Refused]) -> Attempt | None:
    arms = targets(service, call)
    failure = ""
    outcome: Outcome
    for place, arm in enumerate(arms):
        others = arms[place + 1 :]
        call.exchange.alternatives = others
        started = time.monotonic()
        begun = await _ask(service, call, arm)
        if isinstance(begun, Attempt):
            status = begun.answer.status
            blame = call.blame(arm, status)
            # An engine that refuses the proxy's key would have the client believe that its own is wrong.
            ours = blame == "arm" and status in KEY_REFUSED
            if blame == "nobody" or not (others or ours):
                if arm.name != call.assignment.arm:
                    service.failovers[call.assignment.arm] += 1
                return begun
            begun.answer.close()
            outcome, failure = "upstream_error", f"status {status}"
            if blame == "unclear":
                refused.append(Refused(arm, started, status))
                continue
        else:
            status = 0
            outcome, failure = begun
        service.ended(call, arm, started, status, outcome)
        if outcome == "client_gone":
            return None
    status = 504 if failure.endswith("_timeout") else 502
    raise RefusalError(status, f"no arm answered; the last one, {arms[-1].name}: {failure}", "upstream_error", "no_arm")


def _settle(service: Service, call: Call, refused: list[Refused], begun: Attempt | None) -> None:
    """What one arm refuses and another does not was the arm's fault; what all refuse is the request's. An engine may
    lack one of the paths that are no generation, and is none the worse for it.
    """
    answered = (
        begun.answer.status if begun is not None and call.blame(begun.arm, begun.answer.status) != "arm" else None
    )
    for one in refused:
        contradicted = answered not in (None, one.status) and call.request.generation
        service.ended(call, one.arm, one.started, one.status, "upstream_error" if contradicted else "client_error")


async def _ask(service: Service, call: Call, arm: Arm) -> Attempt | tuple[Outcome, str]:
    """An Attempt; or what came of it, and why."""
    headers, body = call.for_arm(arm, service.config.model_name)
    answer: Answer | None = None
    begun = False
    call.exchange.wait_for("first_byte")
    started = time.monotonic()
    arm.in_flight += 1
    arm.breaker.start()
    service.asked(call, arm)
    try:
        with call.exchange.interruptible(), waiting_at(arm, call.exchange):
            answer = await service.upstream.send("POST", f"{arm.base_url}{call.request.path}", headers, body)
            first = await answer.read()
        begun = True
        return Attempt(arm, started, answer, first)
    except UpstreamError as error:
        return "upstream_error", str(error)
    except AbortedError as aborted:
        return "client_gone" if aborted.why == GONE else "timeout", aborted.why
    except BaseException:  # the server ends
        arm.ended("client_gone")
        service.collector.lost(call.sequence)
        raise
    finally:
        if not begun and answer is not None:
            answer.close()
