"""Low states of the quadratic: enumerated exactly, and annealed to the same lowest one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mi_prun.selection import quadratic

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_lowest_states_are_those_of_all_sets(k: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    linear, pair = rng.normal(size=10), rng.normal(size=(10, 10))

    def energy(dropped: tuple[int, ...]) -> float:
        return float(
            sum(linear[i] for i in dropped) + sum((pair[i, j] + pair[j, i]) / 2 for i, j in combinations(dropped, 2))
        )

    wanted = sorted((energy(dropped), dropped) for dropped in combinations(range(10), k))[:4]
    lowest = quadratic.low_states(linear, pair, k, 4)
    assert [dropped for _, dropped in lowest] == [dropped for _, dropped in wanted]
    assert [value for value, _ in lowest] == pytest.approx([value for value, _ in wanted])

    monkeypatch.setattr(quadratic, "ENUMERABLE", 0)
    annealed = quadratic.low_states(linear, pair, k, 4, seed=seed)
    assert annealed[0][1] == wanted[0][1]
    assert [value for value, _ in annealed] == pytest.approx([energy(dropped) for _, dropped in annealed])
    assert annealed == sorted(annealed)
    assert len({dropped for _, dropped in annealed}) == 4


def test_what_is_not_a_number_ends_the_search_all_the_same() -> None:
    pair = np.zeros((32, 32))
    pair[3] = np.nan
    assert len(quadratic.low_states(np.ones(32), pair, 8, 4)) == 4


def test_a_model_of_eighty_blocks_is_annealed_below_what_swaps_from_the_cheapest_blocks_reach() -> None:
    rng = np.random.default_rng(5)
    factor = rng.normal(size=(80, 12))
    linear, pair = rng.random(80), factor @ factor.T / 12
    np.fill_diagonal(pair, 0.0)
    states = quadratic.low_states(linear, pair, 20, 8)
    start = np.zeros(80, dtype=bool)
    start[np.argsort(linear)[:20]] = True
    descended = min(value for _, value in quadratic._descend(linear, pair, 20, start))
    assert states[0][0] <= descended + 1e-9
    assert all(len(set(dropped)) == 20 for _, dropped in states)
    assert quadratic.low_states(linear, pair, 20, 8) == states  # the seed decides
