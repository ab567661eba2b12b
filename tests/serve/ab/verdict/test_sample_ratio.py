"""The split against the clients that came."""

from __future__ import annotations

import numpy as np
import pytest

from serve.ab.verdict import sample_ratio
from serve.ab.verdict.sample_ratio import ALPHA, MOST_SEEN_BITS, SEEN_BITS, SampleRatio, SeenKeys


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


def test_new_keys_are_seen_after_very_many() -> None:
    """With the bits that it has at first, two of three new keys would be taken for known ones."""
    seen = SeenKeys()
    for key in range(300_000):
        seen.is_new(f"{key:016x}")
    assert sum(seen.is_new(f"{key:016x}") for key in range(300_000, 301_000)) > 800
    assert not any(seen.is_new(f"{key:016x}") for key in range(0, 300_000, 1000))
    assert len(seen.state()) < 4 / 3 * MOST_SEEN_BITS / 8 + 4


def test_the_keys_of_an_older_release_stay_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had the bits that there are at first, and filled them."""
    older = SeenKeys()
    with monkeypatch.context() as release:
        release.setattr(sample_ratio, "GROWS_AT", {})
        for key in range(SEEN_BITS // 2):
            older.is_new(f"{key:016x}")
    seen = SeenKeys.restored(older.state())
    assert seen.share_set == older.share_set == pytest.approx(0.4, abs=0.02)
    fresh = sum(seen.is_new(f"{key:016x}") for key in range(SEEN_BITS, 2 * SEEN_BITS))
    assert fresh == pytest.approx(0.6 * SEEN_BITS, rel=0.05)
    assert not any(seen.is_new(f"{key:016x}") for key in range(0, SEEN_BITS // 2, 1000))
    assert SeenKeys.restored(seen.state()).state() == seen.state()
