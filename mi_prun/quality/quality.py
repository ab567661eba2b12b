"""What pruning costs: perplexity and KL(dense || pruned) per token, and the protocol that gave them.

The protocol: windows do not overlap, and each runs alone from its first token. Every token but a window's first is
predicted once. Perplexity is exp of the mean cross-entropy over the predicted tokens.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from mi_prun.console import progress
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_block_model, load_on, pick_dtype
from mi_prun.model.model_folder import ModelFolder, open_model
from mi_prun.plan.plan import Quality
from mi_prun.quality.evaluator import MOST_NATS, Dropped, Evaluator, NotFiniteError, logit_rows
from mi_prun.text.calibration import Calibration, load_calibration

HELD_OUT_TOKENS = 8_192


def protocol(window_tokens: int, bos: bool) -> str:
    """Return the protocol in words."""
    first = "BOS first in each" if bos else "no BOS"
    return f"non-overlapping windows of {window_tokens} tokens, {first}, each token but the first predicted once"


def quality_of(evaluator: Evaluator, dropped: Dropped, *, text: str, bos: bool) -> Quality:
    """Measure the evaluator's model without the blocks `dropped`, on the evaluator's windows."""
    with progress("quality", 2 * evaluator.windows.numel(), "tokens") as advance:
        dense, pruned = evaluator.measure([(), dropped], advance)
    return _quality(evaluator.windows, text, bos, dense.ce_nats, pruned.ce_nats, pruned.kl_nats)


def _quality(windows: Tensor, text: str, bos: bool, dense_ce: float, pruned_ce: float, kl: float) -> Quality:
    count, length = windows.shape
    return Quality(
        text=text,
        protocol=protocol(length, bos),
        window_tokens=length,
        windows=count,
        predicted_tokens=count * (length - 1),
        dense_perplexity=math.exp(dense_ce),
        pruned_perplexity=math.exp(pruned_ce),
        kl_nats_per_token=kl,
    )


def measure_quality(
    dense: str | Path,
    pruned: str | Path,
    source: str,
    *,
    tokens: int = HELD_OUT_TOKENS,
    window_tokens: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Quality:
    """Measure a written checkpoint against its dense model on any text; both are loaded and run as they are.

    source: see `load_calibration`; its held-out part of about `tokens` tokens is used.
    """
    dense_folder, pruned_folder = open_model(dense), open_model(pruned)
    dense_model, calibration = load_with_held_out(
        dense_folder, source, tokens=tokens, window_tokens=window_tokens, seed=seed, device=device
    )
    windows = calibration.held_out
    place = dense_model.device
    pruned_model = load_block_model(pruned_folder, device=place, dtype=pick_dtype(place))
    figures = compare_models(dense_model, pruned_model, windows.tokens)
    return _quality(windows.tokens, windows.text, calibration.description.bos, *figures)


def load_with_held_out(
    folder: ModelFolder, source: str, *, tokens: int, window_tokens: int | None, seed: int, device: str | None
) -> tuple[BlockModel, Calibration]:
    """Load a model, and text cut for measuring: about `tokens` tokens held out, one window in each other part."""
    folder.check_window(window_tokens)
    if window_tokens is not None and window_tokens < 2:
        raise UserError(f"--window must be at least 2 (the first token is not predicted), got {window_tokens}")
    model = load_on(folder, device)
    length = window_tokens or folder.context_tokens()
    calibration = load_calibration(
        source,
        folder.tokenizer,
        window_tokens=length,
        scoring_tokens=length,
        ranking_tokens=length,
        held_out_tokens=tokens,
        seed=seed,
        model=model.model,
    )
    for part in (calibration.scoring, calibration.ranking, calibration.held_out):
        folder.check_tokens(part.tokens)
    return model, calibration


@torch.inference_mode()
def compare_models(dense: BlockModel, pruned: BlockModel, windows: Tensor) -> tuple[float, float, float]:
    """Return the cross-entropy of dense, of pruned, and KL(dense || pruned): means over the predicted tokens, nats."""
    sums = torch.zeros(3, dtype=torch.float64)
    with progress("quality", windows.numel(), "tokens") as advance:
        for window in torch.split(windows, 1):
            tokens = window.to(dense.device)
            logits = [
                model.model(input_ids=tokens, use_cache=False).logits[0, :-1] for model in (dense, pruned)
            ]  # (tokens - 1, vocabulary)
            if logits[0].shape != logits[1].shape:
                raise UserError(f"vocabularies differ: {logits[0].shape[-1]} and {logits[1].shape[-1]} tokens")
            rows = logit_rows(dense.device, logits[0].shape[-1])
            pieces = (torch.split(each, rows) for each in (tokens[0, 1:, None], *logits))
            for target, *some in zip(*pieces, strict=True):
                log_p, log_q = (torch.log_softmax(each.float(), dim=-1) for each in some)
                terms = (-log_p.gather(-1, target), -log_q.gather(-1, target), log_p.exp() * (log_p - log_q))
                sums += torch.tensor([float(term.sum(dtype=torch.float64)) for term in terms], dtype=torch.float64)
            advance(window.numel())
    dense_ce, pruned_ce, kl_nats = (sums / (windows.shape[0] * (windows.shape[1] - 1))).tolist()
    for which, nats in (("dense", dense_ce), ("pruned", pruned_ce), ("pruned", kl_nats)):
        if not abs(nats) < MOST_NATS:  # NaN is not
            raise NotFiniteError(
                f"the {which} model gives logits that are not finite, or loses over {MOST_NATS} nats a token: its "
                "quality cannot be measured"
            )
    return dense_ce, pruned_ce, kl_nats
