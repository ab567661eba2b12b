"""The most blocks within a limit: what a look at every number of blocks says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from mi_prun.analysis import Analysis
from mi_prun.block_model import BlockModel
from mi_prun.errors import UserError
from mi_prun.limit import Limit, cost_of, most_blocks, parse_limit
from mi_prun.planning import plan_for
from mi_prun.ratio import Amount
from mi_prun.selection.context import Context
from mi_prun.selection.methods import choose
from mi_prun.settings import PlanSettings


@pytest.fixture(scope="module")
def context(reference_analysis: Analysis, reference: Path, load: Callable[[Path], BlockModel]) -> Context:
    model = load(reference)
    return Context(reference_analysis, lambda: model)


@pytest.mark.parametrize("kind", ["perplexity", "kl"])
def test_the_largest_k_within_the_limit_is_found(context: Context, kind: str) -> None:
    every = {
        k: cost_of(context, Limit(kind, 1.0), choose(context, "tail", k, 0).dropped)  # type: ignore[arg-type]
        for k in range(1, 12)
    }
    for k in (1, 3, 6):
        limit = Limit(kind, every[k] * 1.0001)  # type: ignore[arg-type]
        within = most_blocks(context.fresh(), limit, "tail", 0)
        found = len(within.choice.dropped)
        assert within.cost == pytest.approx(every[found])
        assert within.cost <= limit.value
        assert within.next_cost == pytest.approx(every[found + 1])
        assert within.next_cost > limit.value
        assert within.forward_passes > 0


def test_everything_but_one_block_may_go_where_the_limit_is_wide(context: Context) -> None:
    within = most_blocks(context.fresh(), Limit("kl", 1e9), "tail", 0)
    assert len(within.choice.dropped) == 11
    assert within.next_cost is None


def test_a_limit_that_one_block_passes_is_refused(context: Context) -> None:
    with pytest.raises(UserError, match=r"already one block costs KL .* over the limit of KL 0\.0000 nats/token"):
        most_blocks(context.fresh(), Limit("kl", 1e-9), "bi", 0)


def test_a_plan_says_the_limit_and_what_one_block_more_would_cost(context: Context) -> None:
    plan = plan_for(context.fresh(), Amount(max_ppl_increase="30%"), PlanSettings(method="bi", rerank=0, quality=False))
    assert plan.settings["limit"] == "perplexity +30.0% at most, on the ranking text"
    assert str(plan.settings["cost"]).startswith("perplexity ")
    assert str(plan.settings["cost_of_one_block_more"]).startswith("perplexity ")


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.1", 0.1), (" 2.5 % ", 0.025)])
def test_percent_or_share(text: str, value: float) -> None:
    limit = parse_limit(text, None)
    assert limit is not None
    assert math.isclose(limit.value, value)


@pytest.mark.parametrize(
    ("ppl", "kl", "said"),
    [
        ("much", None, "must be like 10% or 0.1, got 'much'"),
        ("-3%", None, "must be over 0, got -3%"),
        ("nan", None, "must be over 0, got nan"),
        (None, 0.0, "--max-kl must be over 0"),
        (None, math.inf, "--max-kl must be over 0"),
    ],
)
def test_limits_that_are_none_are_refused(ppl: str | None, kl: float | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_limit(ppl, kl)
