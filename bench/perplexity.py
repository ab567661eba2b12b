"""Perplexity of one model on any text, by the protocol that every figure of quality here follows."""

from __future__ import annotations

import math

from mi_prun.artefact import Record
from mi_prun.block_model import context_tokens, load_block_model, load_tokenizer, pick_device, pick_dtype
from mi_prun.calibration import load_calibration
from mi_prun.console import progress
from mi_prun.evaluator import Evaluator
from mi_prun.model import open_model
from mi_prun.quality import protocol


class Perplexity(Record):
    """perplexity = exp(mean cross-entropy over predicted_tokens)."""

    model: str
    text: str
    protocol: str
    predicted_tokens: int
    perplexity: float
    dtype: str
    device: str


def measure_perplexity(
    model: str, text: str, *, tokens: int, window_tokens: int | None = None, seed: int = 0, device: str | None = None
) -> Perplexity:
    """Of about `tokens` tokens: the held-out part of `text` as `load_calibration` cuts it."""
    folder = open_model(model)
    place = pick_device(device)
    dtype = pick_dtype(place)
    loaded = load_block_model(folder, device=place, dtype=dtype)
    length = window_tokens or context_tokens(loaded.model)
    calibration = load_calibration(
        text,
        load_tokenizer(folder),
        window_tokens=length,
        scoring_tokens=length,
        ranking_tokens=length,
        held_out_tokens=tokens,
        seed=seed,
        model=loaded.model,
    )
    evaluator = Evaluator(loaded, calibration.held_out.tokens)
    with progress("perplexity", calibration.held_out.tokens.numel(), "tokens") as advance:
        loss = evaluator.measure([()], advance)[0]
    return Perplexity(
        model=folder.path.name,
        text=calibration.held_out.text,
        protocol=protocol(length, calibration.description.bos),
        predicted_tokens=evaluator.predicted_tokens,
        perplexity=math.exp(loss.ce_nats),
        dtype=str(dtype).removeprefix("torch."),
        device=place.type,
    )
