"""Who looks after each request whether an arm breaks a guardrail, and then has its weight taken."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from serve.ab.verdict.aggregates import Evidence, Threshold
from serve.ab.verdict.guardrail_rule import Guardrail, Standing
from serve.ab.verdict.statistics import Bounds
from serve.ab.verdict.sums import Contrast, Sums


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
    elif guardrail.quantity == "error_rate" and not guardrail.relative:
        share, limit = ours.errors, guardrail.bound
    else:
        bounds, bound = _bounds(guardrail, arm, evidence, alpha), 0.0 if guardrail.relative else guardrail.bound
        if bounds is None:
            return "undecided"
        return guardrail.verdict(all_above=bounds[0] > bound, all_below=bounds[1] < bound)
    excluded = share.trials > 0 and share.log_wealth(limit) >= -math.log(alpha)
    above = excluded and share.successes > limit * share.trials
    return guardrail.verdict(all_above=above, all_below=excluded and not above)


def _bounds(guardrail: Guardrail, arm: str, evidence: Evidence, alpha: float) -> Bounds | None:
    """What the quantity can still be; of a relative one, less so many times the control's."""
    if guardrail.quantity == "agreement":
        return evidence.shadows[arm].agreement[alpha].bounds()
    if guardrail.quantity == "error_rate":
        return _excess_errors(arm, evidence, alpha, guardrail.bound)
    if guardrail.relative:
        return evidence.contrast(arm, guardrail.quantity).bounds(alpha, guardrail.bound)
    return Contrast(_sums(guardrail, arm, evidence)).bounds(alpha, 0.0)


def _sums(guardrail: Guardrail, arm: str, evidence: Evidence) -> Sums:
    return evidence.shadows[arm].logprobs if guardrail.mirrored else evidence.arms[arm].sums[guardrail.quantity]


def _excess_errors(arm: str, evidence: Evidence, alpha: float, times: float) -> Bounds | None:
    """The arm's error rate less so many times the control's: two intervals in one. One takes each side at half the
    level, exact with however few errors, but a split that is changed in the middle of an outage would mislead it; the
    other weighs requests by their split and groups them by key, but is normal only with many errors.
    """
    ours, control = evidence.arms[arm], evidence.arms[evidence.control]
    weighted = Contrast(ours.weighted_errors, control.weighted_errors).bounds(alpha, times)
    if weighted is None:
        return None
    low, high = ours.errors.bounds(alpha / 2), control.errors.bounds(alpha / 2)
    return min(low[0] - times * high[1], weighted[0]), max(low[1] - times * high[0], weighted[1])


def _error_ratio_bounds(arm: str, evidence: Evidence, alpha: float) -> Bounds | None:
    ours, control = evidence.arms[arm], evidence.arms[evidence.control]
    weighted = Contrast(ours.weighted_errors, control.weighted_errors).ratio_bounds(alpha)
    if weighted is None:
        return None
    mine, theirs = ours.errors.bounds(alpha / 2), control.errors.bounds(alpha / 2)
    high = math.inf if weighted[1] is None or theirs[0] <= 0 else max(weighted[1], mine[1] / theirs[0])
    return min(weighted[0], mine[0] / theirs[1]), high


def bounds_of(guardrail: Guardrail, arm: str, evidence: Evidence, alpha: float) -> Bounds | None:
    """What the quantity of the arm can still be; the ratio to the control's of a relative one, the share of the values
    that are above its bound of a percentile.
    """
    ours = evidence.arms[arm]
    if guardrail.quantity == "error_rate" and guardrail.relative:
        return _error_ratio_bounds(arm, evidence, alpha)
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
    return Contrast(_sums(guardrail, arm, evidence)).bounds(alpha, 0.0)


def value_of(guardrail: Guardrail, arm: str, evidence: Evidence, alpha: float) -> float | None:
    """What the quantity of the arm is, as far as it is known. None too for a ratio to a control that has none of it."""
    ours = evidence.arms[arm]
    if guardrail.quantity == "error_rate" and guardrail.relative:
        return Contrast(ours.weighted_errors, evidence.arms[evidence.control].weighted_errors).ratio()
    if guardrail.quantity == "error_rate":
        return ours.errors.mean
    if guardrail.quantity == "agreement":
        return evidence.shadows[arm].agreement[alpha].mean
    if guardrail.percentile is not None:
        return ours.quantiles[guardrail.quantity].quantile(guardrail.percentile)
    if guardrail.relative:
        return evidence.contrast(arm, guardrail.quantity).ratio()
    return _sums(guardrail, arm, evidence).ratio


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
                found = "beyond any multiple of none" if value is None else f"{value:.4g}"
                reason = f"guardrail {guardrail.text} is broken: it is {found} after {requests:,} requests"
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
