"""Re-ranking: candidates are measured on a part of the ranking text, the better ones on more of it.

Successive halving (Jamieson, Talwalkar 2016): windows are nested and what was measured is kept, so that going on with a
candidate costs the new windows only. All comparisons are paired: the same tokens for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mi_prun.console import progress
from mi_prun.evaluator import Loss
from mi_prun.selection.context import Context
from mi_prun.selection.objective import Dropped

# Shares of the screening text, which is half of the ranking text.
FIRST_SHARE = 1 / 4  # for every candidate
STAGES = ((1 / 2, 1 / 4), (1.0, 1 / 8))  # a larger share, and the share of the candidates that gets it
FINALISTS = 2  # get the other half of the ranking text too; the share of the candidates that goes on never falls below


@dataclass(frozen=True)
class Ranked:
    """A candidate and its loss on the whole ranking text."""

    dropped: Dropped
    loss: Loss


def first_windows(context: Context) -> int:
    """Windows that every candidate is measured on."""
    return max(1, round(FIRST_SHARE * len(context.screening.windows)))


def race(context: Context, sets: Sequence[Dropped]) -> list[Ranked]:
    """The finalists, best first by the context's criterion."""
    candidates = list(dict.fromkeys(sets))
    count = len(candidates)
    evaluator = context.screening
    windows = first_windows(context)
    with progress("re-ranking", count, "sets") as advance:
        for share, kept in (*STAGES, (1.0, 0.0)):
            losses = evaluator.measure(candidates, windows=windows)
            order = np.argsort([context.value(loss) for loss in losses], kind="stable")
            keep = min(len(candidates), max(FINALISTS, round(kept * count)))
            advance(len(candidates) - keep)
            candidates = [candidates[i] for i in order[:keep]]
            windows = max(windows, round(share * len(evaluator.windows)))
        losses = ranking_losses(context, candidates)
        advance(len(candidates))
    ranked = [Ranked(dropped, loss) for dropped, loss in zip(candidates, losses, strict=True)]
    return sorted(ranked, key=lambda entry: context.value(entry.loss))


def ranking_losses(context: Context, sets: Sequence[Dropped]) -> list[Loss]:
    """Loss over the whole ranking text, both halves together, token by token."""
    parts = [evaluator for evaluator in (context.screening, context.confirming) if evaluator is not None]
    total = sum(evaluator.predicted_tokens for evaluator in parts)
    kl, ce = sum(evaluator.by_window(sets).sum(1).T / total for evaluator in parts)
    return [Loss(max(0.0, float(a)), float(b)) for a, b in zip(kl, ce, strict=True)]
