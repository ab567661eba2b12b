"""Fast-Block-Select (MI-PRUN, arXiv 2601.07212), with an explicit objective J that it lowers.

1. P = the k least important blocks.
2. Each maximal run of P, of length m, may move to any contiguous run of m blocks that neither overlaps nor touches
   another run of P. (The paper removes conflicts after step 3; its shortlist may then be empty.)
3. The moves are ranked coarsely by the sum of their single-block importances; the best `shortlist` are kept.
4. Of these the one with the least segment cost is taken, if it lowers J.
5. Repeat until no run moves. J falls with each accepted move and there are finitely many sets: it ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mi_prun.quality.evaluator import Dropped
from mi_prun.selection.objective import Costs, objective, runs

SHORTLIST = 8


@dataclass(frozen=True)
class Search:
    """A search as it went. objectives: J of the start and after each accepted move, strictly falling."""

    dropped: Dropped
    objectives: tuple[float, ...]


def fast_block_select(
    cost: Costs, k: int, importance: NDArray[np.float64] | None = None, shortlist: int = SHORTLIST
) -> Search:
    """Choose k blocks. `cost` (L+1, L+1); `importance` (L,), by default the single-block costs."""
    num_blocks = len(cost) - 1
    single = cost[np.arange(num_blocks), np.arange(num_blocks) + 1] if importance is None else importance
    total = np.concatenate([[0.0], np.cumsum(single)])
    chosen = runs(np.argsort(single, kind="stable")[:k].tolist())
    objectives = [objective(cost, _blocks(chosen))]
    moved = True
    while moved:
        moved = False
        for index, (start, stop) in enumerate(chosen):
            length = stop - start
            others = chosen[:index] + chosen[index + 1 :]
            coarse = _free(others, length, num_blocks)
            coarse = coarse[np.argsort(total[coarse + length] - total[coarse], kind="stable")[:shortlist]]
            best = int(coarse[np.argmin(cost[coarse, coarse + length])]) if len(coarse) else start
            if cost[best, best + length] < cost[start, stop]:
                chosen = sorted([*others, (best, best + length)])
                objectives.append(objective(cost, _blocks(chosen)))
                moved = True
                break
    return Search(_blocks(chosen), tuple(objectives))


def _free(others: list[tuple[int, int]], length: int, num_blocks: int) -> NDArray[np.int64]:
    """Return where a run of `length` blocks may start so that it neither overlaps nor touches another run."""
    taken = np.zeros(num_blocks + 1, dtype=np.int64)
    for start, stop in others:
        taken[max(0, start - 1) : stop + 1] = 1  # a run's neighbours are taken too
    before = np.concatenate([[0], np.cumsum(taken[:num_blocks])])
    return np.flatnonzero(before[length:] == before[: num_blocks + 1 - length])


def _blocks(chosen: list[tuple[int, int]]) -> Dropped:
    return tuple(block for start, stop in chosen for block in range(start, stop))
