"""Intervals that must hold at every look: looked at after each value, in simulations of fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from serve.ab.verdict.statistics import TUNED_TIMES, BoundedMean, Share, ratio_bounds, width

ALPHA = 0.05


def test_the_width_is_the_papers_formula() -> None:
    """Theorem 2.2 with rho of appendix B, tuned for t*, in standard errors."""
    rho2 = (-2 * math.log(ALPHA) + math.log(-2 * math.log(ALPHA) + 1)) / TUNED_TIMES
    for t in (0.5, 1.0, 3.0, 100.0):
        margin = math.sqrt(2 * (t * rho2 + 1) / (t**2 * rho2) * math.log(math.sqrt(t * rho2 + 1) / ALPHA))
        assert width(t, ALPHA) == pytest.approx(margin * math.sqrt(t))


def test_the_width_is_least_near_the_time_it_is_tuned_for_and_wider_than_a_single_look() -> None:
    grid = np.geomspace(0.1, 1e4, 400)
    margins = [width(t, ALPHA) for t in grid]
    assert TUNED_TIMES / 3 < grid[int(np.argmin(margins))] < TUNED_TIMES * 3
    assert min(margins) > stats.norm.ppf(1 - ALPHA / 2)


def test_a_brownian_path_leaves_the_sequence_less_often_than_alpha() -> None:
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((1000, 2000))
    times = np.arange(1, 2001)
    means = np.cumsum(steps, axis=1) / times
    margins = np.array([width(t / 100, ALPHA) for t in times]) / np.sqrt(times)
    missed = (np.abs(means[:, 99:]) > margins[99:]).any(axis=1).mean()
    naive = (np.abs(means[:, 99:]) > 1.96 / np.sqrt(times[99:])).any(axis=1).mean()
    assert missed <= ALPHA
    assert naive > 4 * ALPHA  # what is prevented


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5])
def test_a_share_is_missed_less_often_than_alpha_at_all_looks_together(share: float) -> None:
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(100):
        seen = Share()
        for success in rng.random(600) < share:
            seen.add(bool(success))
            if seen.log_wealth(share) >= -math.log(ALPHA):
                missed += 1
                break
    assert missed <= ALPHA * 100


def test_the_bounds_of_a_share_are_where_its_wealth_is_1_over_alpha() -> None:
    seen = Share(7, 400)
    low, high = seen.bounds(ALPHA)
    assert 0 < low < seen.mean < high < 1  # type: ignore[operator]
    for bound in (low, high):
        wealth = special.betaln(7.5, 393.5) - special.betaln(0.5, 0.5) - 7 * math.log(bound) - 393 * math.log1p(-bound)
        assert wealth == pytest.approx(-math.log(ALPHA), rel=1e-6)
    assert seen.bounds(0.01)[0] < low
    assert seen.bounds(0.01)[1] > high


def test_a_share_of_nothing_and_of_none() -> None:
    assert Share().bounds(ALPHA) == (0.0, 1.0)
    assert Share().mean is None
    low, high = Share(0, 1000).bounds(ALPHA)
    assert low == 0.0
    assert 0 < high < 0.01
    low, high = Share(1000, 1000).bounds(ALPHA)
    assert high == 1.0
    assert 0.99 < low < 1


@pytest.mark.parametrize("beta", [(7.0, 3.0), (0.2, 0.1), (50.0, 1.0)])
def test_a_bounded_mean_is_missed_less_often_than_alpha_at_all_looks_together(beta: tuple[float, float]) -> None:
    rng = np.random.default_rng(2)
    true = beta[0] / sum(beta)
    missed = 0
    for _ in range(100):
        mean = BoundedMean(ALPHA)
        for value in rng.beta(*beta, 300):
            mean.add(value)
            low, high = mean.bounds()
            if not low <= true <= high:
                missed += 1
                break
    assert missed <= ALPHA * 100


def test_a_bounded_mean_closes_in() -> None:
    rng = np.random.default_rng(3)
    mean = BoundedMean(ALPHA)
    widths = []
    for count, value in enumerate(rng.beta(7, 3, 4000), start=1):
        mean.add(value)
        if count in (50, 400, 4000):
            widths.append(mean.bounds()[1] - mean.bounds()[0])
    assert widths[0] > 2 * widths[1] > 4 * widths[2]
    assert widths[2] < 0.03


def test_a_bounded_mean_refuses_what_is_not_in_0_to_1_and_another_level() -> None:
    mean = BoundedMean(ALPHA)
    with pytest.raises(ValueError, match=r"1\.5 is not in"):
        mean.add(1.5)
    mean.add(0.25)
    again = BoundedMean.restored(mean.state(), ALPHA)
    assert again.bounds() == mean.bounds()
    with pytest.raises(ValueError, match="made for alpha"):
        BoundedMean.restored(mean.state(), 0.01)


def test_ratio_bounds_are_found_on_both_sides() -> None:
    low, high = ratio_bounds(lambda c: 0.5 <= c <= 3.0, 1.0)
    assert low == pytest.approx(0.5)
    assert high == pytest.approx(3.0)
    assert ratio_bounds(lambda c: c >= 0.5, 1.0) == (pytest.approx(0.5), None)
    assert ratio_bounds(lambda c: c <= 2.0, 1.0)[0] == 0.0
