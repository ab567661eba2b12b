"""What is kept of the requests, and which of them count."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from serve.ab.verdict.aggregates import Evidence
from serve.ab.verdict.event import Observation, ShadowComparison

WEIGHTS = {"dense": 9.0, "pruned": 1.0}
LEVELS = (0.05, 0.01)
Observed = Callable[..., Observation]
Compared = Callable[..., ShadowComparison]


@pytest.fixture
def evidence() -> Evidence:
    return Evidence("dense", WEIGHTS, LEVELS, [("ttft_ms", 150.0)])


@pytest.mark.parametrize(
    "fields",
    [
        {"arm": "pruned", "counted": False},
        {"arm": "pruned", "counted": False, "reason": "explicit"},
        {"arm": "pruned", "counted": False, "reason": "failover", "assigned_arm": "dense"},
        {"arm": "pruned", "assigned_arm": "dense"},
        {"arm": "nobody", "assigned_arm": "nobody"},
    ],
)
def test_only_counted_requests_of_the_arm_assigned_count(
    evidence: Evidence, observed: Observed, fields: dict[str, object]
) -> None:
    evidence.observe(observed(**fields))
    assert [arm.requests for arm in evidence.arms.values()] == [0, 0]
    assert evidence.not_counted == 1
    assert evidence.ratios["pruned"].clients == 0


def test_a_failover_is_counted_apart(evidence: Evidence, observed: Observed) -> None:
    evidence.observe(observed("dense", assigned_arm="pruned", reason="failover", counted=False))
    assert evidence.failovers == {"pruned": 1}


def test_what_each_outcome_tells(evidence: Evidence, observed: Observed) -> None:
    arm = evidence.arms["pruned"]
    for outcome in ("ok", "upstream_error", "timeout", "disconnected", "client_error", "client_gone"):
        status = {"client_error": 400, "upstream_error": 500}.get(outcome, 200)
        evidence.observe(observed("pruned", outcome=outcome, status=status))
    assert (arm.errors.successes, arm.errors.trials) == (3, 4)
    assert (arm.gave_up.successes, arm.gave_up.trials) == (1, 2)
    assert arm.sums["e2e_ms"].count == 1
    assert arm.sums["ttft_ms"].count == 4  # an error's first byte is no token
    assert arm.requests == 6


def test_the_figures_of_an_answer(evidence: Evidence, observed: Observed) -> None:
    for _ in range(3):
        evidence.observe(observed("pruned", ttft_s=0.2, itl_s=(0.01, 0.03), e2e_s=0.5, output_tokens=25))
    figures = {name: sums.ratio for name, sums in evidence.arms["pruned"].sums.items()}
    assert figures == {
        "ttft_ms": pytest.approx(200),
        "itl_ms": pytest.approx(20),
        "e2e_ms": pytest.approx(500),
        "tokens_per_s": pytest.approx(50),
        "output_tokens": pytest.approx(25),
    }
    above = evidence.arms["pruned"].above["ttft_ms", 150.0]
    assert (above.successes, above.trials) == (3, 3)


def test_an_answer_that_is_not_streamed_has_no_first_token(evidence: Evidence, observed: Observed) -> None:
    evidence.observe(observed("pruned", streamed=False, itl_s=(), output_tokens=None))
    counts = {name: sums.count for name, sums in evidence.arms["pruned"].sums.items()}
    assert counts == {"ttft_ms": 0, "itl_ms": 0, "e2e_ms": 1, "tokens_per_s": 0, "output_tokens": 0}


def test_a_request_weighs_by_the_split_it_was_drawn_by(evidence: Evidence, observed: Observed) -> None:
    """Not by the one it ended under."""
    evidence.split_changed(1000.0, {"dense": 1.0, "pruned": 1.0})
    evidence.observe(observed("pruned", time=1000.1, e2e_s=0.5))
    assert evidence.arms["pruned"].sums["e2e_ms"].size == pytest.approx(10)
    evidence.observe(observed("pruned", time=1001.0, e2e_s=0.5))
    assert evidence.arms["pruned"].sums["e2e_ms"].size == pytest.approx(12)
    assert evidence.split_changes == 1
    evidence.split_changed(1002.0, {"dense": 1.0, "pruned": 1.0})
    assert evidence.split_changes == 1


def test_an_arm_without_weight_has_no_requests_of_the_experiment(observed: Observed) -> None:
    evidence = Evidence("dense", {"dense": 1.0, "pruned": 0.0}, LEVELS)
    evidence.observe(observed("pruned"))
    evidence.observe(observed("dense"))
    assert evidence.arms["pruned"].requests == 0
    assert evidence.arms["dense"].requests == 1
    assert evidence.ratios["pruned"].clients == 0


def test_a_client_is_counted_once_for_the_split(evidence: Evidence, observed: Observed) -> None:
    for _ in range(5):
        evidence.observe(observed("pruned", key_hash="ab" * 8, reason="sticky"))
    evidence.observe(observed("dense", key_hash="cd" * 8, reason="sticky"))
    evidence.observe(observed("dense"))
    evidence.observe(observed("dense"))
    ratio = evidence.ratios["pruned"]
    assert (ratio.arm_clients, ratio.clients) == (1, 4)
    assert evidence.arms["pruned"].requests == 5


def test_a_shadow_is_compared_whichever_arm_was_the_primary(evidence: Evidence, compared: Compared) -> None:
    evidence.observe(compared(0.5, logprob_difference_nats=-0.2))
    evidence.observe(compared(0.7, primary_arm="pruned", shadow_arm="dense", logprob_difference_nats=-0.4))
    evidence.observe(compared(None, error="timeout"))
    shadow = evidence.shadows["pruned"]
    assert shadow.agreement[0.05].mean == pytest.approx(0.6)
    assert shadow.errors == 1
    # Of the control's tokens only: of the pruned arm's it is another quantity.
    assert (shadow.logprobs.count, shadow.logprobs.ratio) == (1, pytest.approx(-0.2))


def test_it_stays_small_whatever_comes(evidence: Evidence, observed: Observed) -> None:
    rng = np.random.default_rng(15)

    def come(count: int, start: int) -> int:
        for place in range(start, start + count):
            evidence.observe(
                observed(
                    "pruned" if place % 10 == 0 else "dense",
                    key_hash=f"{rng.integers(2**63):016x}",
                    finish_reason=f"made_up_{place}",
                    ttft_s=float(rng.lognormal(0, 3)),
                )
            )
        return len(json.dumps(evidence.state()))

    come(2000, 0)
    once = come(1000, 2000)
    assert come(3000, 3000) < 1.15 * once
    assert evidence.arms["dense"].finish_reasons.keys() == {"other"}


def test_state_comes_back_and_goes_on_alike(evidence: Evidence, observed: Observed, compared: Compared) -> None:
    for place in range(150):
        evidence.observe(observed("pruned" if place % 3 else "dense", ttft_s=0.1 + place / 1e3))
        evidence.observe(compared(0.5))
    evidence.split_changed(1000.5, {"dense": 1.0, "pruned": 1.0})
    state = json.loads(json.dumps(evidence.state()))
    again = Evidence.restored(state, "dense", {"dense": 1.0, "pruned": 1.0}, LEVELS, [("ttft_ms", 150.0)])
    for one in (evidence, again):
        one.observe(observed("pruned", time=2e9))
    assert again.state() == evidence.state()


@pytest.mark.parametrize(
    ("control", "weights", "levels", "thresholds"),
    [
        ("pruned", WEIGHTS, LEVELS, [("ttft_ms", 150.0)]),
        ("dense", {"dense": 1.0, "other": 1.0}, LEVELS, [("ttft_ms", 150.0)]),
        ("dense", WEIGHTS, (0.1, 0.01), [("ttft_ms", 150.0)]),
        ("dense", WEIGHTS, LEVELS, [("ttft_ms", 99.0)]),
    ],
)
def test_state_of_another_experiment_is_refused(
    evidence: Evidence,
    control: str,
    weights: dict[str, float],
    levels: tuple[float, ...],
    thresholds: list[tuple[str, float]],
) -> None:
    with pytest.raises(ValueError, match=r"figures kept are of|made for alpha"):
        Evidence.restored(evidence.state(), control, weights, levels, thresholds)
