"""Every method gives k blocks, each by its own rule; the measured ones do what a plain loop over the sets would do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from mi_prun.analysis.analysis import Analysis
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.planning.planning import make_context, make_plan, plan_by_hand
from mi_prun.quality.evaluator import Dropped
from mi_prun.selection import baselines
from mi_prun.selection.context import Context
from mi_prun.selection.methods import METHODS, Propose, choose, method_named
from mi_prun.selection.objective import objective
from mi_prun.selection.race import race, ranking_losses
from mi_prun.settings import PlanSettings

MEASURED = {"hybrid", "logit-gram", "cbo", "cbo-fisher", "segment-loss", "greedy-loss", "exhaustive"}


@pytest.fixture(scope="module")
def context(reference_analysis: Analysis, reference: Path, load: Callable[[Path], BlockModel]) -> Context:
    model, few = load(reference), replace(reference_analysis, ranking=reference_analysis.ranking[:8])
    return Context(few, lambda: model)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_as_many_blocks_as_asked(context: Context, name: str) -> None:
    for k in (1, 2):
        choice = choose(context.fresh(), name, k, 4)
        assert len(set(choice.dropped)) == k
        assert list(choice.dropped) == sorted(choice.dropped)
        assert set(choice.dropped) <= set(range(12))
        assert choice.objective.gap_nats >= 0
        fbs = METHODS["mi-prun"].propose(context, k, 1)[0]
        assert choice.objective.fbs_nats == objective(context.analysis.segment_cost_nats, fbs)
        assert choice.objective.fbs_nats >= choice.objective.optimum_nats
        assert choice.candidates <= 4
        assert (choice.forward_passes > 0) == (choice.candidates > 1 or name in MEASURED)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_sets_once_and_the_best_first(context: Context, name: str) -> None:
    """The first is what it would take alone; none is named twice; no more than asked for."""
    sets = METHODS[name].propose(context.fresh(), 2, 6)
    assert 1 <= len(sets) == len(set(sets)) <= 6
    assert {len(dropped) for dropped in sets} == {2}
    if name != "hybrid":  # whose order is that of its own measurements
        assert METHODS[name].propose(context.fresh(), 2, 1) == sets[:1]


def test_the_cheap_ones_follow_their_scores(context: Context) -> None:
    analysis = context.analysis

    def first(propose: Propose, k: int, seed: int = 0) -> Dropped:
        return propose(Context(analysis, context.open_model, seed), k, 1)[0]

    assert first(baselines.tail, 3) == (9, 10, 11)
    assert first(baselines.tail_but_last, 3) == (8, 9, 10)
    closest = np.argsort(-analysis.block_cosine, kind="stable")[:3]
    assert first(baselines.bi, 3) == tuple(sorted(closest.tolist()))
    start = first(baselines.angular, 3)[0]
    assert first(baselines.angular, 3) == (start, start + 1, start + 2)
    assert analysis.pair_angle[start, start + 3] == min(analysis.pair_angle[i, i + 3] for i in range(10))
    drawn = [first(baselines.random, 3, seed) for seed in range(8)]
    assert drawn[0] == first(baselines.random, 3)
    assert len(set(drawn)) > 1


def test_greedy_and_exhaustive_take_the_least_loss(context: Context) -> None:
    evaluator = context.ranking
    pairs = list(combinations(range(12), 2))
    losses = dict(zip(pairs, evaluator.measure(pairs), strict=True))
    assert baselines.exhaustive(context, 2, 1) == [min(pairs, key=lambda pair: losses[pair].ce_nats)]
    first = min(range(12), key=lambda block: evaluator.measure([(block,)])[0].ce_nats)
    with_first = [pair for pair in pairs if first in pair]
    assert baselines.greedy_loss(context, 2, 1) == [min(with_first, key=lambda pair: losses[pair].ce_nats)]


def test_what_a_choice_costs_does_not_depend_on_what_was_measured_before(context: Context) -> None:
    """12 + 11 sets one block away, by hand: the distinct prefixes of each round, and the dense model in each."""
    alone = Context(context.analysis, context.open_model)
    first, again = (choose(alone.fresh(), "greedy-loss", 2).forward_passes for _ in range(2))
    assert first == again
    dropped = choose(alone.fresh(), "greedy-loss", 1).dropped[0]
    one = 12 + sum(11 - block for block in range(12))
    two = 12 + sum(11 - block for block in range(12) if block != dropped)  # the dense run, then each block once more
    assert one / 12 < first <= (one + two + 12) / 12


def test_too_many_sets_are_refused(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "EXHAUSTIVE_LIMIT", 65)
    with pytest.raises(UserError, match="66 sets of 2 of 12 blocks, more than 65"):
        baselines.exhaustive(context, 2, 1)


@pytest.mark.parametrize("name", ["mi-prun", "hybrid"])
def test_re_ranking_takes_the_finalist_of_least_loss(context: Context, name: str) -> None:
    sets = METHODS[name].propose(context.fresh(), 3, 8)
    finalists = race(context.fresh(), sets)
    assert {entry.dropped for entry in finalists} <= set(sets)
    losses = ranking_losses(context, [entry.dropped for entry in finalists])
    assert [entry.loss for entry in finalists] == losses
    assert finalists[0].loss.ce_nats == min(loss.ce_nats for loss in losses)
    assert choose(context.fresh(), name, 3, 8).dropped == finalists[0].dropped


@pytest.mark.parametrize(("k", "rerank", "said"), [(12, 0, "must be in 1..11, got 12"), (2, -1, "--rerank must be in")])
def test_what_cannot_be_chosen_is_refused(context: Context, k: int, rerank: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose(context, "mi-prun", k, rerank)


def test_a_plan_says_what_was_chosen_and_what_it_costs(reference_analysis: Analysis, reference: Path) -> None:
    settings = PlanSettings(rerank=4, model=str(reference))
    made = make_plan(make_context(reference_analysis, settings), 3, settings)
    assert (len(made.dropped), len(made.kept)) == (3, 9)
    assert made.forward_passes > 1
    assert made.quality is not None
    assert made.quality.kl_nats_per_token > 0
    assert made.quality.text.endswith("held-out part")

    settings = PlanSettings(method="mi-prun", rerank=0, quality=False)
    context = make_context(reference_analysis, settings)
    paper = make_plan(context, 3, settings)
    assert (paper.forward_passes, paper.quality) == (0, None)
    assert "model" not in context.__dict__  # the dense model was not opened
    assert paper.objective is not None
    assert paper.objective.chosen_nats == paper.objective.fbs_nats
    by_hand = plan_by_hand(context, (0, 5, 7), settings)
    assert by_hand.dropped == (0, 5, 7)
    assert by_hand.objective is not None
    assert by_hand.objective.chosen_nats == objective(reference_analysis.segment_cost_nats, (0, 5, 7))
    assert by_hand.objective.fbs_nats == paper.objective.fbs_nats
    assert by_hand.objective.optimum_nats == paper.objective.optimum_nats


def test_an_analysis_of_another_model_is_refused(reference_analysis: Analysis, reference: Path) -> None:
    record = reference_analysis.record
    other = record.model_copy(update={"dense": record.dense.model_copy(update={"weights_sha256": "0" * 64})})
    changed = Analysis(other, **{k: v for k, v in vars(reference_analysis).items() if k != "record"})
    settings = PlanSettings(model=str(reference))
    with pytest.raises(UserError, match="is another model"):
        make_context(changed, settings)  # said at once, though a method might need no model
    moved = record.model_copy(update={"dense": other.dense.model_copy(update={"name": str(reference)})})
    changed = Analysis(moved, **{k: v for k, v in vars(reference_analysis).items() if k != "record"})
    settings = PlanSettings(method="bi", quality=False)
    make_plan(make_context(changed, settings), 3, settings)  # nothing is opened
    with pytest.raises(UserError, match="is another model"):
        make_plan(make_context(changed, PlanSettings()), 3, PlanSettings())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (PlanSettings(method="magic"), "--method must be one of"),
        (PlanSettings(rerank=-1), "--rerank must be in 0..10000, got -1"),
        (PlanSettings(seed=-1), "--seed must be in"),
    ],
)
def test_settings_that_will_not_do_are_refused_at_once(
    reference_analysis: Analysis, settings: PlanSettings, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        make_context(reference_analysis, settings)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UserError, match="--method must be one of hybrid, mi-prun"):
        method_named("magic")
