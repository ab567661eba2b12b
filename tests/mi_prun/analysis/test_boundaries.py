"""The one pass sees the boundary states as they are, and names the block that breaks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from mi_prun.analysis.boundaries import SKIP_TOKENS, Collector, collect, pair_angles, random_orthonormal, sample_tokens
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel

WINDOWS = torch.randint(0, 97, (5, 24), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def model(tiny: Callable[..., Path], load: Callable[[Path], BlockModel]) -> BlockModel:
    return load(tiny("llama"))


@torch.inference_mode()
def states(model: BlockModel) -> torch.Tensor:
    """(L + 1, windows, tokens, d), block by block."""
    found = [model.embed(WINDOWS)]
    for block in range(model.num_blocks):
        found.append(model.run(block, found[-1]))
    return torch.stack(found)


@pytest.mark.parametrize("batch_tokens", [24, 48, 4096])
def test_cosines_and_projections_are_those_of_the_states(model: BlockModel, batch_tokens: int) -> None:
    seen = collect(
        model, WINDOWS, sample=sample_tokens(WINDOWS, 10_000, 3), projection=32, seed=3, batch_tokens=batch_tokens
    )
    h = states(model)[:, :, SKIP_TOKENS:]
    wanted = cosine_similarity(h[:-1], h[1:], dim=-1).flatten(1).mean(1)
    assert torch.allclose(seen.cosine.float(), wanted, atol=1e-5)
    assert seen.tokens == 5 * (24 - SKIP_TOKENS)
    assert seen.projections.shape == (7, seen.tokens, 32)
    # As many directions as the state has: lengths and angles are kept.
    gram = seen.projections @ seen.projections.transpose(1, 2)
    flat = h.flatten(1, 2)
    assert torch.allclose(gram, flat @ flat.transpose(1, 2), rtol=1e-3, atol=1e-3)


def test_sampled_tokens_are_as_many_as_asked_and_none_of_the_first(model: BlockModel) -> None:
    sample = sample_tokens(WINDOWS, 17, seed=0)
    assert int(sample.sum()) == 17
    assert not sample[:, :SKIP_TOKENS].any()
    assert torch.equal(sample_tokens(WINDOWS, 17, seed=0), sample)
    assert not torch.equal(sample_tokens(WINDOWS, 17, seed=1), sample)
    assert collect(model, WINDOWS, sample=sample, projection=8, seed=0).projections.shape == (7, 17, 8)
    with pytest.raises(UserError, match="windows of 4 tokens are too short"):
        sample_tokens(WINDOWS[:, :4], 17, seed=0)


def test_the_block_that_gives_nan_is_named(model: BlockModel) -> None:
    block: Any = model.blocks[3]
    with torch.no_grad():
        block.mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"block 3 .*boundary state 4"):
        collect(model, WINDOWS, sample=sample_tokens(WINDOWS, 100, 0), projection=8, seed=0)
    assert not any(b._forward_hooks for b in model.blocks)  # taken off again


@pytest.mark.parametrize(("state", "boundary", "by"), [(0, 0, "the embedding"), (0, 3, "block 2"), (1, 4, "block 3")])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("token", [0, 20])
def test_a_token_that_is_not_sampled_may_not_be_broken_either(
    state: int, boundary: int, by: str, value: float, token: int
) -> None:
    """Nor one of the first, which are left out of all figures: sinks are the largest states, and overflow first."""
    sample = torch.zeros(1, 24, dtype=torch.bool)
    sample[0, 10] = True
    collector = Collector(6, 8, 4, sample, 0, torch.device("cpu"))
    states = torch.randn(2, 1, 24, 8)
    states[state, 0, token, 1] = value
    collector.see(boundary, states[state], 0)  # the sampled token is whole
    collector.compare(boundary - state, states[0], states[1])
    with pytest.raises(UserError, match=rf"^{by} gives NaN or Inf \(boundary state {boundary}\)"):
        collector.check()


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 0.0), (torch.bfloat16, 4e-3), (torch.float16, 0.0)])
def test_projections_in_each_precision(dtype: torch.dtype, off: float) -> None:
    """Of states as large as some models have them: what bfloat16 rounds stays far below the noise of the estimator."""
    state = 5_000 * torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    sample = torch.ones(3, 40, dtype=torch.bool)
    collector = Collector(1, 64, 4, sample, 0, torch.device("cpu"))
    collector.see(0, state, 0)
    (found,) = collector.kept[0]
    wanted = (state.double() @ random_orthonormal(64, 4, 0).double()).flatten(0, 1)
    assert found.dtype == torch.float32
    assert float((found - wanted).norm() / wanted.norm()) <= max(off, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cosines_in_each_precision(dtype: torch.dtype) -> None:
    """Of states as large as some models have them: float16 has no product of two of their entries."""
    before = 900 * torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    after = (before.float() + 300 * torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(1))).to(dtype)
    sample = torch.zeros(3, 40, dtype=torch.bool)
    collector = Collector(1, 64, 4, sample, 0, torch.device("cpu"))
    collector.compare(0, before, after)
    wanted = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)[:, SKIP_TOKENS:].mean()
    found = collector.cosine[0] / (3 * (40 - SKIP_TOKENS))
    assert float(found) == pytest.approx(float(wanted), abs=1e-5 if dtype == torch.float32 else 1e-3)


def test_directions_are_orthonormal_but_for_their_scale() -> None:
    directions = random_orthonormal(32, 8, seed=0)
    assert torch.allclose(directions.T @ directions, 4 * torch.eye(8), atol=1e-5)
    assert random_orthonormal(8, 32, seed=0).shape == (8, 8)


def test_angles_of_known_states() -> None:
    x = torch.tensor([1.0, 0.0]).expand(4, 2)
    y = torch.tensor([0.0, 2.0]).expand(4, 2)
    wanted = torch.tensor([[0, 0.5, 1], [0, 0, 0.5], [0, 0, 0]], dtype=torch.float64)
    assert torch.allclose(pair_angles(torch.stack([x, y, -3 * x])), wanted, atol=1e-6)


@pytest.mark.parametrize("projection", [None, 8])
def test_no_state_is_kept_whole_for_some_tokens_of_it(
    model: BlockModel, projection: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view of a state keeps all of its memory."""
    see, looked_at = Collector.see, 0

    def see_one(self: Collector, boundary: int, state: torch.Tensor, first_window: int) -> None:
        nonlocal looked_at
        see(self, boundary, state, first_window)
        for kept in (*self.kept[boundary], *self.kept_first[boundary]):
            assert kept.untyped_storage().nbytes() == 4 * kept.numel()
            looked_at += 1

    monkeypatch.setattr(Collector, "see", see_one)
    collect(model, WINDOWS, sample=sample_tokens(WINDOWS, 60, 3), projection=projection, seed=3, batch_tokens=48)
    assert looked_at > 2 * (model.num_blocks + 1)
