"""Re-ranking: candidates are measured on a part of the ranking text, the better ones on more of it.

Successive halving (Jamieson, Talwalkar 2016) runs on the screening text. The finalists go on through the rest until
they are clearly behind. Windows are nested and measurements are kept: a candidate that goes on costs the new windows
only. All comparisons are paired: the same tokens for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mi_prun.console import progress
from mi_prun.quality.evaluator import Dropped, Evaluator, Loss, block_runs
from mi_prun.selection.budget import thrift
from mi_prun.selection.context import Context

# Shares of the screening text.
FIRST_SHARE = 1 / 4  # for every candidate
# A larger share of the text, the share of the candidates that gets it, and their least number: few candidates cost
# little, and a short text must not throw out the best of them.
STAGES = ((1 / 2, 1 / 5, 10), (1.0, 1 / 10, 6))
# How many go on to the rest of the ranking text. More do where that is long: those clearly behind do not go through it.
FINALISTS, MORE_FINALISTS = 4, 6
REST_SHARES = (1 / 8, 1 / 4, 1 / 2)  # of that rest; after each a finalist may be left out
CLEARLY = 3.0  # standard errors of the paired difference
LEAST_WINDOWS = 8  # screening text included; the error of fewer is not known well enough


@dataclass(frozen=True)
class Ranked:
    """A candidate and its loss on the whole ranking text."""

    dropped: Dropped
    loss: Loss


def first_windows(context: Context) -> int:
    """Return how many windows every candidate is measured on."""
    return share_of(context.screening.windows, FIRST_SHARE)


def share_of(windows: Tensor, share: float) -> int:
    """Return how many windows a share is: two at least, where there are two, as one does not tell its noise."""
    return min(len(windows), max(2, round(share * len(windows))))


def race(context: Context, sets: Sequence[Dropped], most_passes: float = math.inf) -> list[Ranked]:
    """Return the finalists that were not left out on the way, best first by the context's criterion.

    most_passes: what the context may have spent at the end (`Context.passes`); finalists are left out to keep it.
    """
    candidates = list(dict.fromkeys(sets))
    count = len(candidates)
    evaluator = context.screening
    windows = first_windows(context)
    with progress("re-ranking", count, "sets") as advance:
        for share, kept, least in (*STAGES, (1.0, 0.0, finalists(context))):
            before, candidates = len(candidates), unbroken(evaluator, candidates, windows)
            order = np.argsort(context.values(evaluator.by_window(candidates, windows=windows)), kind="stable")
            keep = min(len(candidates), max(FINALISTS, round(least * thrift(context)), round(kept * count)))
            advance(before - keep)
            candidates = [candidates[i] for i in order[:keep]]
            windows = max(windows, round(share * len(evaluator.windows)))
        count = len(candidates)
        candidates = final(context, candidates, most_passes)
        if context.confirming is not None:
            candidates = unbroken(context.confirming, candidates, len(context.confirming.windows))
        losses = ranking_losses(context, candidates)
        advance(count)
    ranked = [Ranked(dropped, loss) for dropped, loss in zip(candidates, losses, strict=True)]
    return sorted(ranked, key=lambda entry: context.value(entry.loss))


def finalists(context: Context) -> int:
    """Return how many candidates go on to the rest of the ranking text."""
    return FINALISTS if context.short_text else MORE_FINALISTS


def final(context: Context, candidates: list[Dropped], most_passes: float = math.inf) -> list[Dropped]:
    """Return the candidates, best first, that are never clearly behind on the way through the rest of the ranking text.

    most_passes: no more candidates go on than it pays for.
    """
    rest = context.confirming
    if rest is None:
        return candidates
    column = 0 if context.criterion == "kl" else 1
    done = 0
    for share in (*REST_SHARES, 1.0):
        windows = round(share * len(rest.windows))
        enough = windows >= 2 and len(context.screening.windows) + windows >= LEAST_WINDOWS
        if share < 1.0 and not enough:
            continue
        candidates = affordable(context, candidates, done, windows, most_passes)
        if share < 1.0 and len(candidates) > 1:
            candidates = unbroken(rest, candidates, windows)
            parts = (context.screening.by_window(candidates), rest.by_window(candidates, windows=windows))
            losses = [part[..., column] for part in parts]
            behind, order = clearly_behind(losses), np.argsort(sum(part.sum(1) for part in losses), kind="stable")
            candidates = [candidates[i] for i in order if not behind[i]]
            done = windows
    return candidates


def unbroken(evaluator: Evaluator, sets: list[Dropped], windows: int) -> list[Dropped]:
    """Return the sets that do not break the model on the first windows. Raises NotFiniteError where all do."""
    losses = evaluator.by_window(sets, windows=windows, may_break=True)
    sound = [dropped for dropped, own in zip(sets, losses, strict=True) if np.isfinite(own).all()]
    if not sound:
        raise evaluator.not_finite(sets[0], slice(windows))
    return sound


def affordable(
    context: Context, candidates: list[Dropped], done: int, windows: int, most_passes: float
) -> list[Dropped]:
    """Return as many of the first candidates as can be paid for, one at least.

    Each goes from `done` to `windows` windows of the rest of the ranking text; enough must be left to take the first
    one to its end.
    """
    rest = context.confirming
    if rest is None or math.isinf(most_passes):
        return candidates
    left = (most_passes - context.passes) * context.num_blocks * context.analysis.ranking.size / rest.windows.shape[1]

    def runs(count: int) -> int:
        return block_runs([(), *candidates[:count]], context.num_blocks)

    to_the_end = runs(1) * (len(rest.windows) - windows)
    counts = range(len(candidates), 1, -1)
    return candidates[: next((n for n in counts if runs(n) * (windows - done) + to_the_end <= left), 1)]


def clearly_behind(losses: Sequence[NDArray[np.float64]]) -> NDArray[np.bool_]:
    """Return (sets,): whether a set is CLEARLY standard errors behind the best. losses: each text's (sets, windows)."""
    total = sum(part.sum(1) for part in losses)
    best = int(np.argmin(total))
    differences = [part - part[best] for part in losses]
    variance = sum(part.shape[1] * part.var(1, ddof=1) for part in differences)
    behind: NDArray[np.bool_] = total - total[best] > CLEARLY * np.sqrt(variance)
    return behind


def ranking_losses(context: Context, sets: Sequence[Dropped]) -> list[Loss]:
    """Return the loss over the whole ranking text, both parts together, weighted by tokens."""
    parts = [evaluator for evaluator in (context.screening, context.confirming) if evaluator is not None]
    total = sum(evaluator.predicted_tokens for evaluator in parts)
    kl, ce = sum(evaluator.by_window(sets).sum(1).T / total for evaluator in parts)
    return [Loss(max(0.0, float(a)), float(b)) for a, b in zip(kl, ce, strict=True)]
