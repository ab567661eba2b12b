"""What must hold of an arm, or it is given no more requests: `error_rate<1%`, `agreement>0.6`, `ttft_ms<1.2x`.

    guardrail = quantity ("<" | ">") bound
    quantity  = error_rate | agreement | ttft_ms | itl_ms | e2e_ms | tokens_per_s | output_tokens
              | (ttft | e2e) "_p" (50 .. 99) "_ms"
    bound     = number | number "%" | number "x"

`%` is of shares (error_rate, agreement); `x` is times the control's figure, of the means; a percentile takes a
number. A guardrail is broken when the values that are still possible, all looks considered, all break it: with
several guardrails or arms the level is shared, so that the chance to drain an arm that breaks none is alpha at most,
however long it is watched.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mi_prun.errors import UserError
from serve.ab.evidence import FIGURES, Evidence, Threshold
from serve.ab.statistics import Bounds
from serve.ab.sums import Contrast

SHARES = ("error_rate", "agreement")
FORM = re.compile(r"\s*([a-z0-9_]+?)\s*([<>])\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([%x]?)\s*")
PERCENTILE = re.compile(r"(ttft|e2e)_p([5-9][0-9])_ms")
HELP = "it is QUANTITY<BOUND or QUANTITY>BOUND, as error_rate<1%, agreement>0.6, ttft_ms<1.2x, e2e_p95_ms<3000"

Standing = Literal["holds", "undecided", "broken"]


@dataclass(frozen=True)
class Guardrail:
    """text: as it was given. bound: a share in [0, 1], a number, or with `relative` a factor of the control's figure.

    percentile: of the values of `quantity`, in (0, 1); None is the mean.
    """

    text: str
    quantity: str
    below: bool
    bound: float
    relative: bool = False
    percentile: float | None = None

    def verdict(self, *, all_above: bool, all_below: bool) -> Standing:
        """Whether all values that are still possible are above the bound, or all below."""
        if all_above or all_below:
            return "holds" if all_below == self.below else "broken"
        return "undecided"


def parse_guardrail(text: str) -> Guardrail:
    """Raises UserError."""
    found = FORM.fullmatch(text)
    if not found:
        raise UserError(f"guardrail {text!r}: {HELP}")
    quantity, sign, number, unit = found.groups()
    bound, below = float(number), sign == "<"
    if percentile := PERCENTILE.fullmatch(quantity):
        if unit:
            raise UserError(f"guardrail {text!r}: a percentile is compared with a number of milliseconds")
        return Guardrail(text.strip(), f"{percentile[1]}_ms", below, bound, percentile=int(percentile[2]) / 100)
    if quantity not in (*SHARES, *FIGURES):
        raise UserError(
            f"guardrail {text!r}: {quantity} is no quantity; there are {', '.join((*SHARES, *FIGURES))}, "
            "and percentiles as e2e_p95_ms"
        )
    if unit == "%":
        if quantity not in SHARES:
            raise UserError(f"guardrail {text!r}: % is of a share ({', '.join(SHARES)}); for a ratio write 1.2x")
        bound /= 100
    if unit == "x" and quantity in SHARES:
        raise UserError(f"guardrail {text!r}: x is of {', '.join(FIGURES)}; a share is compared with a share")
    if quantity in SHARES and not 0 <= bound <= 1:
        raise UserError(f"guardrail {text!r}: {quantity} is in 0..1 (0..100 %)")
    return Guardrail(text.strip(), quantity, below, bound, relative=unit == "x")


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
    """Tells `drain(arm, reason)` once for each guardrail that an arm breaks; it says whether it took the arm's weight.

    A guardrail that was broken is not acted on again: who gives the arm weight once more has been told. It starts anew
    with new evidence.
    """

    def __init__(self, guardrails: Sequence[Guardrail], alpha: float, drain: Callable[[str, str], bool]) -> None:
        self.guardrails = tuple(guardrails)
        self.alpha = alpha
        self.breaks: list[Break] = []
        self._drain = drain

    def check(self, evidence: Evidence, arms: Sequence[str]) -> None:
        for arm in arms:
            for guardrail in self.guardrails:
                if any(found.arm == arm and found.guardrail == guardrail.text for found in self.breaks):
                    continue
                if standing(guardrail, arm, evidence, self.alpha) != "broken":
                    continue
                value = value_of(guardrail, arm, evidence, self.alpha)
                reason = (
                    f"guardrail {guardrail.text} is broken: it is {value:.4g} over {_requests(evidence, arm)} requests"
                )
                # Before it is drained: what drains it may look at the breaks.
                self.breaks.append(Break(arm, guardrail.text, reason, time.time(), False))
                self.breaks[-1] = replace(self.breaks[-1], drained=self._drain(arm, reason))

    def state(self) -> list[dict[str, Any]]:
        return [asdict(found) for found in self.breaks]

    def restore(self, state: list[dict[str, Any]]) -> None:
        self.breaks = [Break(**found) for found in state]


def _requests(evidence: Evidence, arm: str) -> int:
    return evidence.arms[arm].requests
