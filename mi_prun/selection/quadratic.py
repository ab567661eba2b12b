"""Low states of `E(D) = sum_{i in D} linear_i + sum_{i < j in D} pair_ij` over the sets D of k blocks.

Exact where C(L, k) sets can be enumerated; else simulated annealing by swaps from several seeded starts.
"""

from __future__ import annotations

import heapq
import math
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from mi_prun.selection.objective import Dropped

ENUMERABLE = 3_000_000
CHUNK = 200_000
SWEEPS = 400


def low_states(
    linear: NDArray[np.float64], pair: NDArray[np.float64], k: int, count: int, seed: int = 0
) -> list[tuple[float, Dropped]]:
    """The `count` sets of least energy, best first. linear: (L,); pair: (L, L), its diagonal is not looked at."""
    upper = np.triu(pair, 1) + np.tril(pair, -1).T
    symmetric = (upper + upper.T) / 2
    if math.comb(len(linear), k) <= ENUMERABLE:
        return _enumerate(linear, symmetric, k, count)
    return _anneal(linear, symmetric, k, count, np.random.default_rng(seed))


def energy(linear: NDArray[np.float64], symmetric: NDArray[np.float64], dropped: Dropped) -> float:
    index = list(dropped)
    return float(linear[index].sum() + symmetric[np.ix_(index, index)].sum())


def _enumerate(
    linear: NDArray[np.float64], symmetric: NDArray[np.float64], k: int, count: int
) -> list[tuple[float, Dropped]]:
    best: list[tuple[float, Dropped]] = []
    sets = combinations(range(len(linear)), k)
    while rows := list(islice(sets, CHUNK)):
        index = np.array(rows)  # (n, k)
        value = linear[index].sum(1)
        for a in range(k):
            for b in range(a):
                value += 2 * symmetric[index[:, a], index[:, b]]
        lowest = np.argsort(value, kind="stable")[:count]
        best = heapq.nsmallest(count, [*best, *((float(value[i]), rows[i]) for i in lowest)])
    return best


def _anneal(
    linear: NDArray[np.float64], symmetric: NDArray[np.float64], k: int, count: int, rng: np.random.Generator
) -> list[tuple[float, Dropped]]:
    """Swap a dropped block for a kept one; accept by Metropolis at a falling temperature; keep the low states seen."""
    coupling = 2 * symmetric
    np.fill_diagonal(coupling, 0.0)
    num_blocks = len(linear)
    seen: dict[Dropped, float] = {}
    starts = [np.argsort(linear, kind="stable")[:k]]
    starts += [rng.choice(num_blocks, k, replace=False) for _ in range(7)]
    for start in starts:
        gone = np.zeros(num_blocks, dtype=bool)
        gone[start] = True
        field = linear + coupling @ gone  # what adding a block costs, or removing it saves
        value = energy(linear, symmetric, tuple(np.flatnonzero(gone)))
        scale = float(np.ptp(field)) or 1.0
        for temperature in np.geomspace(scale, scale * 1e-3, SWEEPS):
            for _ in range(k):
                out, into = rng.choice(np.flatnonzero(gone)), rng.choice(np.flatnonzero(~gone))
                change = field[into] - field[out] - coupling[into, out]
                if change <= 0 or rng.random() < math.exp(-change / temperature):
                    gone[out], gone[into] = False, True
                    field += coupling[:, into] - coupling[:, out]
                    value += change
                    dropped = tuple(int(block) for block in np.flatnonzero(gone))
                    seen[dropped] = float(value)
    return [(value, dropped) for dropped, value in heapq.nsmallest(count, seen.items(), key=lambda item: item[1])]
