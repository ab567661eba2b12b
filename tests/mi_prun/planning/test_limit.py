"""The most blocks within a limit: what a look at every number of blocks says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mi_prun import summary
from mi_prun.analysis.analysis import Analysis
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.plan.ratio import Amount
from mi_prun.planning.limit import Limit, cost_of, most_blocks, parse_limit
from mi_prun.planning.planning import plan_for
from mi_prun.quality.evaluator import NotFiniteError
from mi_prun.selection.baselines import TooManySetsError
from mi_prun.selection.context import Context
from mi_prun.selection.methods import choose
from mi_prun.settings import PlanSettings


@pytest.fixture(scope="module")
def context(reference_analysis: Analysis, reference: Path, load: Callable[[Path], BlockModel]) -> Context:
    model, few = load(reference), replace(reference_analysis, ranking=reference_analysis.ranking[:8])
    return Context(few, lambda: model)


@pytest.mark.parametrize("kind", ["perplexity", "kl"])
def test_the_largest_k_within_the_limit_is_found(context: Context, kind: str) -> None:
    every = {
        k: cost_of(context, Limit(kind, 1.0), choose(context, "tail", k, 0).dropped)  # type: ignore[arg-type]
        for k in range(1, 12)
    }
    assert list(every.values()) == sorted(every.values())  # so that there is a largest one
    for k in (1, 3, 6):
        limit = Limit(kind, every[k] * 1.0001)  # type: ignore[arg-type]
        within = most_blocks(context.fresh(), limit, "tail", 0)
        found = len(within.choice.dropped)
        assert within.cost == pytest.approx(every[found])
        assert within.cost <= limit.value
        assert found == k
        assert within.next_cost == pytest.approx(every[found + 1])
        assert within.next_cost > limit.value
        assert within.forward_passes > 0


def found_by(costs: list[float], monkeypatch: pytest.MonkeyPatch) -> tuple[int, float | None]:
    """k and the next cost, of a method whose choice of k blocks costs costs[k - 1], under a limit of 1."""
    context: Any = SimpleNamespace(num_blocks=len(costs) + 1, passes=0.0)
    monkeypatch.setattr("mi_prun.planning.limit.choose", lambda c, m, k, n: SimpleNamespace(dropped=tuple(range(k))))
    monkeypatch.setattr("mi_prun.planning.limit.cost_of", lambda c, limit, dropped: costs[len(dropped) - 1])
    within = most_blocks(context, Limit("kl", 1.0), "stub", None)
    assert within.cost == costs[len(within.choice.dropped) - 1] <= 1.0
    return len(within.choice.dropped), within.next_cost


@pytest.mark.parametrize("count", [1, 2, 5, 11, 31])
def test_where_the_cost_grows_with_k_it_is_the_largest_that_holds(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for largest in range(1, count + 1):
        costs = [0.5 + 0.01 * k if k <= largest else 1.5 + k for k in range(1, count + 1)]
        wanted = costs[largest] if largest < count else None
        assert found_by(costs, monkeypatch) == (largest, wanted)


@pytest.mark.parametrize(
    ("costs", "k"),
    [
        ([0.1, 0.2, 1.2, 0.9, 1.5, 1.6, 1.7], 4),  # one that costs more, below one that costs less
        ([0.1, 1.2, 0.9, 1.5, 1.6], 1),  # 3 holds as well, behind 2 that does not
        ([0.1, 0.9, 0.3, 0.2, 1.1, 0.8, 1.2], 4),
    ],
)
def test_where_it_does_not_the_next_one_is_measured_not_to_hold(
    costs: list[float], k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, next_cost = found_by(costs, monkeypatch)
    assert found == k
    assert next_cost == costs[k] > 1.0


@pytest.mark.parametrize("largest", [1, 2, 3])
def test_what_cannot_be_measured_is_no_answer_only_where_it_is_the_next(
    largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 blocks of 11 are too many sets: the search looks there before it knows of 3."""

    def choose(context: Any, method: str, k: int, rerank: int | None) -> SimpleNamespace:
        if k >= 4:
            raise TooManySetsError(f"exhaustive: too many sets of {k}")
        return SimpleNamespace(dropped=tuple(range(k)))

    context: Any = SimpleNamespace(num_blocks=11, passes=0.0)
    monkeypatch.setattr("mi_prun.planning.limit.choose", choose)
    monkeypatch.setattr("mi_prun.planning.limit.cost_of", lambda c, limit, drop: 0.5 if len(drop) <= largest else 2.0)
    if largest < 3:
        assert len(most_blocks(context, Limit("kl", 1.0), "exhaustive", None).choice.dropped) == largest
    else:
        said = r"dropping 3 costs KL 0\.5 nats/token, within the limit; of 4 exhaustive: too many sets of 4"
        with pytest.raises(UserError, match=said):
            most_blocks(context, Limit("kl", 1.0), "exhaustive", None)


