"""The explicit objective `J(D) = sum over maximal runs [i, j) of D of cost(i, j)`, and its exact minimum.

`cost` is an (L+1, L+1) array; `cost[i, j]`, i < j, is what dropping the segment [i, j) loses (nats, by the analysis).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mi_prun.quality.evaluator import Dropped

Costs = NDArray[np.float64]


def runs(dropped: Iterable[int]) -> list[tuple[int, int]]:
    """Return the maximal runs of a set of blocks, as half-open segments.

    >>> runs([5, 1, 2])
    [(1, 3), (5, 6)]
    """
    segments: list[tuple[int, int]] = []
    for block in sorted(dropped):
        if segments and segments[-1][1] == block:
            segments[-1] = (segments[-1][0], block + 1)
        else:
            segments.append((block, block + 1))
    return segments


def objective(cost: Costs, dropped: Iterable[int]) -> float:
    """Return J of a set, in the unit of `cost`."""
    return float(sum(cost[i, j] for i, j in runs(dropped)))


def best_sets(cost: Costs, k: int, count: int = 1) -> list[tuple[float, Dropped]]:
    """Return the `count` sets of k blocks with the least J, best first: exact, by dynamic programming.

    `value[i, r]` holds the least costs of dropping r of the blocks i, i+1, ..., where block i-1 is kept (or i = 0):
    either block i is kept, or a run [i, j) is dropped and block j kept. O(L k^2 count).
    """
    num_blocks = len(cost) - 1
    if not 0 < k <= num_blocks:
        raise ValueError(f"k must be in 1..{num_blocks}, got {k}")
    value = np.full((num_blocks + 2, k + 1, count), np.inf)
    value[num_blocks:, 0, 0] = 0.0
    # How each entry was made: the run's length m (0: block i kept) and which entry of the rest it continues.
    origin = np.zeros((num_blocks + 2, k + 1, count), dtype=np.int64)
    left = np.arange(k + 1)[:, None] - np.arange(k + 1)  # (r, m): blocks still to drop behind a run of m
    for i in range(num_blocks - 1, -1, -1):
        longest = min(k, num_blocks - i)
        after = np.minimum(i + np.arange(1, longest + 1) + 1, num_blocks)  # where the rest begins, behind a kept block
        options = np.full((k + 1, longest + 1, count), np.inf)
        options[:, 0] = value[i + 1]
        rest = value[after, np.maximum(left[:, 1 : longest + 1], 0)]  # (r, m, count)
        options[:, 1:] = np.where(
            left[:, 1 : longest + 1, None] >= 0, cost[i, i + 1 : i + longest + 1, None] + rest, np.inf
        )
        flat = options.reshape(k + 1, -1)
        order = np.argsort(flat, axis=1, kind="stable")[:, :count] if count > 1 else flat.argmin(1)[:, None]
        value[i] = np.take_along_axis(flat, order, axis=1)
        origin[i] = order
    finite = (n for n in range(count) if np.isfinite(value[0, k, n]))
    return [(float(value[0, k, n]), _trace(origin, num_blocks, k, n, count)) for n in finite]


def _trace(origin: NDArray[np.int64], num_blocks: int, k: int, n: int, count: int) -> Dropped:
    dropped: list[int] = []
    i = 0
    while k > 0:
        m, n = divmod(int(origin[i, k, n]), count)
        dropped += range(i, i + m)
        k -= m
        i = min(i + m + 1, num_blocks)
    return tuple(dropped)
