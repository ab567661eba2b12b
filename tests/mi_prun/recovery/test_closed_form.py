from __future__ import annotations

import math

import pytest
import torch

from mi_prun.errors import UserError
from mi_prun.recovery.closed_form import dropped_runs, refit


def test_runs():
    assert dropped_runs([0, 1, 5, 7, 8, 9]) == [(0, 2), (5, 6), (7, 10)]


@torch.no_grad()
def error(weights, tokens, blocks, target):
    with weights.student():
        ours = weights.run(weights.embed(tokens), blocks).flatten(0, 1)
    return ((ours - target).square().sum(-1) / target.square().sum(-1)).mean()


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "opt", "falcon", "qwen3"])
def test_the_state_behind_the_run_comes_nearer_and_the_error_is_what_is_said(shared, tokens, model_type):
    fields = {"n_head": 4, "n_embd": 32, "n_layer": 6, "n_positions": 64} if model_type == "gpt2" else {}
    weights = shared((2, 3), model_type, **fields)
    with torch.no_grad():
        target = weights.run(weights.embed(tokens), range(4)).flatten(0, 1)
    before = error(weights, tokens, (0, 1), target)
    (fit,) = refit(weights, tokens, ridge=0.1, batch_windows=4)
    assert fit.error_before == pytest.approx(float(before), rel=1e-4)
    assert fit.error_after == pytest.approx(float(error(weights, tokens, (0, 1), target)), rel=1e-3)
    assert fit.error_after < 0.9 * fit.error_before
    assert list(weights.own) == [fit.name]


def test_no_smaller_ridge_and_no_other_matrix_is_nearer(shared, tokens):
    """With hardly a ridge the fit is the least squares' own: no direction of the matrix lowers the error."""
    weights = shared((2,))
    (fit,) = refit(weights, tokens, ridge=1e-6, batch_windows=6)
    with torch.no_grad():
        target = weights.run(weights.embed(tokens), range(3)).flatten(0, 1)
        least = error(weights, tokens, (0, 1), target)
        best = weights.own[fit.name].own
        for seed in range(5):
            step = 1e-2 * torch.randn(best.shape, generator=torch.Generator().manual_seed(seed))
            weights.give(fit.name, best + step)
            assert error(weights, tokens, (0, 1), target) > least


def test_a_second_run_is_fitted_on_what_the_first_one_gives(shared, tokens):
    weights = shared((1, 4))
    first, second = refit(weights, tokens, ridge=0.1, batch_windows=3)
    assert (first.name, second.name) == ("model.layers.0.mlp.down_proj.weight", "model.layers.3.mlp.down_proj.weight")
    with torch.no_grad():
        target = weights.run(weights.embed(tokens), range(5)).flatten(0, 1)
    assert second.error_after == pytest.approx(float(error(weights, tokens, (0, 2, 3), target)), rel=1e-3)
    assert second.error_after < second.error_before


def test_a_run_at_the_very_beginning_is_left_as_it_is(shared, tokens):
    weights = shared((0, 3))
    (fit,) = refit(weights, tokens, ridge=0.1, batch_windows=6)
    assert fit.name == "model.layers.2.mlp.down_proj.weight"
    with torch.no_grad():
        target = weights.run(weights.embed(tokens), range(4)).flatten(0, 1)
    assert fit.error_after == pytest.approx(float(error(weights, tokens, (1, 2), target)), rel=1e-3)


def test_only_a_run_at_the_beginning_is_refused(shared, tokens):
    with pytest.raises(UserError, match="begins at block 0"):
        refit(shared((0, 1)), tokens, ridge=0.1, batch_windows=6)


@pytest.mark.parametrize("model_type", ["gemma2", "olmo2"])
def test_a_norm_behind_the_mlp_is_refused_in_words(shared, tokens, model_type):
    weights = shared((2,), model_type)
    with pytest.raises(UserError, match=r"a norm or a factor stands behind model\.layers\.1\.mlp\.down_proj\.weight"):
        refit(weights, tokens, ridge=0.1, batch_windows=6)
    assert not weights.own


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "block 1 gives zeros before"), (math.nan, "block 1 gives NaN or Inf")]
)
def test_a_block_with_nothing_to_fit_is_one_line(shared, tokens, value, said):
    weights = shared((2,))
    torch.nn.init.constant_(weights.model.blocks[1].mlp.up_proj.weight, value)
    with pytest.raises(UserError, match=said):
        refit(weights, tokens, ridge=0.1, batch_windows=4)
