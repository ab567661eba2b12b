"""The split against the clients that came."""

from __future__ import annotations

import numpy as np
import pytest

from serve.ab.verdict.sample_ratio import ALPHA, SEEN_BITS, SampleRatio, SeenKeys


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_split_that_is_kept_is_doubted_less_often_than_alpha(share: float) -> None:
    rng = np.random.default_rng(12)
    doubted = 0
    for _ in range(100):
        ratio = SampleRatio()
        for draw in rng.random(300):
            ratio.add(bool(draw < share), share)
        doubted += ratio.p_value < 0.05  # the smallest of all looks
    assert doubted <= 0.05 * 100


def test_a_split_that_is_changed_again_and_again_is_not_doubted() -> None:
    rng = np.random.default_rng(13)
    ratio = SampleRatio()
    for draw in rng.random(5000):
        share = float(rng.choice([0.01, 0.2, 0.9]))
        ratio.add(bool(draw < share), share)
    assert ratio.p_value > ALPHA
    assert ratio.arm_clients == pytest.approx(ratio.expected, rel=0.1)


@pytest.mark.parametrize("lost", [0.2, -0.2])
def test_requests_lost_in_either_arm_are_found(lost: float) -> None:
    rng = np.random.default_rng(14)
    ratio = SampleRatio()
    for draw, again in rng.random((10_000, 2)):
        is_arm = bool(draw < 0.5)
        if is_arm == (lost > 0) and again < abs(lost):
            continue
        ratio.add(is_arm, 0.5)
    assert ratio.p_value < 1e-6


def test_state_comes_back() -> None:
    ratio = SampleRatio()
    for place in range(50):
        ratio.add(place % 3 == 0, 0.5)
    again = SampleRatio.restored(ratio.state())
    again.add(True, 0.5)
    ratio.add(True, 0.5)
    assert again.state() == ratio.state()


def test_a_key_is_new_once() -> None:
    seen = SeenKeys()
    assert seen.is_new("a" * 16)
    assert not seen.is_new("a" * 16)
    again = SeenKeys.restored(seen.state())
    assert not again.is_new("a" * 16)
    assert again.is_new("b" * 16)
    fresh = sum(SeenKeys().is_new(f"{key:016x}") for key in range(100))
    assert fresh == 100
    few = SeenKeys()
    assert sum(few.is_new(f"{key:016x}") for key in range(SEEN_BITS // 10)) > 0.9 * SEEN_BITS // 10
    with pytest.raises(ValueError, match="bytes of keys"):
        SeenKeys.restored("AAAA")
