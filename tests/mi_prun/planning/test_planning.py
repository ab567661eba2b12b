"""What a plan compares sets by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from mi_prun.analysis.analysis import Analysis
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.plan.plan import Plan
from mi_prun.plan.ratio import Amount
from mi_prun.planning.planning import make_context, plan_for
from mi_prun.quality.evaluator import Memory
from mi_prun.selection.context import Context
from mi_prun.settings import SELF, PlanSettings
from mi_prun.text.calibration import CalibrationDescription

SETTINGS = PlanSettings(method="exhaustive", quality=False)


@pytest.fixture(scope="module")
def short(reference_analysis: Analysis) -> Analysis:
    """Four windows: a set of two is measured in a second."""
    return replace(reference_analysis, ranking=reference_analysis.ranking[:4])


@pytest.fixture(scope="module")
def planned(
    short: Analysis, reference: Path, load: Callable[[Path], BlockModel]
) -> Callable[..., tuple[Context, Plan]]:
    model = load(reference)
    memories: dict[str, Memory] = {}  # what was measured serves every test

    def make(
        criterion: str | None = None,
        source: str = "text.txt",
        method: str = "exhaustive",
        rerank: int | None = None,
        **amount: object,
    ) -> tuple[Context, Plan]:
        calibration = short.record.calibration.model_copy(update={"source": source})
        assert isinstance(calibration, CalibrationDescription)
        record = short.record.model_copy(update={"calibration": calibration})
        settings = replace(SETTINGS, criterion=criterion, method=method, rerank=rerank)
        context = replace(make_context(replace(short, record=record), settings, lambda: model), memories=memories)
        return context, plan_for(context, Amount(**amount), settings)  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize(
    ("criterion", "source", "used"),
    [(None, "text.txt", "ce"), (None, SELF, "kl"), ("kl", "text.txt", "kl"), ("ce", SELF, "ce")],
)
def test_sets_are_compared_by_the_criterion(
    planned: Callable[..., tuple[Context, Plan]], criterion: str | None, source: str, used: str
) -> None:
    context, plan = planned(criterion, source, num_blocks=2)
    assert plan.settings["criterion"] == used
    every = list(combinations(range(12), 2))
    losses = [(loss.kl_nats if used == "kl" else loss.ce_nats) for loss in context.ranking.measure(every)]
    assert plan.dropped == every[losses.index(min(losses))]


def test_named_blocks_go_without_settings_of_a_choice(planned: Callable[..., tuple[Context, Plan]]) -> None:
    with pytest.raises(UserError, match=r"--drop names .* leave out --method, --rerank, --criterion"):
        planned("kl", method="bi", rerank=2, drop="1")


def test_the_two_criteria_do_not_take_the_same_set(planned: Callable[..., tuple[Context, Plan]]) -> None:
    """Else the test above would say little."""
    assert planned("kl", num_blocks=2)[1].dropped != planned("ce", num_blocks=2)[1].dropped


def test_under_a_limit_of_kl_it_is_kl_unless_told(planned: Callable[..., tuple[Context, Plan]]) -> None:
    bi = {"method": "bi", "rerank": 2}
    assert planned(**bi, max_kl=0.2)[1].settings["criterion"] == "kl"
    assert planned("ce", **bi, max_kl=0.2)[1].settings["criterion"] == "ce"
    assert planned(**bi, max_ppl_increase="20%")[1].settings["criterion"] == "ce"


@pytest.mark.parametrize("recall", [0.0, 0.25])
def test_windows_that_compare_repeat_as_much_as_asked_for(
    reference_analysis: Analysis, reference: Path, load: Callable[[Path], BlockModel], recall: float
) -> None:
    settings = replace(SETTINGS, recall=recall, method="bi", rerank=2)
    context = make_context(reference_analysis, settings, lambda: load(reference))
    assert context.recall == recall
    assert plan_for(context, Amount(num_blocks=1), settings).settings["recall"] == recall


@pytest.mark.parametrize(
    ("method", "rerank", "said"),
    [
        ("tail", 0, set()),
        ("bi", 0, set()),
        ("bi", 2, {"criterion", "recall"}),
        ("hybrid", 3, {"criterion", "recall"}),
        ("hybrid", 0, {"recall"}),  # its quadratic is measured, of the KL
        ("cbo", 0, {"recall"}),
        ("segment-loss", 0, {"criterion", "recall"}),
        ("greedy-loss", None, {"criterion"}),
        pytest.param("exhaustive", None, {"criterion"}, marks=pytest.mark.long),
    ],
)
def test_a_plan_says_the_criterion_and_the_recall_that_it_was_measured_with(
    short: Analysis,
    reference: Path,
    load: Callable[[Path], BlockModel],
    method: str,
    rerank: int | None,
    said: set[str],
) -> None:
    settings = replace(SETTINGS, method=method, rerank=rerank)
    context = make_context(short, settings, lambda: load(reference))
    plan = plan_for(context, Amount(num_blocks=1), settings)
    assert plan.settings.keys() & {"criterion", "recall"} == said


def test_a_criterion_that_is_none_is_refused(reference_analysis: Analysis) -> None:
    with pytest.raises(UserError, match="--criterion must be one of ce, kl, got 'mse'"):
        make_context(reference_analysis, replace(SETTINGS, criterion="mse"))
