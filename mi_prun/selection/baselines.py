"""The methods that peers use, on our interface: cheap scores, greedy loss, all subsets.

A method takes a context, a number of blocks k and how many sets it may name. It gives sets of k blocks, best first.
Each names its source; block indices are 0-based.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from mi_prun.console import progress
from mi_prun.errors import UserError
from mi_prun.quality.evaluator import Dropped
from mi_prun.selection.context import Context
from mi_prun.selection.quadratic import low_states

EXHAUSTIVE_LIMIT = 5_000


class TooManySetsError(UserError):
    """Too many sets of k blocks to enumerate; another k may be feasible."""


def tail(context: Context, k: int, count: int) -> list[Dropped]:
    """Drop the last k blocks (Navigation, arXiv 2411.15558)."""
    return last(context.num_blocks, k)


def last(num_blocks: int, k: int) -> list[Dropped]:
    """Return the set of the last k blocks."""
    return [tuple(range(num_blocks - k, num_blocks))]


def tail_but_last(context: Context, k: int, count: int) -> list[Dropped]:
    """Drop the k blocks before the very last one, which most models need."""
    return last_but_one(context.num_blocks, k)


def last_but_one(num_blocks: int, k: int) -> list[Dropped]:
    """Return the set of the k blocks before the last one."""
    return last(num_blocks - 1, k)


def random(context: Context, k: int, count: int) -> list[Dropped]:
    """Drop k blocks drawn by the seed: the floor."""
    chosen = np.random.default_rng(context.seed).choice(context.num_blocks, size=k, replace=False)
    return [tuple(sorted(chosen.tolist()))]


def bi(context: Context, k: int, count: int) -> list[Dropped]:
    """Drop the k blocks with the least `1 - cos(h_i, h_{i+1})` (ShortGPT's block influence, arXiv 2403.03853)."""
    influence = 1 - context.analysis.block_cosine
    if count == 1:
        return [tuple(sorted(np.argsort(influence, kind="stable")[:k].tolist()))]
    nothing = np.zeros((len(influence), len(influence)))
    return [dropped for _, dropped in low_states(influence, nothing, k, count, context.seed)]


def angular(context: Context, k: int, count: int) -> list[Dropped]:
    """Drop the contiguous window of k blocks with the least `arccos(cos(h_i, h_{i+k})) / pi` (arXiv 2403.17887).

    The angles are as the analysis has them: between whole states with `reading`; with the other estimators between
    random projections of the states, which are near the states' own and not equal.
    """
    angle = context.analysis.pair_angle
    return sorted(windows(context.num_blocks, k), key=lambda dropped: angle[dropped[0], dropped[0] + k])[:count]


def windows(num_blocks: int, k: int) -> list[Dropped]:
    """Return every set of k neighbours."""
    return [tuple(range(start, start + k)) for start in range(num_blocks - k + 1)]


def greedy_loss(context: Context, k: int, count: int) -> list[Dropped]:
    """Drop the block whose absence raises the loss least; measure again; k rounds (SLEB, arXiv 2402.09025)."""
    dropped: Dropped = ()
    with progress("greedy-loss", k, "rounds") as advance:
        for _ in range(k):
            sets = [tuple(sorted((*dropped, block))) for block in range(context.num_blocks) if block not in dropped]
            dropped = _least(context, sets)
            advance(1)
    return [dropped]


def exhaustive(context: Context, k: int, count: int) -> list[Dropped]:
    """Drop the set of k blocks with the least loss on the ranking text, of all sets: the limit."""
    sets = all_sets(context.num_blocks, k)
    with progress("exhaustive", context.ranking.windows.numel() * len(sets), "tokens") as advance:
        context.ranking.measure(sets, advance, may_break=True)
    return [_least(context, sets)]


def all_sets(num_blocks: int, k: int) -> list[Dropped]:
    """Return every set of k blocks. Raises TooManySetsError where they are too many to measure."""
    count = math.comb(num_blocks, k)
    if count > EXHAUSTIVE_LIMIT:
        raise TooManySetsError(f"exhaustive: {count} sets of {k} of {num_blocks} blocks, more than {EXHAUSTIVE_LIMIT}")
    return list(combinations(range(num_blocks), k))


def _least(context: Context, sets: list[Dropped]) -> Dropped:
    losses = context.ranking.measure(sets, may_break=True)
    return min(zip(losses, sets, strict=True), key=lambda pair: context.value(pair[0]))[1]
