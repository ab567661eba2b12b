"""What the default may cost: blocks x tokens evaluated, the analysis included, as a share of greedy search's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mi_prun.analysis.analysis import Analysis
from mi_prun.comparison.comparison import compare, parse_methods
from mi_prun.model.block_model import BlockModel
from mi_prun.selection import context
from mi_prun.selection.context import Context


@pytest.fixture(autouse=True)
def screening_as_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the ranking text; of one as short as these it would be a half."""
    monkeypatch.setattr(context, "SCREENING_TOKENS", 1)


@pytest.fixture
def context_of(analysed: Callable[..., Analysis]) -> Callable[[BlockModel, int], Context]:
    """A context on random tokens; the one pass, the ranking and the held-out part have their default proportions."""

    def make(model: BlockModel, seed: int) -> Context:
        tokens = torch.randint(0, 97, (76, 12), generator=torch.Generator().manual_seed(seed))
        analysis = analysed(model, *torch.split(tokens, [4, 64, 8]), sampled_tokens=32, seed=seed)
        return Context(analysis, lambda: model, seed)

    return make


def share_of_greedy(own: Context) -> float:
    hybrid, greedy = compare(own, parse_methods("hybrid,greedy-loss"), [own.num_blocks // 4])
    assert hybrid.candidates == 24
    assert hybrid.passes > hybrid.analysis_passes
    return hybrid.passes / greedy.passes


@pytest.mark.parametrize("model_type", ["llama", pytest.param("qwen2", marks=pytest.mark.long)])
@pytest.mark.parametrize(("num_blocks", "most"), [(12, 1 / 3), pytest.param(24, 1 / 10, marks=pytest.mark.long)])
def test_a_quarter_of_the_blocks_costs_a_third_of_greedy_search_and_of_many_blocks_a_tenth(
    tiny: Callable[..., Path],
    load: Callable[[Path], BlockModel],
    context_of: Callable[[BlockModel, int], Context],
    model_type: str,
    num_blocks: int,
    most: float,
) -> None:
    model = load(tiny(model_type, num_hidden_layers=num_blocks, hidden_size=16))
    assert share_of_greedy(context_of(model, num_blocks)) <= most


@pytest.mark.parametrize(
    ("num_blocks", "most"), [(12, 1 / 3), (24, 1 / 10), pytest.param(26, 1 / 10, marks=pytest.mark.long)]
)
def test_on_a_short_text_too(
    tiny: Callable[..., Path],
    load: Callable[[Path], BlockModel],
    context_of: Callable[[BlockModel, int], Context],
    monkeypatch: pytest.MonkeyPatch,
    num_blocks: int,
    most: float,
) -> None:
    """Half of it screens."""
    monkeypatch.setattr(context, "SCREENING_TOKENS", 8_192)
    own = context_of(load(tiny("llama", num_hidden_layers=num_blocks, hidden_size=16)), num_blocks)
    assert own.short_text
    assert share_of_greedy(own) <= most


@pytest.mark.long
def test_so_it_does_of_a_trained_model(
    reference: Path, load: Callable[[Path], BlockModel], reference_analysis: Analysis
) -> None:
    """Its best sets begin early: they share fewer states."""
    text = replace(
        reference_analysis,
        scoring=reference_analysis.scoring[:2],
        ranking=reference_analysis.ranking[:8].reshape(32, 16),
        held_out=reference_analysis.held_out[:1],
    )
    assert share_of_greedy(Context(text, lambda: load(reference))) <= 1 / 3
