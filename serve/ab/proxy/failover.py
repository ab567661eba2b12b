"""Arms are asked one after the other, until one begins to answer as an arm that is well would."""

from __future__ import annotations

from serve.ab.arms.arm import KEY_REFUSED, Arm
from serve.ab.proxy.admitted_request import AdmittedRequest, Blame
from serve.ab.proxy.attempt import Attempt, Begun, Failed
from serve.ab.proxy.parsed_request import RefusalError
from serve.ab.proxy.service import Service
from serve.ab.verdict.event import Outcome


class Failover:
    """The search for an arm that answers a request.

    Until an arm has begun to answer nothing was sent to the client, and another arm can be asked.
    """

    def __init__(self, service: Service, request: AdmittedRequest) -> None:
        self.service = service
        self.request = request
        self._unsettled: list[Begun] = []  # refused a path, a model or a key: a fault only if another arm does not

    async def first_answer(self) -> Begun | None:
        """Return the answer of the first arm that begins one; None where the client went away.

        Raises RefusalError where no arm answers.
        """
        begun: Begun | None = None
        try:
            begun = await self._ask_each()
            return begun
        finally:
            self._settle(begun)

    async def _ask_each(self) -> Begun | None:
        arms = self._arms()
        failed: Failed | None = None
        for place, arm in enumerate(arms):
            others = arms[place + 1 :]
            self.request.deadline.alternatives = others
            attempt = Attempt(self.request, arm)
            self.service.asked(attempt)
            try:
                result = await attempt.ask(self.service.upstream)
            except BaseException:  # the server ends, or the request cannot be written for this arm
                self.service.collector.lost(self.request.sequence)
                raise
            if isinstance(result, Failed):
                self.service.ended(attempt, result.outcome)
                if result.outcome == "client_gone":
                    return None
                failed = result
                continue
            if self._is_passed_on(result, last=not others):
                if arm.name != self.request.assignment.arm:
                    self.service.failovers[self.request.assignment.arm] += 1
                return result
            result.answer.close()
            failed = Failed(attempt, "upstream_error", f"status {result.status}")
            if result.blame is Blame.UNCLEAR:
                self._unsettled.append(result)
            else:
                self.service.ended(attempt, "upstream_error", result.status)
        assert failed is not None
        raise RefusalError(
            504 if failed.timed_out else 502,
            f"no arm answered; the last one, {failed.attempt.arm.name}: {failed.why}",
            "upstream_error",
            "no_arm",
        )

    def _arms(self) -> list[Arm]:
        """Return the arms in the order in which they are asked. Where none looks well the assigned one is asked anyway.

        Raises RefusalError where no arm has an engine.
        """
        assignment = self.request.assignment
        started = [arm for name in assignment.order if (arm := self.service.arms[name]).base_url is not None]
        if not started:
            raise RefusalError(503, "no engine is up yet", "overloaded_error", "no_arm")
        if assignment.reason == "explicit":
            return started
        return [arm for arm in started if arm.available] or started[:1]

    def _is_passed_on(self, begun: Begun, *, last: bool) -> bool:
        """Return whether the client gets this answer. The last arm's is given whatever its status.

        One is never given: an engine that refuses the proxy's key. The client would believe that its own key is wrong.
        """
        if begun.blame is Blame.NOBODY:
            return True
        return last and not (begun.blame is Blame.ARM and begun.status in KEY_REFUSED)

    def _settle(self, begun: Begun | None) -> None:
        """End the attempts whose blame was unclear.

        What one arm refuses and another does not was the arm's fault; what all refuse is the request's. An engine may
        lack one of the paths that are no generation, and is none the worse for it.
        """
        answered = begun.status if begun is not None and begun.blame is not Blame.ARM else None
        for refused in self._unsettled:
            contradicted = answered not in (None, refused.status) and self.request.parsed.generation
            outcome: Outcome = "upstream_error" if contradicted else "client_error"
            self.service.ended(refused.attempt, outcome, refused.status)
