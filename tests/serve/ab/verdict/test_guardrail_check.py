"""An arm that breaks a guardrail loses its weight; one that does not keeps it, however long it is looked at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from serve.ab.verdict.collector import EventCollector
from serve.ab.verdict.event import Event, ShadowComparison
from serve.ab.verdict.guardrail_check import bounds_of, level, standing, thresholds, value_of
from serve.ab.verdict.guardrail_rule import parse_guardrail

WEIGHTS = {"dense": 50.0, "pruned": 50.0}
Observed = Callable[..., Event]
Compared = Callable[..., ShadowComparison]


class Drained:
    """In place of the experiment: its weights, and what was asked of it."""

    def __init__(self) -> None:
        self.weights = dict(WEIGHTS)
        self.asked: list[tuple[str, str]] = []

    def __call__(self, arm: str, reason: str) -> bool:
        self.asked.append((arm, reason))
        had = self.weights[arm] > 0
        self.weights[arm] = 0.0
        return had


def collector(*guardrails: str, drain: Drained | None = None) -> EventCollector:
    return EventCollector("trial", "dense", WEIGHTS, guardrails=guardrails, drain=drain or Drained())


@pytest.mark.parametrize(
    ("guardrail", "good", "bad"),
    [
        ("error_rate<10%", {"outcome": "ok"}, {"outcome": "upstream_error", "status": 500}),
        ("ttft_ms<1.2x", {"ttft_s": 0.1}, {"ttft_s": 0.2}),
        ("ttft_ms<150", {"ttft_s": 0.1}, {"ttft_s": 0.2}),
        ("tokens_per_s>0.8x", {"output_tokens": 20}, {"output_tokens": 10}),
        ("output_tokens<30", {"output_tokens": 20}, {"output_tokens": 40}),
        ("itl_ms<1.5x", {}, {"itl_s": (0.03,) * 19}),
        ("ttft_p90_ms<150", {"ttft_s": 0.1}, {"ttft_s": 0.2}),
    ],
)
def test_it_breaks_where_it_should_and_holds_where_it_should(
    observed: Observed, guardrail: str, good: dict[str, object], bad: dict[str, object]
) -> None:
    rng = np.random.default_rng(16)
    for fields, wanted in ((good, "holds"), (bad, "broken")):
        drain = Drained()
        one = collector(guardrail, drain=drain)
        for place in range(600):
            slow = float(rng.uniform(0.95, 1.05))
            common = {"e2e_s": 0.3 * slow, "key_hash": f"{rng.integers(2**63):016x}"}
            mine = place % 2 == 0
            one.observe(observed("pruned" if mine else "dense", **common, **(fields if mine else good)))
        figure = one.verdict().comparisons[0].guardrails[0]
        assert figure.standing == wanted
        assert [arm for arm, _ in drain.asked] == (["pruned"] if wanted == "broken" else [])
        assert figure.drained == (wanted == "broken")


def test_agreement_that_is_too_low_drains(compared: Compared) -> None:
    drain = Drained()
    one = collector("agreement>0.6", drain=drain)
    for _ in range(400):
        one.observe(compared(0.4))
    assert drain.asked == [("pruned", drain.asked[0][1])]
    assert "guardrail agreement>0.6 is broken: it is 0.4" in drain.asked[0][1]


@pytest.mark.parametrize(("difference", "wanted"), [(-0.05, "holds"), (-0.3, "broken")])
def test_log_probabilities_that_are_too_low_drain(compared: Compared, difference: float, wanted: str) -> None:
    drain = Drained()
    one = collector("logprob_difference_nats>-0.1", drain=drain)
    rng = np.random.default_rng(20)
    for value in rng.normal(difference, 0.05, 400):
        one.observe(compared(0.5, logprob_difference_nats=float(value)))
    figure = one.verdict().comparisons[0].guardrails[0]
    assert (figure.standing, bool(drain.asked)) == (wanted, wanted == "broken")
    assert figure.value == pytest.approx(difference, abs=0.02)
    assert figure.interval is not None


@pytest.mark.parametrize(("rate", "wanted"), [(0.05, "holds"), (0.4, "broken")])
def test_more_errors_than_the_control_drain(observed: Observed, rate: float, wanted: str) -> None:
    """It is the difference that counts: a bound of its own would blame both arms for an outage of what they share."""
    drain = Drained()
    one = collector("error_rate<1.5x", drain=drain)
    rng = np.random.default_rng(21)
    for place, draw in enumerate(rng.random(3000)):
        arm, errors = ("pruned", rate) if place % 2 else ("dense", 0.1)
        failed = "timeout" if draw < errors else "ok"
        key = f"{rng.integers(2**63):016x}"
        one.observe(observed(arm, outcome=failed, streamed=False, itl_s=(), key_hash=key))
    figure = one.verdict().comparisons[0].guardrails[0]
    assert (figure.standing, bool(drain.asked)) == (wanted, wanted == "broken")
    assert figure.interval is not None
    assert figure.interval.low < rate / 0.1 < (figure.interval.high or np.inf)  # type: ignore[operator]


def test_more_errors_than_a_control_that_has_none(observed: Observed) -> None:
    drain = Drained()
    one = collector("error_rate<2x", drain=drain)
    for place in range(600):
        one.observe(observed("dense"))
        one.observe(observed("pruned", outcome="timeout" if place % 3 else "ok"))
    assert "it is beyond any multiple of none" in drain.asked[0][1]
    assert one.verdict().comparisons[0].guardrails[0].value is None


def test_arms_with_equal_errors_are_drained_less_often_than_alpha(observed: Observed) -> None:
    """In the middle of an outage of what both share the split goes from 1 in 20 to 1 in 2: more of the arm's requests
    fall into it, and none of that is the arm's doing.
    """
    rng = np.random.default_rng(22)
    drained = blamed = 0
    for _ in range(12):
        drain = Drained()
        one = collector("error_rate<1.2x", drain=drain)
        one.split_changed({"dense": 95.0, "pruned": 5.0})
        for place, (draw, error) in enumerate(rng.random((1600, 2))):
            later = place >= 1000
            if place == 1000:
                one.split_changed(WEIGHTS)
            arm = "pruned" if draw < (0.5 if later else 0.05) else "dense"
            failed = "timeout" if error < (0.3 if later else 0.01) else "ok"
            at = 9000.0 if later else 1000.0
            one.observe(observed(arm, outcome=failed, time=at, streamed=False, itl_s=()))
        drained += bool(drain.asked)
        mine, control = (
            one.aggregates.arms[name].errors.bounds(one.guardrail_check.alpha / 2) for name in ("pruned", "dense")
        )
        blamed += mine[0] > 1.2 * control[1]
    assert drained == 0
    assert blamed >= 6  # by plain shares


def test_an_arm_at_its_bound_is_drained_less_often_than_alpha(observed: Observed) -> None:
    """A look after every request; errors exactly as often as is just allowed."""
    rng = np.random.default_rng(17)
    drained = 0
    for _ in range(60):
        drain = Drained()
        one = collector("error_rate<5%", drain=drain)
        for error in rng.random(250) < 0.05:
            one.observe(observed("pruned", outcome="timeout" if error else "ok", streamed=False, itl_s=()))
        drained += bool(drain.asked)
    assert drained <= 0.05 * 60


def test_it_is_done_once_and_an_operator_may_overrule(observed: Observed) -> None:
    drain = Drained()
    one = collector("error_rate<1%", drain=drain)

    def fail(count: int) -> None:
        for _ in range(count):
            one.observe(observed("pruned", outcome="timeout"))

    fail(50)
    assert len(drain.asked) == 1
    assert drain.weights["pruned"] == 0.0
    drain.weights["pruned"] = 5.0
    fail(50)
    assert len(drain.asked) == 1
    assert drain.weights["pruned"] == 5.0
    assert one.verdict().comparisons[0].guardrails[0].standing == "broken"
    one.reset()
    assert one.verdict().comparisons[0].guardrails[0].standing == "undecided"
    fail(50)
    assert len(drain.asked) == 2


def test_an_arm_without_weight_is_drained_when_it_is_given_some(compared: Compared) -> None:
    """Mirrored first, and not good enough: the split that comes next is taken back at once."""
    drain = Drained()
    drain.weights["pruned"] = 0.0
    one = collector("agreement>0.9", drain=drain)
    for _ in range(200):
        one.observe(compared(0.3))
    assert not one.guardrail_check.breaks[0].drained
    drain.weights["pruned"] = 5.0
    one.observe(compared(0.3))
    assert one.guardrail_check.breaks[0].drained
    assert len(one.guardrail_check.breaks) == 1


def test_a_drain_that_fails_is_tried_again(observed: Observed) -> None:
    failures = [OSError("disk full"), OSError("disk full")]

    def drain(arm: str, reason: str) -> bool:
        if failures:
            raise failures.pop()
        return True

    one = EventCollector("trial", "dense", WEIGHTS, guardrails=["error_rate<1%"], drain=drain)
    failed = 0
    for _ in range(60):
        try:
            one.observe(observed("pruned", outcome="timeout"))
        except OSError:
            failed += 1
    assert failed == 2
    assert one.guardrail_check.breaks[0].drained


def test_the_control_is_never_drained(observed: Observed) -> None:
    drain = Drained()
    one = collector("error_rate<1%", drain=drain)
    for _ in range(100):
        one.observe(observed("dense", outcome="timeout"))
    assert drain.asked == []


def test_guardrails_of_mirrored_requests_are_idle_while_nothing_is_mirrored() -> None:
    one = collector("error_rate<1%", "agreement>0.6", "logprob_difference_nats>-1")
    assert [said.partition(" cannot act")[0] for said in one.idle(0.0)] == [
        "guardrail agreement>0.6",
        "guardrail logprob_difference_nats>-1",
    ]
    assert one.idle(0.1) == []


def test_several_guardrails_share_the_level() -> None:
    guardrails = [parse_guardrail(text) for text in ("error_rate<1%", "agreement>0.6", "e2e_p90_ms<100")]
    assert level(0.06, guardrails, 2) == pytest.approx(0.01)
    assert level(0.05, [], 1) == 0.05
    assert thresholds(guardrails) == [("e2e_ms", 100.0)]


def test_before_anything_came_it_is_undecided() -> None:
    one = collector(
        *("error_rate<1%", "error_rate<2x", "agreement>0.6", "logprob_difference_nats>-1", "ttft_ms<1.2x"),
        *("ttft_ms<90", "ttft_p90_ms<90"),
    )
    for guardrail in one.rules:
        assert standing(guardrail, "pruned", one.aggregates, one.guardrail_check.alpha) == "undecided"
        assert bounds_of(guardrail, "pruned", one.aggregates, one.guardrail_check.alpha) is None
        assert value_of(guardrail, "pruned", one.aggregates, one.guardrail_check.alpha) is None


def test_errors_that_come_before_the_answers_do_not_drain(observed: Observed) -> None:
    """3 of 100 fail, at once: among what has ended they are all there is."""
    drain = Drained()
    one = collector("error_rate<5%", drain=drain)
    for sequence in range(100):
        one.asked(sequence, "pruned", "")
    for sequence in (97, 98, 99):
        one.observe(observed("pruned", sequence=sequence, outcome="upstream_error", status=500))
    assert drain.asked == []
    assert one.verdict().comparisons[0].guardrails[0].value == pytest.approx(0.03)
    for sequence in range(97):
        one.observe(observed("pruned", sequence=sequence))
    assert drain.asked == []


def test_an_arm_that_fails_is_drained_while_the_other_one_answers_slowly(observed: Observed) -> None:
    drain = Drained()
    one = collector("error_rate<5%", "e2e_p90_ms<100", drain=drain)
    one.asked(0, "dense", "")
    for sequence in range(1, 30):
        one.asked(sequence, "pruned", "")
        one.observe(observed("pruned", sequence=sequence, outcome="timeout"))
    assert [arm for arm, _ in drain.asked] == ["pruned"]
    assert "error_rate<5% is broken: it is 1 after" in drain.asked[0][1]
    assert one.aggregates.arms["pruned"].requests == 0  # they wait for the control's


def test_a_percentile_is_broken_before_its_values_are_counted(observed: Observed) -> None:
    drain = Drained()
    one = collector("e2e_p90_ms<100", drain=drain)
    one.asked(0, "dense", "")
    for sequence in range(1, 30):
        one.asked(sequence, "pruned", "")
        one.observe(observed("pruned", sequence=sequence))
    assert "e2e_p90_ms<100 is broken: it is beyond 100 after" in drain.asked[0][1]
