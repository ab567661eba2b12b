"""The surrogate stays a quadratic, agrees with what was measured, and carries it to sets that share blocks."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from mi_prun.quality.evaluator import Dropped, Loss
from mi_prun.selection.logit_gram import LogitGram
from mi_prun.selection.quadratic import energy, low_states
from mi_prun.selection.surrogate import corrected, neighbours

pytestmark = pytest.mark.numeric


def gram_of(num_blocks: int, seed: int = 0) -> LogitGram:
    """A Gram of random changes; each single removal costs half its diagonal, as it does to second order."""
    changes = np.random.default_rng(seed).normal(size=(num_blocks, 3 * num_blocks)) / num_blocks
    gram = changes @ changes.T
    singles = tuple(Loss(half, half) for half in np.diag(gram) / 2)
    return LogitGram(gram, singles, Loss(0.0, 0.0))


def predicted(
    gram: LogitGram, measured: list[Dropped], values: NDArray[np.float64], sets: list[Dropped]
) -> list[float]:
    linear, pair = corrected(gram, measured, values)
    return [energy(linear, pair - np.diag(np.diag(pair)), dropped) for dropped in sets]


def test_it_learns_a_pair_that_the_quadratic_does_not_know() -> None:
    """Sets that hold blocks 0 and 1 cost more: others with both are then predicted to."""
    gram = gram_of(8)
    sets = list(combinations(range(8), 3))
    values = gram.predict(sets, "kl") + np.array([1.0 if {0, 1} <= set(dropped) else 0.0 for dropped in sets])
    guess = predicted(gram, sets[::2], values[::2], sets[1::2])
    more = np.array(guess) - gram.predict(sets[1::2], "kl")
    with_pair = [value for value, dropped in zip(more, sets[1::2], strict=True) if {0, 1} <= set(dropped)]
    without = [value for value, dropped in zip(more, sets[1::2], strict=True) if not {0, 1} & set(dropped)]
    assert min(with_pair) > max(without) + 0.5


def test_a_quadratic_of_other_pairs_is_found_from_neighbours_of_one_set() -> None:
    """What is measured is another quadratic than the Gram's: its lowest set is found from far fewer sets than
    there are, of other sizes than it has.
    """
    gram, other = gram_of(10), gram_of(10, seed=1)
    start = low_states(gram.linear("kl"), gram.gram, 4, 1)[0][1]
    best = low_states(other.linear("kl"), other.gram, 4, 1)[0][1]
    assert start != best
    measured = [start]
    for _ in range(6):
        measured = list(dict.fromkeys([*measured, *neighbours(measured[-1], 10)]))
        linear, pair = corrected(gram, measured, 5.0 + other.predict(measured, "kl"))
        measured.append(next(d for _, d in low_states(linear, pair, 4, 210) if d not in measured))
        if best in measured:
            break
    assert best in measured
    assert len(measured) < 80


def test_what_agrees_with_the_quadratic_changes_nothing() -> None:
    gram = gram_of(6)
    sets = list(combinations(range(6), 2))
    linear, pair = corrected(gram, sets[:4], 0.3 + gram.predict(sets[:4], "kl"))
    assert linear == pytest.approx(gram.linear("kl"))
    assert pair == pytest.approx(gram.gram)


def test_neighbours_drop_one_block_more_or_less() -> None:
    assert neighbours((1, 4), 5) == [(0, 1, 4), (4,), (1, 2, 4), (1, 3, 4), (1,)]
    assert neighbours((2,), 3) == [(0, 2), (1, 2)]  # the dense model is no set to measure
    assert neighbours((0, 1), 3) == [(1,), (0,)]  # and a model of no block is none
