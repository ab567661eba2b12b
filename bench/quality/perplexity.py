"""Measure the perplexity of one model on any text, by the protocol that every figure of quality here follows."""

from __future__ import annotations

import math
from pathlib import Path

from mi_prun.artefact import Record
from mi_prun.console import progress
from mi_prun.model.loading import pick_dtype
from mi_prun.model.model_folder import open_model
from mi_prun.quality.evaluator import Evaluator
from mi_prun.quality.quality import load_with_held_out, protocol


class Perplexity(Record):
    """The perplexity of a model on a text: exp(mean cross-entropy over predicted_tokens)."""

    model: str
    text: str
    protocol: str
    predicted_tokens: int
    perplexity: float
    dtype: str
    device: str


def perplexity_of(evaluator: Evaluator) -> float:
    """Return the perplexity of the evaluator's whole model on its windows."""
    with progress("perplexity", evaluator.windows.numel(), "tokens") as advance:
        return math.exp(evaluator.measure([()], advance)[0].ce_nats)


def measure_perplexity(
    model: str, text: str, *, tokens: int, window_tokens: int | None = None, seed: int = 0, device: str | None = None
) -> Perplexity:
    """Measure a model on about `tokens` tokens: the held-out part of `text` as `load_calibration` cuts it."""
    folder = open_model(model)
    loaded, calibration = load_with_held_out(
        folder, text, tokens=tokens, window_tokens=window_tokens, seed=seed, device=device
    )
    windows = calibration.held_out
    evaluator = Evaluator(loaded, windows.tokens)
    return Perplexity(
        model=folder.path.name if Path(folder.name).is_dir() else folder.name,
        text=windows.text,
        protocol=protocol(windows.tokens.shape[1], calibration.description.bos),
        predicted_tokens=evaluator.predicted_tokens,
        perplexity=perplexity_of(evaluator),
        dtype=str(pick_dtype(loaded.device)).removeprefix("torch."),
        device=loaded.device.type,
    )
