"""The selections that peers use, on the interface that ours has: cheap scores, greedy loss, all subsets.

Sources are named at each; block indices are 0-based.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from mi_prun.console import progress
from mi_prun.errors import UserError
from mi_prun.selection.context import Context, Selection

EXHAUSTIVE_LIMIT = 5_000


def tail(context: Context, k: int) -> Selection:
    """The last k blocks (Navigation, arXiv 2411.15558)."""
    last = context.num_blocks
    return Selection(tuple(range(last - k, last)))


def tail_but_last(context: Context, k: int) -> Selection:
    """The k blocks before the very last one, which most models need."""
    last = context.num_blocks - 1
    return Selection(tuple(range(last - k, last)))


def random(context: Context, k: int) -> Selection:
    """k blocks drawn by the seed: the floor."""
    chosen = np.random.default_rng(context.seed).choice(context.num_blocks, size=k, replace=False)
    return Selection(tuple(sorted(chosen.tolist())))


def bi(context: Context, k: int) -> Selection:
    """The k blocks with the least `1 - cos(h_i, h_{i+1})` (ShortGPT's block influence, arXiv 2403.03853)."""
    influence = 1 - context.analysis.block_cosine
    return Selection(tuple(sorted(np.argsort(influence, kind="stable")[:k].tolist())))


def angular(context: Context, k: int) -> Selection:
    """The contiguous window of k blocks with the least `arccos(cos(h_i, h_{i+k})) / pi` (arXiv 2403.17887)."""
    angle = context.analysis.pair_angle
    start = min(range(context.num_blocks - k + 1), key=lambda i: angle[i, i + k])
    return Selection(tuple(range(start, start + k)))


def greedy_loss(context: Context, k: int) -> Selection:
    """Drop the block whose absence raises the cross-entropy least; measure again; k rounds (SLEB, arXiv 2402.09025)."""
    evaluator = context.ranking
    before = evaluator.passes
    dropped: tuple[int, ...] = ()
    with progress("greedy-loss", k, "rounds") as advance:
        for _ in range(k):
            sets = [tuple(sorted((*dropped, block))) for block in range(context.num_blocks) if block not in dropped]
            losses = evaluator.measure(sets)
            dropped = min(zip(losses, sets, strict=True), key=lambda pair: pair[0].ce_nats)[1]
            advance(1)
    return Selection(dropped, evaluator.passes - before)


def exhaustive(context: Context, k: int) -> Selection:
    """The set of k blocks with the least cross-entropy on the ranking text, of all of them: the limit."""
    count = math.comb(context.num_blocks, k)
    if count > EXHAUSTIVE_LIMIT:
        raise UserError(f"exhaustive: {count} sets of {k} of {context.num_blocks} blocks, more than {EXHAUSTIVE_LIMIT}")
    evaluator = context.ranking
    before = evaluator.passes
    sets = list(combinations(range(context.num_blocks), k))
    with progress("exhaustive", evaluator.windows.numel() * count, "tokens") as advance:
        losses = evaluator.measure(sets, advance)
    best = min(zip(losses, sets, strict=True), key=lambda pair: pair[0].ce_nats)[1]
    return Selection(best, evaluator.passes - before)
