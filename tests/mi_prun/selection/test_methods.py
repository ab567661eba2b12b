from __future__ import annotations

import pytest

from mi_prun.selection.methods import METHODS, MOST_CANDIDATES


@pytest.mark.parametrize("num_blocks", [5, 12, 24, 32, 80])
def test_the_default_compares_more_sets_where_more_blocks_go(num_blocks: int) -> None:
    hybrid = METHODS["hybrid"]
    counts = [hybrid.candidates(num_blocks, k) for k in range(1, num_blocks)]
    assert counts == sorted(counts)
    assert counts[0] == hybrid.rerank
    assert counts[-1] <= MOST_CANDIDATES


def test_a_quarter_of_twelve_or_twenty_four_blocks_takes_the_least_and_a_half_eight_times_as_many() -> None:
    hybrid = METHODS["hybrid"]
    for num_blocks in (12, 24):
        assert hybrid.candidates(num_blocks, num_blocks // 4) == hybrid.rerank
        assert hybrid.candidates(num_blocks, num_blocks // 2) == 8 * hybrid.rerank


def test_the_others_compare_as_many_at_each_number_of_blocks() -> None:
    for name, method in METHODS.items():
        if name != "hybrid":
            assert {method.candidates(24, k) for k in range(1, 24)} == {method.rerank}
