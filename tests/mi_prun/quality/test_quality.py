"""Quality of a written checkpoint is what the evaluator says of its blocks, on text that chose nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mi_prun.errors import UserError
from mi_prun.model.loading import load_block_model
from mi_prun.model.model_folder import open_model
from mi_prun.quality.evaluator import Evaluator
from mi_prun.quality.quality import compare_models, load_with_held_out, measure_quality, quality_of

pytestmark = pytest.mark.numeric

DROPPED = (3, 4, 8)


def test_a_written_checkpoint_is_what_the_evaluator_measured(
    reference: Path, prune: Callable[..., Path], harbour: Path, tmp_path: Path
) -> None:
    pruned = prune(reference, tmp_path / "pruned", DROPPED)
    quality = measure_quality(reference, pruned, str(harbour), tokens=512, window_tokens=64)
    model, calibration = load_with_held_out(
        open_model(reference), str(harbour), tokens=512, window_tokens=64, seed=0, device=None
    )
    evaluator = Evaluator(model, calibration.held_out.tokens)
    wanted = quality_of(evaluator, DROPPED, text=calibration.held_out.text, bos=calibration.description.bos)
    assert quality.pruned_perplexity == pytest.approx(wanted.pruned_perplexity, rel=1e-4)
    assert quality.dense_perplexity == pytest.approx(wanted.dense_perplexity, rel=1e-4)
    assert quality.kl_nats_per_token == pytest.approx(wanted.kl_nats_per_token, rel=1e-3)
    assert quality.kl_nats_per_token > 0.01
    assert (quality.predicted_tokens, quality.windows) == (8 * 63, 8)
    assert (quality.text, quality.protocol) == (wanted.text, wanted.protocol)
    assert "windows of 64 tokens, no BOS" in quality.protocol


@torch.inference_mode()
def test_perplexity_is_exp_of_the_models_own_loss(reference: Path, harbour: Path) -> None:
    model, calibration = load_with_held_out(
        open_model(reference), str(harbour), tokens=256, window_tokens=64, seed=0, device="cpu"
    )
    tokens = calibration.held_out.tokens
    loss = float(model.model(input_ids=tokens, labels=tokens).loss)  # type: ignore[operator]
    quality = quality_of(Evaluator(model, tokens), (), text="", bos=False)
    assert quality.dense_perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert quality.pruned_perplexity == quality.dense_perplexity
    assert quality.kl_nats_per_token == 0


def test_models_of_different_vocabularies_are_not_compared(tiny: Callable[..., Path]) -> None:
    one, other = (
        load_block_model(
            open_model(tiny("llama", folder=str(size), vocab_size=size)),
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        for size in (97, 99)
    )
    with pytest.raises(UserError, match="vocabularies differ: 97 and 99"):
        compare_models(one, other, torch.zeros(1, 8, dtype=torch.long))


def test_a_model_that_gives_nan_is_refused_by_its_name(tiny: Callable[..., Path]) -> None:
    one, other = (
        load_block_model(open_model(tiny("llama", folder=name)), device=torch.device("cpu"), dtype=torch.float32)
        for name in ("one", "other")
    )
    torch.nn.init.constant_(other.model.get_output_embeddings().weight, torch.nan)
    windows = torch.zeros(1, 8, dtype=torch.long)
    with pytest.raises(UserError, match="the pruned model gives logits that are not finite"):
        compare_models(one, other, windows)
    with pytest.raises(UserError, match="the dense model gives logits that are not finite"):
        compare_models(other, one, windows)


def test_windows_beyond_the_learned_positions_are_refused(tiny: Callable[..., Path]) -> None:
    dense = open_model(tiny("opt", ffn_dim=48, word_embed_proj_dim=32))
    with pytest.raises(UserError, match="--window must be at most 64"):
        load_with_held_out(dense, "gone.txt", tokens=256, window_tokens=65, seed=0, device="cpu")
