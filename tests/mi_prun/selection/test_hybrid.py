"""The default method: what it proposes, on what text it measures, that the best is taken, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, islice
from math import comb, isfinite
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_prun.analysis.analysis import Analysis
from mi_prun.model.block_model import BlockModel
from mi_prun.quality.evaluator import NotFiniteError
from mi_prun.selection import baselines, quadratic
from mi_prun.selection import context as contexts
from mi_prun.selection.budget import most_passes
from mi_prun.selection.context import Context
from mi_prun.selection.fast_block_select import fast_block_select
from mi_prun.selection.hybrid import (
    beyond_few,
    few_windows,
    gram_of,
    gram_only,
    hybrid,
    low_sets,
    proposed_sets,
    ranked_sets,
    run_sets,
)
from mi_prun.selection.logit_gram import LogitGram
from mi_prun.selection.methods import METHODS, choose
from mi_prun.selection.objective import best_sets
from mi_prun.selection.race import first_windows, race

pytestmark = pytest.mark.numeric
IDLE = (1, 4, 6)  # blocks that do nothing
MakeContext = Callable[..., Context]


@pytest.fixture
def make_context(
    tiny: Callable[..., Path],
    load: Callable[[Path], BlockModel],
    analysed: Callable[..., Analysis],
    monkeypatch: pytest.MonkeyPatch,
) -> MakeContext:
    """`make_context(num_blocks, idle, windows, seed)`: a random model, analysed on random tokens, of which it foresees
    nothing: candidates are compared by KL. The pass sees a sixteenth of what the ranking does, as by default.
    """
    monkeypatch.setattr(contexts, "SCREENING_TOKENS", 1)  # a quarter of the ranking text screens, as of a long one

    def make(num_blocks: int = 8, *, idle: tuple[int, ...] = (), windows: int = 64, seed: int = 0) -> Context:
        model = load(tiny("llama", num_hidden_layers=num_blocks, hidden_size=16, intermediate_size=16))
        with torch.no_grad():
            for block in idle:
                model.blocks[block].self_attn.o_proj.weight.zero_()
                model.blocks[block].mlp.down_proj.weight.zero_()
        sizes = [max(2, windows // 16), 4, windows]
        text = torch.randint(0, 97, (sum(sizes), 12), generator=torch.Generator().manual_seed(1))
        scoring, held_out, ranking = torch.split(text, sizes)
        analysis = analysed(model, scoring, ranking, held_out, sampled_tokens=24)
        return Context(analysis, lambda: model, seed, "kl")

    return make


def test_the_blocks_that_do_nothing_are_the_ones_chosen(make_context: MakeContext) -> None:
    """The model says the same without them: no other set of three loses as little, whatever proposed it."""
    own = make_context(idle=IDLE)
    assert choose(own.fresh(), "hybrid", 3).dropped == IDLE
    assert choose(own.fresh(), "hybrid", 3, 0).dropped == IDLE  # it is the first one proposed, too
    for k in (1, 2):
        assert set(choose(own.fresh(), "hybrid", k).dropped) <= set(IDLE)
    assert set(choose(own.fresh(), "hybrid", 5).dropped) > set(IDLE)


def test_of_what_it_proposes_the_measured_best_is_chosen(make_context: MakeContext) -> None:
    """A plain loop over all it proposes, on the whole ranking text, finds none better."""
    own = make_context(idle=(2,), windows=12)
    sets = hybrid(own.fresh(), 3, 8)
    losses = dict(zip(sets, own.fresh().ranking.measure(sets), strict=True))
    chosen = choose(own.fresh(), "hybrid", 3, 8).dropped
    assert losses[chosen].kl_nats == pytest.approx(min(loss.kl_nats for loss in losses.values()), abs=1e-5)


def test_mi_cosine_and_runs_propose_beside_the_gram(make_context: MakeContext) -> None:
    own = make_context(12)
    costs = own.analysis.segment_cost_nats
    beside = proposed_sets(own, 3)
    assert beside == [
        fast_block_select(costs, 3).dropped,
        best_sets(costs, 3)[0][1],
        baselines.bi(own, 3, 1)[0],
        *run_sets(own, 3),
    ]
    proposed = hybrid(own, 3, 24)
    assert len(proposed) == len(set(proposed)) == 24
    assert proposed[0] == gram_only(own, 3, 1)[0]
    assert list(dict.fromkeys([proposed[0], *beside])) == proposed[: len({proposed[0], *beside})]
    assert all(len(dropped) == 3 and list(dropped) == sorted(dropped) for dropped in proposed)


def test_the_runs_proposed_are_those_of_least_loss(make_context: MakeContext) -> None:
    own = make_context(8, idle=(3, 4, 5))
    together = baselines.windows(8, 3)
    values = own.values(own.screening.by_window(together, windows=few_windows(own)))
    assert run_sets(own, 3) == [together[place] for place in np.argsort(values)[:2]]
    assert run_sets(own, 3)[0] == (3, 4, 5)


def test_one_set_is_what_the_gram_says(make_context: MakeContext) -> None:
    own = make_context()
    assert hybrid(own, 3, 1) == gram_only(own, 3, 1) == low_sets(own, gram_of(own), "kl", 3, 1)


@pytest.mark.parametrize("criterion", ["kl", "ce"])
def test_kl_and_the_criterion_rank_in_turn(make_context: MakeContext, criterion: contexts.Criterion) -> None:
    own = make_context().fresh(criterion)
    gram = gram_of(own)
    by_kl = low_sets(own, gram, "kl", 3, 4)
    ranked = ranked_sets(own, gram, 3, 4)
    if criterion == "kl":
        assert ranked == by_kl
    else:
        assert ranked[::2] == by_kl
        assert ranked[1::2] == low_sets(own, gram, "ce", 3, 4)


def test_candidates_are_measured_on_a_quarter_runs_and_neighbours_on_an_eighth(make_context: MakeContext) -> None:
    """All are of the screening text. No other text is measured on, the held-out one least of all."""
    own = make_context(windows=128)
    proposed = hybrid(own, 3, 12)
    assert set(own.memories) == {"screening"}
    assert not {"ranking", "confirming", "held_out"} & own.__dict__.keys()
    assert (first_windows(own), few_windows(own)) == (8, 4)
    measured = {dropped: len(losses) for dropped, losses in own.memories["screening"].items()}
    together = set(baselines.windows(8, 3))
    candidates = measured.keys() & set(proposed)
    near = measured.keys() - candidates - together
    assert together <= measured.keys()
    assert {measured[dropped] for dropped in together - candidates} == {few_windows(own)}
    assert {measured[dropped] for dropped in candidates - together} == {first_windows(own)}
    assert {measured[dropped] for dropped in near} == {few_windows(own)}
    assert {len(dropped) for dropped in near} == {2, 4}
    assert all(any(len(set(one) ^ set(other)) == 1 for other in candidates) for one in near)


def test_the_seed_alone_decides(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contexts share nothing, and the sets are so many that they are annealed, not enumerated."""
    assert comb(22, 8) > quadratic.ENUMERABLE
    monkeypatch.setattr(quadratic, "READS", 10)
    one, other = (make_context(22, seed=3, windows=8) for _ in range(2))
    assert choose(one, "hybrid", 8, 12) == choose(other, "hybrid", 8, 12)
    assert list(one.memories["screening"]) == list(other.memories["screening"])


