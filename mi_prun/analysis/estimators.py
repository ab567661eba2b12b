"""The estimators by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from mi_prun.analysis.mutual_information import KSG, Estimator, Gaussian, Renyi
from mi_prun.analysis.reading import Reading
from mi_prun.errors import UserError

PROJECTION = 16  # dimensions, of estimators that do not take states whole

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "reading": Reading,
    "gaussian": Gaussian,
    "ksg": KSG,
    "renyi": Renyi,
}


def make_estimator(name: str, noise: float | None = None) -> Estimator:
    """Make an estimator by its name; without a noise it has its own.

    Raises UserError for an unknown name, or a noise that will not do.
    """
    if name not in ESTIMATORS:
        raise UserError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {name!r}")
    if noise is None:
        return ESTIMATORS[name]()
    if not (math.isfinite(noise) and 0 < noise <= 10):
        raise UserError(f"noise must be in (0, 10], got {noise}; without noise MI of a state with itself is infinite")
    return ESTIMATORS[name](noise=noise)


def projection_for(estimator: Estimator, wanted: int | None) -> int | None:
    """Return how many dimensions states are projected to; None keeps them whole. Raises UserError."""
    if wanted is not None and wanted < 1:
        raise UserError(f"projection must be at least 1, got {wanted}")
    if estimator.whole:
        if wanted is not None:
            projecting = ", ".join(name for name, make in ESTIMATORS.items() if not make().whole)
            raise UserError(
                f"projection {wanted}: the estimator {estimator.name} takes states whole; leave it out, or take one "
                f"that projects them ({projecting})"
            )
        return None
    return PROJECTION if wanted is None else wanted
