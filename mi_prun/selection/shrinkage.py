"""The cross-entropy of many sets from few tokens: its noise shrunk towards what their KL says.

KL(dense || pruned) has no labels in it, so it is far less noisy than the cross-entropy, and mostly tells the same. The
rest is in the residual r_i of `ce_i ~ a + b kl_i + r_i` over the sets. Of r_i that share is kept by which its variance
over the sets is beyond its noise: an empirical Bayes estimate (James, Stein 1961; Efron, Morris 1973). On few tokens
the order is nearly the KL's, on many the cross-entropy's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shrunk_cross_entropy(by_window: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an estimate for each set, (sets,). by_window: (sets, windows, 2), KL and cross-entropy in each window."""
    kl, ce = by_window[..., 0], by_window[..., 1]
    windows = kl.shape[1]
    mean_kl, mean_ce = kl.mean(1), ce.mean(1)
    centred = mean_kl - mean_kl.mean()
    if windows < 2 or len(by_window) < 3 or not centred.any():
        return np.asarray(mean_ce)
    slope = max(0.0, float(centred @ (mean_ce - mean_ce.mean()) / (centred @ centred)))
    residual = ce - slope * kl
    residual = residual - residual.mean(0)  # paired: a part common to all sets is no noise
    of_set = residual.mean(1)
    noise = float(residual.var(1, ddof=1).mean()) / windows
    total = float(of_set.var())
    kept = max(0.0, 1 - noise / total) if total > 0 else 0.0
    estimate: NDArray[np.float64] = mean_ce.mean() + slope * centred + kept * of_set
    return estimate
