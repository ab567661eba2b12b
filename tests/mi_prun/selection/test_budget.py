"""The limit of the default's cost: under what greedy-loss takes on any path, and held where sets are near ties."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_prun.analysis.analysis import Analysis
from mi_prun.model.block_model import BlockModel
from mi_prun.plan.ratio import blocks_for_ratio
from mi_prun.quality.evaluator import block_runs
from mi_prun.selection import context as contexts
from mi_prun.selection.budget import greedy_runs, most_passes, thrift
from mi_prun.selection.context import Context
from mi_prun.selection.race import affordable, race


def runs_along(num_blocks: int, path: list[int]) -> int:
    """Block runs of greedy-loss where it drops these blocks, in this order."""
    total = 0
    for step in range(len(path)):
        gone = path[:step]
        sets = [tuple(sorted((*gone, block))) for block in range(num_blocks) if block not in gone]
        total += block_runs([(), *sets], num_blocks)
    return total


@pytest.mark.parametrize(("num_blocks", "k"), [(5, 1), (12, 3), (24, 6), (24, 12)])
def test_greedy_search_runs_no_fewer_blocks_on_any_path(num_blocks: int, k: int) -> None:
    from_the_end = list(range(num_blocks - 1, num_blocks - 1 - k, -1))
    assert runs_along(num_blocks, from_the_end) == greedy_runs(num_blocks, k)
    generator = np.random.default_rng(k)
    for _ in range(10):
        needed = runs_along(num_blocks, generator.permutation(num_blocks)[:k].tolist())
        assert greedy_runs(num_blocks, k) <= needed <= 1.12 * greedy_runs(num_blocks, k)


def of_blocks(analysis: Analysis, num_blocks: int, ranking_tokens: int = 65_536) -> Context:
    """Nothing can be measured in it."""

    def none() -> BlockModel:
        raise AssertionError("the model was opened")

    dense = analysis.record.dense.model_copy(update={"num_blocks": num_blocks})
    ranking = np.zeros((ranking_tokens // 128, 128), np.int32)
    return Context(replace(analysis, record=analysis.record.model_copy(update={"dense": dense}), ranking=ranking), none)


@pytest.mark.parametrize(
    ("num_blocks", "share"), [(12, 1 / 3), (18, (1 / 3 + 1 / 10) / 2), (24, 1 / 10), (26, 1 / 10), (80, 1 / 10)]
)
def test_a_third_at_12_blocks_a_tenth_from_24(reference_analysis: Analysis, num_blocks: int, share: float) -> None:
    quarter = blocks_for_ratio(0.25, num_blocks)  # of 18 and 26 more than a quarter
    context = of_blocks(reference_analysis, num_blocks)
    limit = share * greedy_runs(num_blocks, quarter) / num_blocks
    assert most_passes(context, quarter) == pytest.approx(limit)
    limited = {quarter, num_blocks // 4}  # rounded down too
    assert {k for k in range(1, num_blocks) if math.isfinite(most_passes(context, k))} == limited


def test_with_few_blocks_there_is_no_limit(reference_analysis: Analysis) -> None:
    few = of_blocks(reference_analysis, 11, ranking_tokens=16_384)
    assert all(math.isinf(most_passes(few, k)) for k in range(1, 11))
    assert thrift(few) == 1.0


def test_a_short_text_has_less(reference_analysis: Analysis) -> None:
    assert thrift(of_blocks(reference_analysis, 24, ranking_tokens=32_768)) == 1.0
    assert thrift(of_blocks(reference_analysis, 24, ranking_tokens=16_384)) == 0.5
    two = of_blocks(reference_analysis, 24)  # of two windows one screens
    two = Context(replace(two.analysis, ranking=two.analysis.ranking.reshape(2, -1)), two.open_model)
    assert thrift(two) == 0.5


@pytest.fixture
def near_ties(
    tiny: Callable[..., Path],
    load: Callable[[Path], BlockModel],
    reference_analysis: Analysis,
    monkeypatch: pytest.MonkeyPatch,
) -> Context:
    """A context whose model has blocks that all do next to nothing."""
    monkeypatch.setattr(contexts, "SCREENING_TOKENS", 1)
    model = load(tiny("llama", num_hidden_layers=12, hidden_size=16))
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(1e-2)
    context = of_blocks(reference_analysis, 12)
    ranking = torch.randint(0, 97, (64, 12), generator=torch.Generator().manual_seed(0))
    return Context(replace(context.analysis, ranking=ranking.int().numpy()), lambda: model)


SETS = [(2, 3, 4), (3, 4, 5), (4, 5, 6), (5, 6, 7), (6, 7, 8), (7, 8, 9)]


def test_finalists_are_left_out_for_the_limit(near_ties: Context) -> None:
    whole, limited = near_ties.fresh(), near_ties.fresh()
    everyone = race(whole, SETS)
    assert len(everyone) > 3
    limit = 0.7 * whole.passes
    ranked = race(limited, SETS, limit)
    assert 1 <= len(ranked) < len(everyone)
    assert limited.passes <= limit
    assert {entry.dropped for entry in ranked} < {entry.dropped for entry in everyone}


def test_the_first_one_goes_to_the_end_whatever_it_costs(near_ties: Context) -> None:
    assert len(race(near_ties.fresh(), SETS, 0.0)) == 1


def test_as_many_go_on_as_are_paid_for(near_ties: Context) -> None:
    """Two of them over a quarter of the rest, and the first one over all of it."""
    rest = near_ties.confirming
    assert rest is not None
    windows = len(rest.windows) // 4
    one, two, three = (block_runs([(), *SETS[:count]], 12) for count in (1, 2, 3))
    tokens = 12 * near_ties.analysis.ranking.size / rest.windows.shape[1]  # windows x blocks of one pass
    to_the_end = one * (len(rest.windows) - windows)
    limit = (two * windows + to_the_end) / tokens
    assert two < three
    assert affordable(near_ties, SETS, 0, windows, limit + 1e-9) == SETS[:2]
    assert affordable(near_ties, SETS, 0, windows, limit - 1e-9) == SETS[:1]
    assert affordable(near_ties, SETS, 0, windows, math.inf) == SETS
