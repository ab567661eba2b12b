"""The loss of healing: KL(dense || student) of the next token, chunk by chunk over tokens.

    L = (1 - s) T^2 KL(p_T || q_T) + s CE(q),   p_T = softmax(z_dense / T),   q_T = softmax(z_student / T)

s: the share of cross-entropy on the text itself. T: the temperature. The gradient on the student's logits is
`(1 - s) T (q_T - p_T) + s (q - onehot)`. It is written down, not recorded: logits of a chunk are all that is ever
in memory, and no float32 copy of a batch's logits is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_prun.model.block_model import BlockModel

CHUNK_BYTES = {"cpu": 64 * 2**20}  # of one model's float32 logits that are multiplied at once
ACCELERATOR_CHUNK_BYTES = 512 * 2**20
CACHED_BYTES = {"cpu": 3 * 2**19}  # of these, what stays in a core's cache over the passes of the gradient
LEAST_ROWS = 32


@dataclass(frozen=True)
class Distillation:
    """The loss of healing, as the module states it. temperature: T. ce_share: s, 0 to 1."""

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
            logits = model.logits(ours[:, None]).squeeze(1)  # the gradient of a squeeze copies nothing
            with torch.no_grad():
                kl, gradient = self._gradient(logits, model.logits(theirs[:, None]).squeeze(1), targets)
                total += kl
            gradients += torch.autograd.grad(logits, ours, gradient)
        torch.autograd.backward(states, torch.cat(gradients).mul_(scale / len(states)).to(states.dtype))
        return total

    def _gradient(self, student: Tensor, teacher: Tensor, targets: Tensor) -> tuple[float, Tensor]:
        """The KL at T = 1 summed over the rows, and the gradient on the student's logits, in their dtype."""
        size = _rows(CACHED_BYTES.get(student.device.type), student.shape[1], least=1)
        gradient = torch.empty_like(student)
        kl = 0.0
        rows = zip(*(torch.split(each, size) for each in (gradient, student, teacher, targets)), strict=True)
        for place, ours, theirs, wanted in rows:
            nats, part = self._row_gradient(ours.float(), theirs.float(), wanted)
            kl += nats
            place.copy_(part)
        return kl, gradient

    def _row_gradient(self, student: Tensor, teacher: Tensor, targets: Tensor) -> tuple[float, Tensor]:
        """`_gradient` of a few rows, in float32.

        Rows are as long as the vocabulary: each pass over them counts, and none is made for a logarithm.
        """
        share, temperature = self.ce_share, self.temperature
        (p, log_sum_p), (q, log_sum_q) = _softmax(teacher), _softmax(student)
        dots = torch.linalg.vecdot(p, teacher) - torch.linalg.vecdot(p, student)
        kl = float((dots - log_sum_p + log_sum_q).sum())
        hard = None
        if share:
            hard = q.clone() if temperature == 1 else q
            hard[torch.arange(len(targets), device=targets.device), targets] -= 1
        if temperature != 1:
            p, q = torch.softmax(teacher / temperature, -1), torch.softmax(student / temperature, -1)
        gradient = q.sub_(p)
        if (factor := (1 - share) * temperature) != 1:
            gradient.mul_(factor)
        return kl, gradient if hard is None else gradient.add_(hard, alpha=share)


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of each row, and the logarithm of the sum of its exponentials."""
    probabilities = torch.softmax(logits, -1)
    return probabilities, logits.amax(-1) - probabilities.amax(-1).log()


def _rows(chunk_bytes: int | None, vocabulary: int, *, least: int) -> int:
    """The rows of float32 logits in `chunk_bytes`; None: what an accelerator takes."""
    return max(least, (chunk_bytes or ACCELERATOR_CHUNK_BYTES) // (4 * vocabulary))


def _chunks(model: BlockModel, states: Tensor, teacher: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Chunk by chunk of a batch's predicting positions: the student's states (rows, d), the teacher's, next tokens."""
    size = _rows(CHUNK_BYTES.get(states.device.type), model.vocab_size, least=LEAST_ROWS)
    parts = (states, teacher[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().to(states.device))
    pieces = math.ceil(len(states) / size)  # alike in size: each reads the whole head
    return zip(*(torch.chunk(part, pieces) for part in parts), strict=True)


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
