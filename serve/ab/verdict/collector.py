"""Who collects the evidence, watches the guardrails and is asked for the verdict, while the proxy runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serve.ab.verdict.aggregates import Evidence
from serve.ab.verdict.build import make_verdict
from serve.ab.verdict.event import Observation, ShadowComparison
from serve.ab.verdict.guardrail_check import Guard, level, thresholds
from serve.ab.verdict.guardrail_rule import parse_guardrail
from serve.ab.verdict.schema import Verdict, VerdictSettings

logger = logging.getLogger("mi_prun_ab")

Drain = Callable[[str, str], bool]


class Judge:
    """drain(arm, reason): sets the arm's weight to 0; says whether the arm had one. weights: of every arm, as they
    are now. identities: which model each is (`arm_identity`).

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
        self.guardrails = tuple(parse_guardrail(text) for text in guardrails)
        self._drain = drain
        self._weights = dict(weights)
        self._identities = dict(identities or {})
        self.reset()

    @property
    def _level(self) -> float:
        return level(self.settings.alpha, self.guardrails, len(self._weights) - 1)

    def reset(self) -> None:
        """Begin anew: a fault was mended, an arm is another one now."""
        levels, wanted = (self.settings.alpha, self._level), thresholds(self.guardrails)
        self.evidence = Evidence(self.control, self._weights, levels, wanted, self._identities)
        self.guard = Guard(self.guardrails, self._level, self._drain)

    def observe(self, seen: Observation | ShadowComparison) -> None:
        """The proxy's listener."""
        self.evidence.observe(seen)
        if self.guardrails:
            arms = (seen.shadow_arm, seen.primary_arm) if isinstance(seen, ShadowComparison) else (seen.arm,)
            touched = self.evidence.others if self.control in arms else [arm for arm in arms if arm in self._weights]
            for found in self.guard.check(self.evidence, touched):
                done = "its weight is 0 now" if found.drained else "it has no weight to lose"
                logger.warning("%s: %s; %s", found.arm, found.reason, done)

    def split_changed(self, at: float, weights: Mapping[str, float]) -> None:
        """at: seconds since 1970."""
        self._weights = dict(weights)
        self.evidence.split_changed(at, weights)

    def idle(self, shadow_share: float) -> list[str]:
        """Guardrails that nothing is known for, a sentence each."""
        if shadow_share > 0:
            return []
        return [
            f"guardrail {guardrail.text} cannot act: nothing is mirrored while the shadow share is 0"
            for guardrail in self.guardrails
            if guardrail.mirrored
        ]

    def verdict(self) -> Verdict:
        return make_verdict(self.experiment, self.evidence, self.settings, self.guard)

    def state(self) -> str:
        """JSON, of some 100 kB an arm."""
        return json.dumps({"evidence": self.evidence.state(), "breaks": self.guard.state()})

    def restore(self, text: str) -> None:
        """Go on where `state` was taken. What is of another release, of other arms, models or levels is left, and said:
        a guardrail that another model broke too.
        """
        try:
            state: dict[str, Any] = json.loads(text)
            levels, wanted = (self.settings.alpha, self._level), thresholds(self.guardrails)
            evidence = Evidence.restored(
                state["evidence"], self.control, self._weights, levels, wanted, self._identities
            )
            self.guard.restore(state["breaks"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("experiment %s: its figures so far are left, begun anew: %s", self.experiment, error)
            return
        self.evidence = evidence
