"""Intervals that hold at every look at once (confidence sequences): read them as often as you like, stop when you
like.

A 95 % interval of a textbook holds for one look at a size fixed in advance; whoever looks after each request and
stops at the first "significant" one is misled far more often than 1 in 20. These hold for all sizes together, with
probability 1 - alpha. Python's libraries for them are unkept (confseq: 2023, needs a C++ compiler and Boost), need a
convex solver (savvi), or are weeks old (ville); the three forms below are a few lines each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TUNED_TIMES = 10.0  # the intervals are tightest when there is so many times what the first of them was made of
EDGE = 1e-7  # relative, of a bound that is searched for
TRUNCATION = 0.5  # of the bets of `BoundedMean`; in (0, 1)

Bounds = tuple[float, float]


def width(clock: float, alpha: float) -> float:
    """Half an interval of an approximately normal estimate, in its standard errors, valid at every `clock` at once.

    sqrt(2 (t r + 1) / (t r) log(sqrt(t r + 1) / alpha)): asymptotic confidence sequences, Waudby-Smith, Arbour,
    Sinha, Kennedy, Ramdas, Annals of Statistics 52(6), 2024, theorem 2.2 and, for variances that change on the way,
    the Lyapunov-type one of section 2.5. t is `clock`: the variance of the sum so far, in units of what it was when
    the first interval was made. r makes the interval tightest at t = TUNED_TIMES (their appendix B).
    """
    ratio = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / TUNED_TIMES
    scaled = max(clock, 1e-9) * ratio
    return math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / alpha))


@dataclass
class Share:
    """A share of successes among independent trials, exact at any number of them.

    The interval is the beta-binomial mixture of Robbins (1970), as in Howard, Ramdas, McAuliffe, Sekhon, Annals of
    Statistics 49(2), 2021, with a Beta(1/2, 1/2). It is the wealth of a bettor against the share p,
    B(s + 1/2, n - s + 1/2) / B(1/2, 1/2) / (p^s (1 - p)^(n - s)). It passes 1 / alpha with probability alpha at most,
    ever, where p is true.
    """

    successes: int = 0
    trials: int = 0

    def add(self, success: bool) -> None:
        self.trials += 1
        self.successes += success

    @property
    def mean(self) -> float | None:
        return self.successes / self.trials if self.trials else None

    def log_wealth(self, share: float) -> float:
        return self._log_mixture() - self._log_likelihood(share)

    def _log_mixture(self) -> float:
        return _log_beta(self.successes + 0.5, self.trials - self.successes + 0.5) - _log_beta(0.5, 0.5)

    def _log_likelihood(self, share: float) -> float:
        failures = self.trials - self.successes
        if (share <= 0 and self.successes) or (share >= 1 and failures):
            return -math.inf
        likelihood = self.successes * math.log(share) if self.successes else 0.0
        return likelihood + failures * math.log1p(-share) if failures else likelihood

    def bounds(self, alpha: float) -> Bounds:
        """Return the ends of all shares that the trials do not speak against."""
        if not self.trials:
            return 0.0, 1.0
        mean, least = self.successes / self.trials, self._log_mixture() + math.log(alpha)
        low = _edge(lambda share: self._log_likelihood(share) > least, mean, 0.0)
        high = _edge(lambda share: self._log_likelihood(share) > least, mean, 1.0)
        return low, high

    def state(self) -> list[int]:
        return [self.successes, self.trials]

    @classmethod
    def restored(cls, state: list[int]) -> Share:
        return cls(*state)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _edge(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return where `holds` stops between a point at which it does and one at which it need not; the outer side."""
    if holds(outside):
        return outside
    while abs(outside - inside) > EDGE * abs(outside) + 1e-12:
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return outside


class BoundedMean:
    """A mean of values in [0, 1] of any distribution, exact at any number of them.

    The interval is the predictable plug-in empirical Bernstein sequence of Waudby-Smith and Ramdas, JRSS B 86(1), 2024,
    theorem 2. The level is chosen before the first value.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.count = 0
        self._total = 0.0
        self._squares = 0.0  # sum of squared distances from the mean that was known by then
        self._bets = 0.0
        self._bet_values = 0.0
        self._penalty = 0.0

    def add(self, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{value} is not in [0, 1]")
        known_mean = (0.5 + self._total) / (self.count + 1)
        known_variance = (0.25 + self._squares) / (self.count + 1)
        self.count += 1
        bet = math.sqrt(2 * math.log(2 / self.alpha) / (known_variance * self.count * math.log(1 + self.count)))
        bet = min(bet, TRUNCATION)
        self._bets += bet
        self._bet_values += bet * value
        self._penalty += (value - known_mean) ** 2 * (-math.log1p(-bet) - bet)
        self._total += value
        self._squares += (value - (0.5 + self._total) / (self.count + 1)) ** 2

    @property
    def mean(self) -> float | None:
        return self._total / self.count if self.count else None

    def bounds(self) -> Bounds:
        if not self.count:
            return 0.0, 1.0
        centre = self._bet_values / self._bets
        margin = (math.log(2 / self.alpha) + self._penalty) / self._bets
        return max(0.0, centre - margin), min(1.0, centre + margin)

    def state(self) -> dict[str, Any]:
        """Return what JSON can hold; the names are those on disk."""
        return {
            "alpha": self.alpha,
            "count": self.count,
            "total": self._total,
            "squares": self._squares,
            "bets": self._bets,
            "bet_values": self._bet_values,
            "penalty": self._penalty,
        }

    @classmethod
    def restored(cls, state: dict[str, Any], alpha: float) -> BoundedMean:
        """Return the mean whose `state` this is. Raises ValueError where it was made for another level."""
        if state["alpha"] != alpha:
            raise ValueError(f"made for alpha {state['alpha']}, not {alpha}")
        mean = cls(alpha)
        mean.count, mean._total, mean._squares = state["count"], state["total"], state["squares"]
        mean._bets, mean._bet_values, mean._penalty = state["bets"], state["bet_values"], state["penalty"]
        return mean


def ratio_bounds(holds: Callable[[float], bool], ratio: float) -> tuple[float, float | None]:
    """Return the ends of the ratios c >= 0 for which `holds(c)`, around one for which it does (Fieller's way).

    None is no upper end.
    """
    low = _edge(holds, ratio, 0.0)
    outside = max(2 * ratio, 1e-9)
    while holds(outside):
        outside *= 2
        if outside > 1e6 * max(ratio, 1e-9):
            return low, None
    return low, _edge(holds, ratio, outside)
