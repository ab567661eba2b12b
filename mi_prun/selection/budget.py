"""The limit on what the default may cost at a quarter of the blocks: a share of greedy-loss's blocks x tokens."""

from __future__ import annotations

import math

from mi_prun.selection.context import Context

# The share of greedy-loss's cost, by the number of blocks; linear between. With fewer blocks there is little to save.
SHARES = {12: 1 / 3, 24: 1 / 10}


def greedy_runs(num_blocks: int, k: int) -> int:
    """Return the fewest block runs over a text that greedy-loss can take to k blocks, whichever blocks it drops.

    With s blocks gone it runs the dense model, L runs, and leaves out each of the L - s others in turn. The sets share
    what they run up to the block left out; each runs the kept blocks behind it: (L - s)(L - s - 1) / 2 runs together.
    If the blocks gone are not the model's last ones, the sets' common path costs up to L - s runs more; these are not
    counted.
    """
    return sum((num_blocks - s) * (num_blocks - s - 1) // 2 + num_blocks for s in range(k))


def thrift(context: Context) -> float:
    """Return the factor on rounds and on candidates that go on: 1, or less for a short text.

    More than the usual share of a short text screens, which is saved here. With few blocks nothing is: 1.
    """
    enough = context.num_blocks < min(SHARES) or not context.short_text
    return 1.0 if enough else 1 / context.screening_share


def most_passes(context: Context, k: int) -> float:
    """Return how many passes of the dense model over the ranking text a choice may take, the analysis included.

    For a quarter of the blocks, rounded up or down, it is SHARES of the fewest that greedy-loss takes. There is no
    limit for another k, nor for a model of few blocks.
    """
    num_blocks = context.num_blocks
    fewest, most = SHARES
    if num_blocks < fewest or abs(k - num_blocks / 4) >= 1:
        return math.inf
    at = (min(num_blocks, most) - fewest) / (most - fewest)
    share = (1 - at) * SHARES[fewest] + at * SHARES[most]
    return share * greedy_runs(num_blocks, k) / num_blocks
