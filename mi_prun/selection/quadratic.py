"""Low states of `E(D) = sum_{i in D} linear_i + 1/2 sum_{i != j in D} pair_ij` over the sets D of k blocks.

They are exact where C(L, k) sets can be enumerated. Otherwise D-Wave's simulated annealer runs on the same quadratic,
with a penalty for another number of blocks. Its states are brought to k blocks, then down to where no swap lowers E.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain, combinations, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mi_prun.quality.evaluator import Dropped

ENUMERABLE = 300_000
CHUNK = 100_000
READS, SWEEPS = 100, 300

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]


def low_states(linear: Floats, pair: Floats, k: int, count: int, seed: int = 0) -> list[tuple[float, Dropped]]:
    """Return the `count` sets of least energy, best first. linear: (L,); pair: (L, L), its diagonal is not read."""
    symmetric = (pair + pair.T) / 2
    np.fill_diagonal(symmetric, 0.0)
    if math.comb(len(linear), k) <= ENUMERABLE:
        return _enumerate(linear, symmetric, k, count)
    return _anneal(linear, symmetric, k, count, seed)


def energy(linear: Floats, pair: Floats, dropped: Dropped) -> float:
    """Return E of one set. pair: symmetric, its diagonal 0."""
    index = list(dropped)
    return float(linear[index].sum() + pair[np.ix_(index, index)].sum() / 2)


def _enumerate(linear: Floats, pair: Floats, k: int, count: int) -> list[tuple[float, Dropped]]:
    best: list[tuple[float, Dropped]] = []
    sets = combinations(range(len(linear)), k)
    while len(index := np.fromiter(chain.from_iterable(islice(sets, CHUNK)), dtype=np.int64).reshape(-1, k)):
        value = linear[index].sum(1)
        for a, b in combinations(range(k), 2):
            value += pair[index[:, a], index[:, b]]
        lowest = np.argsort(value, kind="stable")[:count]
        best += [(float(value[i]), tuple(index[i].tolist())) for i in lowest]
        best = sorted(best)[:count]
    return best


def _anneal(linear: Floats, pair: Floats, k: int, count: int, seed: int) -> list[tuple[float, Dropped]]:
    from dimod import BinaryQuadraticModel
    from dwave import samplers

    # A block more or less must cost about as much as the dearest one: a higher wall would freeze the moves across it.
    wall = float(np.abs(linear).max() + np.abs(pair).sum(1).max() / 2) or 1.0
    # wall * (sum_i a_i - k)^2, less its constant
    quadratic = np.triu(pair + 2 * wall, 1)
    model = BinaryQuadraticModel(linear + wall * (1 - 2 * k), quadratic, "BINARY")
    annealer: Any = samplers.SimulatedAnnealingSampler
    samples = annealer().sample(model, num_reads=READS, num_sweeps=SWEEPS, seed=seed)
    starts = [np.asarray(row, dtype=bool) for row in samples.record.sample]
    seen: dict[Dropped, float] = {}
    for state in starts:
        for dropped, value in _descend(linear, pair, k, state.copy()):
            seen[dropped] = value
    return sorted((value, dropped) for dropped, value in seen.items())[:count]


def _descend(linear: Floats, pair: Floats, k: int, gone: Bits) -> Iterable[tuple[Dropped, float]]:
    """Bring a state to k blocks, then swap as long as that lowers E.

    Yields each set with its energy; at the lowest one also the sets that a single swap makes of it.
    """
    while (size := int(gone.sum())) != k:
        field = linear + pair @ gone
        among = np.flatnonzero(gone if size > k else ~gone)
        change = among[np.argmax(field[among])] if size > k else among[np.argmin(field[among])]
        gone[change] = not gone[change]
    value = energy(linear, pair, tuple(np.flatnonzero(gone)))
    while True:
        out, into = np.flatnonzero(gone), np.flatnonzero(~gone)
        field = linear + pair @ gone
        change = field[into][None, :] - field[out][:, None] - pair[np.ix_(out, into)]  # (k, L - k)
        yield tuple(out.tolist()), value
        a, b = np.unravel_index(int(change.argmin()), change.shape)
        if not change[a, b] < -1e-12:
            for i, j in np.ndindex(change.shape):
                kept = np.delete(out, i)
                yield tuple(sorted((*kept.tolist(), int(into[j])))), value + float(change[i, j])
            return
        gone[out[a]], gone[into[b]] = False, True
        value += float(change[a, b])
