from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_prun.selection.objective import best_sets, objective, runs

pytestmark = pytest.mark.numeric


def random_costs(num_blocks: int, seed: int) -> np.ndarray:
    return np.triu(np.random.default_rng(seed).random((num_blocks + 1, num_blocks + 1)), 1)


def test_runs_are_maximal() -> None:
    assert runs([7, 2, 3, 9, 4]) == [(2, 5), (7, 8), (9, 10)]
    assert runs([]) == []


@given(num_blocks=st.integers(2, 9), data=st.data(), seed=st.integers(0, 10_000))
def test_the_best_sets_are_those_of_the_enumeration(num_blocks: int, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(1, num_blocks))
    count = data.draw(st.integers(1, 6))
    cost = random_costs(num_blocks, seed)
    every = sorted((objective(cost, dropped), dropped) for dropped in combinations(range(num_blocks), k))
    lowest = best_sets(cost, k, count)
    assert [dropped for _, dropped in lowest] == [dropped for _, dropped in every[:count]]
    assert [value for value, _ in lowest] == pytest.approx([value for value, _ in every[:count]])


@pytest.mark.parametrize("k", [0, 6])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=r"k must be in 1\.\.5"):
        best_sets(random_costs(5, 0), k)