def test_what_it_says_it_costs_is_what_is_run(make_context: MakeContext) -> None:
    """Block runs over tokens, counted as they happen; a second number of blocks does not pay for the Gram again."""
    own = make_context()
    run, tokens = own.model.run, []

    def counted(block: int, hidden: torch.Tensor) -> torch.Tensor:
        tokens.append(hidden.shape[0] * hidden.shape[1])
        return run(block, hidden)

    own.model.run = counted  # type: ignore[method-assign]
    one_pass = own.num_blocks * own.analysis.ranking.size
    choice = choose(own, "hybrid", 2)
    assert choice.forward_passes == pytest.approx(sum(tokens) / one_pass)
    assert choice.forward_passes == own.passes
    gram = gram_of(make_context())
    assert isinstance(gram, LogitGram)
    before, gram_tokens = own.passes, sum(tokens)
    gram_of(own)
    assert (own.passes, sum(tokens)) == (before, gram_tokens)
    again = choose(own.fresh(), "hybrid", 2)  # nothing is run, and all of it is paid for
    assert sum(tokens) == gram_tokens
    assert again == choice


@pytest.mark.parametrize("windows", [64, 32])
@pytest.mark.parametrize("num_blocks", [12, 16])
def test_a_quarter_of_the_blocks_stays_within_the_budget(
    make_context: MakeContext, num_blocks: int, windows: int
) -> None:
    own = make_context(num_blocks, windows=windows)
    choice = choose(own, "hybrid", num_blocks // 4)
    assert choice.candidates == METHODS["hybrid"].rerank
    assert choice.forward_passes + own.analysis.passes <= most_passes(own, num_blocks // 4)


@pytest.mark.parametrize(("num_blocks", "k"), [(8, 1), (8, 7), (2, 1), (3, 2), (3, 1)])
def test_the_fewest_and_the_most_blocks(make_context: MakeContext, num_blocks: int, k: int) -> None:
    """There are no more than `num_blocks` sets then; what is chosen is as good as the first one proposed."""
    own = make_context(num_blocks)
    proposed = hybrid(own.fresh(), k, 24)
    every = list(combinations(range(num_blocks), k))
    assert len(proposed) == len(set(proposed))
    assert set(proposed) <= set(every)
    choice = choose(own.fresh(), "hybrid", k)
    assert choice.dropped in proposed
    chosen, first = own.fresh().ranking.measure([choice.dropped, proposed[0]])
    assert chosen.kl_nats <= first.kl_nats + 1e-5


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_a_short_text_is_enough(make_context: MakeContext, windows: int) -> None:
    own = make_context(idle=IDLE, windows=windows)
    assert choose(own, "hybrid", 3).dropped == IDLE


def test_a_window_of_two_tokens_is_enough(make_context: MakeContext) -> None:
    own = make_context(idle=IDLE)
    short = replace(own.analysis, ranking=own.analysis.ranking[:, :2])
    assert choose(Context(short, own.open_model, wanted="kl"), "hybrid", 3).dropped == IDLE


@pytest.mark.parametrize("method", ["hybrid", "greedy-loss", "segment-loss", "exhaustive", "logit-gram"])
def test_a_removal_without_finite_logits_is_not_taken(make_context: MakeContext, method: str) -> None:
    """Block 2 mends what block 1 breaks: the model works, and without block 2 it says NaN."""
    own = make_context()
    nan = torch.zeros(16)
    nan[0] = torch.nan
    own.model.blocks[1].register_forward_hook(lambda block, args, state: state + nan)
    own.model.blocks[2].register_forward_pre_hook(lambda block, args: (args[0].nan_to_num(), *args[1:]))
    chosen = choose(own, method, 3).dropped
    assert 2 not in chosen or 1 in chosen
    assert isfinite(own.ranking.measure([chosen])[0].ce_nats)
    with pytest.raises(NotFiniteError, match=r"the model without blocks \[2\] gives logits that are not finite"):
        own.ranking.measure([(2,)])
    with pytest.raises(NotFiniteError, match=r"the model without blocks \[2\]"):
        race(own, [(2,), (2, 4)])  # there is nothing else to take


def test_a_pair_without_finite_logits_is_not_taken(make_context: MakeContext) -> None:
    """Each of two blocks mends it alone: no single removal shows it, a candidate does."""
    own = make_context()
    nan = torch.zeros(16)
    nan[0] = torch.nan
    own.model.blocks[1].register_forward_hook(lambda block, args, state: state + nan)
    for block in (2, 3):
        own.model.blocks[block].register_forward_pre_hook(lambda block, args: (args[0].nan_to_num(), *args[1:]))
    gram_of(own)
    with pytest.raises(NotFiniteError, match=r"the model without blocks \[2, 3\] gives logits that are not finite"):
        own.screening.by_window([(2, 3)])
    assert np.isinf(own.screening.by_window([(2, 3)], may_break=True)).all()
    assert np.isinf(own.values(own.screening.by_window([(2,), (2, 3), (3,)], may_break=True))).tolist() == [0, 1, 0]
    assert [entry.dropped for entry in race(own, [(2, 3), (2, 4)])] == [(2, 4)]
    chosen = choose(own, "hybrid", 2).dropped
    assert chosen != (2, 3)


@pytest.mark.parametrize(
    ("num_blocks", "k", "growth"), [(12, 1, 1.0), (12, 3, 1.0), (12, 6, 2.0), (80, 6, 1.0), (80, 24, 4.0)]
)
def test_more_rounds_beyond_few_blocks(num_blocks: int, k: int, growth: float) -> None:
    assert beyond_few(num_blocks, k) == growth


def test_more_blocks_take_more_rounds(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round looks at the neighbours of one set that no earlier round did."""
    visited: list[tuple[int, ...]] = []
    from mi_prun.selection import hybrid as module

    near = module.neighbours
    monkeypatch.setattr(module, "neighbours", lambda dropped, count: (visited.append(dropped), near(dropped, count))[1])
    own = make_context(12)
    for k, rounds in ((3, 3), (6, 6)):
        visited.clear()
        hybrid(own.fresh(), k, 24)
        assert len(visited) == len(set(visited)) == rounds


@pytest.mark.parametrize("rerank", [0, 1])
def test_of_one_candidate_only_the_gram_is_measured(make_context: MakeContext, rerank: int) -> None:
    own, of_gram = make_context(idle=IDLE), make_context(idle=IDLE)
    choice = choose(own, "hybrid", 3, rerank)
    assert choice.dropped == ranked_sets(of_gram, gram_of(of_gram), 3, 1)[0]
    assert choice.forward_passes == own.passes == of_gram.passes


def test_low_sets_are_those_of_the_quadratic_of_the_gram(make_context: MakeContext) -> None:
    own = make_context()
    gram = gram_of(own)
    sets = list(combinations(range(8), 3))
    predicted = gram.predict(sets, "kl")
    wanted = [sets[i] for i in islice(np.argsort(predicted, kind="stable"), 5)]
    assert gram_only(own, 3, 5) == wanted
