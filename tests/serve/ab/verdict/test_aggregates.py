"""What is kept of the requests, and which of them count."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from serve.ab.verdict.aggregates import Aggregates
from serve.ab.verdict.event import Event, ShadowComparison

WEIGHTS = {"dense": 9.0, "pruned": 1.0}
LEVELS = (0.05, 0.01)
Observed = Callable[..., Event]
Compared = Callable[..., ShadowComparison]


@pytest.fixture
def aggregates() -> Aggregates:
    return Aggregates("dense", WEIGHTS, LEVELS, [("ttft_ms", 150.0)])


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
    aggregates: Aggregates, observed: Observed, fields: dict[str, object]
) -> None:
    aggregates.observe(observed(**fields))
    assert [arm.requests for arm in aggregates.arms.values()] == [0, 0]
    assert aggregates.not_counted == 1
    assert aggregates.ratios["pruned"].clients == 0


def test_a_failover_is_counted_apart(aggregates: Aggregates, observed: Observed) -> None:
    aggregates.observe(observed("dense", assigned_arm="pruned", reason="failover", counted=False))
    assert aggregates.failovers == {"pruned": 1}


def test_what_each_outcome_tells(aggregates: Aggregates, observed: Observed) -> None:
    arm = aggregates.arms["pruned"]
    for outcome in ("ok", "upstream_error", "timeout", "disconnected", "client_error", "client_gone"):
        status = {"client_error": 400, "upstream_error": 500}.get(outcome, 200)
        aggregates.observe(observed("pruned", outcome=outcome, status=status))
    assert (arm.errors.successes, arm.errors.trials) == (3, 4)
    assert (arm.gave_up.successes, arm.gave_up.trials) == (1, 2)
    assert arm.sums["e2e_ms"].count == 1
    assert arm.sums["ttft_ms"].count == 4  # an error's first byte is no token
    assert arm.requests == 6


def test_the_figures_of_an_answer(aggregates: Aggregates, observed: Observed) -> None:
    for _ in range(3):
        aggregates.observe(observed("pruned", ttft_s=0.2, itl_s=(0.01, 0.03), e2e_s=0.5, output_tokens=25))
    figures = {name: sums.ratio for name, sums in aggregates.arms["pruned"].sums.items()}
    assert figures == {
        "ttft_ms": pytest.approx(200),
        "itl_ms": pytest.approx(20),
        "e2e_ms": pytest.approx(500),
        "tokens_per_s": pytest.approx(50),
        "output_tokens": pytest.approx(25),
    }
    above = aggregates.arms["pruned"].above["ttft_ms", 150.0]
    assert (above.successes, above.trials) == (3, 3)


def test_an_answer_that_is_not_streamed_has_no_first_token(aggregates: Aggregates, observed: Observed) -> None:
    aggregates.observe(observed("pruned", streamed=False, itl_s=(), output_tokens=None))
    counts = {name: sums.count for name, sums in aggregates.arms["pruned"].sums.items()}
    assert counts == {"ttft_ms": 0, "itl_ms": 0, "e2e_ms": 1, "tokens_per_s": 0, "output_tokens": 0}


def test_a_request_weighs_by_the_split_it_was_drawn_by(aggregates: Aggregates, observed: Observed) -> None:
    """Not by the one it ended under."""
    aggregates.asked(1, "pruned", "")
    aggregates.split_changed({"dense": 1.0, "pruned": 1.0})
    aggregates.observe(observed("pruned", sequence=1))
    assert aggregates.arms["pruned"].sums["e2e_ms"].size == pytest.approx(10)
    aggregates.observe(observed("pruned"))
    assert aggregates.arms["pruned"].sums["e2e_ms"].size == pytest.approx(12)
    assert aggregates.split_changes == 1
    aggregates.split_changed({"dense": 1.0, "pruned": 1.0})
    assert aggregates.split_changes == 1


def test_an_arm_without_weight_has_no_requests_of_the_experiment(observed: Observed) -> None:
    aggregates = Aggregates("dense", {"dense": 1.0, "pruned": 0.0}, LEVELS)
    aggregates.observe(observed("pruned"))
    aggregates.observe(observed("dense"))
    assert aggregates.arms["pruned"].requests == 0
    assert aggregates.arms["dense"].requests == 1
    assert aggregates.ratios["pruned"].clients == 0


def test_a_client_is_counted_once_for_the_split(aggregates: Aggregates, observed: Observed) -> None:
    for _ in range(5):
        aggregates.observe(observed("pruned", key_hash="ab" * 8, reason="sticky"))
    aggregates.observe(observed("dense", key_hash="cd" * 8, reason="sticky"))
    aggregates.observe(observed("dense"))
    aggregates.observe(observed("dense"))
    ratio = aggregates.ratios["pruned"]
    assert (ratio.arm_clients, ratio.clients) == (1, 4)
    assert aggregates.arms["pruned"].requests == 5


def test_a_shadow_is_compared_whichever_arm_was_the_primary(aggregates: Aggregates, compared: Compared) -> None:
    aggregates.observe(compared(0.5, logprob_difference_nats=-0.2))
    aggregates.observe(compared(0.7, primary_arm="pruned", shadow_arm="dense", logprob_difference_nats=-0.4))
    aggregates.observe(compared(None, error="timeout"))
    shadow = aggregates.shadows["pruned"]
    assert shadow.agreement[0.05].mean == pytest.approx(0.6)
    assert shadow.errors == 1
    # Of the control's tokens only: of the pruned arm's it is another quantity.
    assert (shadow.logprobs.count, shadow.logprobs.ratio) == (1, pytest.approx(-0.2))


def test_it_stays_small_whatever_comes(aggregates: Aggregates, observed: Observed) -> None:
    rng = np.random.default_rng(15)

    def come(count: int, start: int) -> int:
        for place in range(start, start + count):
            aggregates.observe(
                observed(
                    "pruned" if place % 10 == 0 else "dense",
                    key_hash=f"{rng.integers(2**63):016x}",
                    finish_reason=f"made_up_{place}",
                    ttft_s=float(rng.lognormal(0, 3)),
                )
            )
        return len(json.dumps(aggregates.state()))

    come(2000, 0)
    once = come(1000, 2000)
    assert come(3000, 3000) < 1.15 * once
    assert aggregates.arms["dense"].finish_reasons.keys() == {"other"}


def test_state_comes_back_and_goes_on_alike(aggregates: Aggregates, observed: Observed, compared: Compared) -> None:
    for place in range(150):
        aggregates.observe(observed("pruned" if place % 3 else "dense", ttft_s=0.1 + place / 1e3))
        aggregates.observe(compared(0.5))
    aggregates.split_changed({"dense": 1.0, "pruned": 1.0})
    state = json.loads(json.dumps(aggregates.state()))
    again = Aggregates.restored(state, "dense", {"dense": 1.0, "pruned": 1.0}, LEVELS, [("ttft_ms", 150.0)])
    for one in (aggregates, again):
        one.observe(observed("pruned", time=2e9))
    assert again.state() == aggregates.state()


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
    aggregates: Aggregates,
    control: str,
    weights: dict[str, float],
    levels: tuple[float, ...],
    thresholds: list[tuple[str, float]],
) -> None:
    with pytest.raises(ValueError, match=r"figures kept are of|made for alpha"):
        Aggregates.restored(aggregates.state(), control, weights, levels, thresholds)


def test_requests_count_in_the_order_in_which_they_were_asked(aggregates: Aggregates, observed: Observed) -> None:
    for sequence, arm in enumerate(("dense", "pruned", "pruned")):
        aggregates.asked(sequence, arm, "")
    assert aggregates.ratios["pruned"].clients == 3  # when they are asked
    aggregates.observe(observed("pruned", sequence=2))
    aggregates.observe(observed("pruned", sequence=1, outcome="timeout"))
    assert [arm.requests for arm in aggregates.arms.values()] == [0, 0]
    assert [(arm.ended, arm.in_flight) for arm in aggregates.arms.values()] == [(0, 1), (2, 0)]
    assert aggregates.observe(observed("dense", sequence=0)) == {"dense", "pruned"}
    assert [arm.requests for arm in aggregates.arms.values()] == [1, 2]
    assert (aggregates.arms["pruned"].errors.successes, aggregates.arms["pruned"].errors.trials) == (1, 2)
    assert aggregates.ratios["pruned"].clients == 3


def test_a_request_that_is_lost_holds_up_nothing(aggregates: Aggregates, observed: Observed) -> None:
    aggregates.asked(0, "dense", "")
    aggregates.asked(1, "pruned", "")
    aggregates.observe(observed("pruned", sequence=1))
    aggregates.lost(0)
    aggregates.lost(0)
    assert [(arm.requests, arm.in_flight) for arm in aggregates.arms.values()] == [(0, 0), (1, 0)]


def test_what_was_asked_before_a_reset_is_not_counted(aggregates: Aggregates, observed: Observed) -> None:
    aggregates.observe(observed("pruned", sequence=77))
    assert (aggregates.not_counted, aggregates.arms["pruned"].requests) == (1, 0)


def test_requests_in_flight_are_taken_either_way(aggregates: Aggregates, observed: Observed) -> None:
    arm = aggregates.arms["pruned"]
    for sequence in range(10):
        aggregates.asked(sequence, "pruned", "")
    aggregates.observe(observed("pruned", sequence=9, outcome="timeout", ttft_s=None))
    aggregates.observe(observed("pruned", sequence=8, ttft_s=0.2))
    fewest, most = arm.fewest_and_most_errors()
    assert [(share.successes, share.trials) for share in (fewest, most)] == [(1, 10), (9, 10)]
    fewest, most = arm.fewest_and_most_above(("ttft_ms", 150.0))
    assert [(share.successes, share.trials) for share in (fewest, most)] == [(1, 9), (9, 9)]


def test_comparisons_count_in_the_order_of_their_requests(
    aggregates: Aggregates, observed: Observed, compared: Compared
) -> None:
    """One that is not mirrored holds up nothing once it has ended."""
    agreement = aggregates.shadows["pruned"].agreement[0.05]
    for sequence in range(3):
        aggregates.asked(sequence, "dense", "")
    aggregates.mirrored(0)
    aggregates.mirrored(2)
    for sequence in (2, 0):
        aggregates.observe(observed("dense", sequence=sequence))
    aggregates.observe(compared(0.9, sequence=2))
    aggregates.observe(compared(0.5, sequence=0))
    assert agreement.mean == pytest.approx(0.5)
    aggregates.observe(observed("dense", sequence=1))
    assert (agreement.count, agreement.mean) == (2, pytest.approx(0.7))


def test_a_restart_loses_what_waited_and_what_was_in_flight(aggregates: Aggregates, observed: Observed) -> None:
    """In both arms alike: what is left is all that was asked up to some moment."""
    for sequence, arm in enumerate(("pruned", "dense", "pruned")):
        aggregates.asked(sequence, arm, "")
    for sequence, outcome in ((0, "ok"), (2, "timeout")):
        aggregates.observe(observed("pruned", sequence=sequence, outcome=outcome))
    again = Aggregates.restored(aggregates.state(), "dense", WEIGHTS, LEVELS, [("ttft_ms", 150.0)])
    pruned = again.arms["pruned"]
    assert (pruned.requests, pruned.ended, pruned.in_flight) == (1, 1, 0)
    assert pruned.fewest_and_most_errors()[0].successes == 0
    again.observe(observed("dense"))
    assert again.arms["dense"].requests == 1


def test_a_state_of_an_older_release_is_read(aggregates: Aggregates, observed: Observed, compared: Compared) -> None:
    """It had no weighted sums of clients that gave up, and added log-probabilities that are not finite."""
    for _ in range(5):
        aggregates.observe(observed("pruned", outcome="client_gone"))
        aggregates.observe(compared(0.5, logprob_difference_nats=-0.1))
    state = aggregates.state()
    for arm in state["arms"].values():
        del arm["weighted_gave_up"]
    state["shadows"]["pruned"]["logprobs"] |= {"y": float("-inf"), "yy": float("inf")}
    state = json.loads(json.dumps(state))
    again = Aggregates.restored(state, "dense", WEIGHTS, LEVELS, [("ttft_ms", 150.0)])
    assert (again.arms["pruned"].gave_up.successes, again.arms["pruned"].weighted_gave_up.count) == (5, 0)
    assert (again.shadows["pruned"].comparisons, again.shadows["pruned"].logprobs.count) == (5, 0)
