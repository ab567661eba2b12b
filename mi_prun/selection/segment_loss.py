"""`segment-loss`: the loss without each segment is measured; then the exact minimum of J is taken.

It takes about L^2 / 6 forward passes over the text, as segments that begin alike share their states.
"""

from __future__ import annotations

import numpy as np

from mi_prun.console import progress
from mi_prun.quality.evaluator import Dropped
from mi_prun.selection.context import Context
from mi_prun.selection.objective import Costs, best_sets
from mi_prun.selection.race import first_windows


def segment_loss(context: Context, k: int, count: int) -> list[Dropped]:
    """Take the exact minimum of J on the measured loss without each segment (a quarter of the screening text)."""
    return [dropped for _, dropped in best_sets(measured_costs(context, k), k, count)]


def measured_costs(context: Context, longest: int) -> Costs:
    """Return the loss above dense without [i, j), (L+1, L+1) nats per token; segments of up to `longest` blocks."""
    num_blocks = context.num_blocks
    cost = np.full((num_blocks + 1, num_blocks + 1), np.inf)
    segments = [(i, j) for i in range(num_blocks) for j in range(i + 1, min(num_blocks, i + longest) + 1)]
    windows = first_windows(context)
    with progress("segment-loss", len(segments), "segments") as advance:
        sets = [(), *(tuple(range(i, j)) for i, j in segments)]
        dense, *losses = context.screening.measure(sets, windows=windows, may_break=True)
        advance(len(segments))
    for (i, j), loss in zip(segments, losses, strict=True):
        cost[i, j] = context.value(loss) - context.value(dense)
    return cost
