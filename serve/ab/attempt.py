"""Arms are asked one after the other, until one begins to answer."""

from __future__ import annotations

import time

from serve.ab.arm import Arm
from serve.ab.call import Attempt, Call
from serve.ab.exchange import GONE, AbortedError, waiting_at
from serve.ab.observation import Outcome
from serve.ab.request import RefusalError
from serve.ab.service import Service
from serve.ab.upstream import Answer, UpstreamError


def targets(service: Service, call: Call) -> list[Arm]:
    """In the order to be tried. Where none looks well the assigned one is asked all the same. Raises RefusalError."""
    started = [arm for name in call.assignment.order if (arm := service.arms[name]).base_url is not None]
    if not started:
        raise RefusalError(503, "no engine is up yet", "overloaded_error", "no_arm")
    if call.assignment.reason == "explicit":
        return started
    return [arm for arm in started if arm.available] or started[:1]


async def attempt(service: Service, call: Call) -> Attempt | None:
    """The first arm that begins to answer, with the first part of its body: until that is here nothing was sent to the
    client, and another arm can be asked. None where the client went away; raises RefusalError where no arm answers.
    """
    arms = targets(service, call)
    failure = ""
    outcome: Outcome
    for place, arm in enumerate(arms):
        others = arms[place + 1 :]
        call.exchange.alternatives = others
        started = time.monotonic()
        begun = await _ask(service, call, arm)
        if isinstance(begun, Attempt):
            if begun.answer.status < 500 or not others:
                if arm.name != call.assignment.arm:
                    service.failovers[call.assignment.arm] += 1
                return begun
            begun.answer.close()
            outcome, status, failure = "upstream_error", begun.answer.status, f"status {begun.answer.status}"
        else:
            status = 0
            outcome, failure = begun
        service.ended(call, arm, started, status, outcome)
        if outcome == "client_gone":
            return None
    status = 504 if failure.endswith("_timeout") else 502
    raise RefusalError(status, f"no arm answered; the last one, {arms[-1].name}: {failure}", "upstream_error", "no_arm")


async def _ask(service: Service, call: Call, arm: Arm) -> Attempt | tuple[Outcome, str]:
    """An Attempt; or what came of it, and why."""
    headers, body = call.for_arm(arm, service.config.model_name)
    answer: Answer | None = None
    begun = False
    call.exchange.wait_for("first_byte")
    started = time.monotonic()
    arm.in_flight += 1
    arm.breaker.start()
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
        raise
    finally:
        if not begun and answer is not None:
            answer.close()
