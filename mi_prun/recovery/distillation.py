"""The loss of healing: KL(dense || student) of the next token, chunk by chunk over tokens.

    L = (1 - s) T^2 KL(p_T || q_T) + s CE(q),   p_T = softmax(z_dense / T),   q_T = softmax(z_student / T)

s: the share of cross-entropy on the text itself. T: the temperature. The gradient on the student's logits is
`(1 - s) T (q_T - p_T) + s (q - onehot)`. It is written down, not recorded: logits of a chunk are all that is ever
in memory, and no float32 copy of a batch's logits is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_prun.model.block_model import BlockModel

CHUNK_BYTES = {"cpu": 32 * 2**20}  # of one model's float32 logits
ACCELERATOR_CHUNK_BYTES = 512 * 2**20
LEAST_ROWS = 32


@dataclass(frozen=True)
class Distillation:
    """temperature: T. ce_share: s, 0 to 1."""

    temperature: float = 1.0
    ce_share: float = 0.0

    def backward(self, model: BlockModel, student: Tensor, teacher: Tensor, tokens: Tensor, scale: float) -> float:
        """Back-propagate the loss of one batch, times `scale`, from the student's final state.

        student, teacher: boundary states L, (batch, tokens, d). tokens: (batch, tokens). Returns the KL at T = 1,
        nats summed over the predicted tokens, without `scale`.
        """
        states = student[:, :-1].flatten(0, 1)  # the last token of a window predicts nothing
        gradients: list[Tensor] = []
        total = 0.0
        for chunk, theirs, targets in _chunks(model, states, teacher, tokens):
            ours = chunk.detach().to(theirs.dtype).requires_grad_()
            logits = model.logits(ours[:, None])[:, 0]
            with torch.no_grad():
                log_q = torch.log_softmax(logits.float(), -1)
                log_p = torch.log_softmax(model.logits(theirs[:, None])[:, 0].float(), -1)
                p = log_p.exp()
                total += float((p * (log_p - log_q)).sum())
                gradient = self._gradient(p, log_p, log_q, targets).mul_(scale / len(states))
            gradients += torch.autograd.grad(logits, ours, gradient.to(logits.dtype))
        torch.autograd.backward(states, torch.cat(gradients).to(states.dtype))
        return total

    def _gradient(self, p: Tensor, log_p: Tensor, log_q: Tensor, targets: Tensor) -> Tensor:
        """The gradient on the student's logits, from (log-)probabilities at T = 1; `log_q` is overwritten."""
        share, temperature = self.ce_share, self.temperature
        hard = None
        if share:
            hard = log_q.exp()
            hard[torch.arange(len(targets), device=targets.device), targets] -= 1
        if temperature != 1:  # softmax(z / T) is that of log-probabilities over T
            p, log_q = torch.softmax(log_p / temperature, -1), torch.log_softmax(log_q / temperature, -1)
        gradient = log_q.exp_().sub_(p).mul_((1 - share) * temperature)
        return gradient if hard is None else gradient.add_(hard, alpha=share)


def _chunks(model: BlockModel, states: Tensor, teacher: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Chunk by chunk of a batch's predicting positions: the student's states (rows, d), the teacher's, next tokens."""
    size = max(LEAST_ROWS, CHUNK_BYTES.get(states.device.type, ACCELERATOR_CHUNK_BYTES) // (4 * model.vocab_size))
    parts = (states, teacher[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().to(states.device))
    return zip(*(torch.split(part, size) for part in parts), strict=True)


@torch.no_grad()
def losses(model: BlockModel, student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """Sums over the predicted tokens, nats: cross-entropy of the dense model, of the student, and KL between. (3,)"""
    sums = torch.zeros(3, dtype=torch.float64)
    for ours, theirs, targets in _chunks(model, student[:, :-1].flatten(0, 1), teacher, tokens):
        log_q, log_p = (
            torch.log_softmax(model.logits(h[:, None].to(theirs.dtype))[:, 0].float(), -1) for h in (ours, theirs)
        )
        pick = targets[:, None]
        parts = (-log_p.gather(1, pick).sum(), -log_q.gather(1, pick).sum(), (log_p.exp() * (log_p - log_q)).sum())
        sums += torch.tensor([float(part) for part in parts], dtype=torch.float64)
    return sums
