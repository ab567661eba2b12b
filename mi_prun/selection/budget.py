"""The most that the default may cost at a quarter of the blocks: a share of what greedy-loss does, blocks x tokens."""

from __future__ import annotations

import math

from mi_prun.selection.context import Context

# Of greedy-loss's cost, by the number of blocks; straight lines between. With fewer blocks there is little to save.
SHARES = {12: 1 / 3, 24: 1 / 10}


def greedy_runs(num_blocks: int, k: int) -> int:
    """The fewest block runs over a text that greedy-loss can take to k blocks, whichever blocks it drops.

    With s blocks gone it runs the dense model, and each of the L - s others is left out in turn: the sets share what
    they run up to it, and each runs the kept blocks behind it, (L - s)(L - s - 1) / 2 together. Where what is gone is
    not the end of the model, the sets' common path costs up to L - s more, which is not counted here.
    """
    return sum((num_blocks - s) * (num_blocks - s - 1) // 2 + num_blocks for s in range(k))


def thrift(context: Context) -> float:
    """The part that is left of what may be saved on where more than the usual share of a text has to screen, as of a
    short one: rounds, and candidates that go on. With few blocks all.
    """
    enough = context.num_blocks < min(SHARES) or not context.short_text
    return 1.0 if enough else 1 / context.screening_share


def most_passes(context: Context, k: int) -> float:
    """Passes of the dense model over the ranking text, the analysis included, that choosing a quarter of the blocks may
    take, rounded either way: SHARES of the fewest that greedy-loss takes. For another number of blocks, and with few of
    them: no limit.
    """
    num_blocks = context.num_blocks
    fewest, most = SHARES
    if num_blocks < fewest or abs(k - num_blocks / 4) >= 1:
        return math.inf
    at = (min(num_blocks, most) - fewest) / (most - fewest)
    share = (1 - at) * SHARES[fewest] + at * SHARES[most]
    return share * greedy_runs(num_blocks, k) / num_blocks
