"""Who looks after each request whether an arm breaks a guardrail, and then has its weight taken."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from serve.ab.evidence import Evidence, Threshold
from serve.ab.guardrail import Guardrail, Standing
from serve.ab.statistics import Bounds
from serve.ab.sums import Contrast


def level(alpha: float, guardrails: Sequence[Guardrail], arms: int) -> float:
    """Of one guardrail on one arm (Bonferroni)."""
    return alpha / max(1, len(guardrails) * arms)


def thresholds(guardrails: Sequence[Guardrail]) -> list[Threshold]:
    """What must be counted as the requests come."""
    return [(rail.quantity, rail.bound) for rail in guardrails if rail.percentile is not None]


def standing(guardrail: Guardrail, arm: str, evidence: Evidence, alpha: float) -> Standing:
    """After every request: so no interval is looked for, only the bound tried."""
    ours = evidence.arms[arm]
    if guardrail.percentile is not None:
        # A percentile is below its bound where fewer than the rest of the values are above it.
        share, limit = ours.above[guardrail.quantity, guardrail.bound], 1 - guardrail.percentile
    elif guardrail.quantity == "error_rate":
        share, limit = ours.errors, guardrail.bound
    elif guardrail.quantity == "agreement":
        low, high = evidence.shadows[arm].agreement[alpha].bounds()
        return guardrail.verdict(all_above=low > guardrail.bound, all_below=high < guardrail.bound)
    else:
        sums = ours.sums[guardrail.quantity]
        if guardrail.relative:
            contrast, c = evidence.contrast(arm, guardrail.quantity), guardrail.bound
        else:
            contrast, c = Contrast(sums), 0.0
        bounds = contrast.bounds(alpha, c)
        if bounds is None:
            return "undecided"
        bound = 0.0 if guardrail.relative else guardrail.bound
        return guardrail.verdict(all_above=bounds[0] > bound, all_below=bounds[1] < bound)
    excluded = share.trials > 0 and share.log_wealth(limit) >= -math.log(alpha)
    above = excluded and share.successes > limit * share.trials
    return guardrail.verdict(all_above=above, all_below=excluded and not above)


def bounds_of(guardrail: Guardrail, arm: str, evidence: Evidence, alpha: float) -> Bounds | None:
    """What the quantity of the arm can still be; the ratio to the control's of a relative one, the share of the values
    that are above its bound of a percentile.
    """
    ours = evidence.arms[arm]
    if guardrail.quantity == "error_rate":
        return ours.errors.bounds(alpha) if ours.errors.trials else None
    if guardrail.quantity == "agreement":
        agreement = evidence.shadows[arm].agreement[alpha]
        return agreement.bounds() if agreement.count else None
    if guardrail.percentile is not None:
        above = ours.above[guardrail.quantity, guardrail.bound]
        return above.bounds(alpha) if above.trials else None
    if guardrail.relative:
        found = evidence.contrast(arm, guardrail.quantity).ratio_bounds(alpha)
        return None if found is None else (found[0], math.inf if found[1] is None else found[1])
    return Contrast(ours.sums[guardrail.quantity]).bounds(alpha, 0.0)


def value_of(guardrail: Guardrail, arm: str, evidence: Evidence, alpha: float) -> float | None:
    """What the quantity of the arm is, as far as it is known."""
    ours = evidence.arms[arm]
    if guardrail.quantity == "error_rate":
        return ours.errors.mean
    if guardrail.quantity == "agreement":
        return evidence.shadows[arm].agreement[alpha].mean
    if guardrail.percentile is not None:
        return ours.quantiles[guardrail.quantity].quantile(guardrail.percentile)
    if guardrail.relative:
        return evidence.contrast(arm, guardrail.quantity).ratio()
    return ours.sums[guardrail.quantity].ratio


@dataclass(frozen=True)
class Break:
    """time: seconds since 1970. drained: whether the arm had a weight to lose, and lost it."""

    arm: str
    guardrail: str
    reason: str
    time: float
    drained: bool


class Guard:
    """Tells `drain(arm, reason)` of each guardrail that an arm breaks; it says whether it took the arm's weight.

    Once it did, that guardrail is not acted on again: who gives the arm weight once more has been told. It starts anew
    with new evidence. An arm without weight is drained when it is given some.
    """

    def __init__(self, guardrails: Sequence[Guardrail], alpha: float, drain: Callable[[str, str], bool]) -> None:
        self.guardrails = tuple(guardrails)
        self.alpha = alpha
        self.breaks: list[Break] = []
        self._drain = drain

    def check(self, evidence: Evidence, arms: Sequence[str]) -> list[Break]:
        """What is new."""
        news = []
        for arm in arms:
            for guardrail in self.guardrails:
                known = self.found(arm, guardrail)
                if known and known.drained:
                    continue
                if standing(guardrail, arm, evidence, self.alpha) != "broken":
                    continue
                value = value_of(guardrail, arm, evidence, self.alpha)
                requests = evidence.arms[arm].requests
                reason = f"guardrail {guardrail.text} is broken: it is {value:.4g} after {requests:,} requests"
                drained = self._drain(arm, reason)
                if known is None or drained:
                    self.breaks = [found for found in self.breaks if found is not known]
                    self.breaks.append(Break(arm, guardrail.text, reason, time.time(), drained))
                    news.append(self.breaks[-1])
        return news

    def found(self, arm: str, guardrail: Guardrail) -> Break | None:
        return next((found for found in self.breaks if (found.arm, found.guardrail) == (arm, guardrail.text)), None)

    def state(self) -> list[dict[str, Any]]:
        return [asdict(found) for found in self.breaks]

    def restore(self, state: list[dict[str, Any]]) -> None:
        self.breaks = [Break(**found) for found in state]
