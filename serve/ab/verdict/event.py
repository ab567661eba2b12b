"""An event: what is remembered of a request that an arm answered. The verdict and the metrics are made of events.

The proxy makes one for each attempt at an arm, once it has ended, and hands it to every listener. It holds nothing of
the prompt or the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Reason = Literal["split", "sticky", "explicit", "failover", "paused"]
Outcome = Literal["ok", "client_error", "upstream_error", "timeout", "disconnected", "client_gone"]
LARGEST_NATS = 1e6  # a difference of log-probabilities beyond it is none: an engine's infinity, or its lowest number
ARM_FAULTS: frozenset[Outcome] = frozenset({"upstream_error", "timeout", "disconnected"})


@dataclass(frozen=True)
class Event:
    """One attempt at one arm. Seconds count from the moment the arm was sent the request.

    assigned_arm: the arm that the split chose; another than `arm` after a failover. counted: in the experiment's
    figures; not so for an explicit arm, a failover or anything while the experiment is paused. key_hash: of the sticky
    key, "" for a random assignment. status: of HTTP, 0 where none came. outcome: `client_error` is a 4xx that the arm
    is not to blame for, `disconnected` an upstream that ended before its answer was whole, `client_gone` a client that
    did not wait. ttft_s: None where no token came. itl_s: gaps between the chunks of a stream after the first.
    output_tokens: as the engine counts them (usage), else events of the stream. stream_events: those with a part of the
    answer; 0 where it is no stream. sequence: the number under which the collector
    was told that the arm is asked; None where it was not.
    """

    time: float
    arm: str
    assigned_arm: str
    reason: Reason
    counted: bool
    key_hash: str
    path: str
    streamed: bool
    status: int
    outcome: Outcome
    ttft_s: float | None
    itl_s: tuple[float, ...]
    e2e_s: float
    input_tokens: int | None
    output_tokens: int | None
    finish_reason: str | None
    sequence: int | None = None
    usage: bool = True
    stream_events: int = 0


@dataclass(frozen=True)
class ShadowComparison:
    """A mirrored request, beside the primary's answer.

    agreement: share of leading tokens that are the same, of the
    longer answer's, in [0, 1]. logprob_difference_nats: mean over the primary's tokens of the shadow's log-probability
    less the primary's; None where none were asked for. error: why there is no comparison. sequence: that of the
    primary's event.
    """

    time: float
    primary_arm: str
    shadow_arm: str
    streamed: bool
    agreement: float | None
    same_tokens: int | None
    compared_tokens: int | None
    logprob_difference_nats: float | None
    shadow_ttft_s: float | None
    shadow_e2e_s: float | None
    error: str | None
    sequence: int | None = None


Listener = Callable[[Event | ShadowComparison], None]
