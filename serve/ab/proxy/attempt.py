"""One attempt at one arm, until the arm begins to answer."""

from __future__ import annotations

import time
from dataclasses import dataclass

from serve.ab.arms.arm import Arm
from serve.ab.proxy.admitted_request import AdmittedRequest, Blame
from serve.ab.proxy.deadline import Abort, AbortedError, Phase
from serve.ab.verdict.event import Outcome
from serve.ab.wire.upstream import Answer, Upstream, UpstreamError


class Attempt:
    """A request at an arm. After `ask` it has to be ended once, by `Service.ended`.

    started_s: when the arm was asked, on the monotonic clock.
    """

    def __init__(self, request: AdmittedRequest, arm: Arm) -> None:
        self.request = request
        self.arm = arm
        self.started_s = time.monotonic()

    async def ask(self, upstream: Upstream) -> Begun | Failed:
        """Ask the arm, and wait for the first part of its answer's body.

        Raises RefusalError, before the arm is asked, where the request cannot be written for it.
        """
        headers, body = self.request.for_arm(self.arm)
        deadline = self.request.deadline
        deadline.wait_for(Phase.FIRST_BYTE)
        self.started_s = time.monotonic()
        self.arm.request_started()
        answer: Answer | None = None
        try:
            with deadline.interruptible(), self.arm.telling(deadline):
                url = f"{self.arm.base_url}{self.request.parsed.path}"
                answer = await upstream.send("POST", url, headers, body)
                return Begun(self, answer, await answer.read())
        except UpstreamError as error:
            failed = Failed(self, "upstream_error", str(error))
        except AbortedError as aborted:
            outcome: Outcome = "client_gone" if aborted.why is Abort.CLIENT_GONE else "timeout"
            failed = Failed(self, outcome, aborted.why.value, timed_out=aborted.why.timed_out)
        except BaseException:  # the server ends
            self.arm.request_ended("client_gone")
            if answer is not None:
                answer.close()
            raise
        if answer is not None:
            answer.close()
        return failed


@dataclass(frozen=True)
class Begun:
    """An attempt whose arm began to answer. first_part: of the body; b"" where there is none."""

    attempt: Attempt
    answer: Answer
    first_part: bytes

    @property
    def arm(self) -> Arm:
        return self.attempt.arm

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def blame(self) -> Blame:
        return self.attempt.request.blame(self.arm, self.status)


@dataclass(frozen=True)
class Failed:
    """An attempt whose arm did not begin to answer. why: in words, for the client."""

    attempt: Attempt
    outcome: Outcome
    why: str
    timed_out: bool = False
