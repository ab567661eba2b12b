"""The laws of the split: stable, fair, and no key moves that need not."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.ab.experiment.split import key_hash, ranking, unit

ARMS = st.dictionaries(st.sampled_from(["dense", "pruned", "c", "d"]), st.floats(0, 1000), min_size=2).filter(
    lambda weights: sum(weights.values()) > 0
)
KEYS = [f"user-{number}" for number in range(4000)]


def test_it_is_the_same_on_every_machine() -> None:
    """A constant of the protocol: an upgrade that moved keys would spoil running experiments."""
    assert unit("exp", "user-1", "dense") == 0.9979474574452085
    assert ranking("exp", "user-1", {"dense": 95, "pruned": 5}) == ["dense", "pruned"]


def test_the_parts_of_a_key_are_not_confused() -> None:
    assert unit("a", "bc", "d") != unit("ab", "c", "d")


@given(st.text(), st.text(), st.text())
def test_a_draw_is_inside_of_0_and_1(experiment: str, key: str, arm: str) -> None:
    assert 0.0 < unit(experiment, key, arm) < 1.0


@pytest.mark.parametrize("weights", [{"dense": 95.0, "pruned": 5.0}, {"a": 1.0, "b": 1.0, "c": 2.0}])
def test_shares_are_the_weights(weights: dict[str, float]) -> None:
    counts = Counter(ranking("exp", key, weights)[0] for key in KEYS)
    for arm, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(counts[arm] / len(KEYS) - share) < 4 * math.sqrt(share * (1 - share) / len(KEYS))


@settings(max_examples=25, deadline=None)
@given(ARMS, st.data())
def test_a_change_of_one_weight_moves_keys_to_or_from_that_arm_only(
    weights: dict[str, float], data: st.DataObject
) -> None:
    arm = data.draw(st.sampled_from(sorted(weights)))
    after = {**weights, arm: data.draw(st.floats(0, 1000))}
    if sum(after.values()) <= 0:
        return
    for key in KEYS[:200]:
        old, new = ranking("exp", key, weights)[0], ranking("exp", key, after)[0]
        if old != new:
            assert (new == arm) if after[arm] > weights[arm] else (old == arm)


def test_no_more_keys_move_than_the_shares_do() -> None:
    """From 5 % to 10 %: about 5 % of all keys, which is the least that any scheme can do."""
    old, new = {"dense": 95.0, "pruned": 5.0}, {"dense": 90.0, "pruned": 10.0}
    moved = sum(ranking("exp", key, old)[0] != ranking("exp", key, new)[0] for key in KEYS)
    assert moved / len(KEYS) == pytest.approx(0.05, abs=0.014)


def test_another_experiment_is_another_draw() -> None:
    weights = {"dense": 1.0, "pruned": 1.0}
    same = sum(ranking("one", key, weights)[0] == ranking("two", key, weights)[0] for key in KEYS)
    assert same / len(KEYS) == pytest.approx(0.5, abs=0.04)


def test_a_drained_arm_is_last_and_still_there() -> None:
    for key in KEYS[:200]:
        assert ranking("exp", key, {"dense": 0.0, "pruned": 1e-9})[-1] == "dense"


def test_a_key_is_not_in_its_hash() -> None:
    assert key_hash("ann@example.org") != key_hash("bob@example.org")
    assert "ann" not in key_hash("ann@example.org")
