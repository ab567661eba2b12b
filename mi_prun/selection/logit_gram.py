"""How the losses of single removals add up: the Fisher Gram matrix of what each removal does to the logits.

Let z be the dense model's logits, p = softmax(z), and d_i their change when block i is left out. To second order

    KL(dense || without D) ~ 1/2 (sum_i d_i)^T F (sum_i d_i) = 1/2 sum_ij G_ij,   G_ij = E[cov_p(d_i, d_j)],

F = diag(p) - p p^T is the Fisher information of the next token in the logits. So KL is a quadratic in the set D. Its
diagonal is measured, and its couplings cost no run of their own: L single removals serve every number of blocks. The
cross-entropy has the same couplings, as its first order, E[(p - y)^T d_i], is linear in D. The quadratic leaves out
that block j does something else when i is missing; `surrogate.py` learns that from measured sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mi_prun.quality.evaluator import STATE_BYTES, Dropped, Evaluator, Loss

GRAM_ROWS = 32  # at least, in a chunk, however many blocks and words there are
GRAM_BYTES = 64 * 2**20  # of logit changes in memory at a time, where GRAM_ROWS allow it


@dataclass(frozen=True)
class LogitGram:
    """The Gram and the losses that come with it.

    gram: (L, L), nats: G_ij. singles: the loss without each block. dense: the loss of the dense model.
    """

    gram: NDArray[np.float64]
    singles: tuple[Loss, ...]
    dense: Loss

    def linear(self, criterion: str) -> NDArray[np.float64]:
        """Return what each single removal costs, (L,) nats."""
        if criterion == "kl":
            return np.array([loss.kl_nats for loss in self.singles])
        return np.array([loss.ce_nats - self.dense.ce_nats for loss in self.singles])

    def predict(self, sets: Sequence[Dropped], criterion: str) -> NDArray[np.float64]:
        """Return the quadratic's loss above dense, (sets,) nats."""
        x = membership(sets, len(self.gram))
        pairs = self.gram - np.diag(np.diag(self.gram))
        predicted: NDArray[np.float64] = x @ self.linear(criterion) + 0.5 * ((x @ pairs) * x).sum(1)
        return predicted


def all_singles(num_blocks: int) -> list[Dropped]:
    """Return the sets of one block."""
    return [(block,) for block in range(num_blocks)]


def membership(sets: Sequence[Dropped], num_blocks: int) -> NDArray[np.float64]:
    """Return a matrix (sets, L): 1 where a set drops a block, else 0."""
    x = np.zeros((len(sets), num_blocks))
    for row, dropped in zip(x, sets, strict=True):
        row[list(dropped)] = 1.0
    return x


@torch.inference_mode()
def logit_gram(
    evaluator: Evaluator, *, windows: int | None = None, advance: Callable[[float], None] | None = None
) -> LogitGram:
    """Leave out each block once on the first `windows` windows of `evaluator`.

    It takes about L/2 forward passes over them, which the caller counts.
    """
    count = evaluator.model.num_blocks
    singles = all_singles(count)
    device = evaluator.model.device
    gram = torch.zeros(count, count, dtype=torch.float64, device=device)
    kl = torch.zeros(count, dtype=torch.float64, device=device)
    ce = torch.zeros(count + 1, dtype=torch.float64, device=device)
    rows = 0
    window_bytes = (count + 1) * evaluator.windows.shape[1] * evaluator.model.hidden_size * 4
    batch = max(1, min(evaluator.batch, STATE_BYTES // window_bytes))
    for tokens in torch.split(evaluator.windows[:windows], batch):
        for log_p, target, removed in evaluator.log_probabilities(tokens, singles, GRAM_BYTES // count, GRAM_ROWS):
            change = log_p.new_empty(count, *log_p.shape)  # (L, rows, vocabulary)
            for each, log_q in zip(change, removed, strict=True):
                torch.sub(log_q, log_p, out=each)
            p = log_p.exp()
            mean = (change * p).sum(-1, keepdim=True)  # -KL of each row
            aim = target[None, :, None].expand(count, -1, 1)
            kl -= mean.sum((1, 2), dtype=torch.float64)
            ce[:-1] -= change.gather(2, aim).sum((1, 2), dtype=torch.float64)
            ce[-1] -= log_p.gather(1, target[:, None]).sum(dtype=torch.float64)
            scaled = ((change - mean) * p.sqrt()).flatten(1)
            gram += (scaled @ scaled.T).double()
            rows += len(target)
        if advance is not None:
            advance(tokens.numel() * count)
    ce[:-1] += ce[-1]
    broken = ~(kl.isfinite() & ce[:-1].isfinite())
    if broken.all() or not ce[-1].isfinite():
        raise evaluator.not_finite(singles[0], windows=slice(windows))
    if broken.any():  # such a block is dropped last: it costs twice what guessing does, and is seen in no pair
        guess = 2 * rows * math.log(evaluator.model.vocab_size)
        kl[broken], ce[:-1][broken] = guess, ce[-1] + guess
        gram[broken], gram[:, broken] = 0.0, 0.0
    kl, ce, gram = (x.cpu() / rows for x in (kl.clamp(min=0), ce, gram))
    return LogitGram(
        gram.numpy(),
        tuple(Loss(float(a), float(b)) for a, b in zip(kl, ce[:-1], strict=True)),
        Loss(0.0, float(ce[-1])),
    )
