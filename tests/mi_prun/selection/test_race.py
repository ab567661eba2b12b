"""Successive halving: each text is paid for once, and what is clearly best wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_prun.analysis.analysis import Analysis
from mi_prun.model.block_model import BlockModel
from mi_prun.quality.evaluator import block_runs
from mi_prun.selection.context import Context, screening_windows, short_windows
from mi_prun.selection.race import (
    FINALISTS,
    LEAST_WINDOWS,
    MORE_FINALISTS,
    clearly_behind,
    final,
    finalists,
    race,
    ranking_losses,
)


@pytest.fixture(scope="module")
def context(reference_analysis: Analysis, reference: Path, load: Callable[[Path], BlockModel]) -> Context:
    model = load(reference)
    return Context(reference_analysis, lambda: model)


def test_the_best_by_far_wins_whatever_its_place(context: Context) -> None:
    poor = [(0, block) for block in range(1, 9)]  # without block 0 this model says nothing
    assert race(context.fresh(), [*poor, (3, 7)])[0].dropped == (3, 7)
    assert race(context.fresh(), [(3, 7), *poor])[0].dropped == (3, 7)


def test_the_ranking_text_is_split_in_two_and_nothing_is_lost(context: Context) -> None:
    ranking = torch.from_numpy(context.analysis.ranking)
    plain = replace(context, recall=0.0)
    confirming = plain.confirming
    assert confirming is not None
    parts = torch.cat([plain.screening.windows.flatten(), confirming.windows.flatten()])
    assert torch.equal(parts, ranking.flatten().long())


def test_windows_that_compare_end_as_they_begin(context: Context) -> None:
    repeating = replace(context, recall=1 / 8)
    confirming = repeating.confirming
    assert confirming is not None
    for windows in (repeating.screening.windows, confirming.windows):
        end = windows.shape[1] // 8
        assert end > 0
        assert torch.equal(windows[:, -end:], windows[:, :end])
    ranking = torch.from_numpy(context.analysis.ranking).long()
    assert torch.equal(repeating.ranking.windows, ranking)  # a limit is about the text as it is


def test_one_window_is_enough(context: Context) -> None:
    analysis = replace(context.analysis, ranking=context.analysis.ranking[:1])
    alone = Context(analysis, context.open_model)
    assert alone.confirming is None
    sets = [(2,), (3,), (0,)]
    assert race(alone, sets)[0].dropped in {(2,), (3,)}
    assert len(ranking_losses(alone, sets)) == 3


def test_of_short_windows_the_first_are_of_different_passages() -> None:
    windows = torch.arange(4 * 1024).view(4, 1024)
    cut = short_windows(windows)
    assert cut.shape == (16, 256)
    assert torch.equal(cut[:4], windows[:, :256])
    assert torch.equal(cut[4:8], windows[:, 256:512])
    assert torch.equal(cut.sort(dim=0).values.flatten(), windows.flatten())  # nothing is lost
    assert short_windows(windows[:, :512]).shape == (8, 256)  # too short to be cut again
    assert torch.equal(short_windows(windows[:, :511]), windows[:, :511])


def test_each_short_window_begins_as_the_long_one_did() -> None:
    windows = torch.arange(4 * 1025).view(4, 1025)
    with_bos = torch.arange(4 * 512).view(4, 512)
    assert short_windows(with_bos, bos=True).shape == short_windows(with_bos).shape == (8, 256)
    cut = short_windows(windows, bos=True)
    assert cut.shape == (16, 257)
    assert torch.equal(cut[:, 0], windows[:, 0].repeat(4))
    assert torch.equal(cut[:4, 1:], windows[:, 1:257])
    assert torch.equal(cut[:, 1:].sort(dim=0).values.flatten(), windows[:, 1:].flatten())


def test_a_race_costs_less_than_measuring_all(context: Context) -> None:
    fresh = context.fresh()
    sets = list(combinations(range(2, 8), 3))  # 20
    race(fresh, sets)
    whole = block_runs([(), *sets], 12) / 12
    assert 0 < fresh.passes < whole / 2


def test_halving_never_throws_away_the_leader(context: Context) -> None:
    """The best of the first stage, which leaves out most of the sets, is among the finalists."""
    sets = list(combinations(range(2, 9), 2))  # 21
    fresh = context.fresh()
    finalists = race(fresh, sets)
    from mi_prun.selection.race import first_windows

    first = fresh.screening.measure(sets, windows=first_windows(fresh))
    assert sets[int(np.argmin([fresh.value(loss) for loss in first]))] in {entry.dropped for entry in finalists}


def test_clearly_behind_is_three_standard_errors_of_the_paired_difference() -> None:
    """The windows differ much more from each other than the sets do."""
    generator = np.random.default_rng(0)
    windows = [generator.normal(5.0, 2.0, 40), generator.normal(5.0, 2.0, 100)]
    noise = [0.1 * generator.normal(size=(3, len(part))) for part in windows]
    lead = np.array([[0.0], [0.01], [0.2]])
    assert clearly_behind([part + lead + n for part, n in zip(windows, noise, strict=True)]).tolist() == [
        False,
        False,
        True,
    ]


def test_who_is_clearly_behind_does_not_go_through_all_of_the_text(context: Context) -> None:
    """The model says nothing without block 0."""
    ranking = np.tile(context.analysis.ranking, (8, 1))
    fresh = Context(replace(context.analysis, ranking=ranking), context.open_model)
    assert final(fresh, [(3, 7), (0, 3)]) == [(3, 7)]
    confirming = fresh.confirming
    assert confirming is not None
    windows = confirming.windows
    once = sum(12 - len(dropped) for dropped in ((), (3, 7), (0, 3))) * windows.numel()
    assert confirming.block_tokens < once / 2


def test_long_windows_are_looked_at_as_often(context: Context) -> None:
    """Six of them are left to go through: after the first two it is clear, with what the screening text said."""
    ranking = context.analysis.ranking.reshape(2, 512).repeat(6, 0)
    fresh = Context(replace(context.analysis, ranking=ranking), context.open_model)
    confirming = fresh.confirming
    assert confirming is not None
    assert len(fresh.screening.windows) >= LEAST_WINDOWS > len(confirming.windows) // 4
    assert final(fresh, [(3, 7), (0, 3)]) == [(3, 7)]
    once = sum(12 - len(dropped) for dropped in ((), (3, 7), (0, 3))) * confirming.windows.numel()
    assert confirming.block_tokens < once / 2


def test_a_long_text_has_more_finalists(context: Context) -> None:
    ranking = context.analysis.ranking  # 16 windows of 64 tokens: a half of them screens
    assert finalists(context) == FINALISTS
    long = replace(context.analysis, ranking=np.tile(ranking, (40, 1)))
    assert finalists(Context(long, context.open_model)) == MORE_FINALISTS


@pytest.mark.parametrize(
    ("windows", "tokens", "screening"), [(64, 64, 32), (1, 64, 1), (512, 128, 128), (4_096, 128, 1_024), (200, 128, 64)]
)
def test_how_much_of_the_ranking_text_screens(windows: int, tokens: int, screening: int) -> None:
    """A quarter, at least 8,192 tokens, at most a half."""
    assert screening_windows(torch.zeros(windows, tokens)) == screening
