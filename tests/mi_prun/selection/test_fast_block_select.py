from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_prun.selection.fast_block_select import fast_block_select
from mi_prun.selection.objective import best_sets, objective


def random_costs(num_blocks: int, seed: int) -> np.ndarray:
    return np.triu(np.random.default_rng(seed).random((num_blocks + 1, num_blocks + 1)), 1)


@given(num_blocks=st.integers(2, 30), share=st.floats(0.01, 0.99), seed=st.integers(0, 10_000), top=st.integers(1, 8))
def test_every_step_lowers_the_objective_and_it_ends_above_the_optimum(
    num_blocks: int, share: float, seed: int, top: int
) -> None:
    cost = random_costs(num_blocks, seed)
    k = max(1, min(num_blocks - 1, round(share * num_blocks)))
    search = fast_block_select(cost, k, shortlist=top)
    steps = np.diff(search.objectives)
    assert (steps < 0).all()
    assert len(search.dropped) == len(set(search.dropped)) == k
    assert abs(objective(cost, search.dropped) - search.objectives[-1]) < 1e-9
    assert search.objectives[-1] >= best_sets(cost, k)[0][0] - 1e-9


def test_a_run_moves_to_where_its_measured_cost_is_least() -> None:
    """The sum of single importances prefers (0, 1); the measured segment prefers (3, 4)."""
    cost = np.full((7, 7), 9.0)
    for block, single in enumerate([0.1, 0.2, 5.0, 0.3, 0.3, 5.0]):
        cost[block, block + 1] = single
    cost[0, 2], cost[3, 5] = 4.0, 1.0
    assert fast_block_select(cost, 2).dropped == (3, 4)
    assert fast_block_select(cost, 2, shortlist=1).dropped == (0, 1)


def eighty_blocks(kind: str, seed: int) -> np.ndarray:
    """random: of each segment. growing: with each block on either side, as a segment's cost does. sums: of its blocks,
    less for long ones, so that runs are worth while. ties: of a few values."""
    cost = random_costs(80, seed)
    if kind == "growing":
        cost = np.triu(np.cumsum(np.cumsum(cost[::-1], 0)[::-1], 1), 1)
    elif kind == "sums":
        ends = np.concatenate([[0.0], np.cumsum(np.random.default_rng(seed).random(80))])
        cost = np.triu(ends[None, :] - ends[:, None], 1) ** 0.8
    elif kind == "ties":
        cost = np.ceil(3 * cost)
    return cost


@pytest.mark.parametrize("kind", ["random", "growing", "sums", "ties"])
def test_a_model_of_eighty_blocks_is_chosen_for_at_every_k(kind: str) -> None:
    for seed in (0, 1):
        cost = eighty_blocks(kind, seed)
        for k in range(1, 80):
            search = fast_block_select(cost, k)
            ((least, best),) = best_sets(cost, k)
            assert len(set(search.dropped)) == len(set(best)) == k
            assert {*search.dropped, *best} <= set(range(80))
            assert (np.diff(search.objectives) < 0).all()
            assert objective(cost, best) == pytest.approx(least)
            assert search.objectives[-1] >= least - 1e-9


def test_where_nothing_disjoint_is_left_the_start_is_the_answer() -> None:
    """Two runs and one block between them: neither has a place to go that does not touch the other."""
    cost = random_costs(5, 3)
    single = np.array([0.0, 0.1, 9.0, 0.2, 0.3])
    search = fast_block_select(cost, 4, importance=single)
    assert search.dropped == (0, 1, 3, 4)
    assert len(search.objectives) == 1
