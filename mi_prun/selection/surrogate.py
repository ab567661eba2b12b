"""What measured sets say of sets not yet measured: the quadratic of single removals, corrected.

Within one number of blocks k, the loss of a set is the quadratic's prediction plus a residual: a Gaussian process whose
kernel (|D & D'| / k)^2 makes sets alike that share blocks and pairs of blocks. It learns what the quadratic leaves out,
that a block does something else when another is missing, from the very measurements that rank the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mi_prun.selection.logit_gram import membership
from mi_prun.selection.objective import Dropped

NOISE = 0.02  # variance of a measurement, in variances of the residual
CURIOSITY = 0.5  # standard deviations that a set's promise counts beyond its mean


def promise(
    measured: Sequence[Dropped],
    residuals: NDArray[np.float64],
    sets: Sequence[Dropped],
    predicted: NDArray[np.float64],
    num_blocks: int,
) -> NDArray[np.float64]:
    """(sets,) a low guess of each set's loss, in nats: the corrected mean less CURIOSITY standard deviations.

    residuals: (measured,) measured less predicted loss; predicted: (sets,) the quadratic's.
    """
    known, new = (membership(list(x), num_blocks) for x in (measured, sets))
    k = len(measured[0])
    centre = float(residuals.mean())
    scale = float(residuals.var()) or 1e-12
    inner = (known @ known.T / k) ** 2 + NOISE * np.eye(len(known))
    across = (new @ known.T / k) ** 2
    solved = np.linalg.solve(inner, np.column_stack([residuals - centre, across.T]))
    mean = centre + across @ solved[:, 0]
    variance = np.clip(1.0 - (across * solved[:, 1:].T).sum(1), 0.0, None) * scale
    guess: NDArray[np.float64] = predicted + mean - CURIOSITY * np.sqrt(variance)
    return guess


def swaps(dropped: Dropped, num_blocks: int) -> list[Dropped]:
    """All sets that differ in one block."""
    kept = [block for block in range(num_blocks) if block not in dropped]
    return [tuple(sorted({*dropped, new} - {old})) for old in dropped for new in kept]
