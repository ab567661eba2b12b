"""Noise goes towards what KL tells; what is told by labels stays where there are enough of them."""

from __future__ import annotations

import numpy as np
import pytest

from mi_prun.selection.shrinkage import shrunk_cross_entropy

pytestmark = pytest.mark.numeric


def losses(windows: int, noise: float, signal: float, sets: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(by_window, true cross-entropies): ce = 3 + 1.2 kl + signal of the set + noise of the set in each window."""
    rng = np.random.default_rng(seed)
    kl = rng.uniform(0.1, 0.5, sets)
    true = 3 + 1.2 * kl + signal * rng.normal(size=sets)
    common = rng.normal(size=windows)  # of the text: the same for all sets
    ce = true[:, None] + noise * rng.normal(size=(sets, windows)) + common
    by_window = np.stack([np.broadcast_to(kl[:, None], ce.shape), ce], axis=-1)
    return by_window, true + common.mean()


@pytest.mark.parametrize("seed", range(5))
def test_it_is_closer_to_the_truth_than_the_mean_where_windows_are_few(seed: int) -> None:
    by_window, true = losses(4, noise=0.2, signal=0.02, seed=seed)
    plain, shrunk = by_window[..., 1].mean(1), shrunk_cross_entropy(by_window)
    assert np.abs(shrunk - true).mean() < 0.6 * np.abs(plain - true).mean()


def test_with_many_windows_it_is_the_mean() -> None:
    by_window, _ = losses(4_000, noise=0.1, signal=0.1)
    assert np.allclose(shrunk_cross_entropy(by_window), by_window[..., 1].mean(1), atol=2e-3)


def test_without_noise_nothing_is_lost() -> None:
    by_window, true = losses(8, noise=0.0, signal=0.1)
    assert np.allclose(shrunk_cross_entropy(by_window), true)


@pytest.mark.parametrize("shape", [(2, 8), (24, 1)])
def test_too_few_to_tell_noise_from_signal_are_left_as_they_are(shape: tuple[int, int]) -> None:
    by_window = np.random.default_rng(0).random((*shape, 2))
    assert np.array_equal(shrunk_cross_entropy(by_window), by_window[..., 1].mean(1))
