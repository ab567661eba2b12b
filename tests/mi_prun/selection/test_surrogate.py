"""The surrogate agrees with what was measured, and carries it to sets that share blocks."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from mi_prun.selection.surrogate import promise, swaps


def test_it_learns_a_pair_that_the_quadratic_does_not_know() -> None:
    """Residuals of sets that hold blocks 0 and 1 are high: other sets with both are then promised less."""
    sets = list(combinations(range(8), 3))
    residuals = np.array([1.0 if {0, 1} <= set(dropped) else 0.0 for dropped in sets])
    known = sets[::2]
    asked = sets[1::2]
    guess = promise(known, residuals[::2], asked, np.zeros(len(asked)), 8)
    with_pair = [value for value, dropped in zip(guess, asked, strict=True) if {0, 1} <= set(dropped)]
    without = [value for value, dropped in zip(guess, asked, strict=True) if not {0, 1} & set(dropped)]
    assert min(with_pair) > max(without)


def test_a_measured_set_is_promised_what_was_measured() -> None:
    sets = list(combinations(range(6), 2))
    residuals = np.random.default_rng(0).normal(size=len(sets))
    predicted = np.linspace(0, 1, len(sets))
    guess = promise(sets, residuals, sets, predicted, 6)
    assert np.abs(guess - (predicted + residuals)).max() < 0.5
    assert np.corrcoef(guess, predicted + residuals)[0, 1] > 0.95


def test_equal_residuals_leave_the_order_as_it_is() -> None:
    sets = list(combinations(range(6), 2))
    guess = promise(sets[:4], np.full(4, 0.3), sets, np.arange(len(sets), dtype=float), 6)
    assert (np.diff(guess) > 0).all()


def test_swaps_are_all_sets_one_block_away() -> None:
    found = swaps((1, 4), 5)
    assert sorted(found) == [(0, 1), (0, 4), (1, 2), (1, 3), (2, 4), (3, 4)]
