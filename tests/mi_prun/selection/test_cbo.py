"""Derivatives in the block gates: those that differences of the loss give."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch

from mi_prun.analysis.analysis import Analysis
from mi_prun.model.block_model import BlockModel
from mi_prun.selection.cbo import Taylor, cbo, cbo_fisher, gated, taylor
from mi_prun.selection.context import Context

pytestmark = pytest.mark.numeric

WINDOWS = torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(8))


@pytest.fixture
def model(tiny: Callable[..., Path], load: Callable[[Path], BlockModel]) -> BlockModel:
    return load(tiny("llama"))


@torch.no_grad()
def loss(model: BlockModel, at: dict[int, float]) -> float:
    """Mean loss with gates a; blocks bypassed in part."""
    with gated(model) as gates:
        for block, value in at.items():
            gates[block] = value
        logits = model.model(input_ids=WINDOWS, use_cache=False).logits[:, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), WINDOWS[:, 1:].flatten()))


def test_a_gate_of_one_is_the_block_left_out(model: BlockModel) -> None:
    with torch.no_grad(), model.without([2]) as pruned:
        logits = pruned(input_ids=WINDOWS, use_cache=False).logits[:, :-1].double()
    wanted = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), WINDOWS[:, 1:].flatten()))
    assert loss(model, {2: 1.0}) == pytest.approx(wanted, abs=1e-5)


def test_gradient_and_hessian_are_those_of_finite_differences(model: BlockModel) -> None:
    derivatives = taylor(model, WINDOWS, "exact")
    e = 2e-2
    for i in range(6):
        slope = (loss(model, {i: e}) - loss(model, {i: -e})) / (2 * e)
        assert float(derivatives.gradient[i]) == pytest.approx(slope, abs=5e-3)
    largest = float(derivatives.hessian.abs().max())
    e = 4e-2
    for i, j in ((0, 1), (1, 4), (2, 5), (3, 4)):
        corners = [s * t * loss(model, {i: s * e, j: t * e}) for s in (1, -1) for t in (1, -1)]
        assert float(derivatives.hessian[i, j]) == pytest.approx(sum(corners) / (4 * e * e), abs=0.05 * largest)
    here = loss(model, {0: 0.0})
    for i in range(6):
        second = loss(model, {i: e}) + loss(model, {i: -e}) - 2 * here
        assert float(derivatives.hessian[i, i]) == pytest.approx(second / (e * e), abs=0.05 * largest)
    assert torch.equal(derivatives.hessian, derivatives.hessian.T)


def test_the_fisher_form_has_the_same_gradient_and_no_negative_curvature(model: BlockModel) -> None:
    exact, fisher = taylor(model, WINDOWS, "exact"), taylor(model, WINDOWS, "fisher", pieces=5)  # 15 losses in fives
    assert torch.allclose(fisher.gradient, exact.gradient, atol=1e-5)
    assert float(torch.linalg.eigvalsh(fisher.hessian).min()) > -1e-9
    assert fisher.passes < exact.passes


def test_the_model_is_left_as_it_was(model: BlockModel) -> None:
    taylor(model, WINDOWS, "fisher")
    assert all(parameter.requires_grad for parameter in model.model.parameters())
    assert not any(block._forward_hooks for block in model.blocks)


@pytest.mark.parametrize("form", ["exact", "fisher"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_low_states_are_those_of_the_taylor_polynomial(
    reference_analysis: Analysis, reference: Path, load: Callable[[Path], BlockModel], form: str, k: int
) -> None:
    """E(a) = g^T a + 1/2 a^T H a, the diagonal of H and all, by all sets of a model of six blocks."""
    generator = torch.Generator().manual_seed(k)
    gradient = torch.randn(6, generator=generator, dtype=torch.float64)
    half = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    derivatives = Taylor(gradient, half + half.T, 1.0)
    context = Context(reference_analysis, lambda: load(reference), derived={f"taylor {form}": derivatives})

    def energy(dropped: tuple[int, ...]) -> float:
        a = torch.zeros(6, dtype=torch.float64)
        a[list(dropped)] = 1.0
        return float(derivatives.gradient @ a + 0.5 * a @ derivatives.hessian @ a)

    wanted = sorted(combinations(range(6), k), key=energy)[:5]
    method = cbo if form == "exact" else cbo_fisher
    assert method(context, k, 5) == wanted
