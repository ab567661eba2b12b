"""A request that was let in: what is known of it until it is answered."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serve.ab.arms.arm import KEY_REFUSED, UNKNOWN, Arm
from serve.ab.experiment.experiment import Assignment
from serve.ab.proxy.deadline import Exchange
from serve.ab.proxy.parsed_request import ParsedRequest
from serve.ab.verdict.event import Reason
from serve.ab.wire import headers as header
from serve.ab.wire.upstream import Answer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Blame = Literal["nobody", "arm", "unclear"]
sequence_numbers = itertools.count()


@dataclass(frozen=True)
class Call:
    """headers: the client's. passed_on: its own key, for arms that we have none for. sequence: in the order of
    assignment.
    """

    exchange: Exchange
    request: ParsedRequest
    assignment: Assignment
    headers: list[tuple[bytes, bytes]]
    passed_on: bytes | None
    send: Send
    sequence: int = field(default_factory=lambda: next(sequence_numbers))

    def for_arm(self, arm: Arm, model_name: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers and body as this arm wants them."""
        sent = header.for_upstream(self.headers, arm.key)
        if arm.key is None and self.passed_on is not None:
            sent.append((b"authorization", self.passed_on))
        return sent, self.request.body_for(arm.config.upstream_model or model_name)

    def reason_at(self, arm: Arm) -> Reason:
        return self.assignment.reason if arm.name == self.assignment.arm else "failover"

    def counted_at(self, arm: Arm) -> bool:
        """In the experiment's figures: neither a failover nor what was not drawn."""
        return self.request.generation and self.reason_at(arm) in ("split", "sticky")

    def blame(self, arm: Arm, status: int) -> Blame:
        """Whose fault the arm's status is, where it is a fault of the arm's at all.

        unclear: a path or a model that it does not know, or what it says to the client's own key: another arm's answer
        tells.
        """
        if status >= 500 or status == 408:
            return "arm"
        if status in (*KEY_REFUSED, 429):
            return "unclear" if arm.key is None and self.passed_on is not None else "arm"
        return "unclear" if status in UNKNOWN else "nobody"


@dataclass(frozen=True)
class Attempt:
    """An arm that began to answer. started: when it was asked, on the monotonic clock. first: of its body."""

    arm: Arm
    started: float
    answer: Answer
    first: bytes
