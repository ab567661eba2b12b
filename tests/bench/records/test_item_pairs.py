"""Paired differences: against closed forms, scipy, and what must hold of any answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from bench.records.item_pairs import mcnemar, mean_difference, paired_difference

ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)


def test_a_difference_by_hand() -> None:
    """10 items: both right 4, only the first 3, only the second 1, neither 2."""
    first = [True] * 4 + [True] * 3 + [False] * 1 + [False] * 2
    second = [True] * 4 + [False] * 3 + [True] * 1 + [False] * 2
    difference = paired_difference(first, second)
    assert (difference.mean, difference.gained, difference.lost, difference.items) == (-0.2, 1, 3, 10)
    # Bonett and Price: (1 + 1) / 12 - (3 + 1) / 12, and the Wald interval of those shares.
    half = 1.959964 * math.sqrt((2 / 12 + 4 / 12 - (2 / 12) ** 2) / 12)
    assert (difference.low, difference.high) == pytest.approx((-2 / 12 - half, -2 / 12 + half), abs=1e-6)
    assert not difference.beyond_noise
    assert difference.p_value == pytest.approx(0.625)
    assert difference.points() == f"-20.0 [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


@given(ANSWERS)
def test_what_holds_of_any_answers(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    difference, back = paired_difference(first, second), paired_difference(second, first)
    assert difference.mean == pytest.approx((sum(second) - sum(first)) / len(pairs))
    assert -1 <= difference.low < difference.high <= 1
    assert (back.low, back.high) == pytest.approx((-difference.high, -difference.low))
    assert 0 < difference.p_value <= 1


def test_the_same_answers_differ_by_nothing_and_still_have_an_interval() -> None:
    difference = paired_difference([True, False] * 50, [True, False] * 50)
    assert difference.mean == 0
    assert difference.low < 0 < difference.high
    assert difference.p_value == 1


def test_more_items_narrow_the_interval() -> None:
    def width(times: int) -> float:
        difference = paired_difference([True, False, True, True] * times, [True, True, False, True] * times)
        return difference.high - difference.low

    assert width(400) == pytest.approx(width(100) / 2, rel=0.05)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 9), (40, 60), (480, 560), (700, 600)])
def test_mcnemar_is_a_fair_coin(gained: int, lost: int) -> None:
    if not gained + lost:
        assert mcnemar(gained, lost) == 1
        return
    exact = float(binomtest(gained, gained + lost, 0.5).pvalue)
    assert mcnemar(gained, lost) == pytest.approx(exact, rel=0.02)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_sum_over_a_tail(gained: int, lost: int) -> None:
    tosses, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(tosses, k) for k in range(fewer + 1))
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail / 2**tosses), rel=1e-9)


def test_answers_of_different_length_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="2 and 1 answers are no pairs"):
        paired_difference([True, False], [True])
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([], [])


def test_the_mean_over_tasks_is_narrower_than_each() -> None:
    one = paired_difference([True, False, True, True] * 25, [True, False, False, True] * 25)
    mean, low, high = mean_difference([one] * 4)
    assert mean == one.mean
    assert high - low == pytest.approx((one.high - one.low) / 2)
