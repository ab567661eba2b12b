"""Which draft pays: the formula, acceptance as it is defined, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mi_prun.analysis.analysis import Analysis
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.plan.ratio import Amount
from mi_prun.planning import draft_choice
from mi_prun.planning.draft_choice import (
    Acceptance,
    DraftChoice,
    StepCost,
    choose_draft,
    draft_for,
    plan_draft,
)
from mi_prun.planning.draft_gain import best_tokens, expected_speedup
from mi_prun.quality.evaluator import Evaluator
from mi_prun.settings import PlanSettings

SETTINGS = PlanSettings(method="mi-prun", rerank=0, quality=False, device="cpu")


def test_acceptance_is_that_of_the_two_models(load: Callable[[Path], BlockModel], reference: Path) -> None:
    """Against the definition, computed with whole models; a draft with all blocks is accepted always."""
    model = load(reference)
    windows = torch.randint(2, 4096, (3, 16), generator=torch.Generator().manual_seed(2))
    dropped = (2, 7)
    nothing, some = draft_choice.measure_acceptance(Evaluator(model, windows), [(), dropped])
    assert (nothing.greedy, nothing.sampled) == pytest.approx((1.0, 1.0))
    with torch.inference_mode():
        dense = model.model(input_ids=windows, use_cache=False).logits[:, :-1]
        with model.without(dropped) as pruned:
            draft = pruned(input_ids=windows, use_cache=False).logits[:, :-1]
    assert some.greedy == pytest.approx(float((dense.argmax(-1) == draft.argmax(-1)).double().mean()))
    shared = torch.minimum(dense.softmax(-1), draft.softmax(-1)).sum(-1).mean()
    assert some.sampled == pytest.approx(float(shared), abs=1e-4)
    assert 0 < some.greedy < 1


def test_a_step_without_blocks_costs_what_is_left(load: Callable[[Path], BlockModel], reference: Path) -> None:
    cost = draft_choice.measure_step_cost(load(reference))
    assert len(cost.blocks_s) == 12
    assert min(*cost.blocks_s, cost.rest_s) > 0
    assert cost.relative(()) == 1
    assert StepCost((2.0, 3.0, 4.0), 1.0).relative((0, 2)) == pytest.approx(0.4)


def test_the_best_set_comes_first() -> None:
    cost = StepCost((1.0,) * 10, 0.0)
    sets = [(0,), (0, 1, 2, 3, 4)]
    choices = choose_draft(sets, [Acceptance(0.95, 0.9), Acceptance(0.9, 0.85)], cost)
    assert [choice.dropped for choice in choices] == [(0, 1, 2, 3, 4), (0,)]
    assert choices[0].relative_cost == 0.5
    assert choices[0].speedup == expected_speedup(0.9, 0.5, choices[0].tokens) > 1 > 0


def fixed_cost(monkeypatch: pytest.MonkeyPatch, block_s: float, rest_s: float) -> None:
    monkeypatch.setattr(draft_choice, "measure_step_cost", lambda model: StepCost((block_s,) * 12, rest_s))


def test_the_plan_says_how_many_tokens_and_why(
    reference_analysis: Analysis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        draft_choice, "measure_acceptance", lambda evaluator, sets: [Acceptance(1 - len(s) / 24, 0.5) for s in sets]
    )
    fixed_cost(monkeypatch, 1.0, 0.0)
    plan = draft_for(reference_analysis, SETTINGS, "draft", Amount())
    assert len(plan.dropped) == 6  # half the cost, three of four accepted: the best of 2, 3, 5 and 6 blocks
    assert plan.settings["for"] == "draft"
    assert plan.settings["draft_tokens"] == best_tokens(0.75, 0.5)
    assert plan.settings["expected_speedup"] == pytest.approx(
        expected_speedup(0.75, 0.5, best_tokens(0.75, 0.5)), abs=1e-4
    )
    said = capsys.readouterr().out.splitlines()
    assert sorted(int(line.split()[0]) for line in said) == [2, 3, 5, 6]


def test_one_ratio_only(reference_analysis: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_choice, "measure_acceptance", lambda evaluator, sets: [Acceptance(0.99, 0.9)] * len(sets))
    fixed_cost(monkeypatch, 1.0, 0.0)
    said: list[DraftChoice] = []
    plan = plan_draft(reference_analysis, SETTINGS, [5], said.append)
    assert len(plan.dropped) == 5
    assert [choice.dropped for choice in said] == [plan.dropped]


def test_none_pays(reference_analysis: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled model's own acceptance, with a head that costs more than all its blocks."""
    fixed_cost(monkeypatch, 1.0, 1_000.0)
    said: list[DraftChoice] = []
    with pytest.raises(
        UserError,
        match=r"no draft pays: the best, \d+ of 12 blocks dropped and 1 tokens at a time, .* 0\.\d\dx; serve the",
    ):
        plan_draft(reference_analysis, SETTINGS, (), said.append)
    assert sorted(len(choice.dropped) for choice in said) == [2, 3, 5, 6]


def test_a_draft_that_is_asked_for_is_planned_though_it_does_not_pay(
    reference_analysis: Analysis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed_cost(monkeypatch, 1.0, 1_000.0)
    plan = draft_for(reference_analysis, SETTINGS, "draft", Amount(num_blocks=3))
    assert len(plan.dropped) == 3
    assert 0 < float(plan.settings["expected_speedup"] or 0) < 1
    said = capsys.readouterr()
    assert said.out.startswith("3 blocks dropped: accepts ")
    assert "no draft pays: the best, 3 of 12 blocks dropped and 1 tokens at a time" in said.err


@pytest.mark.parametrize(
    ("purpose", "drop", "said"), [("speed", None, "--for must be draft"), ("draft", "1", "chooses the blocks itself")]
)
def test_refused(reference_analysis: Analysis, purpose: str, drop: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        draft_for(reference_analysis, SETTINGS, purpose, Amount(drop=drop))
