"""A figure of an arm as sums in constant memory, and the interval of the difference of two arms.

Every figure is a ratio, sum of y over sum of x: a mean where x = 1, tokens per second where x is seconds. A request
weighs 1 / p, p the probability with which the split gave it to its arm (Hajek's estimator): while the split stands
still that is the plain mean; when it is changed on the way, both arms still speak of the same requests, so that a
busy hour in which one arm had a larger share does not pass for a property of the arm.

The variance of a ratio R is that of the sum of w (y - R x) over the sum of w x. It is taken twice, request by request
and over buckets of sticky keys, and the larger one counts: the requests of one client are alike.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.ab.verdict.statistics import Bounds, Share, ratio_bounds, width

BUCKETS = 256
MIN_REQUESTS = 100  # of each arm, before an interval is given: a skewed sum of fewer is not normal enough
# Effective buckets of each arm, before an interval is given. In simulations with 4 to 200 clients (of one size or Zipf,
# lognormal or some of them failing, 1 in 2 or 1 in 10 at the arm) equal arms were told apart in up to 28 % of the runs
# without this bound, in up to 8 % with 12, in up to 2 % with 20.
MIN_BUCKETS = 20.0
ROUNDING = 1e-9  # of the ratios: sums of values that are all alike differ by less

Floats = npt.NDArray[np.float64]


class Sums:
    """Weighted sums of y and x of one arm's requests."""

    def __init__(self) -> None:
        self.count = 0
        self._y = self._x = self._yy = self._xy = self._xx = 0.0
        self._bucket_y = np.zeros(BUCKETS)
        self._bucket_x = np.zeros(BUCKETS)
        self.first_variance = 0.0  # of the sum of w (y - R x), when there were MIN_REQUESTS

    def add(self, y: float, x: float, weight: float, bucket: int) -> None:
        self.count += 1
        wy, wx = weight * y, weight * x
        self._y += wy
        self._x += wx
        self._yy += wy * wy
        self._xy += wy * wx
        self._xx += wx * wx
        self._bucket_y[bucket] += wy
        self._bucket_x[bucket] += wx
        if self.count == MIN_REQUESTS:
            self.first_variance = self._residual_squares()

    @property
    def ratio(self) -> float | None:
        return self._y / self._x if self._x > 0 else None

    @property
    def size(self) -> float:
        """Sum of w x: grows in step with the experiment's requests, the same for either arm."""
        return self._x

    @property
    def effective_buckets(self) -> float:
        """Number of buckets, were all of one size (Kish): small where a few clients send most of the requests."""
        squares = float(self._bucket_x @ self._bucket_x)
        return self._x * self._x / squares if squares else 0.0

    @property
    def enough(self) -> bool:
        """Whether an interval can be given."""
        return self.count >= MIN_REQUESTS and self.effective_buckets >= MIN_BUCKETS

    def _residual_squares(self) -> float:
        ratio = self._y / self._x
        return max(0.0, self._yy - 2 * ratio * self._xy + ratio * ratio * self._xx)

    @property
    def variance(self) -> float:
        """Variance of the ratio, were all requests independent."""
        return self._residual_squares() / self._x**2 * self.count / max(1, self.count - 1)

    def residuals(self) -> Floats:
        """Return residuals by bucket; they sum to 0, and their squares to the variance of the ratio."""
        return np.asarray((self._bucket_y - self._y / self._x * self._bucket_x) / self._x)

    def filled(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self._bucket_x > 0)

    def state(self) -> dict[str, Any]:
        """Return what JSON can hold; the names are those on disk."""
        return {
            "count": self.count,
            "y": self._y,
            "x": self._x,
            "yy": self._yy,
            "xy": self._xy,
            "xx": self._xx,
            "bucket_y": _packed(self._bucket_y),
            "bucket_x": _packed(self._bucket_x),
            "first_variance": self.first_variance,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Sums:
        """Return the sums whose `state` this is. Raises KeyError or ValueError for anything else."""
        sums = cls()
        sums.count, sums.first_variance = state["count"], state["first_variance"]
        sums._y, sums._x = state["y"], state["x"]
        sums._yy, sums._xy, sums._xx = state["yy"], state["xy"], state["xx"]
        sums._bucket_y, sums._bucket_x = _unpacked(state["bucket_y"]), _unpacked(state["bucket_x"])
        return sums


def _packed(array: Floats) -> str:
    return base64.b64encode(array.astype("<f8").tobytes()).decode("ascii")


def _unpacked(text: str) -> Floats:
    array = np.frombuffer(base64.b64decode(text), dtype="<f8").astype(float)
    if array.size != BUCKETS:
        raise ValueError(f"{array.size} buckets, not {BUCKETS}")
    return array


class Contrast:
    """The contrast R_arm - c R_control with its standard error, for any c; for an arm alone c = 0."""

    def __init__(self, arm: Sums, control: Sums | None = None) -> None:
        self.ready = arm.enough and (control is None or control.enough)
        self.known = arm.ratio is not None and (control is None or control.ratio is not None)
        self._arm = arm.ratio or 0.0
        self._control = (control.ratio or 0.0) if control else 0.0
        self._requests = arm.count / MIN_REQUESTS
        if not self.ready:
            return
        ours, filled = arm.residuals(), arm.filled()
        theirs = np.zeros(BUCKETS)
        self._variances = (arm.variance, 0.0)
        # Relative to the clock, so that the two arms' first variances are of the same time.
        self._first = (arm.first_variance / arm.size**2, 0.0)
        if control:
            theirs, filled = control.residuals(), filled | control.filled()
            self._variances = (arm.variance, control.variance)
            self._first = (self._first[0], control.first_variance / control.size**2)
        groups = int(filled.sum())
        spread = groups / max(1, groups - 1)
        self._bucket = tuple(spread * float(product) for product in (ours @ ours, ours @ theirs, theirs @ theirs))

    def variance(self, c: float) -> float:
        independent = self._variances[0] + c * c * self._variances[1]
        clustered = self._bucket[0] - 2 * c * self._bucket[1] + c * c * self._bucket[2]
        return max(independent, clustered)

    def margin(self, c: float, alpha: float) -> float:
        variance = self.variance(c)
        first = self._first[0] + c * c * self._first[1]
        margin = math.sqrt(variance) * width(variance / first if first > 0 else self._requests, alpha)
        return max(margin, ROUNDING * (abs(self._arm) + c * abs(self._control)))

    def estimate(self, c: float = 1.0) -> float:
        return self._arm - c * self._control

    def bounds(self, alpha: float, c: float = 1.0) -> Bounds | None:
        if not self.ready:
            return None
        estimate, margin = self.estimate(c), self.margin(c, alpha)
        return estimate - margin, estimate + margin

    def ratio(self) -> float | None:
        return self._arm / self._control if self._control > 0 else None

    def ratio_bounds(self, alpha: float) -> tuple[float, float | None] | None:
        ratio = self.ratio()
        if not self.ready or ratio is None:
            return None
        return ratio_bounds(lambda c: abs(self.estimate(c)) <= self.margin(c, alpha), ratio)

    def needed(self, effect: float, alpha: float, z_power: float) -> float | None:
        """Return how many times the requests would show a difference of `effect`; None where none would.

        z_power: normal quantile of the power.
        """
        if not self.ready or effect <= 0:
            return None
        variance = self.variance(1.0)
        first = self._first[0] + self._first[1]

        def shown(times: float) -> bool:
            clock = times * (variance / first if first > 0 else self._requests)
            return math.sqrt(variance / times) * (width(clock, alpha) + z_power) <= effect

        low, high = 1e-6, 1e9
        if not shown(high):
            return None
        for _ in range(80):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if shown(middle) else (middle, high)
        return high


def rate_bounds(arm: Share, control: Share, weighted: Contrast, alpha: float, times: float = 1.0) -> Bounds | None:
    """Return bounds of an arm's rate less `times` the control's: two intervals in one; None where there are too few.

    One takes each side at half the level: exact with however few successes, but a split that is changed on the way or
    a client that sends much would mislead it. The other weighs requests by their split and groups them by key, but is
    normal only with many successes.
    """
    bounds = weighted.bounds(alpha, times)
    if bounds is None:
        return None
    ours, theirs = arm.bounds(alpha / 2), control.bounds(alpha / 2)
    return min(ours[0] - times * theirs[1], bounds[0]), max(ours[1] - times * theirs[0], bounds[1])
