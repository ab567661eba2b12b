"""How an arm's tokens were counted, and whether the counts of two arms mean the same.

An engine that gives no usage has its tokens counted by the events of its streams. An event may hold several tokens:
speculative decoding and engines that send in batches do that. How many, streams tell that have both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from serve.ab.verdict.event import Event

COUNTED = ("tokens_per_s", "output_tokens")  # quantities that are made of tokens
LEAST_ANSWERS = 20  # of each arm, before anything is said
LEAST_EVENTS = 100  # of streams that have both
TOLERANCE = 0.1


@dataclass
class TokenCounts:
    """Counts of an arm's whole answers.

    by_usage: answers whose tokens the engine counted. by_events: streams whose tokens are their events. tokens, events:
    of streams that have both.
    """

    by_usage: int = 0
    by_events: int = 0
    tokens: int = 0
    events: int = 0

    def add(self, event: Event) -> None:
        """Count an answer."""
        if event.outcome != "ok" or event.output_tokens is None:
            return
        if not event.usage:
            self.by_events += 1
            return
        self.by_usage += 1
        if event.stream_events:
            self.tokens += event.output_tokens
            self.events += event.stream_events

    @property
    def share_by_events(self) -> float:
        return self.by_events / max(1, self.by_events + self.by_usage)

    @property
    def tokens_per_event(self) -> float | None:
        """Tokens that an event holds; None as long as too few streams tell."""
        return self.tokens / self.events if self.events >= LEAST_EVENTS else None

    def state(self) -> dict[str, Any]:
        """Return what JSON can hold; the names are those on disk."""
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, int]) -> TokenCounts:
        """Return the counts whose `state` this is."""
        return cls(**state)


def incomparable(ours: TokenCounts, control: TokenCounts) -> dict[str, str]:
    """Return the quantities in which two arms cannot be compared, each with the reason."""
    if min(one.by_usage + one.by_events for one in (ours, control)) < LEAST_ANSWERS:
        return {}
    shares = (ours.share_by_events, control.share_by_events)
    held = (ours.tokens_per_event, control.tokens_per_event)
    reasons = {}
    if held[0] is not None and held[1] is not None and not _alike(held[0], held[1]):
        said = f"an event of its streams holds {held[0]:.2g} tokens, one of the control's {held[1]:.2g}"
        reasons["itl_ms"] = said
        if max(shares) > TOLERANCE:
            reasons |= dict.fromkeys(COUNTED, f"{said}, and answers without usage are counted by events")
    elif abs(shares[0] - shares[1]) > TOLERANCE and not all(one is not None and _alike(one, 1.0) for one in held):
        said = (
            f"the tokens of {shares[0]:.0%} of its answers and of {shares[1]:.0%} of the control's are counted by "
            "events, as the engine gave no usage"
        )
        reasons |= dict.fromkeys(COUNTED, said)
    return reasons


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * max(one, other)
