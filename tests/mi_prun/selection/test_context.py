"""What a method may look at: the criterion, results made once, and what is charged for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mi_prun.analysis.analysis import Analysis
from mi_prun.model.block_model import BlockModel
from mi_prun.quality.evaluator import Loss
from mi_prun.selection.context import Context, Ledger
from mi_prun.selection.shrinkage import shrunk_cross_entropy
from mi_prun.settings import SELF

LOSS = Loss(kl_nats=0.25, ce_nats=3.0)


def never() -> BlockModel:
    raise AssertionError("the model was opened")


@pytest.fixture
def unopened(reference_analysis: Analysis) -> Context:
    return Context(reference_analysis, never)


def test_the_text_decides_the_criterion_unless_one_is_wanted(unopened: Context) -> None:
    record = unopened.analysis.record
    described = record.calibration.model_copy(update={"source": SELF})
    sampled = replace(
        unopened, analysis=replace(unopened.analysis, record=record.model_copy(update={"calibration": described}))
    )
    assert (unopened.criterion, sampled.criterion) == ("ce", "kl")
    assert (unopened.value(LOSS), sampled.value(LOSS)) == (3.0, 0.25)
    assert unopened.fresh("kl").criterion == unopened.fresh("kl").fresh().criterion == "kl"
    assert sampled.fresh("ce").criterion == "ce"


def test_sets_are_compared_by_the_mean_kl_or_by_the_shrunk_cross_entropy(unopened: Context) -> None:
    by_window = np.random.default_rng(0).random((5, 4, 2))
    assert np.array_equal(unopened.fresh("kl").values(by_window), by_window[..., 0].mean(1))
    assert np.array_equal(unopened.fresh("ce").values(by_window), shrunk_cross_entropy(by_window))


def test_a_result_is_made_once_for_all_copies(unopened: Context) -> None:
    made: list[int] = []
    for context in (unopened, unopened, unopened.fresh()):
        assert context.derive("name", lambda: made.append(1) or 7) == 7
    assert made == [1]


def test_a_name_is_charged_once() -> None:
    ledger = Ledger()
    assert [ledger.first(name) for name in ("a", "b", "a", "a")] == [True, True, False, False]


def test_a_copy_is_charged_again_for_what_it_does_not_do_again(
    reference_analysis: Analysis, reference: Path, load: Callable[[Path], BlockModel]
) -> None:
    opened: list[BlockModel] = []
    first = Context(reference_analysis, lambda: opened.append(load(reference)) or opened[-1])
    losses = first.screening.measure([(3,)], windows=2)
    copy = first.fresh()
    assert copy.passes == 0
    first.model.run = None  # type: ignore[assignment] # nothing can be run any more
    assert copy.screening.measure([(3,)], windows=2) == losses
    assert copy.passes == first.passes > 0
    assert len(opened) == 1


def test_what_is_counted_beside_the_evaluators_is_a_part_of_the_passes(unopened: Context) -> None:
    unopened.extra.block_tokens += 3 * unopened.num_blocks * unopened.analysis.ranking.size
    assert unopened.passes == 3
    assert unopened.fresh().passes == 0
