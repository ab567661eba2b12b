from __future__ import annotations

import pytest

from mi_prun.errors import UserError
from mi_prun.selection.methods import METHODS, MOST_CANDIDATES, check_possible, check_rerank


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


ALTERNATING = {"model_type": "gpt_oss", "num_hidden_layers": 24}


@pytest.mark.parametrize(
    ("method", "wanted"),
    [("tail-but-last", 3), ("hybrid", 2), ("hybrid", None), ("hybrid", (5,)), ("tail", (5, 7)), ("tail", (5, 6, 7))],
)
def test_what_could_not_be_written_is_refused_before_anything_is_measured(
    method: str, wanted: int | tuple[int, ...] | None
) -> None:
    with pytest.raises(UserError, match="vLLM takes the kind from the parity"):
        check_possible(ALTERNATING, method, wanted)


@pytest.mark.parametrize(
    ("method", "wanted"),
    [("tail", 3), ("tail-but-last", 2), ("angular", 4), ("angular", None), ("hybrid", (5, 6)), ("hybrid", (5, 6, 23))],
)
def test_what_can_be_written_is_not(method: str, wanted: int | tuple[int, ...] | None) -> None:
    check_possible(ALTERNATING, method, wanted)


def test_more_sets_than_any_memory_holds_are_not_asked_for() -> None:
    check_rerank(10_000)
    with pytest.raises(UserError, match=r"--rerank must be in 0\.\.10000, got 1000000"):
        check_rerank(1_000_000)