def test_more_blocks_that_break_the_model_are_over_any_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(context: Any, limit: Limit, dropped: tuple[int, ...]) -> float:
        if len(dropped) > 2:
            raise NotFiniteError("the model gives logits that are not finite")
        return 0.5

    context: Any = SimpleNamespace(num_blocks=11, passes=0.0)
    monkeypatch.setattr("mi_prun.planning.limit.choose", lambda c, m, k, n: SimpleNamespace(dropped=tuple(range(k))))
    monkeypatch.setattr("mi_prun.planning.limit.cost_of", cost)
    within = most_blocks(context, Limit("kl", 1.0), "stub", None)
    assert (within.choice.dropped, within.next_cost) == ((0, 1), math.inf)
    assert Limit("kl", 1.0).text(within.next_cost) == "a broken model"


def test_the_cost_is_that_of_the_text_as_it_is(context: Context) -> None:
    dense, pruned = context.ranking.measure([(), (3, 7)])
    increase = math.exp(pruned.ce_nats) / math.exp(dense.ce_nats) - 1
    assert cost_of(context, Limit("perplexity", 1.0), (3, 7)) == pytest.approx(increase)
    assert cost_of(context, Limit("kl", 1.0), (3, 7)) == pruned.kl_nats


def test_everything_but_one_block_may_go_where_the_limit_is_wide(context: Context) -> None:
    within = most_blocks(context.fresh(), Limit("kl", 1e9), "tail", 0)
    assert len(within.choice.dropped) == 11
    assert within.next_cost is None


def test_a_limit_that_one_block_passes_is_refused(context: Context) -> None:
    with pytest.raises(UserError, match=r"already one block costs KL .* over the limit of KL 1e-09 nats/token"):
        most_blocks(context.fresh(), Limit("kl", 1e-9), "bi", 0)


def test_a_plan_says_the_limit_and_what_one_block_more_would_cost(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_for(context.fresh(), Amount(max_ppl_increase="30%"), PlanSettings(method="bi", rerank=0, quality=False))
    assert plan.settings["limit"] == "perplexity +30.0% at most, on the ranking text"
    assert str(plan.settings["cost"]).startswith("perplexity ")
    assert str(plan.settings["cost_of_one_block_more"]).startswith("perplexity ")
    summary.plan(plan, None)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("limit: "))
    assert line == (
        f"limit: perplexity +30.0% at most, on the ranking text: {len(plan.dropped)} blocks cost "
        f"{plan.settings['cost']}; one more would cost {plan.settings['cost_of_one_block_more']}, over it"
    )
    summary.plan(plan.model_copy(update={"settings": plan.settings | {"cost_of_one_block_more": None}}), None)
    assert f"cost {plan.settings['cost']}; no more can go\n" in capsys.readouterr().out
    one = {"dropped": plan.dropped[:1]}
    summary.plan(plan.model_copy(update=one), None)
    assert f": 1 block costs {plan.settings['cost']}; one more" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.1", 0.1), (" 2.5 % ", 0.025), ("150%", 1.5)])
def test_percent_or_share(text: str, value: float) -> None:
    limit = parse_limit(text, None)
    assert limit is not None
    assert math.isclose(limit.value, value)


@pytest.mark.parametrize(
    ("ppl", "kl", "said"),
    [
        ("much", None, "must be like 10% or 0.1, got 'much'"),
        ("-3%", None, "must be over 0 and finite, got -3%"),
        ("nan", None, "must be over 0 and finite, got nan"),
        ("inf", None, "must be over 0 and finite, got inf"),
        ("10", None, "--max-ppl-increase 10 is 1000%; write 10% or 0.1"),
        ("1", None, "--max-ppl-increase 1 is 100%; write 1% or 0.01"),
        (None, 0.0, "--max-kl must be over 0"),
        (None, math.inf, "--max-kl must be over 0 and finite, in nats per token, got inf"),
    ],
)
def test_limits_that_are_none_are_refused(ppl: str | None, kl: float | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_limit(ppl, kl)
