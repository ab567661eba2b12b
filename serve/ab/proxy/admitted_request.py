"""A request that was let in: what is known of it until it is answered."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from serve.ab.arms.arm import KEY_REFUSED, UNKNOWN, Arm
from serve.ab.experiment.experiment import Assignment
from serve.ab.proxy.deadline import Deadline
from serve.ab.proxy.parsed_request import ParsedRequest
from serve.ab.verdict.event import Reason
from serve.ab.wire import headers as header

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
sequence_numbers = itertools.count()


class Blame(Enum):
    """Who is at fault for an arm's status.

    UNCLEAR: a path or a model that the arm does not know, or what it says to the client's own key. What another arm
    answers tells.
    """

    NOBODY = auto()
    ARM = auto()
    UNCLEAR = auto()


@dataclass(frozen=True)
class AdmittedRequest:
    """A request with its arms in order, and the way back to its client.

    headers: the client's. client_key: its own `Authorization`, for arms that we have no key for; None where it is not
    passed on. send: ASGI's, to the client. sequence: in the order of assignment.
    """

    deadline: Deadline
    parsed: ParsedRequest
    assignment: Assignment
    headers: list[tuple[bytes, bytes]]
    client_key: bytes | None
    send: Send
    sequence: int = field(default_factory=lambda: next(sequence_numbers))

    def for_arm(self, arm: Arm) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Return headers and body as this arm wants them.

        Raises RefusalError where the body cannot be written with another model's name.
        """
        sent = header.for_upstream(self.headers, arm.key)
        if arm.key is None and self.client_key is not None:
            sent.append((b"authorization", self.client_key))
        return sent, self.parsed.body_for(arm.config.upstream_model or self.parsed.model)

    def reason_at(self, arm: Arm) -> Reason:
        """Return why this arm is asked."""
        return self.assignment.reason if arm.name == self.assignment.arm else "failover"

    def counted_at(self, arm: Arm) -> bool:
        """Return whether an answer of this arm is in the experiment's figures: a generation whose arm was drawn."""
        return self.parsed.generation and self.reason_at(arm) in ("split", "sticky")

    def blame(self, arm: Arm, status: int) -> Blame:
        """Return who is at fault for this status, if it is a fault at all."""
        if status >= 500 or status == 408:
            return Blame.ARM
        if status in (*KEY_REFUSED, 429):
            return Blame.UNCLEAR if arm.key is None and self.client_key is not None else Blame.ARM
        return Blame.UNCLEAR if status in UNKNOWN else Blame.NOBODY
