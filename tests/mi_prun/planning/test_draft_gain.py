"""What a draft gains: the formula against a simulation."""

from __future__ import annotations

import itertools

import pytest
import torch

from mi_prun.planning.draft_gain import best_tokens, expected_length, expected_speedup


def by_simulation(acceptance: float, relative_cost: float, tokens: int, passes: int = 100_000) -> float:
    """Tokens over cost, drawing for each drafted token whether it is accepted."""
    drawn = torch.rand(passes, tokens, generator=torch.Generator().manual_seed(1)) < acceptance
    accepted = drawn.long().cumprod(1).sum(1)  # up to the first that is not
    return float((accepted + 1).sum()) / (passes * (tokens * relative_cost + 1))


@pytest.mark.parametrize(("acceptance", "cost", "tokens"), [(0.8, 0.2, 3), (0.5, 0.75, 1), (0.95, 0.5, 8), (0, 0.1, 4)])
def test_the_formula_is_what_a_simulation_gives(acceptance: float, cost: float, tokens: int) -> None:
    assert expected_speedup(acceptance, cost, tokens) == pytest.approx(
        by_simulation(acceptance, cost, tokens), rel=0.01
    )


def test_a_draft_that_is_never_accepted_or_costs_as_much_does_not_pay() -> None:
    for tokens in range(1, 9):
        assert expected_speedup(0.0, 0.5, tokens) < 1
        assert expected_speedup(1.0, 1.0, tokens) == 1


def test_the_best_number_of_tokens() -> None:
    for acceptance, cost in itertools.product((0.1, 0.6, 0.9, 1.0), (0.05, 0.3, 0.9)):
        best = best_tokens(acceptance, cost)
        assert all(
            expected_speedup(acceptance, cost, best) >= expected_speedup(acceptance, cost, n) for n in range(1, 9)
        )
    assert best_tokens(1.0, 0.1) == 8
    assert best_tokens(0.1, 0.9) == 1


def test_a_pass_yields_the_dense_models_own_token_and_those_accepted() -> None:
    assert expected_length(0.0, 3) == 1
    assert expected_length(1.0, 3) == 4
