"""Compare two models by their answers to the same items: how much better one is, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054


@dataclass(frozen=True)
class ItemDifference:
    """The difference of two shares of right answers, the second minus the first, with its 95 % interval.

    gained, lost: items that only the second, or only the first, got right. p_value: McNemar's exact test.
    """

    mean: float
    low: float
    high: float
    gained: int
    lost: int
    items: int
    p_value: float

    @property
    def flips(self) -> int:
        """Return how many items turned right or wrong. Many may, though the share of right answers stays."""
        return self.gained + self.lost

    @property
    def beyond_noise(self) -> bool:
        """Return whether the interval leaves out no difference."""
        return self.low > 0 or self.high < 0

    def points(self) -> str:
        """Say the difference in percentage points: `-3.1 [-5.0, -1.2]`."""
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> ItemDifference:
    """Compare two models' answers to the same items, in the same order. Raises ValueError for lists that do not pair.

    The interval is Bonett and Price's (2012): a Wald interval with one item more in each discordant cell. It is right
    also where few items differ, or none does.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} answers are no pairs")
    items = len(first)
    gained = sum(not a and b for a, b in zip(first, second, strict=True))
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    up, down = (gained + 1) / (items + 2), (lost + 1) / (items + 2)
    half = Z95 * math.sqrt((up + down - (up - down) ** 2) / (items + 2))
    return ItemDifference(
        mean=(gained - lost) / items,
        low=max(-1.0, up - down - half),
        high=min(1.0, up - down + half),
        gained=gained,
        lost=lost,
        items=items,
        p_value=mcnemar(gained, lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided exact p-value of McNemar's test: `gained` and `lost` are tosses of a fair coin."""
    from scipy.stats import binomtest

    tosses = gained + lost
    return float(binomtest(gained, tosses).pvalue) if tosses else 1.0


def mean_difference(differences: Sequence[ItemDifference]) -> tuple[float, float, float]:
    """Return the mean over several sets of items, each counted alike, and its 95 % interval: low, high.

    The sets are independent.
    """
    mean = sum(d.mean for d in differences) / len(differences)
    half = math.sqrt(sum(((d.high - d.low) / 2) ** 2 for d in differences)) / len(differences)
    return mean, mean - half, mean + half
