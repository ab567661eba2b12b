"""The quadratic of single removals, corrected by the sets measured so far: it predicts sets not yet measured.

The loss of a set D is the quadratic's prediction plus a residual: block j does something else when i is missing. The
residual is modelled as a Gaussian process with kernel |D & D'|^2, the inner product of the indicators of their pairs of
blocks: sets that drop the same pairs are alike. Its posterior mean is x^T (sum_n a_n x_n x_n^T) x, a quadratic as well.
So measurements only change the linear and the pair terms, and `quadratic.py` finds the lowest sets as before, whatever
the number of blocks.

It learns most from the neighbours of a good set, those that drop one block more or one less. They show what each block
does where so many are missing, and are the cheapest sets to measure, as they share their first states.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mi_prun.quality.evaluator import Dropped
from mi_prun.selection.logit_gram import LogitGram, membership

NOISE = 0.01  # variance of a measurement, over the mean variance of the residual


def corrected(
    gram: LogitGram, measured: Sequence[Dropped], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the corrected quadratic for `low_states`: linear (L,) and pair (L, L), nats; it holds up to a constant.

    values: (measured,) the loss of each set, in nats, from any origin.
    """
    x = membership(measured, len(gram.gram))
    residual = values - gram.predict(measured, "kl")
    alike = (x @ x.T) ** 2
    alike += NOISE * alike.diagonal().mean() * np.eye(len(x))
    weights = np.linalg.solve(alike, residual - residual.mean())
    learned = (x * weights[:, None]).T @ x
    return gram.linear("kl") + learned.diagonal(), gram.gram + 2 * learned


def neighbours(dropped: Dropped, num_blocks: int) -> list[Dropped]:
    """Return all sets that drop one block more or one less, without the empty one and that of all blocks."""
    one_changed = [tuple(sorted({*dropped} ^ {block})) for block in range(num_blocks)]
    return [near for near in one_changed if 0 < len(near) < num_blocks]
