"""What the student loses against the dense model, on held-out text of several kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_prun.checkpoint.healing import HealedQuality
from mi_prun.errors import UserError
from mi_prun.quality.evaluator import MOST_NATS
from mi_prun.recovery.distillation import losses
from mi_prun.recovery.shared_weights import SharedWeights
from mi_prun.text.calibration import Windows


class NoBetterError(UserError):
    """A healed model is no better than the pruned one."""

    status = 3  # it is no wrong input: a script may go on without healing


@dataclass(frozen=True)
class Judged:
    """Means over the predicted tokens of one text, nats. kl_nats: KL(dense || student). window_tokens: of a window."""

    text: str
    predicted_tokens: int
    dense_ce_nats: float
    ce_nats: float
    kl_nats: float
    window_tokens: int


class Judge:
    """Measures the student as it stands. What does not change, the dense model's states, is run once and kept."""

    def __init__(self, weights: SharedWeights, kinds: Sequence[Windows], batch_windows: int) -> None:
        self.weights, self.kinds, self.batch = weights, tuple(kinds), batch_windows
        self._states: list[list[tuple[Tensor, Tensor, Tensor]]] = []

    @torch.no_grad()
    def measure(self) -> list[Judged]:
        """Measure the student on every kind of text; return one `Judged` for each, in order."""
        if not self._states:
            self._states = [
                [self._dense(tokens) for tokens in torch.split(kind.tokens, self.batch)] for kind in self.kinds
            ]
        return [self._measure(kind, states) for kind, states in zip(self.kinds, self._states, strict=True)]

    def _dense(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens, the state before the first block that may differ, and the dense model's last state."""
        weights = self.weights
        before = weights.run(weights.embed(tokens), range(weights.first))
        return tokens, before, weights.run(before, range(weights.first, weights.model.num_blocks))

    def _measure(self, kind: Windows, states: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Judged:
        parts = []
        for tokens, before, dense in states:
            with self.weights.student():
                ours = self.weights.run(before, self.weights.trained_blocks)
            parts.append(losses(self.weights.model, ours, dense, tokens))
        return judged(kind, parts)


def judged(kind: Windows, parts: Sequence[Tensor]) -> Judged:
    """Means over one text. parts: the sums of its batches, as `losses` gives them. Raises UserError for NaN and Inf."""
    sums = torch.stack(list(parts)).sum(0)
    count = kind.tokens.shape[0] * (kind.tokens.shape[1] - 1)
    dense, ours, kl = (sums / count).tolist()
    if not math.isfinite(dense):
        raise UserError(f"the dense model gives NaN or Inf on {kind.text}: nothing can be learned from it")
    if not (math.isfinite(ours) and math.isfinite(kl)):
        raise UserError(
            f"the model gives NaN or Inf on {kind.text}; where it was trained, take a lower --learning-rate"
        )
    return Judged(kind.text, count, dense, ours, kl, kind.tokens.shape[1])


def compared(before: Sequence[Judged], after: Sequence[Judged]) -> tuple[HealedQuality, ...]:
    """What healing changed, by kind."""
    return tuple(
        HealedQuality(
            text=old.text,
            predicted_tokens=old.predicted_tokens,
            window_tokens=old.window_tokens,
            dense_perplexity=_exp(old.dense_ce_nats),
            pruned_perplexity=_exp(old.ce_nats),
            healed_perplexity=_exp(new.ce_nats),
            pruned_kl_nats=old.kl_nats,
            healed_kl_nats=new.kl_nats,
        )
        for old, new in zip(before, after, strict=True)
    )


def _exp(nats: float) -> float:
    """The perplexity; of a model that is broken past counting, the largest one."""
    return math.exp(min(nats, MOST_NATS))
