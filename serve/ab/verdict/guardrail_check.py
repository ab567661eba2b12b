"""The check after each request whether an arm breaks a guardrail; one that does loses its weight."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mi_prun.artefact import Record
from serve.ab.verdict.aggregates import Aggregates, ArmAggregates, Threshold
from serve.ab.verdict.guardrail_rule import GuardrailRule, Kind, Standing
from serve.ab.verdict.statistics import Bounds, Share
from serve.ab.verdict.sums import Contrast, Sums, rate_bounds


def level(alpha: float, rules: Sequence[GuardrailRule], arms: int) -> float:
    """Return the level of one guardrail on one arm (Bonferroni)."""
    return alpha / max(1, len(rules) * arms)


def thresholds(rules: Sequence[GuardrailRule]) -> list[Threshold]:
    """Return what must be counted as the requests come."""
    return [(rule.quantity, rule.bound) for rule in rules if rule.percentile is not None]


@dataclass(frozen=True)
class _Case:
    """One rule, on one arm, at its level."""

    rule: GuardrailRule
    arm: str
    aggregates: Aggregates
    alpha: float

    @property
    def ours(self) -> ArmAggregates:
        return self.aggregates.arms[self.arm]

    @property
    def control(self) -> ArmAggregates:
        return self.aggregates.arms[self.aggregates.control]

    @property
    def sums(self) -> Sums:
        return self.aggregates.shadows[self.arm].logprobs if self.rule.mirrored else self.ours.sums[self.rule.quantity]


@dataclass(frozen=True)
class _Evaluation:
    """How guardrails of one kind are evaluated.

    standing: whether it holds; after every request, so no interval is searched for, only the bound is tried. bounds:
    what the quantity can still be. value: what it is, as far as it is known.
    """

    standing: Callable[[_Case], Standing]
    bounds: Callable[[_Case], Bounds | None]
    value: Callable[[_Case], float | None]


def _share_standing(case: _Case, fewest_and_most: tuple[Share, Share], limit: float) -> Standing:
    """Compare a share with its limit; requests in flight count for the arm, whichever side is tried."""
    fewest, most = fewest_and_most
    wanted = -math.log(case.alpha)
    return case.rule.verdict(
        all_above=fewest.successes > limit * fewest.trials and fewest.log_wealth(limit) >= wanted,
        all_below=most.successes <= limit * most.trials and most.trials > 0 and most.log_wealth(limit) >= wanted,
    )


def _share_bounds(case: _Case, fewest_and_most: tuple[Share, Share]) -> Bounds | None:
    fewest, most = fewest_and_most
    return (fewest.bounds(case.alpha)[0], most.bounds(case.alpha)[1]) if fewest.trials else None


def _bounds_standing(case: _Case, bounds: Bounds | None, limit: float) -> Standing:
    if bounds is None:
        return "undecided"
    return case.rule.verdict(all_above=bounds[0] > limit, all_below=bounds[1] < limit)


def _above(case: _Case) -> tuple[Share, Share]:
    return case.ours.fewest_and_most_above((case.rule.quantity, case.rule.bound))


def _excess_errors(case: _Case) -> Bounds | None:
    """Bounds of the arm's error rate less `bound` times the control's."""
    weighted = Contrast(case.ours.weighted_errors, case.control.weighted_errors)
    return rate_bounds(case.ours.errors, case.control.errors, weighted, case.alpha, case.rule.bound)


def _error_ratio_bounds(case: _Case) -> Bounds | None:
    weighted = Contrast(case.ours.weighted_errors, case.control.weighted_errors).ratio_bounds(case.alpha)
    if weighted is None:
        return None
    ours, control = case.ours.errors.bounds(case.alpha / 2), case.control.errors.bounds(case.alpha / 2)
    high = math.inf if weighted[1] is None or control[0] <= 0 else max(weighted[1], ours[1] / control[0])
    return min(weighted[0], ours[0] / control[1]), high


def _mean_bounds(case: _Case) -> Bounds | None:
    return Contrast(case.sums).bounds(case.alpha, 0.0)


def _mean_ratio_bounds(case: _Case) -> Bounds | None:
    bounds = case.aggregates.contrast(case.arm, case.rule.quantity).ratio_bounds(case.alpha)
    return None if bounds is None else (bounds[0], math.inf if bounds[1] is None else bounds[1])


def _agreement_bounds(case: _Case) -> Bounds | None:
    agreement = case.aggregates.shadows[case.arm].agreement[case.alpha]
    return agreement.bounds() if agreement.count else None


EVALUATIONS: dict[Kind, _Evaluation] = {
    "error_rate": _Evaluation(
        standing=lambda case: _share_standing(case, case.ours.fewest_and_most_errors(), case.rule.bound),
        bounds=lambda case: _share_bounds(case, case.ours.fewest_and_most_errors()),
        value=lambda case: case.ours.fewest_and_most_errors()[0].mean,
    ),
    "error_rate_ratio": _Evaluation(
        standing=lambda case: _bounds_standing(case, _excess_errors(case), 0.0),
        bounds=_error_ratio_bounds,
        value=lambda case: Contrast(case.ours.weighted_errors, case.control.weighted_errors).ratio(),
    ),
    # A percentile is below its bound where fewer than the rest of the values are above it.
    "percentile": _Evaluation(
        standing=lambda case: _share_standing(case, _above(case), 1 - (case.rule.percentile or 0.0)),
        bounds=lambda case: _share_bounds(case, _above(case)),
        value=lambda case: case.ours.quantiles[case.rule.quantity].quantile(case.rule.percentile or 0.0),
    ),
    "agreement": _Evaluation(
        standing=lambda case: _bounds_standing(case, _agreement_bounds(case), case.rule.bound),
        bounds=_agreement_bounds,
        value=lambda case: case.aggregates.shadows[case.arm].agreement[case.alpha].mean,
    ),
    "mean": _Evaluation(
        standing=lambda case: _bounds_standing(case, _mean_bounds(case), case.rule.bound),
        bounds=_mean_bounds,
        value=lambda case: case.sums.ratio,
    ),
    "mean_ratio": _Evaluation(
        standing=lambda case: _bounds_standing(
            case, case.aggregates.contrast(case.arm, case.rule.quantity).bounds(case.alpha, case.rule.bound), 0.0
        ),
        bounds=_mean_ratio_bounds,
        value=lambda case: case.aggregates.contrast(case.arm, case.rule.quantity).ratio(),
    ),
}


def standing(rule: GuardrailRule, arm: str, aggregates: Aggregates, alpha: float) -> Standing:
    """Return whether the rule holds of the arm, is broken, or cannot be told yet."""
    return EVALUATIONS[rule.kind].standing(_Case(rule, arm, aggregates, alpha))


def bounds_of(rule: GuardrailRule, arm: str, aggregates: Aggregates, alpha: float) -> Bounds | None:
    """Return what the quantity of the arm can still be.

    A relative rule gives the ratio to the control's, a percentile the share of the values that are above its bound.
    """
    return EVALUATIONS[rule.kind].bounds(_Case(rule, arm, aggregates, alpha))


def value_of(rule: GuardrailRule, arm: str, aggregates: Aggregates, alpha: float) -> float | None:
    """Return what the quantity of the arm is, as far as it is known.

    An error rate counts requests in flight as answered. None too for a ratio to a control that has none of it.
    """
    return EVALUATIONS[rule.kind].value(_Case(rule, arm, aggregates, alpha))


class Break(Record):
    """A guardrail that an arm broke.

    time: seconds since 1970. drained: whether the arm had a weight to lose, and lost it.
    """

    arm: str
    guardrail: str
    reason: str
    time: float
    drained: bool


class GuardrailCheck:
    """Tells `drain(arm, reason)` of each guardrail that an arm breaks; it says whether it took the arm's weight.

    Once it did, that guardrail is not acted on again: who gives the arm weight once more has been told. It starts anew
    with new aggregates. An arm without weight is drained when it is given some.
    """

    def __init__(self, rules: Sequence[GuardrailRule], alpha: float, drain: Callable[[str, str], bool]) -> None:
        self.rules = tuple(rules)
        self.alpha = alpha
        self.breaks: list[Break] = []
        self._drain = drain

    def check(self, aggregates: Aggregates, arms: Sequence[str]) -> list[Break]:
        """Return the breaks that are new."""
        news = []
        for arm in arms:
            for rule in self.rules:
                known = self.break_of(arm, rule)
                if known and known.drained:
                    continue
                if standing(rule, arm, aggregates, self.alpha) != "broken":
                    continue
                reason = self._reason(rule, arm, aggregates)
                drained = self._drain(arm, reason)
                if known is None or drained:
                    self.breaks = [one for one in self.breaks if one is not known]
                    self.breaks.append(
                        Break(arm=arm, guardrail=rule.text, reason=reason, time=time.time(), drained=drained)
                    )
                    news.append(self.breaks[-1])
        return news

    def _reason(self, rule: GuardrailRule, arm: str, aggregates: Aggregates) -> str:
        value = value_of(rule, arm, aggregates, self.alpha)
        if value is not None:
            text = f"{value:.4g}"
        else:
            text = "beyond any multiple of none" if rule.relative else f"beyond {rule.bound:g}"
        requests = aggregates.arms[arm].asked
        return f"guardrail {rule.text} is broken: it is {text} after {requests:,} requests"

    def break_of(self, arm: str, rule: GuardrailRule) -> Break | None:
        """Return the break of this rule by this arm."""
        return next((one for one in self.breaks if (one.arm, one.guardrail) == (arm, rule.text)), None)

    def state(self) -> list[dict[str, Any]]:
        """Return what JSON can hold; the names are those on disk."""
        return [one.model_dump() for one in self.breaks]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Go on with the breaks whose `state` this is. Raises ValueError for anything else."""
        self.breaks = [Break.model_validate(one) for one in state]
