"""The collector takes in events while the proxy runs, watches the guardrails and is asked for the verdict."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serve.ab.verdict.aggregates import Aggregates
from serve.ab.verdict.build import build_verdict
from serve.ab.verdict.event import Event, ShadowComparison
from serve.ab.verdict.guardrail_check import GuardrailCheck, level, thresholds
from serve.ab.verdict.guardrail_rule import parse_guardrail
from serve.ab.verdict.schema import Verdict, VerdictSettings

logger = logging.getLogger("mi_prun_ab")

SCHEMA_VERSION = 3
Drain = Callable[[str, str], bool]


class EventCollector:
    """Collects events into aggregates.

    drain(arm, reason): sets the arm's weight to 0; says whether the arm had one. weights: of every arm, as they are
    now. identities: which model each is (`arm_identity`).

    Raises UserError for a guardrail that cannot be read.
    """

    def __init__(
        self,
        experiment: str,
        control: str,
        weights: Mapping[str, float],
        *,
        settings: VerdictSettings | None = None,
        guardrails: Sequence[str] = (),
        drain: Drain = lambda arm, reason: False,
        identities: Mapping[str, str] | None = None,
    ) -> None:
        self.experiment = experiment
        self.control = control
        self.settings = settings or VerdictSettings()
        self.rules = tuple(parse_guardrail(text) for text in guardrails)
        self._drain = drain
        self._weights = dict(weights)
        self._identities = dict(identities or {})
        self.reset()

    @property
    def _level(self) -> float:
        return level(self.settings.alpha, self.rules, len(self._weights) - 1)

    def reset(self) -> None:
        """Begin anew: a fault was mended, an arm is another one now. Requests in flight will not count."""
        levels = (self.settings.alpha, self._level)
        self.aggregates = Aggregates(self.control, self._weights, levels, thresholds(self.rules), self._identities)
        self.guardrail_check = GuardrailCheck(self.rules, self._level, self._drain)

    def asked(self, sequence: int, arm: str, key_hash: str) -> None:
        """Tell, before it is known how it ends, that a counted request is sent to the arm it was assigned to.

        sequence: a number of its own, that its event will have.
        """
        self.aggregates.asked(sequence, arm, key_hash)

    def mirrored(self, sequence: int) -> None:
        """Tell that a ShadowComparison of this request will follow."""
        self.aggregates.mirrored(sequence)

    def lost(self, sequence: int) -> None:
        """Tell that no event of this request will follow."""
        self.aggregates.lost(sequence)

    def observe(self, event: Event | ShadowComparison) -> None:
        """Take in what ended: the proxy's listener."""
        arms = self.aggregates.observe(event)
        if not self.rules:
            return
        others = self.aggregates.others
        touched = others if self.control in arms else [arm for arm in others if arm in arms]
        for broken in self.guardrail_check.check(self.aggregates, touched):
            done = "its weight is 0 now" if broken.drained else "it has no weight to lose"
            logger.warning("%s: %s; %s", broken.arm, broken.reason, done)

    def split_changed(self, weights: Mapping[str, float]) -> None:
        """Draw the requests that are asked from now on by these weights."""
        self._weights = dict(weights)
        self.aggregates.split_changed(weights)

    def idle(self, shadow_share: float) -> list[str]:
        """Return a sentence for each guardrail that nothing is known for."""
        if shadow_share > 0:
            return []
        return [
            f"guardrail {rule.text} cannot act: nothing is mirrored while the shadow share is 0"
            for rule in self.rules
            if rule.mirrored
        ]

    def verdict(self) -> Verdict:
        """Return what the experiment says by now."""
        return build_verdict(self.experiment, self.aggregates, self.settings, self.guardrail_check)

    def state(self) -> str:
        """Return JSON, of some 100 kB an arm."""
        return json.dumps(
            {
                "schema_version": SCHEMA_VERSION,
                "aggregates": self.aggregates.state(),
                "breaks": self.guardrail_check.state(),
            }
        )

    def restore(self, text: str) -> None:
        """Go on where `state` was taken.

        What is of another release, of other arms, models or levels is left, and said; a guardrail that another model
        broke too.
        """
        try:
            state = _current(json.loads(text))
            levels, wanted = (self.settings.alpha, self._level), thresholds(self.rules)
            aggregates = Aggregates.restored(
                state["aggregates"], self.control, self._weights, levels, wanted, self._identities
            )
            self.guardrail_check.restore(state["breaks"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("experiment %s: its figures so far are left, begun anew: %s", self.experiment, error)
            return
        self.aggregates = aggregates


def _current(state: dict[str, Any]) -> dict[str, Any]:
    """The state as this release has it. Raises ValueError for that of another one, except version 2 (2026-11)."""
    if state.get("schema_version") == SCHEMA_VERSION:
        return state
    if "schema_version" not in state and state["evidence"]["version"] == 2:
        return {"aggregates": state["evidence"], "breaks": state["breaks"]}
    raise ValueError("the figures kept are of another release")
