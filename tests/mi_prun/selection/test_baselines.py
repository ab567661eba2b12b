"""Every method gives k blocks, each by its own rule; the measured ones do what a plain loop over the sets would do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from mi_prun.analysis import Analysis
from mi_prun.block_model import BlockModel
from mi_prun.errors import UserError
from mi_prun.planning import make_context, make_plan, plan_by_hand
from mi_prun.selection import baselines
from mi_prun.selection.context import Context
from mi_prun.selection.methods import METHODS, candidates, choose, method_named
from mi_prun.settings import PlanSettings


@pytest.fixture(scope="module")
def context(reference_analysis: Analysis, reference: Path, load: Callable[[Path], BlockModel]) -> Context:
    return Context(reference_analysis, lambda: load(reference))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_as_many_blocks_as_asked(context: Context, name: str) -> None:
    for k in (1, 2):
        choice = choose(context, name, k, 4)
        assert len(set(choice.selection.dropped)) == k
        assert list(choice.selection.dropped) == sorted(choice.selection.dropped)
        assert set(choice.selection.dropped) <= set(range(12))
        assert choice.objective.gap_nats >= 0


def test_the_cheap_ones_follow_their_scores(context: Context) -> None:
    analysis = context.analysis
    assert baselines.tail(context, 3).dropped == (9, 10, 11)
    assert baselines.tail_but_last(context, 3).dropped == (8, 9, 10)
    closest = np.argsort(-analysis.block_cosine, kind="stable")[:3]
    assert baselines.bi(context, 3).dropped == tuple(sorted(closest.tolist()))
    start = baselines.angular(context, 3).dropped[0]
    assert baselines.angular(context, 3).dropped == (start, start + 1, start + 2)
    assert analysis.pair_angle[start, start + 3] == min(analysis.pair_angle[i, i + 3] for i in range(10))
    drawn = [baselines.random(Context(analysis, context.open_model, seed), 3).dropped for seed in range(8)]
    assert drawn[0] == baselines.random(context, 3).dropped
    assert len(set(drawn)) > 1


def test_greedy_and_exhaustive_take_the_least_loss(context: Context) -> None:
    evaluator = context.ranking
    pairs = list(combinations(range(12), 2))
    losses = dict(zip(pairs, evaluator.measure(pairs), strict=True))
    assert baselines.exhaustive(context, 2).dropped == min(pairs, key=lambda pair: losses[pair].ce_nats)
    first = min(range(12), key=lambda block: evaluator.measure([(block,)])[0].ce_nats)
    with_first = [pair for pair in pairs if first in pair]
    assert baselines.greedy_loss(context, 2).dropped == min(with_first, key=lambda pair: losses[pair].ce_nats)


def test_too_many_sets_are_refused(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "EXHAUSTIVE_LIMIT", 65)
    with pytest.raises(UserError, match="66 sets of 2 of 12 blocks, more than 65"):
        baselines.exhaustive(context, 2)


def test_re_ranking_takes_the_candidate_of_least_kl(context: Context) -> None:
    sets = candidates(context, 3, 8)
    assert len(sets) == len(set(sets)) <= 8
    losses = context.ranking.measure(sets)
    chosen = choose(context, "mi-prun", 3, 8).selection.dropped
    assert chosen == min(zip(losses, sets, strict=True), key=lambda pair: pair[0].kl_nats)[1]


def test_a_plan_says_what_was_chosen_and_what_it_costs(reference_analysis: Analysis, reference: Path) -> None:
    settings = PlanSettings(rerank=4, model=str(reference))
    made = make_plan(make_context(reference_analysis, settings), 3, settings)
    assert (len(made.dropped), len(made.kept)) == (3, 9)
    assert made.forward_passes > 1
    assert made.quality is not None
    assert made.quality.kl_nats_per_token > 0
    assert made.quality.text.endswith("held-out part")

    settings = PlanSettings(rerank=0, quality=False)
    context = make_context(reference_analysis, settings)
    paper = make_plan(context, 3, settings)
    assert (paper.forward_passes, paper.quality) == (0, None)
    assert "model" not in context.__dict__  # the dense model was not opened
    assert plan_by_hand(context, (0, 5), settings).dropped == (0, 5)


def test_an_analysis_of_another_model_is_refused(reference_analysis: Analysis, reference: Path) -> None:
    other = reference_analysis.record.model_copy(
        update={"dense": reference_analysis.record.dense.model_copy(update={"weights_sha256": "0" * 64})}
    )
    changed = Analysis(other, **{k: v for k, v in vars(reference_analysis).items() if k != "record"})
    settings = PlanSettings(model=str(reference))
    with pytest.raises(UserError, match="is another model"):
        make_plan(make_context(changed, settings), 3, settings)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UserError, match="--method must be one of mi-prun"):
        method_named("magic")
